//! Whether an app serves a port, as far as its source tells: PM2 does not say so.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Files that are read of one app, and bytes of each.
const MAX_FILES: usize = 60;
const MAX_BYTES: u64 = 256 * 1024;
/// Words, in small letters, of which a program that serves a port has one.
const SERVING: [&str; 24] = [
    "listen",
    "server",
    "serve(",
    "express",
    "fastify",
    "koa",
    "hapi",
    "nestjs",
    "restify",
    "polka",
    "nuxt",
    "next\"",
    "next'",
    "socket.io",
    "grpc",
    "uvicorn",
    "gunicorn",
    "flask",
    "django",
    "fastapi",
    "aiohttp",
    "tornado",
    "sanic",
    "twisted",
];
/// Words behind which anything may come.
const OPAQUE: [&str; 5] = ["child_process", "cluster", "eval(", "importlib", "subprocess"];
/// Ends that a module's name may leave out.
const ENDS: [&str; 8] = ["", ".js", ".cjs", ".mjs", ".ts", "/index.js", "/index.ts", "/index.mjs"];
/// Variables that give a server its port.
const VARIABLES: [&str; 8] =
    ["PORT", "APP_PORT", "API_PORT", "WEB_PORT", "HTTP_PORT", "HTTPS_PORT", "SERVER_PORT", "LISTEN_PORT"];
/// What people call programs that serve none.
const WORKERS: [&str; 7] = ["worker", "queue", "cron", "job", "consumer", "scheduler", "batch"];

/// What a source tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Serves,
    None,
    /// It cannot be known.
    Unknown,
}

/// Whether a variable of this name is a server's port.
pub fn is_variable(name: &str) -> bool {
    VARIABLES.contains(&name.to_ascii_uppercase().as_str())
}

/// Whether a name is one of a program that serves no port.
pub fn is_worker(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WORKERS.iter().any(|word| name.contains(word))
}

/// Reads a script and its own modules.
pub fn of(script: &Path) -> Port {
    let (mut known, mut open) = (BTreeSet::from([script.to_owned()]), vec![script.to_owned()]);
    let mut found = Port::None;
    while let Some(path) = open.pop() {
        let Some(text) = read(&path) else { return Port::Unknown };
        let small = text.to_ascii_lowercase();
        if SERVING.iter().any(|word| small.contains(word)) {
            return Port::Serves;
        }
        let own = match path.extension().and_then(|end| end.to_str()) {
            Some("js" | "cjs" | "mjs" | "ts") => modules(&text, &path),
            Some("py") => python_modules(&text, &path),
            _ => None,
        };
        let Some(own) = own.filter(|_| !OPAQUE.iter().any(|word| small.contains(word))) else {
            found = Port::Unknown;
            continue;
        };
        for module in own {
            if known.len() >= MAX_FILES {
                return Port::Unknown;
            }
            if known.insert(module.clone()) {
                open.push(module);
            }
        }
    }
    found
}

/// A source of the app, none of its packages.
fn read(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    let fits = meta.is_file() && meta.len() <= MAX_BYTES;
    let installed = path.components().any(|part| part.as_os_str() == "node_modules");
    if !fits || installed { None } else { std::fs::read_to_string(path).ok() }
}

/// Files of the app that a module in JavaScript names; `None` where it names some in a way that we cannot follow.
fn modules(text: &str, path: &Path) -> Option<Vec<PathBuf>> {
    let computed =
        |call: &str| text.match_indices(call).any(|(at, _)| !text[at + call.len()..].starts_with(['"', '\'']));
    if computed("require(") || computed("import(") {
        return None;
    }
    let directory = path.parent()?;
    let mut found = Vec::new();
    for quoted in text.split(['"', '\'', '`']).filter(|word| word.starts_with("./") || word.starts_with("../")) {
        if quoted.contains('\n') || quoted.ends_with(".json") {
            continue;
        }
        let file = ENDS.iter().map(|end| directory.join(format!("{quoted}{end}"))).find(|file| file.is_file());
        found.push(file?);
    }
    Some(found)
}

/// The same for Python.
fn python_modules(text: &str, path: &Path) -> Option<Vec<PathBuf>> {
    let directory = path.parent()?;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim_start) {
        let Some(rest) = line.strip_prefix("import ").or_else(|| line.strip_prefix("from ")) else { continue };
        let names = rest.split(" import ").next().unwrap_or(rest);
        for name in names.split(',').map(|name| name.trim().split([' ', '.']).next().unwrap_or_default()) {
            if name.is_empty() || directory.join(name).is_dir() {
                return None;
            }
            let file = directory.join(format!("{name}.py"));
            if file.is_file() {
                found.push(file);
            }
        }
    }
    Some(found)
}
