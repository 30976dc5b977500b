//! The command that a service runs: found, named, and filled in for a slot.

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use thiserror::Error;

use super::wrapper::Wrapped;
use crate::codes::{NOT_EXECUTABLE, NOT_FOUND, USAGE};
use crate::sys::reason;

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// As the user wrote it: `argv[0]`.
    words: Vec<OsString>,
    lookup: Lookup,
}

/// From where a program is looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lookup {
    /// The working directory; `None` is ours.
    pub cwd: Option<PathBuf>,
    /// PATH; `None` is ours.
    pub path: Option<OsString>,
}

/// Why a command cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    #[error("the command is empty")]
    Empty,
    #[error("an argument contains a NUL byte")]
    NulByte,
    #[error("command not found: {program}")]
    NotFound { program: String, advice: Option<Advice> },
    #[error("cannot execute {program}: {reason}")]
    NotExecutable { program: String, reason: String, advice: Option<Advice> },
}

impl CommandError {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Empty | Self::NulByte => USAGE,
            Self::NotFound { .. } => NOT_FOUND,
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
        }
    }
}

/// What was probably meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advice {
    Command(Vec<String>),
    /// These words, without quotes around them, and `NAME=VALUE` pairs that stood before them.
    Unquoted {
        variables: Vec<String>,
        words: Vec<String>,
    },
    /// `NAME=VALUE` is a variable.
    Variable(String),
    /// The file needs the right to be executed.
    Chmod(String),
}

/// Programs that run a script: the script names the service.
const INTERPRETERS: [&str; 14] = [
    "node", "nodejs", "bun", "deno", "python", "python3", "ruby", "php", "java", "perl", "sh", "bash", "tsx", "uvicorn",
];

/// What runs a file that cannot run by itself.
const RUNNERS: [(&str, &str); 8] = [
    ("js", "node"),
    ("mjs", "node"),
    ("cjs", "node"),
    ("ts", "tsx"),
    ("py", "python3"),
    ("rb", "ruby"),
    ("php", "php"),
    ("jar", "java -jar"),
];

impl CommandLine {
    /// Takes the words behind `--` and looks whether the program can be run.
    ///
    /// # Errors
    /// When there is none, or it cannot be executed, with advice where one fits.
    pub fn find(words: &[OsString], lookup: Lookup) -> Result<Self, CommandError> {
        let command = Self { words: words.to_vec(), lookup };
        let program = command.words.first().filter(|word| !word.is_empty()).ok_or(CommandError::Empty)?;
        if words.iter().any(|word| word.as_bytes().contains(&0)) {
            return Err(CommandError::NulByte);
        }
        locate(program, &command.lookup)?;
        Ok(command)
    }

    /// The program, looked up anew (a `current` symlink may have moved).
    ///
    /// # Errors
    /// As [`CommandLine::find`].
    pub fn program(&self) -> Result<PathBuf, CommandError> {
        locate(self.arg0(), &self.lookup)
    }

    /// What runs in the end, where wrappers (env, gosu, setpriv) stand before it, and its file; `None` without one, or
    /// where its program is not found here.
    pub fn wrapped(&self) -> Option<(Wrapped, PathBuf)> {
        let wrapped = Wrapped::of(&self.words)?;
        let program = locate(&wrapped.program, &self.lookup).ok()?;
        Some((wrapped, program))
    }

    /// The wrapper, and the program that it is to start, where that one is not found here: it may look elsewhere.
    pub fn not_found_behind(&self) -> Option<(String, String)> {
        let wrapped = Wrapped::of(&self.words)?;
        locate(&wrapped.program, &self.lookup).err()?;
        Some((wrapped.by, wrapped.program.to_string_lossy().into_owned()))
    }

    /// The program that runs in the end.
    ///
    /// # Errors
    /// As [`CommandLine::find`].
    pub fn last_program(&self) -> Result<PathBuf, CommandError> {
        self.wrapped().map_or_else(|| self.program(), |(_, program)| Ok(program))
    }

