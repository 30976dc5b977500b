//! Scripts that are their own primary in Node's cluster: under the daemon that branch of them does not run.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::command::CommandLine;
use super::node::script;

/// So much of a script is looked at.
const LOOKED_AT: u64 = 256 * 1024;

/// Whether a command's script forks workers where it is the primary.
pub fn forks(command: &CommandLine, cwd: Option<&Path>) -> bool {
    let Some(script) = script(command) else { return false };
    let script = cwd.map_or_else(|| script.clone(), |cwd| cwd.join(&script));
    // As Node finds it.
    let with = |extension: &str| PathBuf::from(format!("{}.{extension}", script.display()));
    let places = [script.clone(), with("js"), with("mjs"), with("cjs"), script.join("index.js")];
    places.iter().find(|place| place.is_file()).is_some_and(|place| is_own_primary(&read(place)))
}

fn read(file: &Path) -> String {
    let mut bytes = Vec::new();
    // One that cannot be read says nothing; Node will say why.
    let _ = File::open(file).and_then(|open| open.take(LOOKED_AT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn is_own_primary(text: &str) -> bool {
    text.contains(".fork(") && (text.contains("isPrimary") || text.contains("isMaster"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::program::command::Lookup;

    #[test]
    fn a_script_that_forks_in_its_primary_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write("own.js", "if (cluster.isPrimary) { cluster.fork() } else { serve() }");
        write("old.js", "if (cluster.isMaster) cluster.fork();");
        write("plain.js", "require('http').createServer().listen(80)");
        write("asks.js", "if (cluster.isPrimary) console.log('alone')");
        write("late.js", &format!("{}cluster.isPrimary && cluster.fork()", " ".repeat(300 * 1024)));
        for (words, wanted) in [
            (&["node", "own.js"][..], true),
            (&["node", "--no-warnings", "own"], true),
            (&["node", "old.js"], true),
            (&["node", "plain.js"], false),
            (&["node", "asks.js"], false),
            (&["node", "late.js"], false),
            (&["node", "missing.js"], false),
            (&["sh", "own.js"], false),
        ] {
            let words: Vec<std::ffi::OsString> = words.iter().map(Into::into).collect();
            let command = CommandLine::find(&words, Lookup::default()).unwrap();
            assert_eq!(forks(&command, Some(dir.path())), wanted, "{words:?}");
        }
    }
}
