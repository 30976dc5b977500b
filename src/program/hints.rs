//! A word to those who run a package manager where they mean their server.

use std::path::Path;

use super::command::CommandLine;

/// Programs that start the server below themselves, and stay.
const MANAGERS: [&str; 5] = ["npm", "npx", "yarn", "pnpm", "bunx"];

/// What to write instead, where the command is a package manager's.
pub fn package_manager(command: &CommandLine, cwd: Option<&Path>) -> Option<String> {
    let words: Vec<String> = command.words().iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let manager = Path::new(words.first()?).file_name()?.to_str()?;
    if !MANAGERS.contains(&manager) {
        return None;
    }
    let rest: Vec<&str> = words.iter().skip(1).map(String::as_str).filter(|word| *word != "run").collect();
    let directory = cwd.map(Path::to_owned).or_else(|| std::env::current_dir().ok())?;
    let better = match (manager, rest.as_slice()) {
        ("npx" | "bunx", [program, ..]) => Some(format!("./node_modules/.bin/{program}")),
        (_, [script, ..]) => script_of(&directory, script),
        (_, []) => None,
    };
    let instead = better.map(|better| format!(": roundsman -- {better}")).unwrap_or_default();
    Some(format!(
        "{manager} runs itself and a shell beside every worker, and they do not always pass signals on; \
         run the server itself{instead}"
    ))
}

/// What a script of package.json runs, where that is one plain command.
fn script_of(directory: &Path, script: &str) -> Option<String> {
    let package: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.join("package.json")).ok()?).ok()?;
    let command = package.get("scripts")?.get(script)?.as_str()?;
    (!command.contains(['&', '|', ';', '$', '"', '\'', '\n'])).then(|| command.to_owned())
}