    /// The name that a service gets from its command.
    pub fn name(&self) -> String {
        let base = |word: &OsString| Path::new(word).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let program = self.words.first().map(base).unwrap_or_default();
        let unversioned = program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        let interpreter = INTERPRETERS.contains(&unversioned) || INTERPRETERS.contains(&program.as_str());
        let name = self.script().filter(|_| interpreter).unwrap_or(program);
        let safe: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
            .take(64)
            .collect();
        let safe = safe.trim_start_matches('.');
        if safe.is_empty() { "service".to_owned() } else { safe.to_owned() }
    }

    /// The stem of the first argument that is no flag, or the module behind `-m`; nothing for program text (`-c`,
    /// `-e`).
    fn script(&self) -> Option<String> {
        let at = self.words.iter().skip(1).position(|word| !word.as_bytes().starts_with(b"-"))? + 1;
        let (flag, word) = (self.words[at - 1].to_str().unwrap_or_default(), Path::new(&self.words[at]));
        match flag {
            "-c" | "-e" | "-lc" | "--eval" => None,
            "-m" => Some(word.to_string_lossy().into_owned()),
            _ => Some(word.file_stem()?.to_string_lossy().into_owned()),
        }
    }

    /// As the user wrote it.
    pub fn words(&self) -> &[OsString] {
        &self.words
    }

    /// `argv[0]`.
    pub fn arg0(&self) -> &OsStr {
        self.words.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// The arguments for one slot: `{port}`, `{host}`, `{slot}` filled in where there is an address; `{{port}}`
    /// stands for the text `{port}`.
    pub fn arguments(&self, slot: u32, address: Option<SocketAddr>) -> Vec<OsString> {
        let mut places = vec![("slot", slot.to_string())];
        if let Some(address) = address {
            places.push(("port", address.port().to_string()));
            places.push(("host", address.ip().to_string()));
        }
        self.words.iter().skip(1).map(|word| fill(word, &places)).collect()
    }
}

impl std::fmt::Display for CommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = self.words.iter().map(|word| word.to_string_lossy()).collect();
        f.write_str(&words.join(" "))
    }
}

fn fill(word: &OsStr, places: &[(&str, String)]) -> OsString {
    let (bytes, mut out, mut at) = (word.as_bytes(), Vec::new(), 0);
    'next: while at < bytes.len() {
        if bytes[at] == b'{' {
            for (name, value) in places {
                let escaped = format!("{{{{{name}}}}}");
                let plain = format!("{{{name}}}");
                if bytes[at..].starts_with(escaped.as_bytes()) {
                    out.extend_from_slice(plain.as_bytes());
                    at += escaped.len();
                    continue 'next;
                }
                if bytes[at..].starts_with(plain.as_bytes()) {
                    out.extend_from_slice(value.as_bytes());
                    at += plain.len();
                    continue 'next;
                }
            }
        }
        out.push(bytes[at]);
        at += 1;
    }
    OsString::from_vec(out)
}

/// As execvp(3) would find it.
fn locate(program: &OsStr, lookup: &Lookup) -> Result<PathBuf, CommandError> {
    let here = |file: &Path| lookup.cwd.as_ref().map_or_else(|| file.to_owned(), |cwd| cwd.join(file));
    if program.as_bytes().contains(&b'/') {
        return executable(&here(Path::new(program)));
    }
    let path = lookup.path.clone().or_else(|| std::env::var_os("PATH"));
    let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut refused = None;
    for directory in std::env::split_paths(&path) {
        let file = here(&directory.join(program));
        match executable(&file) {
            Ok(file) => return Ok(file),
            Err(error @ CommandError::NotExecutable { .. }) if file.is_file() => refused = Some(error),
            Err(_) => {}
        }
    }
    let name = program.to_string_lossy().into_owned();
    Err(refused.unwrap_or_else(|| {
        let advice = if here(Path::new(program)).is_file() {
            Some(with_runner(program).unwrap_or_else(|| Advice::Command(vec![format!("./{name}")])))
        } else if name.contains(char::is_whitespace) {
            let all = name.split_whitespace().map(str::to_owned);
            let (variables, words) = all.partition(|word| is_assignment(word));
            Some(Advice::Unquoted { variables, words })
        } else if is_assignment(&name) {
            Some(Advice::Variable(name.clone()))
        } else {
            with_runner(program)
        };
        CommandError::NotFound { program: name, advice }
    }))
}

