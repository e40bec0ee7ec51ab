//! What is done only while a word holds: a process may be stopped between any two instructions (SIGSTOP, a debugger,
//! the freezer), for as long as somebody likes, and whoever waits for it must not.
//!
//! Comparison and act are one restartable sequence of rseq(2): a thread that left its core between them finds itself
//! before the comparison when it comes back. So once the word has changed, a thread that is seen not to run is either
//! past the act or will not act. The system call is part of the sequence: it begins by the last instruction, and the
//! kernel stops nobody in the middle of a copy, only on the way out.
//!
//! The C library tells the kernel of the sequences (glibc 2.35 and later, unless a tunable forbids it; valgrind knows
//! none). Without that a thread may be stopped between the two, and act a last time when it goes on.

use crate::sync::{AtomicU64, Ordering, section};
use std::arch::asm;
use std::sync::atomic::{AtomicIsize, AtomicU32, Ordering as Plain};

/// Where the C library keeps a thread's `struct rseq`, from the thread pointer; 0: nowhere.
static OFFSET: AtomicIsize = AtomicIsize::new(0);

/// Finds that out. Before the first act, and not in a signal handler.
pub fn prepare() {
    // SAFETY: terminated names; the loader's variables of these names are an `unsigned int` and a `ptrdiff_t`
    // (rseq(2), glibc's manual) which do not change once the program runs.
    let offset = unsafe {
        if cfg!(all(loom, test)) {
            return;
        }
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()).cast::<u32>();
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        if size.is_null() || offset.is_null() || *size == 0 { 0 } else { *offset }
    };
    OFFSET.store(offset, Plain::Relaxed);
}

/// The calling thread's `struct rseq`, if the kernel knows it.
fn area() -> Option<*mut u8> {
    /// Of `cpu_id`, which is negative for a thread that is not known, and of `rseq_cs` (linux/rseq.h).
    const CPU_ID: usize = 4;
    let offset = OFFSET.load(Plain::Relaxed);
    if offset == 0 {
        return None;
    }
    let thread: *mut u8;
    // SAFETY: the first word at fs is the thread pointer itself (System V ABI for x86-64, thread-local storage).
    unsafe { asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, pure, readonly)) };
    let area = thread.wrapping_byte_offset(offset);
    // SAFETY: the C library keeps `struct rseq` there for every thread; the kernel alone writes `cpu_id`.
    let known = unsafe { area.add(CPU_ID).cast::<i32>().read_volatile() } >= 0;
    known.then_some(area)
}

/// Makes system call `number` if `word` is `value`. `None`: it is not. Otherwise what the kernel gave: below 0 an
/// errno. `touched` tells models what it touches.
pub fn call_while(
    word: &AtomicU64,
    value: u64,
    number: libc::c_long,
    arguments: [usize; 6],
    touched: impl FnOnce(),
) -> Option<isize> {
    let _whole = section();
    match area() {
        Some(area) => compare_and_call(area, word, value, number, arguments),
        None if word.load(Ordering::SeqCst) != value => None,
        None => {
            touched();
            Some(call(number, arguments))
        }
    }
}

#[inline(never)]
fn compare_and_call(
    area: *mut u8,
    word: &AtomicU64,
    value: u64,
    number: libc::c_long,
    [first, second, third, fourth, fifth, sixth]: [usize; 6],
) -> Option<isize> {
    let (result, made): (isize, u64);
    // SAFETY: what the call does is its caller's business; arguments go where the kernel looks for them, and rcx and
    // r11 are the kernel's to change, once the call is made. `area` is this thread's own (see there): its `rseq_cs`, at
    // 8, names the sequence from 2 to 3, and nothing when it is over. If the kernel takes the thread out of it, it goes
    // on at 4, which the C library's signature precedes, with all registers as they were, and begins again at 6.
    unsafe {
        asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "5: .long 0, 0",
            ".quad 2f, 3f - 2f, 4f",
            ".popsection",
            "6: lea {made}, [rip + 5b]",
            "mov qword ptr [{area} + 8], {made}",
            "2: cmp qword ptr [rcx], r11",
            "jne 7f",
            "syscall",
            "3: mov {made:e}, 1",
            "jmp 8f",
            // An instruction that never runs, with RSEQ_SIG.
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "4: jmp 6b",
            "7: xor {made:e}, {made:e}",
            "8: mov qword ptr [{area} + 8], 0",
            area = in(reg) area,
            made = out(reg) made,
            inout("rax") number as isize => result,
            inout("rcx") word.as_ptr() => _,
            inout("r11") value => _,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            in("r8") fifth,
            in("r9") sixth,
            options(nostack),
        );
    }
    (made != 0).then_some(result)
}

/// Makes system call `number`. Below 0: an errno.
pub fn call(number: libc::c_long, [first, second, third, fourth, fifth, sixth]: [usize; 6]) -> isize {
    // SAFETY: what the call does is its caller's business.
    let result = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) } as isize;
    let errno = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0) as isize;
    if result < 0 { -errno() } else { result }
}

