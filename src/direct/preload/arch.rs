//! What differs between architectures: the system call instruction and the numbers. x86_64 is tested; aarch64 was
//! run under emulation.

use core::arch::{asm, naked_asm};

#[cfg(target_arch = "x86_64")]
pub mod nr {
    pub const CLOSE: usize = 3;
    pub const SOCKET: usize = 41;
    pub const SOCKETPAIR: usize = 53;
    pub const CONNECT: usize = 42;
    pub const SENDMSG: usize = 46;
    pub const RECVMSG: usize = 47;
    pub const BIND: usize = 49;
    pub const LISTEN: usize = 50;
    pub const GETSOCKNAME: usize = 51;
    pub const GETSOCKOPT: usize = 55;
    pub const ACCEPT4: usize = 288;
    pub const FCNTL: usize = 72;
    pub const DUP3: usize = 292;
    pub const MMAP: usize = 9;
    pub const MADVISE: usize = 28;
    pub const GETPID: usize = 39;
    pub const SCHED_YIELD: usize = 24;
    pub const EXIT_GROUP: usize = 231;
    pub const SHUTDOWN: usize = 48;
    pub const GETPEERNAME: usize = 52;
    pub const SETSOCKOPT: usize = 54;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT: usize = 257;
    pub const READ: usize = 0;
    pub const READLINKAT: usize = 267;
    pub const GETDENTS64: usize = 217;
    pub const EPOLL_CTL: usize = 233;
    pub const EPOLL_CREATE1: usize = 291;
    pub const KILL: usize = 62;
    pub const IOCTL: usize = 16;
    pub const NANOSLEEP: usize = 35;
    pub const CLOCK_GETTIME: usize = 228;
    pub const READV: usize = 19;
    pub const PREADV2: usize = 327;
    pub const PWRITEV2: usize = 328;
    pub const WRITE: usize = 1;
    pub const WRITEV: usize = 20;
    pub const RECVFROM: usize = 45;
    pub const RECVMMSG: usize = 299;
    pub const SENDTO: usize = 44;
    pub const SENDMMSG: usize = 307;
    pub const SENDFILE: usize = 40;
    pub const SPLICE: usize = 275;
    pub const FSTAT: usize = 5;
    pub const GETTID: usize = 186;
    pub const TGKILL: usize = 234;
    pub const FUTEX: usize = 202;
    pub const PPOLL: usize = 271;
}

#[cfg(target_arch = "aarch64")]
pub mod nr {
    pub const CLOSE: usize = 57;
    pub const SOCKET: usize = 198;
    pub const SOCKETPAIR: usize = 199;
    pub const CONNECT: usize = 203;
    pub const SENDMSG: usize = 211;
    pub const RECVMSG: usize = 212;
    pub const BIND: usize = 200;
    pub const LISTEN: usize = 201;
    pub const GETSOCKNAME: usize = 204;
    pub const GETSOCKOPT: usize = 209;
    pub const ACCEPT4: usize = 242;
    pub const FCNTL: usize = 25;
    pub const DUP3: usize = 24;
    pub const MMAP: usize = 222;
    pub const MADVISE: usize = 233;
    pub const GETPID: usize = 172;
    pub const SCHED_YIELD: usize = 124;
    pub const EXIT_GROUP: usize = 94;
    pub const SHUTDOWN: usize = 210;
    pub const GETPEERNAME: usize = 205;
    pub const SETSOCKOPT: usize = 208;
    pub const CLOSE_RANGE: usize = 436;
    pub const OPENAT: usize = 56;
    pub const READ: usize = 63;
    pub const READLINKAT: usize = 78;
    pub const GETDENTS64: usize = 61;
    pub const EPOLL_CTL: usize = 21;
    pub const EPOLL_CREATE1: usize = 20;
    pub const KILL: usize = 129;
    pub const IOCTL: usize = 29;
    pub const NANOSLEEP: usize = 101;
    pub const CLOCK_GETTIME: usize = 113;
    pub const READV: usize = 65;
    pub const PREADV2: usize = 286;
    pub const PWRITEV2: usize = 287;
    pub const WRITE: usize = 64;
    pub const WRITEV: usize = 66;
    pub const RECVFROM: usize = 207;
    pub const RECVMMSG: usize = 243;
    pub const SENDTO: usize = 206;
    pub const SENDMMSG: usize = 269;
    pub const SENDFILE: usize = 71;
    pub const SPLICE: usize = 76;
    pub const FSTAT: usize = 80;
    pub const GETTID: usize = 178;
    pub const TGKILL: usize = 131;
    pub const FUTEX: usize = 98;
    pub const PPOLL: usize = 73;
}

