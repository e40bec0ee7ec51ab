//! Doorbells without a trap, where a provider says how.
//!
//! A provider may declare the places where it rings (`provider/src/support/doorbell.rs`): a nop of six bytes, inside
//! one aligned word of eight, in front of the plain store, and a loaded note `.note.pvrdma` that says where both are
//! and which registers hold value and page. `uverbs` calls [`take_all`] before it maps a doorbell page. It puts a
//! jump in the place of each nop, to a stub of ours, which has the device act if the address is on one of our pages
//! and goes on behind the store; any other store it leaves to the processor.
//!
//! Nothing is decoded or guessed, and no instruction is moved: one is replaced by one of the same length, by one
//! store, and old and new are both right at any moment. Whatever is not as declared stays as it is, and traps: the page
//! may not become writable (seccomp, PR_SET_MDWE, SELinux), other bytes are there (a debugger's breakpoint, a
//! tracer's), the stub is out of reach or all stubs are taken. Under valgrind, which keeps translations, no site is
//! taken.
//!
//! A jump stays for good, and is inherited by fork: in a child that has not opened the device the page is not ours, so
//! the store itself faults there as it would without. What dlclose takes away and dlopen brings back has the nop again.

use crate::kernel::stack::Spare;
use crate::kernel::uar;
use crate::support::fresh::OWN;
use crate::support::hooks::Way;
use crate::support::{config, memcheck, raw, trace};
use std::ffi::{CStr, c_int, c_void};
use std::fmt::Write;
use std::slice::from_raw_parts;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};

// ---- stubs -------------------------------------------------------------------------------------

/// One for each stub; the stubs below are counted by hand.
const SITES: usize = 64;

/// A taken site. The stubs read it: its fields are known to them by their offsets.
#[repr(C)]
struct Taken {
    /// Where the nop was; 0: the stub is free.
    nop: AtomicUsize,
    /// The store behind it.
    store: AtomicUsize,
    /// What follows the store.
    behind: AtomicUsize,
    /// Offset, page register, value register: bits 16.., 8..16, 0..8.
    operands: AtomicU64,
}

static TAKEN: [Taken; SITES] = [const {
    Taken {
        nop: AtomicUsize::new(0),
        store: AtomicUsize::new(0),
        behind: AtomicUsize::new(0),
        operands: AtomicU64::new(0),
    }
}; SITES];

/// Bytes from one stub to the next.
const STUB: usize = 64;

// A stub is entered by the jump, with the state of the place where the nop was, and leaves by a jump: it must keep
// the flags, the general registers and the red zone. For unwinders it is a signal frame, and its caller is at the
// store.
std::arch::global_asm!(
    ".pushsection .text",
    ".balign 64",
    ".globl pvrdma_stubs, pvrdma_landing",
    ".hidden pvrdma_stubs, pvrdma_landing",
    "pvrdma_stubs:",
    ".cfi_startproc",
    ".cfi_signal_frame",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, \
        29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, \
        57, 58, 59, 60, 61, 62, 63",
    ".balign 64",
    ".cfi_def_cfa rsp, 0",
    ".cfi_undefined rip",
    "lea rsp, [rsp - 128]",
    ".cfi_def_cfa_offset 128",
    "push qword ptr [rip + {taken} + 32 * \\n + 8]",
    ".cfi_def_cfa_offset 136",
    ".cfi_offset rip, -136",
    "push \\n",
    ".cfi_def_cfa_offset 144",
    "call pvrdma_landing",
    "push rcx",
    ".cfi_def_cfa_offset 152",
    "mov rcx, [rsp + 8]",
    "jrcxz 2f",
    "pop rcx",
    "lea rsp, [rsp + 144]",
    ".cfi_def_cfa_offset 0",
    ".cfi_undefined rip",
    "jmp qword ptr [rip + {taken} + 32 * \\n + 16]",
    "2:",
    ".cfi_def_cfa_offset 152",
    ".cfi_offset rip, -136",
    "pop rcx",
    "lea rsp, [rsp + 144]",
    ".cfi_def_cfa_offset 0",
    ".cfi_undefined rip",
    "jmp qword ptr [rip + {taken} + 32 * \\n + 8]",
    ".endr",
    ".balign 64",
    ".cfi_endproc",
    "pvrdma_landing:",
    ".cfi_startproc",
    "pushfq",
    ".cfi_adjust_cfa_offset 8",
    ".irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15",
    "push \\register",
    ".cfi_adjust_cfa_offset 8",
    ".cfi_rel_offset \\register, 0",
    ".endr",
    "cld",
    "mov rdi, rsp",
    "mov rbp, rsp",
    ".cfi_def_cfa_register rbp",
    "and rsp, -16",
    "sub rsp, 16",
    // How the program rounds and what it wants to be told of is its own, as in a signal handler.
    "stmxcsr [rsp]",
    "mov dword ptr [rsp + 8], 0x1f80",
    "ldmxcsr [rsp + 8]",
    "call {landed}",
    "ldmxcsr [rsp]",
    "mov rsp, rbp",
    ".cfi_def_cfa_register rsp",
    ".irp register, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax",
    "pop \\register",
    ".cfi_adjust_cfa_offset -8",
    ".cfi_restore \\register",
    ".endr",
    "popfq",
    ".cfi_adjust_cfa_offset -8",
    "ret",
    ".cfi_endproc",
    ".popsection",
    taken = sym TAKEN,
    landed = sym landed,
);

