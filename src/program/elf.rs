//! Whether a program can be preloaded: what will really run, behind `#!` lines, and how it is linked.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::sys::reason;

/// Links of `#!` that are followed.
const DEPTH: usize = 5;
/// Notes larger than this are none that we look for.
const MAX_NOTES: usize = 64 * 1024;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;

/// Why a program cannot be preloaded.
#[derive(Debug, Error)]
pub enum Obstacle {
    #[error("{} cannot be read ({})", .program.display(), reason(.source))]
    Unreadable { program: PathBuf, source: io::Error },
    #[error("too many #! lines")]
    TooManyInterpreters,
    #[error("{} is setuid or setgid", .0.display())]
    Setuid(PathBuf),
    #[error("{} has file capabilities", .0.display())]
    Capabilities(PathBuf),
    #[error("{} is no program that can be preloaded", .0.display())]
    Unknown(PathBuf),
    #[error("{} is for another architecture", .0.display())]
    Architecture(PathBuf),
    #[error("{} is a Go program, which makes its system calls itself", .0.display())]
    Go(PathBuf),
    #[error("{} is linked statically", .0.display())]
    Static(PathBuf),
}

impl Obstacle {
    /// Whether it is only that the program makes its system calls itself, past every library.
    pub fn is_raw_calls(&self) -> bool {
        matches!(self, Self::Go(_) | Self::Static(_))
    }
}

/// A program that its loader can preload into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynamic {
    /// What will really run.
    pub program: PathBuf,
    pub loader: PathBuf,
}

/// Looks at what will run.
///
/// # Errors
/// Why it cannot be preloaded.
pub fn examine(program: &Path) -> Result<Dynamic, Obstacle> {
    let mut program = program.to_owned();
    for _ in 0..DEPTH {
        let unreadable = |source| Obstacle::Unreadable { program: program.clone(), source };
        // A `#!` line may name a FIFO, whose open would wait for its other end.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&program).map_err(unreadable)?;
        let mut head = [0; 256];
        let n = Read::read(&mut { &file }, &mut head).unwrap_or(0);
        if let Some(interpreter) = interpreter(&head[..n]) {
            program = interpreter;
            continue;
        }
        privileged(&program, &file)?;
        let loader = loader(&file, &head[..n]).map_err(|obstacle| obstacle(program.clone()))?;
        // The loader finds libraries beside the file itself, not beside a link to it.
        let program = program.canonicalize().unwrap_or(program);
        return Ok(Dynamic { program, loader });
    }
    Err(Obstacle::TooManyInterpreters)
}

/// The interpreter of a `#!` line; behind `env` the program that it looks up.
fn interpreter(head: &[u8]) -> Option<PathBuf> {
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line).into_owned();
    let mut words = line.split_whitespace();
    let first = PathBuf::from(words.next()?);
    if first.file_name().is_some_and(|name| name == "env") {
        let name = words.find(|word| !word.starts_with('-') && !word.contains('='))?;
        let path = std::env::var_os("PATH")?;
        return std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file());
    }
    Some(first)
}

/// The loader ignores LD_PRELOAD for programs that get rights from their file (ld.so(8), secure-execution mode).
fn privileged(program: &Path, file: &File) -> Result<(), Obstacle> {
    let program = || program.to_owned();
    let meta = file.metadata().map_err(|source| Obstacle::Unreadable { program: program(), source })?;
    if meta.mode() & 0o6000 != 0 {
        return Err(Obstacle::Setuid(program()));
    }
    match crate::sys::process::has_attribute(&program(), c"security.capability") {
        true => Err(Obstacle::Capabilities(program())),
        false => Ok(()),
    }
}