/// A system call with up to six arguments; the result is negative errno or the value.
///
/// # Safety
/// As the system call demands of its arguments.
#[cfg(target_arch = "x86_64")]
pub unsafe fn syscall6(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rcx and r11 only; the caller vouches for the arguments.
    unsafe {
        asm!("syscall", inlateout("rax") nr as isize => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

/// A system call with up to six arguments; the result is negative errno or the value.
///
/// # Safety
/// As the system call demands of its arguments.
#[cfg(target_arch = "aarch64")]
pub unsafe fn syscall6(nr: usize, a: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers x0 only; the caller vouches for the arguments.
    unsafe {
        asm!("svc 0", in("x8") nr, inlateout("x0") a[0] as isize => result, in("x1") a[1], in("x2") a[2],
             in("x3") a[3], in("x4") a[4], in("x5") a[5], options(nostack));
    }
    result
}

/// The calling process, as the kernel says: a child of vfork runs in its parent's memory.
pub fn pid() -> u32 {
    // SAFETY: getpid has no arguments.
    (unsafe { syscall6(nr::GETPID, [0; 6]) }) as u32
}

pub fn exit_group(code: i32) -> ! {
    loop {
        // SAFETY: exit_group takes an integer and does not return.
        unsafe { syscall6(nr::EXIT_GROUP, [code as usize, 0, 0, 0, 0, 0]) };
    }
}

/// The address of a symbol of libc, or 0 where libc has none.
#[cfg(target_arch = "x86_64")]
macro_rules! weak {
    ($name:literal) => {{
        let place: usize;
        // SAFETY: reads a slot of the global offset table, which the loader has filled in (with 0 for a weak symbol that
        // nobody defines).
        unsafe {
            asm!(concat!(".weak ", $name), concat!("mov {0}, qword ptr [rip + ", $name, "@GOTPCREL]"), out(reg) place,
                 options(nostack, readonly));
        }
        place
    }};
}

/// The address of a symbol of libc, or 0 where libc has none.
#[cfg(target_arch = "aarch64")]
macro_rules! weak {
    ($name:literal) => {{
        let place: usize;
        // SAFETY: as on x86_64.
        unsafe {
            asm!(concat!(".weak ", $name), concat!("adrp {0}, :got:", $name),
                 concat!("ldr {0}, [{0}, :got_lo12:", $name, "]"), out(reg) place, options(nostack, readonly));
        }
        place
    }};
}

/// The address of libc's dlsym, or 0 where libc has none (glibc before 2.34 without libdl).
pub fn dlsym() -> usize {
    weak!("dlsym")
}

/// What glibc does when a fortified call would overrun its buffer.
#[cold]
#[inline(never)]
pub fn chk_fail() -> ! {
    let place = weak!("__chk_fail");
    if place != 0 {
        // SAFETY: the symbol of that name is glibc's, whose type this is.
        unsafe { core::mem::transmute::<usize, extern "C" fn() -> !>(place)() }
    }
    exit_group(127)
}

/// libc's `syscall`: libuv closes descriptors with it, others a range of them. What we stand in front of goes through our own; all else passes
/// as it came.
///
/// # Safety
/// As syscall(2).
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() -> isize {
    naked_asm!(
        "cmp rdi, 3",
        "jne 2f",
        "mov rdi, rsi",
        "jmp {close}",
        "2:",
        "cmp rdi, 288",
        "jne 4f",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov rcx, r8",
        "jmp {accept}",
        "4:",
        "cmp rdi, 436",
        "jne 5f",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "jmp {close_range}",
        "5:",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "3:",
        "mov rdi, rax",
        "jmp {failed}",
        close = sym super::close::close_widened,
        accept = sym super::accept::accept_widened,
        close_range = sym super::close::close_range_widened,
        failed = sym failed,
    )
}

/// libc's `syscall` on aarch64.
///
/// # Safety
/// As syscall(2).
#[cfg(target_arch = "aarch64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() -> isize {
    naked_asm!(
        "cmp x0, 57",
        "b.ne 2f",
        "mov x0, x1",
        "b {close}",
        "2:",
        "cmp x0, 242",
        "b.ne 4f",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "b {accept}",
        "4:",
        "cmp x0, 436",
        "b.ne 5f",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "b {close_range}",
        "5:",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc 0",
        "cmn x0, 4095",
        "b.hs 3f",
        "ret",
        "3:",
        "b {failed}",
        close = sym super::close::close_widened,
        accept = sym super::accept::accept_widened,
        close_range = sym super::close::close_range_widened,
        failed = sym failed,
    )
}

/// Sets errno from a raw result.
extern "C" fn failed(result: isize) -> isize {
    super::libc_result(result) as isize
}
