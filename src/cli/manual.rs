//! Shell completions and manual pages, generated from the command line.

use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::exit::Exit;

/// Prints a completion script.
///
/// # Errors
/// When it cannot be written.
pub fn completions(shell: Shell) -> Result<(), Exit> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "roundsman", &mut script);
    print(&script)
}

/// Prints the manual page, or writes those of all verbs to a directory.
///
/// # Errors
/// When it cannot be written.
pub fn man(directory: Option<&Path>) -> Result<(), Exit> {
    match directory {
        Some(directory) => {
            let failed = |error: io::Error| Exit::os(&format!("cannot write to {}", directory.display()), &error);
            std::fs::create_dir_all(directory).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), directory).map_err(failed)
        }
        None => {
            let mut page = Vec::new();
            let rendered = clap_mangen::Man::new(Cli::command()).render(&mut page);
            rendered.map_err(|error| Exit::os("cannot make the page", &error))?;
            print(&page)
        }
    }
}

fn print(text: &[u8]) -> Result<(), Exit> {
    match io::stdout().lock().write_all(text) {
        // A closed pipe (`| head`) is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Exit::os("cannot write", &error)),
        _ => Ok(()),
    }
}
