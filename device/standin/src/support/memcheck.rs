//! Tells valgrind's memcheck what it cannot see: bytes that arrived by process_vm_writev(2).
//!
//! Answers of the device reach the program that way, because the kernel then judges the address. memcheck follows what
//! a process writes to its own memory, but not this, and would call every value made of an answer uninitialised.

use std::arch::asm;

/// `VG_USERREQ__RUNNING_ON_VALGRIND` of valgrind.h.
const RUNNING_ON_VALGRIND: u64 = 0x1001;
/// `VG_USERREQ__MAKE_MEM_DEFINED` of valgrind's memcheck.h: the tool's letters, and the third request.
const MAKE_MEM_DEFINED: u64 = (b'M' as u64) << 24 | (b'C' as u64) << 16 | 2;

/// The `len` bytes at `at` have values now. Some nanoseconds where there is no valgrind.
pub fn make_defined(at: u64, len: usize) {
    ask([MAKE_MEM_DEFINED, at, len as u64, 0, 0, 0]);
}

/// Whether valgrind runs this program, whatever its tool.
pub fn is_there() -> bool {
    ask([RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0]) != 0
}

/// Valgrind's answer to a request; 0 where there is none.
fn ask(request: [u64; 6]) -> u64 {
    let mut answer = 0u64;
    // SAFETY: rotates a register once round and exchanges another with itself, which changes nothing; valgrind knows
    // the sequence as a request (valgrind.h), reads `request` through rax and puts its answer into rdx.
    unsafe {
        asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            inout("rax") request.as_ptr() => _,
            inout("rdx") answer,
            options(nostack),
        );
    }
    answer
}
