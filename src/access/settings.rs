//! What is to be logged of a service's connections, in which form, and where to.

use std::path::PathBuf;

use crate::abi::access::ALL;
use crate::output::files::{Files, filled_in};

/// `--access-log` and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    pub to: Target,
    pub format: AccessFormat,
    pub sample: Sample,
}

impl AccessLog {
    /// Whether its file can be written to.
    ///
    /// # Errors
    /// Why not.
    pub fn try_open(&self, service: &str, files: &Files) -> Result<(), String> {
        match &self.to {
            Target::Stdout => Ok(()),
            Target::File(path) => files.try_path(&filled_in(path, service, Some(0))),
        }
    }
}

/// `--access-log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Stdout,
    /// `{slot}` and `{service}` are filled in.
    File(PathBuf),
}

/// `--access-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessFormat {
    /// One line as HAProxy's for TCP
    Text,
    /// One JSON object per line
    Json,
}

/// `--access-sample`: the share of all connections that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample(
    /// Of [`ALL`].
    u64,
);

impl Sample {
    pub const ALL: Self = Self(ALL);

    /// Of [`ALL`].
    pub fn share(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
        let percent = number.filter(|percent| (0.1..=100.0).contains(percent));
        let percent = percent.ok_or("0.1% to 100% is needed: 1%")?;
        Ok(Self((percent / 100.0 * ALL as f64) as u64))
    }
}

/// `-` is stdout.
///
/// # Errors
/// When nothing is given.
pub fn target(text: &str) -> Result<Target, String> {
    match text {
        "" => Err("a file is needed, or - for stdout".to_owned()),
        "-" => Ok(Target::Stdout),
        path => Ok(Target::File(path.into())),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_share_of_all() {
        let share = |text: &str| text.parse::<Sample>().map(Sample::share);
        assert_eq!(share("100%"), Ok(ALL));
        assert_eq!(share("50%"), Ok(ALL / 2));
        assert_eq!(share("0.1%").unwrap(), ALL / 1000);
        for wrong in ["", "1", "%", "0%", "0.09%", "100.1%", "-1%", "nan%", "inf%", "1 %", "1%%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