/// `NODE_ENV=production`, as a shell has it before a command.
fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn executable(file: &Path) -> Result<PathBuf, CommandError> {
    let program = file.display().to_string();
    let refused = |reason: String, advice| CommandError::NotExecutable { program: program.clone(), reason, advice };
    match std::fs::metadata(file) {
        Ok(meta) if meta.is_dir() => Err(refused("it is a directory".to_owned(), None)),
        Ok(_) if access(file, AccessFlags::X_OK).is_ok() => Ok(file.to_owned()),
        Ok(_) => {
            let advice = with_runner(file.as_os_str()).unwrap_or_else(|| Advice::Chmod(program.clone()));
            Err(refused("permission denied".to_owned(), Some(advice)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(CommandError::NotFound { program, advice: None })
        }
        Err(error) => Err(refused(reason(&error), None)),
    }
}

/// What runs a file that cannot run by itself, by its extension: `node` for `app.js`.
pub fn runner(file: &str) -> Option<&'static str> {
    let extension = Path::new(file).extension()?.to_str()?;
    RUNNERS.iter().find(|(known, _)| *known == extension).map(|(_, runner)| *runner)
}

fn with_runner(file: &OsStr) -> Option<Advice> {
    let file = file.to_string_lossy();
    let words = runner(&file)?.split(' ').map(str::to_owned);
    Some(Advice::Command(words.chain([file.into_owned()]).collect()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> CommandLine {
        CommandLine { words: words.iter().map(OsString::from).collect(), lookup: Lookup::default() }
    }

    #[test]
    fn arguments_are_filled_in_and_the_rest_is_left_alone() {
        let address: SocketAddr = "127.0.0.1:61000".parse().unwrap();
        let command =
            line(&["x", "--port={port}", "{host}:{port}", "{slot}", "{{port}}", r#"{"a":{"b":1}}"#, "{", "{{", ""]);
        let wanted = ["--port=61000", "127.0.0.1:61000", "2", "{port}", r#"{"a":{"b":1}}"#, "{", "{{", ""];
        assert_eq!(command.arguments(2, Some(address)), wanted.map(OsString::from));
        assert_eq!(line(&["x", "{port}"]).arguments(0, None), ["{port}"].map(OsString::from));
    }

    #[test]
    fn a_service_is_named_after_the_script_behind_an_interpreter_or_the_command() {
        for (words, name) in [
            (&["node", "--inspect", "dir/app.js"][..], "app"),
            (&["python3.11", "-u", "serve.py"], "serve"),
            (&["/usr/sbin/nginx", "-g", "daemon off;"], "nginx"),
            (&["./my server"], "my-server"),
            (&["node"], "node"),
            (&["sh", "-c", "cd /srv; ./run"], "sh"),
            (&["python3", "-m", "http.server", "80"], "http.server"),
        ] {
            assert_eq!(line(words).name(), name, "{words:?}");
        }
    }

    #[test]
    fn what_cannot_run_is_told_apart() {
        let find = |word: &str| CommandLine::find(&[word.into()], Lookup::default()).map(drop);
        let not_found = |word: &str, advice| Err(CommandError::NotFound { program: word.to_owned(), advice });
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(find("sh"), Ok(()));
        assert_eq!(find("no-such-thing"), not_found("no-such-thing", None));
        assert_eq!(find("/no/such/thing"), not_found("/no/such/thing", None));
        assert!(matches!(find("/etc/passwd"), Err(CommandError::NotExecutable { advice: Some(Advice::Chmod(_)), .. })));
        assert!(matches!(find("/etc"), Err(CommandError::NotExecutable { advice: None, .. })));
        assert_eq!(find("app.js"), not_found("app.js", Some(Advice::Command(words(&["node", "app.js"])))));
        let advice = Advice::Unquoted { variables: words(&["A=1"]), words: words(&["node", "x"]) };
        assert_eq!(find("A=1 node x"), not_found("A=1 node x", Some(advice)));
        assert_eq!(find("A=1"), not_found("A=1", Some(Advice::Variable("A=1".to_owned()))));
    }
}
