//! Commands that change a process (its user, environment or limits) and then run another command: which one that is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Wrappers around wrappers that are followed.
const DEPTH: usize = 8;
/// Characters with a meaning to a shell: a command line with one of them is the shell's to read.
const OF_SHELLS: &[u8] = b"|&;<>()$`\"'*?[]{}~#\n\\=";

/// How a wrapper's words are read up to the command.
struct Grammar {
    /// Letters of options that take a value.
    valued: &'static str,
    /// Long options whose value may be the next word.
    long: &'static [&'static str],
    /// Words before the command that are no options.
    words: usize,
    /// `NAME=VALUE` words come before the command.
    assigns: bool,
}

const PLAIN: Grammar = Grammar { valued: "", long: &[], words: 0, assigns: false };

/// The wrappers that run the command as it is.
const WRAPPERS: [(&str, Grammar); 17] = [
    ("gosu", Grammar { words: 1, ..PLAIN }),
    ("su-exec", Grammar { words: 1, ..PLAIN }),
    ("setuidgid", Grammar { words: 1, ..PLAIN }),
    ("s6-setuidgid", Grammar { words: 1, ..PLAIN }),
    ("chpst", Grammar { valued: "uUbe/nlLmdopfcrtaC", ..PLAIN }),
    (
        "setpriv",
        Grammar {
            long: &[
                "ambient-caps",
                "inh-caps",
                "bounding-set",
                "ruid",
                "euid",
                "rgid",
                "egid",
                "reuid",
                "regid",
                "groups",
                "securebits",
                "pdeathsig",
                "ptracer",
                "selinux-label",
                "apparmor-profile",
                "landlock-access",
                "landlock-rule",
                "seccomp-filter",
            ],
            ..PLAIN
        },
    ),
    ("env", Grammar { valued: "uC", long: &["unset", "chdir"], words: 0, assigns: true }),
    ("nice", Grammar { valued: "n", long: &["adjustment"], ..PLAIN }),
    ("ionice", Grammar { valued: "cn", long: &["class", "classdata"], ..PLAIN }),
    ("stdbuf", Grammar { valued: "ioe", long: &["input", "output", "error"], ..PLAIN }),
    ("taskset", Grammar { words: 1, ..PLAIN }),
    ("nohup", PLAIN),
    ("timeout", Grammar { valued: "ks", long: &["kill-after", "signal"], words: 1, assigns: false }),
    ("tini", Grammar { valued: "ep", ..PLAIN }),
    ("dumb-init", Grammar { valued: "r", long: &["rewrite"], ..PLAIN }),
    (
        "unshare",
        Grammar {
            valued: "SGRw",
            long: &[
                "setuid",
                "setgid",
                "root",
                "wd",
                "propagation",
                "setgroups",
                "map-user",
                "map-users",
                "map-group",
                "map-groups",
                "monotonic",
                "boottime",
            ],
            ..PLAIN
        },
    ),
    ("sudo", Grammar { valued: "CDghpRrTtUu", long: &["user", "group", "chdir"], words: 0, assigns: true }),
];

/// Options of su and runuser that take a value.
const OF_SU: Grammar = Grammar {
    valued: "cgGsuwT",
    long: &["command", "session-command", "group", "supp-group", "shell", "user", "whitelist-environment"],
    ..PLAIN
};

/// A command behind wrappers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrapped {
    /// The first wrapper, as it is written.
    pub by: String,
    /// The words before the command.
    before: Vec<OsString>,
    /// The program that runs in the end.
    pub program: OsString,
    /// It stands within one word, which a shell reads.
    by_shell: bool,
    /// The words after that one.
    after: Vec<OsString>,
}

impl Wrapped {
    /// The command behind the wrappers of a command line; `None` where there is none, or what runs is not known.
    pub fn of(words: &[OsString]) -> Option<Self> {
        let by = base(words.first()?)?.to_owned();
        let mut at = 0;
        for _ in 0..DEPTH {
            let Some(name) = words.get(at).and_then(|word| base(word)) else { break };
            let rest = &words[at + 1..];
            if matches!(name, "su" | "runuser")
                && let Some(found) = shell_command(name, rest)
            {
                return Some(match found {
                    Behind::Word(word) => Self {
                        by,
                        before: words[..at + 1 + word].to_vec(),
                        program: program_of(&words[at + 1 + word]),
                        by_shell: true,
                        after: words[at + 2 + word..].to_vec(),
                    },
                    Behind::Words(skip) => return Self::further(by, words, at + 1 + skip),
                });
            }
            let Some((_, grammar)) = WRAPPERS.iter().find(|(known, _)| *known == name) else { break };
            at += 1 + grammar.skip(rest)?;
        }
        (at > 0 && at < words.len()).then(|| Self::at(by, words, at))
    }

