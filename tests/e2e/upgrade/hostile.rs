//! Mostly waits: tests/run runs it beside others.
//!
//! Upgrades to programs that do what no roundsman does.

use std::os::unix::fs::PermissionsExt;

use super::refused::program;
use super::{Site, descriptors, upgrade, upgraded};
use crate::support::{eventually, get, seconds, unprivileged_copy};

const DIES_WHILE_IT_READS: &str = "#include <signal.h>
#include <unistd.h>
int main(void) { char some[10]; lseek(0, 0, SEEK_SET); if (read(0, some, 10) == 10) raise(SIGSEGV); return 0; }";

const PRINTS_MEGABYTES: &str = "#include <stdio.h>
int main(void) {
    for (int line = 0; line < 100000; line++) printf(\"%080d\\n\", line);
    fprintf(stdout, \"not today\\n\");
    return 4;
}";

/// It leaves a process that has its pipe, and writes into it for ever, or not at all.
const LEAVES: &str = "#include <signal.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
    int pid = fork();
    if (!pid) { alarm(60); for (;;) WORK; }
    FILE *file = fopen(\"left\", \"w\");
    fprintf(file, \"%d\", pid), fclose(file);
    return 5;
}";

#[test]
fn programs_that_misbehave_when_they_are_tried_change_nothing() {
    let site = Site::start("direct", 1, &[]);
    let dir = site.dir.path();
    let plain = unprivileged_copy(dir);
    std::fs::set_permissions(&plain, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (server, before) = (get(site.port).unwrap(), descriptors(&site.daemon));
    let cases = [
        (plain, "permission denied"),
        (program(&site, "dies", DIES_WHILE_IT_READS), "sigsegv"),
        (program(&site, "prints", PRINTS_MEGABYTES), "not today (exit code 4)"),
        (program(&site, "leaves", &LEAVES.replace("WORK", "pause()")), "exit code 5"),
        (program(&site, "floods", &LEAVES.replace("WORK", "write(1, \"more\\n\", 5)")), "exit code 5"),
    ];
    for (file, why) in cases {
        let (code, text) = upgrade(&site.daemon, Some(&file));
        assert!(code == 1 && text.to_lowercase().contains(why), "{}: {code} {text}", file.display());
        let left = std::fs::read_to_string(dir.join("left")).ok().map(|pid| pid.parse().unwrap());
        if let Some(left) = left {
            // It was not waited for.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::Signal::SIGKILL);
            std::fs::remove_file(dir.join("left")).unwrap();
        }
    }
    assert_eq!(get(site.port).unwrap(), server);
    eventually("no more descriptors than before", seconds(20), || (descriptors(&site.daemon) <= before).then_some(()));
    upgraded(&site.daemon);
}
