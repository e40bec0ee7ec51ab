//! The one store of a doorbell, at a place that is declared.
//!
//! `sync.rs` hands it to `ring/uar.rs`. In front of the store is a nop of six bytes, inside one aligned word of
//! eight, so that whoever stands in for the device inside the program can put a jump of the same length there with
//! one store, and spare the doorbell its trap. On a real device the nop is all it costs. Two notes say where the
//! places are:
//!
//! - `.note.pvrdma` is loaded and speaks in distances from itself, for the stand-in. Type 0x101: a jump may lead to
//!   code that changes what a C function may change of vector, mask and x87 registers, and nothing else.
//! - `.note.stapsdt` has SystemTap's layout, for all tools that know it, as gdb, perf and bpftrace do: a probe
//!   `pvrdma:doorbell` with the value and the register's address, whose offset in its page (0, 4 or 8) says which
//!   it is. (The third argument is a displacement, for sites that have one.)
//!
//! The clobbers below are the promise of type 0x101. Whoever takes one away has to take another type.

/// One 32-bit store to a register of the doorbell page.
///
/// # Safety
/// `register` must be valid for the write.
#[cfg(not(miri))]
#[inline(always)]
pub unsafe fn store_doorbell(register: *mut u32, value: u32) {
    // SAFETY: the store is the caller's promise. What a jump leads to does the same, or what a device does when it sees
    // the store; it keeps the general registers, the flags and the red zone, and the rest is declared here.
    unsafe {
        core::arch::asm!(
            // At most one byte more than it takes: the nop begins at byte 0, 1 or 2 of its word. Its first byte stays
            // in the jump: a tracer that put a breakpoint there restores it, whichever of the two it was.
            ".p2align 3,,5",
            "990: .byte 0x48, 0x0f, 0x1f, 0x44, 0x00, 0x00",
            "movl {value:e}, ({register})",
            "991:",
            ".pushsection .note.pvrdma, \"a\", @note",
            ".balign 4",
            ".4byte 993f - 992f, 995f - 994f, 0x101",
            "992: .asciz \"pvrdma\"",
            "993: .balign 4",
            "994: .4byte 990b - .",
            ".4byte 991b - .",
            ".asciz \"4@{value:e} 8@{register} 4@$0\"",
            "995: .balign 4",
            ".popsection",
            ".pushsection .note.stapsdt, \"?\", @note",
            ".balign 4",
            ".4byte 993f - 992f, 995f - 994f, 3",
            "992: .asciz \"stapsdt\"",
            "993: .balign 4",
            "994: .8byte 990b, _.stapsdt.base, 0",
            ".asciz \"pvrdma\"",
            ".asciz \"doorbell\"",
            ".asciz \"4@{value:e} 8@{register} 4@$0\"",
            "995: .balign 4",
            ".popsection",
            // In executable memory, although it is no code: perf takes the distance between address and file offset
            // from this section, and that of the text may be another than that of the data. Retained: gdb wants it.
            ".ifndef _.stapsdt.base",
            ".pushsection .stapsdt.base, \"axGR\", @progbits, .stapsdt.base, comdat",
            ".weak _.stapsdt.base",
            ".hidden _.stapsdt.base",
            "_.stapsdt.base: .space 1",
            ".size _.stapsdt.base, 1",
            ".popsection",
            ".endif",
            value = in(reg) value,
            register = in(reg) register,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _, out("xmm6") _,
            out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _, out("xmm12") _,
            out("xmm13") _, out("xmm14") _, out("xmm15") _, out("xmm16") _, out("xmm17") _, out("xmm18") _,
            out("xmm19") _, out("xmm20") _, out("xmm21") _, out("xmm22") _, out("xmm23") _, out("xmm24") _,
            out("xmm25") _, out("xmm26") _, out("xmm27") _, out("xmm28") _, out("xmm29") _, out("xmm30") _,
            out("xmm31") _,
            out("k0") _, out("k1") _, out("k2") _, out("k3") _, out("k4") _, out("k5") _, out("k6") _, out("k7") _,
            out("mm0") _, out("mm1") _, out("mm2") _, out("mm3") _, out("mm4") _, out("mm5") _, out("mm6") _,
            out("mm7") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _,
            out("st(6)") _, out("st(7)") _,
            options(att_syntax, nostack, preserves_flags),
        );
    }
}

/// The same where no assembler is.
///
/// # Safety
/// As above.
#[cfg(miri)]
#[inline(always)]
pub unsafe fn store_doorbell(register: *mut u32, value: u32) {
    // SAFETY: promise of the caller.
    unsafe { register.write_volatile(value) }
}
