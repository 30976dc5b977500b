//! `roundsman unit`: a systemd unit for a daemon that runs, or for a configuration file.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Uid, User, geteuid};

use super::client::TIMEOUT;
use super::detach::without_detach;
use super::which::{self, unreachable};
use super::{Target, Unit};
use crate::codes::USAGE;
use crate::config::{Config, Inherited};
use crate::control::ask::ls_of;
use crate::exit::Exit;

/// What a unit starts, and how.
struct Start {
    name: String,
    words: Vec<OsString>,
    cwd: PathBuf,
    environment: Vec<(String, String)>,
    /// `None`: root.
    user: Option<String>,
    /// For a graceful stop.
    stop: Duration,
}

/// Prints a unit, with the commands that enable it.
///
/// # Errors
/// For a file with mistakes, and as [`which::one`].
pub fn print(args: &Unit) -> Result<(), Exit> {
    let start = match &args.config {
        Some(file) => of_file(file)?,
        None => of_daemon(&args.target)?,
    };
    print!("{}", text(&start, args.user));
    Ok(())
}

fn program() -> Result<OsString, Exit> {
    std::env::current_exe().map(Into::into).map_err(|error| Exit::os("cannot find this program", &error))
}

fn of_file(file: &Path) -> Result<Start, Exit> {
    let words = ["roundsman".into(), "-c".into(), file.as_os_str().to_owned()];
    let (_, given) = super::parse_words(words).map_err(|error| Exit::new(USAGE, error.to_string()))?;
    let config = Config::load(given, Inherited::None)?;
    let file = std::path::absolute(file).map_err(|error| Exit::os("cannot find the file", &error))?;
    let stop = config.services.iter().map(|(service, _)| service.limits.stop_delay + service.limits.stop_timeout).max();
    Ok(Start {
        cwd: file.parent().unwrap_or(Path::new("/")).to_owned(),
        words: vec![program()?, "-c".into(), file.into()],
        environment: path(std::env::var("PATH").ok()),
        user: user(geteuid()),
        name: config.name,
        stop: stop.unwrap_or_default(),
    })
}

fn of_daemon(target: &Target) -> Result<Start, Exit> {
    let (socket, _) = which::one(target)?;
    let daemon = ls_of(&socket, TIMEOUT).map_err(|error| unreachable(&socket, &error))?;
    let of = |name: &str| Path::new("/proc").join(daemon.pid.to_string()).join(name);
    let failed = |error| Exit::os(&format!("cannot look at pid {}", daemon.pid), &error);
    let list = |name: &str| -> Result<Vec<OsString>, Exit> {
        let bytes = std::fs::read(of(name)).map_err(failed)?;
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        Ok(bytes.split(|&byte| byte == 0).map(|word| OsString::from_vec(word.to_vec())).collect())
    };
    let variables = list("environ")?;
    let variables = variables.iter().filter_map(|entry| entry.to_str()?.split_once('='));
    let mut environment = path(variables.clone().find(|(name, _)| *name == "PATH").map(|(_, path)| path.to_owned()));
    let own = variables.filter(|(name, _)| name.starts_with("ROUNDSMAN_"));
    environment.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let words = without_detach(list("cmdline")?.into_iter().skip(1));
    let stop = daemon.services.iter().filter_map(|service| service.limits.as_ref());
    let stop = stop.map(|limits| limits.stop_delay_ms + limits.stop_timeout_ms).max().unwrap_or_default();
    let owner = std::fs::metadata(of("")).map_err(failed)?.uid();
    Ok(Start {
        name: socket.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        words: std::iter::once(program()?).chain(words).collect(),
        cwd: std::fs::read_link(of("cwd")).map_err(failed)?,
        environment,
        user: user(Uid::from_raw(owner)),
        stop: Duration::from_millis(stop),
    })
}

/// systemd's own PATH has no programs of version managers and the like.
fn path(path: Option<String>) -> Vec<(String, String)> {
    path.into_iter().map(|path| ("PATH".to_owned(), path)).collect()
}

fn user(uid: Uid) -> Option<String> {
    let name = || User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    (!uid.is_root()).then(name)
}

fn text(start: &Start, of_user: bool) -> String {
    let name = format!("roundsman-{}", start.name);
    let (save, systemctl) = match of_user {
        true => {
            let directory = "~/.config/systemd/user";
            let save = format!("mkdir -p {directory} && roundsman unit --user … | tee {directory}/{name}.service");
            (save, "systemctl --user")
        }
        false => (format!("roundsman unit … | sudo tee /etc/systemd/system/{name}.service"), "sudo systemctl"),
    };
    let mut text = format!(
        "# {save}\n# {systemctl} enable --now {name}\n#\n# Before that, end a daemon that runs: roundsman \
         quit {}\n",
        start.name
    );
    if of_user {
        text += "# To start it at boot, before you log in: loginctl enable-linger\n";
    }
    text += &format!("[Unit]\nDescription=roundsman: {}\nDocumentation=man:roundsman(1)\n", start.name);
    if !of_user {
        text += "Wants=network-online.target\nAfter=network-online.target\n";
    }
    let words: Vec<_> = start.words.iter().map(|word| quoted(&word.to_string_lossy(), "$")).collect();
    let program = words.first().cloned().unwrap_or_default();
    text += &format!(
        "\n[Service]\nType=notify\nNotifyAccess=main\nWorkingDirectory={}\nExecStart={}\nExecReload={program} reload {}\n",
        // Not a list of words: only specifiers mean something there.
        start.cwd.to_string_lossy().replace('%', "%%"),
        words.join(" "),
        start.name
    );
    for (name, value) in &start.environment {
        text += &format!("Environment={}\n", quoted(&format!("{name}={value}"), ""));
    }
    if let Some(user) = start.user.as_ref().filter(|_| !of_user) {
        text += &format!("User={user}\n");
    }
    text += &format!(
        "Restart=on-failure\nRestartSec=1\nTimeoutStartSec=90\n# More than --stop-delay and --stop-timeout together.\n\
         TimeoutStopSec={}\nKillMode=mixed\n\
         # systemd keeps the listeners when roundsman is killed: clients wait until it is back.\n\
         FileDescriptorStoreMax=512\nLimitNOFILE=65536\nOOMPolicy=continue\n",
        start.stop.as_secs() + 7
    );
    text += &format!("\n[Install]\nWantedBy={}\n", if of_user { "default.target" } else { "multi-user.target" });
    text
}

/// A word of a unit's list, with `%` and the characters `doubled` meaning themselves.
fn quoted(word: &str, doubled: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '%' => text.push_str("%%"),
            c if doubled.contains(c) => text.extend([c, c]),
            c => text.push(c),
        }
    }
    text + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_themselves_in_a_unit() {
        let of = |word: &str| quoted(word, "$");
        assert_eq!(of("--listen=8080"), "--listen=8080");
        assert_eq!(of("a b"), "\"a b\"");
        assert_eq!(of("50%$HOME\"\\\n"), "\"50%%$$HOME\\\"\\\\\\n\"");
        assert_eq!((of(""), of(";")), ("\"\"".to_owned(), "\";\"".to_owned()));
    }
}
