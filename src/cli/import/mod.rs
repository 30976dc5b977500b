//! `roundsman import`: a PM2 ecosystem file becomes a configuration file that `check` accepts. What is not supported is
//! named in a comment.

mod app;
mod draft;
mod options;
mod port;
mod rules;
#[cfg(test)]
mod tests;
mod words;

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use thiserror::Error;

use crate::codes::USAGE;
use crate::exit::Exit;
use crate::sys::reason;

/// Why a file cannot be imported.
#[derive(Debug, Error)]
enum ImportError {
    #[error("{}", reason(.0))]
    Unreadable(#[from] io::Error),
    #[error("no such file")]
    NoFile,
    #[error("its name should end with .js, .cjs, .mjs, .json or .yaml")]
    Extension,
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Yaml(#[from] serde_saphyr::Error),
    #[error("cannot run node: {}", reason(.0))]
    NoNode(io::Error),
    #[error("node cannot evaluate it: {0}")]
    Evaluation(String),
    #[error("it exports no apps: {0}")]
    Exports(serde_json::Error),
    #[error("it has no `apps`")]
    NoApps,
    #[error("its `apps` is empty")]
    EmptyApps,
    #[error("an app is an object")]
    NotAnApp,
    #[error("an app has no `script`")]
    NoScript,
    #[error("an argument of {0:?} contains a NUL byte")]
    NulByte(String),
}

/// What an ecosystem file became.
#[derive(Debug)]
struct Imported {
    text: String,
    /// What the user should know beside it.
    warnings: Vec<String>,
}

/// Prints what a file says as a configuration file.
///
/// # Errors
/// [`USAGE`] when it cannot be read, or is no ecosystem file.
pub fn import(file: &Path, env: Option<&str>) -> Result<(), Exit> {
    let refused = |why: ImportError| Exit::new(USAGE, format!("cannot import {}: {why}", file.display()));
    let imported = convert(&read(file).map_err(refused)?, file, env).map_err(refused)?;
    for warning in &imported.warnings {
        crate::exit::tell(format_args!("warning: {warning}"));
    }
    let mut out = std::io::stdout().lock();
    let _ = std::io::Write::write_all(&mut out, imported.text.as_bytes());
    Ok(())
}

fn read(file: &Path) -> Result<Value, ImportError> {
    let extension = file.extension().and_then(|end| end.to_str()).unwrap_or_default();
    if ["js", "cjs", "mjs"].contains(&extension) {
        return evaluate(file);
    }
    let text = std::fs::read_to_string(file)?;
    match extension {
        "json" => Ok(serde_json::from_str(&text)?),
        "yaml" | "yml" => Ok(serde_saphyr::from_str(&text)?),
        _ => Err(ImportError::Extension),
    }
}

/// What a module exports, as node says.
fn evaluate(file: &Path) -> Result<Value, ImportError> {
    const PROGRAM: &str = "import(require('url').pathToFileURL(process.argv[1])).then(m => {
        const v = m.default ?? m;
        require('fs').writeSync(3, JSON.stringify(typeof v === 'function' ? v() : v));
        process.exit(0);
    }).catch(e => { console.error(e && e.message || e); process.exit(1) })";
    let path = std::path::absolute(file)?;
    if !path.is_file() {
        return Err(ImportError::NoFile);
    }
    // What the module prints goes to stderr; what it exports comes by a descriptor of its own.
    let program = format!("process.stdout.write = process.stderr.write.bind(process.stderr); {PROGRAM}");
    let output = Command::new("sh")
        .args(["-c", "exec node -e \"$0\" \"$1\" 3>&1 >&2", &program])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .map_err(ImportError::NoNode)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Err(ImportError::Evaluation(last.to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(ImportError::Exports)
}

fn convert(ecosystem: &Value, file: &Path, env: Option<&str>) -> Result<Imported, ImportError> {
    let apps = match ecosystem {
        Value::Array(apps) => apps.as_slice(),
        Value::Object(all) => match all.get("apps") {
            Some(Value::Array(apps)) => apps.as_slice(),
            Some(app @ Value::Object(_)) => std::slice::from_ref(app),
            // One app by itself, as PM2 takes it from JSON.
            None if options::is_app(all) => std::slice::from_ref(ecosystem),
            _ => return Err(ImportError::NoApps),
        },
        _ => return Err(ImportError::NoApps),
    };
    if apps.is_empty() {
        return Err(ImportError::EmptyApps);
    }
    let from = format!("From {}. Show it all: roundsman check -c THIS; run it: roundsman -c THIS", file.display());
    let mut text = draft::comment(&from);
    if let Some(Value::Object(_)) = ecosystem.get("deploy") {
        text.push_str("# deploy: not supported; deploy with another program and end with: roundsman reload\n");
    }
    let directory = file.parent().unwrap_or(Path::new(""));
    let (mut names, mut warnings) = (Vec::new(), Vec::new());
    for app in apps {
        let Value::Object(app) = app else { return Err(ImportError::NotAnApp) };
        text.push('\n');
        text.push_str(&app::service(app, directory, env, &mut names, &mut warnings)?);
    }
    Ok(Imported { text, warnings })
}
