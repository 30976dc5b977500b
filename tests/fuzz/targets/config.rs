//! The configuration file: every text is a configuration or a list of mistakes that can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use roundsman::config::file::File;
use roundsman::config::{diagnostics, merge};

fuzz_target!(|text: &str| {
    let mut problems = Vec::new();
    let file = File::parse(Path::new("fuzz.toml"), text.to_owned(), &mut problems);
    for section in &file.services {
        merge::try_each(&section.entries, &mut problems);
        let _ = merge::run(&merge::lay(&Default::default(), Some((&file, &section.entries))));
    }
    let shown = diagnostics::report("fuzz.toml", text, &mut problems);
    assert_eq!(shown.is_empty(), problems.is_empty());
});
