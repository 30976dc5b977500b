//! The list of servers: tests/servers/FAMILY/list.toml, with small sources beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::support::servers;

/// Servers of one language, or of one kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    pub title: String,
    /// Position in the document.
    order: u32,
    pub server: Vec<Server>,
    /// Where list.toml is.
    #[serde(skip)]
    here: PathBuf,
}

/// How its clients talk.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum Client {
    /// Sends bytes and reads until the answer has come.
    #[default]
    Plain,
    /// curl over TLS, HTTP/1.1.
    Https,
    /// curl over TLS, HTTP/2.
    Http2,
}

/// One row. In its words, `{port}` is the port to listen on, `{dir}` a fresh directory, `{here}` that of list.toml,
/// `{servers}` that of the packages, `{own}` what roundsman replaces by the port of one process.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    pub name: String,
    /// Prints the version somewhere.
    #[serde(default)]
    version: String,
    #[serde(default)]
    command: String,
    /// Options for roundsman.
    #[serde(default)]
    options: String,
    #[serde(default = "two")]
    pub instances: u32,
    /// Run once in the directory before the first start.
    #[serde(default)]
    build: Vec<String>,
    /// Written to the directory first.
    #[serde(default)]
    files: BTreeMap<String, String>,
    #[serde(default)]
    pub client: Client,
    /// What a client sends; each character is one byte.
    #[serde(default = "get")]
    pub send: String,
    /// What the answer has. `{peer}` is the client's port.
    #[serde(default = "peer")]
    pub expect: String,
    /// Why it is not run under `none`.
    pub no_none: Option<String>,
    /// Why it is not reloaded.
    pub no_reload: Option<String>,
    /// What clients are told after a kill until it serves.
    pub recovers: Option<String>,
    /// Why it is not served at all.
    pub cannot: Option<String>,
    #[serde(default)]
    pub notes: String,
}

fn two() -> u32 {
    2
}

fn get() -> String {
    "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned()
}

fn peer() -> String {
    "peer {peer}".to_owned()
}

/// All families, in the document's order.
pub fn families() -> Vec<Family> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers");
    let lists = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path().join("list.toml"));
    let mut families: Vec<_> = lists
        .filter(|list| list.is_file())
        .map(|list| {
            let text = std::fs::read_to_string(&list).unwrap();
            let family: Family = toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", list.display()));
            Family { here: list.parent().unwrap().to_owned(), ..family }
        })
        .collect();
    families.sort_by_key(|family| family.order);
    families
}

impl Family {
    pub fn place<'a>(&'a self, dir: &'a Path, port: u16) -> Place<'a> {
        Place { dir, here: &self.here, port }
    }
}

/// Where a server of the list is run.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub dir: &'a Path,
    here: &'a Path,
    pub port: u16,
}

impl Place<'_> {
    fn fill(self, text: &str) -> String {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        text.replace("{port}", &self.port.to_string())
            .replace("{dir}", &path(self.dir))
            .replace("{here}", &path(self.here))
            .replace("{servers}", &path(&servers()))
            .replace("{own}", "{port}")
    }

    fn words(self, text: &str) -> Vec<String> {
        text.split_whitespace().map(|word| self.fill(word)).collect()
    }

    fn output(self, line: &str) -> std::process::Output {
        let words = self.words(line);
        let made = Command::new(&words[0]).args(&words[1..]).current_dir(self.dir).output();
        made.unwrap_or_else(|error| panic!("{}: {error} (tests/install --all)", words[0]))
    }
}

impl Server {
    /// Writes its files and runs what builds it.
    pub fn prepare(&self, place: Place<'_>) {
        for (name, text) in &self.files {
            let path = place.dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, place.fill(text)).unwrap();
        }
        for line in &self.build {
            let made = place.output(line);
            let [out, err] = [made.stdout, made.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
            assert!(made.status.success(), "{line}: {out}{err}");
        }
    }

    pub fn command(&self, place: Place<'_>) -> Vec<String> {
        place.words(&self.command)
    }

    pub fn options(&self, place: Place<'_>) -> Vec<String> {
        place.words(&self.options)
    }

    /// The first thing like 1.2 in what the version's command prints.
    pub fn version(&self, place: Place<'_>) -> String {
        if self.version.is_empty() {
            return String::new();
        }
        let output = place.output(&self.version);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').map(|part| part.trim_matches('.'));
        let number = numbers.into_iter().find(|part| part.contains('.'));
        number.unwrap_or_else(|| panic!("{}: no version in {text:?}", self.name)).to_owned()
    }
}