    fn at(by: String, words: &[OsString], at: usize) -> Self {
        Self { by, before: words[..at].to_vec(), program: words[at].clone(), by_shell: false, after: Vec::new() }
    }

    /// What stands there may be a wrapper in its turn.
    fn further(by: String, words: &[OsString], at: usize) -> Option<Self> {
        match Self::of(words.get(at..)?) {
            Some(inner) => Some(Self { by, before: [&words[..at], &inner.before[..]].concat(), ..inner }),
            None => (at < words.len()).then(|| Self::at(by, words, at)),
        }
    }

    /// The words before the command's program.
    pub fn words_before(&self) -> usize {
        self.before.len()
    }

    /// The first of the wrappers that wait for what they start, in place of becoming that.
    pub fn stays(&self) -> Option<&'static str> {
        let stays = ["sudo", "su", "runuser"];
        self.before.iter().find_map(|word| stays.into_iter().find(|name| base(word) == Some(name)))
    }

    /// The words that run another command in place of this one.
    pub fn with(&self, command: &[OsString]) -> Vec<OsString> {
        let mut words = self.before.clone();
        if self.by_shell {
            let mut line = OsString::from("exec");
            for word in command {
                line.push(" '");
                line.push(word);
                line.push("'");
            }
            words.push(line);
        } else {
            words.extend_from_slice(command);
        }
        words.extend_from_slice(&self.after);
        words
    }
}

enum Behind {
    /// This word is a command line.
    Word(usize),
    /// From this word on.
    Words(usize),
}

/// Where the command stands in the words behind `su` or `runuser`; `None`: a shell without one.
fn shell_command(name: &str, words: &[OsString]) -> Option<Behind> {
    let mut at = 0;
    let mut command = None;
    let mut with_user = false;
    while let Some(word) = words.get(at).map(|word| word.as_bytes()) {
        let Some(option) = Flag::of(word, &OF_SU) else {
            match word {
                b"--" if with_user => return Some(Behind::Words(at + 1)),
                _ if with_user => return Some(Behind::Words(at)),
                // `-`, the user, and the shell's arguments.
                _ => {}
            }
            at += 1;
            continue;
        };
        let is = |short: &[u8], long: &[u8]| option.name == short || option.name == long;
        if is(b"c", b"command") || is(b"c", b"session-command") {
            if !option.takes_next {
                // Not a word of its own.
                return None;
            }
            command = Some(at + 1);
        }
        with_user |= name == "runuser" && is(b"u", b"user");
        at += 1 + usize::from(option.takes_next);
    }
    command.filter(|&at| at < words.len()).map(Behind::Word)
}

struct Flag<'a> {
    name: &'a [u8],
    takes_next: bool,
}

impl<'a> Flag<'a> {
    /// An option, the last of a cluster of letters; `None` for another word.
    fn of(word: &'a [u8], grammar: &Grammar) -> Option<Self> {
        if let Some(long) = word.strip_prefix(b"--").filter(|long| !long.is_empty()) {
            let attached = long.contains(&b'=');
            let takes_next = !attached && grammar.long.iter().any(|known| known.as_bytes() == long);
            return Some(Self { name: long, takes_next });
        }
        let letters = word.strip_prefix(b"-").filter(|letters| !letters.is_empty() && *letters != b"-")?;
        let valued = letters.iter().position(|letter| grammar.valued.as_bytes().contains(letter));
        let last = valued.unwrap_or(letters.len() - 1);
        Some(Self { name: &letters[last..=last], takes_next: valued == Some(letters.len() - 1) })
    }
}