unsafe extern "C" {
    fn pvrdma_stubs();
}

/// What `pvrdma_landing` and the stub have pushed.
#[repr(C)]
struct Frame {
    /// r15 down to r8, rdi, rsi, rbp, rbx, rdx, rcx, rax.
    registers: [u64; 15],
    flags: u64,
    back: u64,
    /// The number of the site; on return 0 if the store is still to be done.
    site: u64,
}

impl Frame {
    /// A general register by the processor's number. rsp, 4, is none of them, and no operand of a site.
    fn register(&self, number: u64) -> u64 {
        const PLACE: [usize; 16] = [14, 13, 12, 11, 0, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];
        self.registers[PLACE[number as usize % 16]]
    }
}

extern "C" fn landed(frame: &mut Frame) {
    let operands = TAKEN[frame.site as usize % SITES].operands.load(Ordering::Relaxed);
    let at = frame.register(operands >> 8 & 15).wrapping_add(operands >> 16);
    let found = uar::find(at as usize);
    frame.site = u64::from(found.is_some());
    if let Some(register) = found {
        let before = raw::swap_mask(!0);
        uar::ring(register, frame.register(operands & 15) as u32, Way::Site, Spare::Own);
        raw::set_mask(before);
    }
}

// ---- notes -------------------------------------------------------------------------------------

/// A site as its note declares it.
#[derive(Debug, PartialEq, Eq)]
struct Site {
    nop: usize,
    /// What follows the store.
    behind: usize,
    /// Register with the address of the doorbell page.
    page: u8,
    /// Register with the value.
    value: u8,
    /// Of the doorbell's register in its page.
    offset: u16,
}

/// The nop, and the first bytes of the jump. They begin alike: who puts a breakpoint over the first byte of one and
/// takes it away over the other has put back what was there.
const NOP: [u8; 6] = [0x48, 0x0f, 0x1f, 0x44, 0x00, 0x00];
const JUMP: [u8; 2] = [0x48, 0xe9];

/// Type of the notes: vector, mask and x87 registers need not be kept. The stub keeps none of them.
const NOTE: u32 = 0x101;
const OWNER: &[u8] = b"pvrdma\0";

/// The descriptors of our notes in a segment of notes, each with its place.
fn descriptors(notes: &[u8], align: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_le_bytes(*notes.get(at..)?.first_chunk()?));
        let (name_len, len, kind) = (word(at)? as usize, word(at + 4)? as usize, word(at + 8)?);
        let name = notes.get(at + 12..)?.get(..name_len)?;
        let start = (at + 12 + name_len).next_multiple_of(align);
        let descriptor = notes.get(start..)?.get(..len)?;
        at = (start + len).next_multiple_of(align);
        Some((name == OWNER && kind == NOTE).then_some((start, descriptor)))
    })
    .flatten()
}

/// What a descriptor at address `at` says; `None` if it is not the sort of site that the stubs serve.
fn parse(descriptor: &[u8], at: usize) -> Option<Site> {
    let distance = |n: usize| Some(i32::from_le_bytes(*descriptor.get(n..)?.first_chunk()?) as isize);
    let nop = at.wrapping_add_signed(distance(0)?);
    let behind = (at + 4).wrapping_add_signed(distance(4)?);
    let operands = CStr::from_bytes_until_nul(descriptor.get(8..)?).ok()?.to_str().ok()?;
    let mut operands = operands.split(' ');
    let value = register(operands.next()?.strip_prefix("4@%")?)?;
    let page = register(operands.next()?.strip_prefix("8@%")?)?;
    let offset = operands.next()?.strip_prefix("4@$")?.parse().ok().filter(|offset| *offset < 4096)?;
    // A 32-bit store through one register has 2 to 8 bytes, and nothing may lie between it and the nop.
    let len = behind.wrapping_sub(nop).wrapping_sub(NOP.len());
    let fits = operands.next().is_none() && (2..=8).contains(&len) && nop % 8 + NOP.len() <= 8;
    fits.then_some(Site { nop, behind, page, value, offset })
}