/// The program interpreter (PT_INTERP) of a 64-bit ELF file of this machine (elf(5)).
fn loader(file: &File, head: &[u8]) -> Result<PathBuf, fn(PathBuf) -> Obstacle> {
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let half = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    if !head.starts_with(b"\x7fELF") {
        return Err(Obstacle::Unknown);
    }
    let (Some(for_machine), Some(offset), Some(size), Some(count)) = (half(18), long(32), half(54), half(56)) else {
        return Err(Obstacle::Unknown);
    };
    if head.get(4) != Some(&2) || for_machine != machine {
        return Err(Obstacle::Architecture);
    }
    let mut found = None;
    for at in 0..u64::from(count) {
        let mut entry = [0; 56];
        if file.read_exact_at(&mut entry, offset.saturating_add(at * u64::from(size))).is_err() {
            return Err(Obstacle::Unknown);
        }
        let segment = || {
            let long = |at: usize| entry.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
            let mut bytes = vec![0; usize::try_from(long(32)?).ok().filter(|&len| len <= MAX_NOTES)?];
            file.read_exact_at(&mut bytes, long(8)?).ok()?;
            Some(bytes)
        };
        match u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) {
            PT_INTERP => found = segment(),
            PT_NOTE if segment().is_some_and(|notes| has_go_note(&notes)) => {
                return Err(Obstacle::Go);
            }
            _ => {}
        }
    }
    let mut path = found.ok_or(Obstacle::Static as fn(PathBuf) -> Obstacle)?;
    path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(path.len()));
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

/// Go's build id: a note of owner "Go" and type 4.
fn has_go_note(mut notes: &[u8]) -> bool {
    let word = |bytes: &[u8], at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    while let (Some(name), Some(description), Some(kind)) = (word(notes, 0), word(notes, 4), word(notes, 8)) {
        if kind == 4 && notes.get(12..12 + name as usize).is_some_and(|name| name.starts_with(b"Go\0")) {
            return true;
        }
        let aligned = |len: u32| (len as usize).saturating_add(3) & !3;
        notes = notes.get(12 + aligned(name) + aligned(description)..).unwrap_or(&[]);
    }
    false
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_really_runs_decides() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let shell = examine(Path::new("/bin/sh")).unwrap();
        assert!(shell.loader.is_file(), "{shell:?}");
        assert_eq!(examine(&script("a", "#!/bin/sh\n")).unwrap().loader, shell.loader);
        assert_eq!(examine(&script("b", "#!/usr/bin/env -S sh -e\n")).unwrap().loader, shell.loader);
        assert!(examine(&script("c", "plain text")).unwrap_err().to_string().contains("no program"));
        assert!(examine(&dir.path().join("nothing")).unwrap_err().to_string().contains("cannot be read"));
        let mut foreign = std::fs::read("/bin/sh").unwrap();
        foreign[18] = 1;
        std::fs::write(dir.path().join("d"), foreign).unwrap();
        assert!(examine(&dir.path().join("d")).unwrap_err().to_string().contains("architecture"));
        let loop_to = dir.path().join("e");
        std::fs::write(&loop_to, format!("#!{}\n", loop_to.display())).unwrap();
        assert!(examine(&loop_to).unwrap_err().to_string().contains("too many"));
        let fifo = dir.path().join("f");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let by_fifo = script("g", &format!("#!{}\n", fifo.display()));
        let (tx, examined) = std::sync::mpsc::channel();
        std::thread::spawn(move || tx.send(examine(&by_fifo)));
        let examined = examined.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
        assert!(examined.unwrap_err().to_string().contains("no program"));
    }

    #[test]
    fn a_go_program_is_known_by_its_note() {
        let note = |owner: &[u8; 4], kind: u32| {
            let mut bytes = Vec::new();
            for word in [4, 4, kind] {
                bytes.extend(u32::to_le_bytes(word));
            }
            bytes.extend(owner);
            bytes.extend([0; 4]);
            bytes
        };
        assert!(has_go_note(&[note(b"GNU\0", 4), note(b"Go\0\0", 4)].concat()));
        assert!(!has_go_note(&[note(b"GNU\0", 3), note(b"Go\0\0", 1)].concat()));
        assert!(!has_go_note(&[255; 64]));
    }
}