/// Stores `new` in `place` if `word` is `value`. `false`: it is not.
pub fn store_while(word: &AtomicU64, value: u64, place: &AtomicU32, new: u32) -> bool {
    let _whole = section();
    let Some(area) = area() else {
        let holds = word.load(Ordering::SeqCst) == value;
        if holds {
            place.store(new, Plain::Release);
        }
        return holds;
    };
    let made: u64;
    // SAFETY: as in `call_while`; both words are atomics that live, and a store is a Release here.
    unsafe {
        asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "5: .long 0, 0",
            ".quad 2f, 3f - 2f, 4f",
            ".popsection",
            "6: lea {made}, [rip + 5b]",
            "mov qword ptr [{area} + 8], {made}",
            "2: cmp qword ptr [{word}], {value}",
            "jne 7f",
            "mov dword ptr [{place}], {new:e}",
            "3: mov {made:e}, 1",
            "jmp 8f",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "4: jmp 6b",
            "7: xor {made:e}, {made:e}",
            "8: mov qword ptr [{area} + 8], 0",
            area = in(reg) area,
            word = in(reg) word.as_ptr(),
            value = in(reg) value,
            place = in(reg) place.as_ptr(),
            new = in(reg) new,
            made = out(reg) made,
            options(nostack),
        );
    }
    made != 0
}

/// The calling thread. The C library has a function for it only since 2.30.
pub fn thread() -> libc::pid_t {
    // SAFETY: no preconditions.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// A page that a child of fork shares with us.
    fn shared() -> &'static AtomicU64 {
        // SAFETY: fresh pages, never unmapped; zeros are an atomic.
        unsafe {
            let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            let at = libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
            assert!(at != libc::MAP_FAILED);
            &*at.cast()
        }
    }

    #[test]
    fn only_while_the_word_holds() {
        prepare();
        let (word, place) = (shared(), AtomicU32::new(1));
        for _ in 0..1000 {
            word.store(7, Ordering::SeqCst);
            let pid = call_while(word, 7, libc::SYS_getpid, [0; 6], || ());
            assert_eq!(pid, Some(std::process::id() as isize));
            assert_eq!(call_while(word, 7, libc::SYS_close, [usize::MAX, 0, 0, 0, 0, 0], || ()), Some(-9), "EBADF");
            assert!(store_while(word, 7, &place, 2) && place.load(Plain::Relaxed) == 2);
            word.store(8, Ordering::SeqCst);
            assert_eq!(call_while(word, 7, libc::SYS_getpid, [0; 6], || ()), None);
            assert!(!store_while(word, 7, &place, 3) && place.load(Plain::Relaxed) == 2);
        }
    }

    /// Runs a child to the very instruction `syscall`, stops it there, and does something before it goes on. Whether
    /// it made the call.
    fn stopped_at_the_call(word: &AtomicU64, meanwhile: impl Fn()) -> bool {
        let code = compare_and_call as fn(_, &'static _, _, _, _) -> _ as usize;
        // SAFETY: the text of a function, which is longer than this reaches: the instruction is in it.
        let text = unsafe { std::slice::from_raw_parts(code as *const u8, 512) };
        let call = text.windows(2).position(|bytes| bytes == [0x0f, 0x05]).expect("it is there") + code;
        // SAFETY: the child makes system calls and ends; all else is ptrace(2) on it, by numbers and words of ours.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                let made = call_while(word, 7, libc::SYS_getpid, [0; 6], || ()).is_some();
                libc::_exit(if made { 1 } else { 2 });
            }
            let mut status = 0;
            libc::waitpid(child, &mut status, 0);
            assert!(libc::WIFSTOPPED(status), "ptrace(2) is allowed here");
            let at = call as *mut libc::c_void;
            let before = libc::ptrace(libc::PTRACE_PEEKTEXT, child, at, 0);
            libc::ptrace(libc::PTRACE_POKETEXT, child, at, before & !0xff | 0xcc);
            libc::ptrace(libc::PTRACE_CONT, child, 0, 0);
            libc::waitpid(child, &mut status, 0);
            assert!(libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP, "{status:#x}");
            libc::ptrace(libc::PTRACE_POKETEXT, child, at, before);
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            libc::ptrace(libc::PTRACE_GETREGS, child, 0, &mut registers);
            assert_eq!(registers.rip, call as u64 + 1);
            registers.rip = call as u64;
            libc::ptrace(libc::PTRACE_SETREGS, child, 0, &registers);
            meanwhile();
            libc::ptrace(libc::PTRACE_CONT, child, 0, 0);
            libc::waitpid(child, &mut status, 0);
            assert!(libc::WIFEXITED(status), "{status:#x}");
            libc::WEXITSTATUS(status) == 1
        }
    }

    #[test]
    fn a_thread_stopped_at_the_very_call_compares_again() {
        prepare();
        if area().is_none() {
            println!("NOT RUN: this C library tells the kernel of no restartable sequences");
            assert!(std::env::var_os("CI").is_none());
            return;
        }
        let word = shared();
        word.store(7, Ordering::SeqCst);
        assert!(stopped_at_the_call(word, || ()));
        assert!(!stopped_at_the_call(word, || word.store(8, Ordering::SeqCst)));
    }
}
