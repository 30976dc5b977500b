//! `roundsman upgrade`: another program takes a daemon's place.

use std::path::PathBuf;

use clap::Args;

use super::{Target, client};
use crate::control::Request;
use crate::exit::Exit;

#[derive(Debug, Args)]
pub struct Upgrade {
    /// Program [default: the file of the program that runs]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Service of the daemon [default: the only daemon]
    #[arg(short, long, value_name = "NAME")]
    pub name: Option<String>,
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", env = "ROUNDSMAN_CONTROL")]
    pub control: Option<PathBuf>,
}

/// Has a daemon go on as another program; returns when it does.
///
/// # Errors
/// As [`client::order`].
pub fn upgrade(args: &Upgrade) -> Result<(), Exit> {
    let absolute = |file| std::path::absolute(file).map_err(|error| Exit::os("cannot find the file", &error));
    let file = args.file.as_ref().map(absolute).transpose()?;
    let target = Target { name: args.name.clone(), control: args.control.clone() };
    client::order(&target, |_| Request::Upgrade { file })
}
