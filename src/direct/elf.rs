//! Whether a program can be preloaded: what will really run, behind `#!` lines, and how it is linked.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Links of `#!` that are followed.
const DEPTH: usize = 5;

/// Why a program cannot be preloaded; `None` when it can.
pub fn obstacle(program: &Path) -> Option<String> {
    let mut program = program.to_owned();
    for _ in 0..DEPTH {
        let shown = program.display().to_string();
        let Ok(file) = File::open(&program) else { return None };
        let mut head = [0; 256];
        let n = Read::read(&mut { &file }, &mut head).unwrap_or(0);
        if let Some(interpreter) = interpreter(&head[..n]) {
            program = interpreter;
            continue;
        }
        return match linked(&file, &head[..n]) {
            Linked::Dynamic => None,
            Linked::Static => Some(format!("{shown} is linked statically")),
            Linked::Foreign => Some(format!("{shown} is for another architecture")),
            Linked::Unknown => Some(format!("{shown} is no program that can be preloaded")),
        };
    }
    Some("too many #! lines".to_owned())
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

enum Linked {
    Dynamic,
    Static,
    Foreign,
    Unknown,
}

/// Looks for a program interpreter (PT_INTERP) in a 64-bit ELF file of this machine (elf(5)).
fn linked(file: &File, head: &[u8]) -> Linked {
    const PT_INTERP: u32 = 3;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let half = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    if !head.starts_with(b"\x7fELF") {
        return Linked::Unknown;
    }
    let (Some(for_machine), Some(offset), Some(size), Some(count)) = (half(18), long(32), half(54), half(56)) else {
        return Linked::Unknown;
    };
    if head.get(4) != Some(&2) || for_machine != machine {
        return Linked::Foreign;
    }
    for at in 0..u64::from(count) {
        let mut kind = [0; 4];
        let place = offset.saturating_add(at * u64::from(size));
        if file.read_exact_at(&mut kind, place).is_err() {
            return Linked::Unknown;
        }
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Linked::Dynamic;
        }
    }
    Linked::Static
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
        assert_eq!(obstacle(Path::new("/bin/sh")), None);
        assert_eq!(obstacle(&script("a", "#!/bin/sh\n")), None);
        assert_eq!(obstacle(&script("b", "#!/usr/bin/env -S sh -e\n")), None);
        assert!(obstacle(&script("c", "plain text")).unwrap().contains("no program"));
        let mut foreign = std::fs::read("/bin/sh").unwrap();
        foreign[18] = 1;
        std::fs::write(dir.path().join("d"), foreign).unwrap();
        assert!(obstacle(&dir.path().join("d")).unwrap().contains("architecture"));
    }
}