impl Grammar {
    /// The words before the command.
    fn skip(&self, words: &[OsString]) -> Option<usize> {
        let (mut at, mut left) = (0, self.words);
        loop {
            let word = words.get(at)?.as_bytes();
            if word == b"--" {
                at += 1;
                break;
            }
            if word == b"-S" || word.starts_with(b"--split-string") {
                // Words within a word.
                return None;
            }
            if let Some(option) = Flag::of(word, self) {
                at += 1 + usize::from(option.takes_next);
            } else if self.assigns && (word == b"-" || word.contains(&b'=')) {
                at += 1;
            } else {
                break;
            }
        }
        while left > 0 {
            words.get(at)?;
            (at, left) = (at + 1, left - 1);
        }
        while self.assigns && words.get(at)?.as_bytes().contains(&b'=') {
            at += 1;
        }
        words.get(at).map(|_| at)
    }
}

/// The program of a shell's command line: its first word where that is plain, else the shell itself.
fn program_of(line: &OsStr) -> OsString {
    let bytes = line.as_bytes();
    let mut words = bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let first = words.next().and_then(|word| if word == b"exec" { words.next() } else { Some(word) });
    match first {
        Some(word) if !bytes.iter().any(|byte| OF_SHELLS.contains(byte)) => OsStr::from_bytes(word).to_owned(),
        _ => "/bin/sh".into(),
    }
}

fn base(word: &OsString) -> Option<&str> {
    Path::new(word).file_name()?.to_str()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn wrapped(line: &str) -> Option<(String, String)> {
        let words: Vec<OsString> = line.split(' ').map(|word| word.replace('_', " ").into()).collect();
        let wrapped = Wrapped::of(&words)?;
        let text = |words: Vec<OsString>| words.join(OsStr::new(" ")).into_string().unwrap();
        let program = wrapped.program.clone().into_string().unwrap();
        Some((program, text(wrapped.with(&["ld".into(), "--list".into()]))))
    }

    #[test]
    fn the_command_behind_a_wrapper_is_found() {
        for (line, program, with) in [
            ("gosu redis redis-server --port 1", "redis-server", "gosu redis ld --list"),
            ("/usr/bin/su-exec 999:999 /x -u 1", "/x", "/usr/bin/su-exec 999:999 ld --list"),
            (
                "setpriv --reuid=1 --regid 2 --clear-groups -- node app.js",
                "node",
                "setpriv --reuid=1 --regid 2 --clear-groups -- ld --list",
            ),
            ("setpriv --reuid 1 --init-groups x", "x", "setpriv --reuid 1 --init-groups ld --list"),
            ("chpst -u redis -o1024 -P x -c 1", "x", "chpst -u redis -o1024 -P ld --list"),
            ("chpst -Pu redis x", "x", "chpst -Pu redis ld --list"),
            ("env -i A=1 -u B x A=1", "x", "env -i A=1 -u B ld --list"),
            ("env A=1 gosu u nice -n 5 x", "x", "env A=1 gosu u nice -n 5 ld --list"),
            ("taskset -c 0,1 x", "x", "taskset -c 0,1 ld --list"),
            ("sudo -u postgres -E A=1 x -c", "x", "sudo -u postgres -E A=1 ld --list"),
            ("runuser -u redis -- x -p 1", "x", "runuser -u redis -- ld --list"),
            ("runuser -u redis env A=1 x", "x", "runuser -u redis env A=1 ld --list"),
            ("su redis -s /bin/sh -c exec_x_-p_1", "x", "su redis -s /bin/sh -c exec 'ld' '--list'"),
            ("unshare -mUr --propagation private -w / x -c", "x", "unshare -mUr --propagation private -w / ld --list"),
            ("timeout -k 5 60 x", "x", "timeout -k 5 60 ld --list"),
            ("tini -g -- gosu u x", "x", "tini -g -- gosu u ld --list"),
            ("dumb-init -r 15:3 x", "x", "dumb-init -r 15:3 ld --list"),
            ("su -c cd_/;_x - redis", "/bin/sh", "su -c exec 'ld' '--list' - redis"),
            ("runuser redis -c x", "x", "runuser redis -c exec 'ld' '--list'"),
        ] {
            let found = wrapped(line);
            assert_eq!(found, Some((program.to_owned(), with.to_owned())), "{line}");
        }
    }

    #[test]
    fn what_is_no_wrapper_or_not_understood_stays_itself() {
        for line in
            ["node app.js", "gosu redis", "gosu", "env -S x_y", "env A=1", "su redis", "su - redis script", "su -cx u"]
        {
            assert_eq!(wrapped(line), None, "{line}");
        }
    }
}