/// The processor's number of a register, by its name in 32 or 64 bits. Not rsp: stub and landing move it.
fn register(name: &str) -> Option<u8> {
    let numbered = name.strip_prefix('r').map(|rest| rest.strip_suffix('d').unwrap_or(rest));
    if let Some(number) = numbered.and_then(|number| number.parse().ok()) {
        return (8..16).contains(&number).then_some(number);
    }
    let name = name.strip_prefix(['r', 'e'])?;
    let names = ["ax", "cx", "dx", "bx", "", "bp", "si", "di"];
    names.iter().position(|known| *known == name && !name.is_empty()).map(|number| number as u8)
}

// ---- taking ------------------------------------------------------------------------------------

/// What has become of a site.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Taken,
    /// Not a place that could be taken.
    Shape,
    /// Other bytes are there.
    Bytes,
    /// The stub is more than 2 GiB away.
    Far,
    /// All stubs are in use.
    Full,
    /// The page may not become writable.
    Denied,
}

const OUTCOMES: [&str; 6] =
    ["taken", "of another shape", "with other bytes", "out of reach", "too many", "write-protected"];

/// A walk through all loaded objects.
struct Walk {
    /// How many sites became what.
    outcomes: [usize; OUTCOMES.len()],
    /// Stubs whose site is still declared.
    declared: [bool; SITES],
}

/// The C library calls these around fork(3). The loader's list of objects has a lock, which fork does not open in the
/// child: one that is made while another thread walks the list could never walk it itself. So no thread of ours is at
/// it then. (A child of clone(2) or _Fork(3) may still meet that, as it may after a C++ exception.)
pub fn at_load() {
    // SAFETY: plain functions, which stay loaded.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), None) };
}

extern "C" fn before_fork() {
    // Not for ever: a program may fork from within such a walk of its own, for which ours would then wait.
    for _ in 0..100_000 {
        if let Some(taking) = OWN.taking.try_lock() {
            FORKER.store(thread(), Ordering::Relaxed);
            std::mem::forget(taking);
            return;
        }
        // SAFETY: no preconditions.
        unsafe { libc::sched_yield() };
    }
}

/// In the parent. In the child the gate is open, with all of `OWN`.
extern "C" fn after_fork() {
    if FORKER.compare_exchange(thread(), 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
        OWN.taking.open();
    }
}

/// The thread that forks and holds the gate, or 0.
static FORKER: AtomicI32 = AtomicI32::new(0);

fn thread() -> i32 {
    // SAFETY: no arguments.
    unsafe { raw::syscall!(SYS_gettid) as i32 }
}

/// Takes all declared sites that can be taken, and says in the trace how many.
pub fn take_all() {
    if config::get().is_none_or(|config| config.trap) || memcheck::is_there() {
        if trace::enabled() {
            trace::line(format_args!("SITES not wanted"));
        }
        return;
    }
    // Another thread is at it: what it comes too late for traps until the next page is mapped. No waiting here, since
    // the loader's lock is held below.
    let Some(_taking) = OWN.taking.try_lock() else { return };
    let mut walk = Walk { outcomes: [0; OUTCOMES.len()], declared: [false; SITES] };
    // SAFETY: `object` gets the pointer it expects, and only during the call.
    unsafe { libc::dl_iterate_phdr(Some(object), (&raw mut walk).cast()) };
    for (taken, _) in TAKEN.iter().zip(walk.declared).filter(|(_, declared)| !declared) {
        // Unloaded, and nobody can come from there.
        taken.nop.store(0, Ordering::Relaxed);
    }
    if trace::enabled() {
        let mut text = trace::Text::<160>::new();
        for (count, outcome) in walk.outcomes.iter().zip(OUTCOMES).filter(|(count, _)| **count > 0) {
            let _ = write!(text, " {count} {outcome}");
        }
        trace::line(format_args!("SITES{}", if text.as_bytes().is_empty() { " none" } else { text.as_str() }));
    }
}

