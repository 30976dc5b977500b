//! The configuration file: every text is a configuration or a list of mistakes that can be shown.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use roundsman::config::file::File;
use roundsman::config::{layers, problem};

fuzz_target!(|text: &str| {
    let mut problems = Vec::new();
    let file = File::parse(Path::new("fuzz.toml"), text.to_owned(), &mut problems);
    for section in &file.services {
        layers::try_each(&section.entries, &mut problems);
        let _ = layers::run(&layers::lay(&Default::default(), Some((&file, &section.entries))));
    }
    let shown = problem::report("fuzz.toml", text, &mut problems);
    assert_eq!(shown.is_empty(), problems.is_empty());
});
