//! Filters for seccomp user notification: which system calls are notified.

use libc::sock_filter;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_AARCH64` (linux/audit.h): programs of another architecture keep their system calls.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Bits of a filter's instructions (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Places in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The place of an argument's lower half, on a little-endian machine.
const fn argument(at: u32) -> u32 {
    16 + 8 * at
}

/// What becomes of a system call, given by its number; those without a rule are allowed.
#[derive(Debug, Clone, Copy)]
pub enum Rule {
    Notified(i64),
    /// Notified if its second argument is this.
    NotifiedIf(i64, i32),
    NotifiedUnless(i64, i32),
    /// getsockopt(2) or setsockopt(2): notified for these options of this level.
    NotifiedOptions(i64, i32, &'static [i32]),
    /// Fails with this errno.
    Fails(i64, i32),
}

/// A filter with these rules.
pub fn filter(rules: &[Rule]) -> Vec<sock_filter> {
    let mut filter = vec![load(ARCH), skip_if(ARCHITECTURE, 1), allow(), load(NUMBER)];
    for rule in rules {
        let (number, steps) = match *rule {
            Rule::Notified(number) => (number, vec![notify()]),
            Rule::NotifiedIf(number, second) => {
                (number, vec![load(argument(1)), skip_if(second as u32, 1), allow(), notify()])
            }
            Rule::NotifiedUnless(number, second) => {
                (number, vec![load(argument(1)), skip_unless(second as u32, 1), allow(), notify()])
            }
            Rule::NotifiedOptions(number, level, names) => {
                let mut steps = vec![load(argument(1)), skip_if(level as u32, 1), allow(), load(argument(2))];
                for &name in names {
                    steps.extend([skip_unless(name as u32, 1), notify()]);
                }
                steps.push(allow());
                (number, steps)
            }
            Rule::Fails(number, errno) => (number, vec![give(libc::SECCOMP_RET_ERRNO | errno as u32)]),
        };
        filter.push(skip_unless(number as u32, steps.len() as u8));
        filter.extend(steps);
    }
    filter.push(allow());
    filter
}

fn load(at: u32) -> sock_filter {
    sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: at }
}

/// Passes over so many instructions if what was loaded is `value`.
fn skip_if(value: u32, count: u8) -> sock_filter {
    sock_filter { code: JUMP_IF_EQUAL, jt: count, jf: 0, k: value }
}

fn skip_unless(value: u32, count: u8) -> sock_filter {
    sock_filter { code: JUMP_IF_EQUAL, jt: 0, jf: count, k: value }
}

fn give(result: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: result }
}

fn allow() -> sock_filter {
    give(libc::SECCOMP_RET_ALLOW)
}

fn notify() -> sock_filter {
    give(libc::SECCOMP_RET_USER_NOTIF)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTIFIED: u32 = libc::SECCOMP_RET_USER_NOTIF;
    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

    /// What a filter returns for a call.
    fn run(filter: &[sock_filter], arch: u32, number: i64, [second, third]: [i32; 2]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = filter[at];
            at += 1;
            match step.code {
                LOAD_WORD if step.k == NUMBER => loaded = number as u32,
                LOAD_WORD if step.k == ARCH => loaded = arch,
                LOAD_WORD if step.k == argument(1) => loaded = second as u32,
                LOAD_WORD if step.k == argument(2) => loaded = third as u32,
                JUMP_IF_EQUAL => at += usize::from(if loaded == step.k { step.jt } else { step.jf }),
                RETURN => return step.k,
                code => panic!("{code} {}", step.k),
            }
        }
    }

    #[test]
    fn only_the_calls_named_are_notified() {
        let filter = filter(&[
            Rule::Notified(libc::SYS_bind),
            Rule::Notified(libc::SYS_accept4),
            Rule::NotifiedIf(libc::SYS_fcntl, libc::F_SETFL),
            Rule::NotifiedUnless(libc::SYS_shutdown, libc::SHUT_WR),
            Rule::NotifiedOptions(libc::SYS_getsockopt, libc::SOL_SOCKET, &[libc::SO_TYPE, libc::SO_DOMAIN]),
            Rule::Fails(libc::SYS_io_uring_setup, libc::ENOSYS),
        ]);
        for number in 0..600 {
            let expected = match number {
                libc::SYS_bind | libc::SYS_accept4 | libc::SYS_shutdown => NOTIFIED,
                libc::SYS_io_uring_setup => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
                _ => ALLOWED,
            };
            assert_eq!(run(&filter, ARCHITECTURE, number, [0, 0]), expected, "{number}");
            assert_eq!(run(&filter, 0x4000_0003, number, [0, 0]), ALLOWED, "i386 {number}");
        }
        // x32 calls have numbers of their own.
        assert_eq!(run(&filter, ARCHITECTURE, libc::SYS_bind | 0x4000_0000, [0, 0]), ALLOWED);
        let fcntl = |command| run(&filter, ARCHITECTURE, libc::SYS_fcntl, [command, 0]);
        assert_eq!((fcntl(libc::F_SETFL), fcntl(libc::F_GETFL)), (NOTIFIED, ALLOWED));
        let shutdown = |how| run(&filter, ARCHITECTURE, libc::SYS_shutdown, [how, 0]);
        assert_eq!(shutdown(libc::SHUT_WR), ALLOWED);
        assert_eq!(shutdown(libc::SHUT_RDWR), NOTIFIED);
        let option = |level, name| run(&filter, ARCHITECTURE, libc::SYS_getsockopt, [level, name]);
        assert_eq!(option(libc::SOL_SOCKET, libc::SO_TYPE), NOTIFIED);
        assert_eq!(option(libc::SOL_SOCKET, libc::SO_DOMAIN), NOTIFIED);
        assert_eq!(option(libc::SOL_SOCKET, libc::SO_ERROR), ALLOWED);
        assert_eq!(option(libc::IPPROTO_TCP, libc::SO_TYPE), ALLOWED);
    }
}