/// Called for each loaded object, with the loader's lock: it stays loaded meanwhile.
unsafe extern "C" fn object(info: *mut libc::dl_phdr_info, _len: usize, walk: *mut c_void) -> c_int {
    // SAFETY: the loader's description of an object, and what `take_all` passed.
    let (info, walk) = unsafe { (&*info, &mut *walk.cast::<Walk>()) };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: as above.
    let headers = unsafe { from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let start_of = |header: &libc::Elf64_Phdr| (info.dlpi_addr as usize).wrapping_add(header.p_vaddr as usize);
    // Whether a range was loaded from the file, with one of these rights.
    let loaded = |at: usize, len: usize, rights: &[u32]| {
        let around = |header: &libc::Elf64_Phdr| {
            at.checked_sub(start_of(header)).is_some_and(|from| from.saturating_add(len) <= header.p_filesz as usize)
        };
        let fits = |header: &libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && rights.contains(&(header.p_flags & 7));
        headers.iter().any(|header| fits(header) && around(header))
    };
    for header in headers.iter().filter(|header| header.p_type == libc::PT_NOTE) {
        let (start, len) = (start_of(header), header.p_filesz as usize);
        if !loaded(start, len, &[libc::PF_R, libc::PF_R | libc::PF_X]) {
            continue;
        }
        // SAFETY: part of a segment that the loader has mapped readable, and that nobody writes.
        let notes = unsafe { from_raw_parts(start as *const u8, len) };
        let align = if header.p_align == 8 { 8 } else { 4 };
        for (at, descriptor) in descriptors(notes, align) {
            let site = parse(descriptor, start + at);
            let outcome = match site
                .filter(|site| loaded(site.nop & !7, site.behind - (site.nop & !7), &[libc::PF_R | libc::PF_X]))
            {
                Some(site) => take(&site, &mut walk.declared),
                None => Outcome::Shape,
            };
            walk.outcomes[outcome as usize] += 1;
        }
    }
    0
}

/// Puts the jump in the place of the nop. The site lies in a loaded segment of code.
fn take(site: &Site, declared: &mut [bool; SITES]) -> Outcome {
    let is_at = |at: usize| TAKEN.iter().position(|taken| taken.nop.load(Ordering::Relaxed) == at);
    let Some(stub) = is_at(site.nop).or_else(|| is_at(0)) else { return Outcome::Full };
    let taken = &TAKEN[stub];
    let to = pvrdma_stubs as *const () as usize + STUB * stub;
    let Ok(distance) = i32::try_from(to.wrapping_sub(site.nop + NOP.len()) as isize) else { return Outcome::Far };
    let mut jump = NOP;
    jump[..2].copy_from_slice(&JUMP);
    jump[2..].copy_from_slice(&distance.to_le_bytes());

    // SAFETY: an aligned word of code that is mapped readable; the loader keeps its object. Others may write to it.
    let word = unsafe { AtomicU64::from_ptr((site.nop & !7) as *mut u64) };
    let before = word.load(Ordering::Relaxed);
    let mut bytes = before.to_le_bytes();
    let place = &mut bytes[site.nop % 8..][..NOP.len()];
    if taken.nop.load(Ordering::Relaxed) == site.nop {
        // Even if a breakpoint is over it now.
        declared[stub] = true;
        if *place == jump {
            return Outcome::Taken;
        }
    }
    if *place != NOP {
        return Outcome::Bytes;
    }
    place.copy_from_slice(&jump);

    // Before the jump, and so before anybody reads it.
    let operands = u64::from(site.offset) << 16 | u64::from(site.page) << 8 | u64::from(site.value);
    taken.store.store(site.nop + NOP.len(), Ordering::Relaxed);
    taken.behind.store(site.behind, Ordering::Relaxed);
    taken.operands.store(operands, Ordering::Relaxed);
    // Writable and executable at once, since others run there meanwhile. And not in two steps: where one is not granted
    // both, the way back might be refused too, and the page stay without code.
    const PAGE: usize = 4096;
    let page = site.nop & !(PAGE - 1);
    let protect = |protection: c_int| {
        // SAFETY: the page is mapped, and stays readable and executable throughout.
        unsafe { raw::syscall!(SYS_mprotect, page, PAGE, protection) == 0 }
    };
    if !protect(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) {
        return Outcome::Denied;
    }
    taken.nop.store(site.nop, Ordering::Relaxed);
    declared[stub] = true;
    // One instruction for one of the same length: whoever runs there finds the one or the other.
    let done = word.compare_exchange(before, u64::from_le_bytes(bytes), Ordering::SeqCst, Ordering::Relaxed);
    protect(libc::PROT_READ | libc::PROT_EXEC);
    if done.is_ok() { Outcome::Taken } else { Outcome::Bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(nop: i32, behind: i32, operands: &str) -> Vec<u8> {
        [&nop.to_le_bytes()[..], &behind.to_le_bytes(), operands.as_bytes(), &[0]].concat()
    }

    fn note(owner: &[u8], kind: u32, descriptor: &[u8], align: usize) -> Vec<u8> {
        let mut note = [(owner.len() as u32), descriptor.len() as u32, kind].map(u32::to_le_bytes).concat();
        for part in [owner, descriptor] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(align), 0xee);
        }
        note
    }

    #[test]
    fn a_stub_fits_its_place() {
        unsafe extern "C" {
            fn pvrdma_landing();
        }
        let (first, behind) = (pvrdma_stubs as *const () as usize, pvrdma_landing as *const () as usize);
        assert_eq!(behind - first, SITES * STUB);
    }

    #[test]
    fn a_descriptor_counts_from_itself() {
        // The nop at 0x800, 6 bytes; a store of 3 bytes.
        let said = descriptor(-0x800, -0x800 + 5, "4@%ecx 8@%r12 4@$8");
        let site = Site { nop: 0x800, behind: 0x809, page: 12, value: 1, offset: 8 };
        assert_eq!(parse(&said, 0x1000), Some(site));
    }

    #[test]
    fn what_the_stubs_do_not_serve_is_no_site() {
        let usual = "4@%ecx 8@%rax 4@$4";
        assert!(parse(&descriptor(0, 5, usual), 0x1000).is_some());
        for (nop, behind, operands) in [
            (3, 8, usual),                       // over two words
            (0, 3, usual),                       // no room for a store
            (0, 11, usual),                      // room for more than one
            (0, -20, usual),                     // behind is before
            (0, 5, "4@%ecx 8@%rax"),             // no offset
            (0, 5, "4@%ecx 8@%rax 4@$4 4@%edx"), // one more
            (0, 5, "8@%rcx 8@%rax 4@$4"),        // 64 bits
            (0, 5, "4@$5 8@%rax 4@$4"),          // a constant
            (0, 5, "4@%ecx 8@%rsp 4@$4"),        // a register that is not kept
            (0, 5, "4@%ecx 8@%r16 4@$4"),
            (0, 5, "4@%ecx 8@%rax 4@$4096"),
            (0, 5, "4@%ecx 8@%rax 4@$-4"),
            (0, 5, ""),
        ] {
            assert_eq!(parse(&descriptor(nop, behind, operands), 0x1000), None, "{nop} {behind} {operands}");
        }
        assert_eq!(parse(&[0; 9], 0x1000), None);
        assert_eq!(parse(&[0; 3], 0x1000), None);
        let unterminated = descriptor(0, 5, usual);
        assert_eq!(parse(&unterminated[..unterminated.len() - 1], 0x1000), None);
    }

    #[test]
    fn registers_by_their_names() {
        let names32 = "eax ecx edx ebx - ebp esi edi r8d r9d r10d r11d r12d r13d r14d r15d";
        let names64 = "rax rcx rdx rbx - rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15";
        for names in [names32, names64] {
            for (number, name) in names.split(' ').enumerate().filter(|(_, name)| *name != "-") {
                assert_eq!(register(name), Some(number as u8), "{name}");
            }
        }
        for name in ["", "e", "r", "esp", "rsp", "r7", "r16", "r08x", "ax", "xmm0"] {
            assert_eq!(register(name), None, "{name}");
        }
    }

    #[test]
    fn notes_of_others_are_passed_over() {
        for align in [4, 8] {
            let ours = descriptor(1, 2, "3");
            let notes = [
                note(b"GNU\0", 3, &[1; 20], align),
                note(OWNER, NOTE, &ours, align),
                note(OWNER, 0x100, &ours, align),
                note(b"", 0, &[], align),
                note(b"pvrdm\0", NOTE, &ours, align),
                note(OWNER, NOTE, b"last", align),
            ]
            .concat();
            let found: Vec<_> =
                descriptors(&notes, align).map(|(at, bytes)| (&notes[at..][..bytes.len()], bytes)).collect();
            assert_eq!(found, [(&ours[..], &ours[..]), (b"last", b"last")]);
        }
    }

    #[test]
    fn notes_that_are_cut_off_end_the_walk() {
        let whole = note(OWNER, NOTE, b"four", 4);
        for len in 0..whole.len() {
            assert_eq!(descriptors(&whole[..len], 4).count(), 0, "{len}");
        }
        let mut huge = whole.clone();
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(descriptors(&huge, 4).count(), 0);
        huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(descriptors(&huge, 4).count(), 0);
    }
}
