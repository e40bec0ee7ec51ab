//! A hostile program. Bytes are what it gives the kernel: a command for write(2), the attributes of an ioctl, or the
//! instruction with which it rings a doorbell.
//!
//! Called by the test below with random bytes and by the fuzz target (`device/standin/fuzz`) with bytes that a fuzzer
//! grew. It is about decoding alone: what a command then does is the device's, which has a wild guest of its own.
//! Whatever the bytes: nothing panics, every part is as long as was said, and an answer is written where the program
//! has said that there is room for it and nowhere else.

use super::attrs::{self, Attrs};
use super::call::{self, Call, Form};
use super::{EFAULT, Result};
use crate::kernel::store;
use pvrdma_ffi::uapi::ib_user_ioctl::{ib_uverbs_attr, ib_uverbs_ioctl_hdr};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use zerocopy::{FromBytes, IntoBytes};

/// What came of some bytes, so that a test can tell whether they reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Commands and attributes that were taken for such.
    pub taken: u32,
    /// Those that were refused.
    pub refused: u32,
    /// Instructions that were understood.
    pub stores: u32,
}

/// One input.
pub fn run(bytes: &[u8]) -> Summary {
    let Some((kind, bytes)) = bytes.split_first() else { return Summary::default() };
    match kind % 3 {
        0 => instruction(bytes),
        1 => written(bytes),
        _ => attributes(bytes),
    }
}

// ---- the program's memory ----------------------------------------------------------------------

/// Bytes of the program's that answers may go to.
const LEN: usize = 8192;
/// Bytes behind them that are nobody's: more than any answer may be long, or one that is rightly written behind a long
/// room would land in whatever of this process is mapped next.
const NOBODYS: usize = 1 << 22;
const PAGE: usize = 4096;
const MARK: u8 = 0xa5;

struct Memory(*mut u8);

impl Memory {
    fn new() -> Memory {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping, whose rest behind `LEN` is then made nobody's.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), LEN + NOBODYS, prot, flags, -1, 0);
            assert!(start != libc::MAP_FAILED, "no memory");
            assert_eq!(libc::mprotect(start.byte_add(LEN), NOBODYS, libc::PROT_NONE), 0);
            start.cast::<u8>().write_bytes(MARK, LEN);
            Memory(start.cast())
        }
    }

    /// Memory that ends with `bytes`, of which there may be no more than it holds, and where they are.
    fn ending_with(bytes: &[u8]) -> (Memory, u64) {
        let memory = Memory::new();
        // SAFETY: the last so many bytes of the mapping, which nobody else has yet.
        unsafe { memory.0.add(LEN - bytes.len()).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        let at = memory.at() + (LEN - bytes.len()) as u64;
        (memory, at)
    }

    fn at(&self) -> u64 {
        self.0 as u64
    }

    /// An address that the bytes mean: in here, across the end, behind it, or nowhere. Never one of other memory of
    /// this process, which a right answer would overwrite.
    fn address(&self, raw: u64) -> u64 {
        match raw % 8 {
            0 => 0,
            1 => u64::MAX - raw % 64,
            2 => self.at() + LEN as u64 - raw / 8 % 64,
            _ => self.at() + raw / 8 % (LEN + PAGE) as u64,
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped as long as this lives; nothing writes while the slice is in use.
        unsafe { std::slice::from_raw_parts(self.0, LEN) }
    }

    /// Nothing but what `act` answers in `len` bytes at `at` may change. Says what it said.
    fn writes_only(&self, at: u64, len: usize, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.bytes().to_vec();
        let result = act();
        let room = at..at.saturating_add(len as u64);
        for (n, (old, new)) in before.iter().zip(self.bytes()).enumerate() {
            assert!(old == new || room.contains(&(self.at() + n as u64)), "byte {n} is not of the room {room:x?}");
        }
        // There or not there at all: what lies in the memory could be written.
        let inside = room.start >= self.at() && room.end <= self.at() + LEN as u64;
        assert!(!inside || result.is_ok(), "{result:?} for {room:x?}");
        result
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; no slice of it is left.
        unsafe { libc::munmap(self.0.cast(), LEN + NOBODYS) };
    }
}

// ---- three ways in -----------------------------------------------------------------------------

/// The trap asks for one more byte until the store is understood: more bytes must not make it another one.
fn instruction(bytes: &[u8]) -> Summary {
    let code = bytes.get(..store::MAX_LEN).unwrap_or(bytes);
    let mut first = None;
    for len in 0..=code.len() {
        let decoded = store::decode(&code[..len]);
        if let Some(found) = &first {
            assert_eq!(decoded.as_ref(), Some(found), "with {len} bytes of {code:02x?}");
        }
        if let Some(found) = decoded {
            assert!(found.len >= 2 && found.len <= store::MAX_LEN + 8, "{found:?}");
            first = Some(found);
        }
    }
    Summary { stores: first.is_some().into(), ..Summary::default() }
}

/// Where the address of the answer stands, in commands of either form.
const RESPONSE: std::ops::Range<usize> = 8..16;

/// A command by write(2).
fn written(bytes: &[u8]) -> Summary {
    let memory = Memory::new();
    let mut bytes = bytes.get(..LEN).unwrap_or(bytes).to_vec();
    let mut response = 0;
    if let Some(place) = bytes.get_mut(RESPONSE) {
        let raw = u64::read_from_bytes(place).unwrap_or_default();
        response = memory.address(raw);
        place.copy_from_slice(&response.to_ne_bytes());
    }
    let (_given, at) = Memory::ending_with(&bytes);
    let Ok((call, form)) = Call::from_write(at, bytes.len()) else {
        return Summary { refused: 1, ..Summary::default() };
    };
    let (header, _) = ib_uverbs_cmd_hdr::read_from_prefix(&bytes).expect("it was taken");
    let room = call.core_room() + call.driver_room();
    match form {
        Form::Plain => assert!(room <= usize::from(header.out_words) * 4, "{room} of {header:?}"),
        Form::Extended => assert!(room <= usize::from(u16::MAX) * 16, "{room}"),
    }
    // What begins in the memory ends in there or in what is nobody's.
    assert!(PAGE + room + 512 < NOBODYS, "{room}");
    use_call(&memory, &call, form, Some((response, room)));
    Summary { taken: 1, ..Summary::default() }
}

/// Every struct a handler may ask for, and answers longer than the room.
fn use_call(memory: &Memory, call: &Call, form: Form, answers: Option<(u64, usize)>) {
    assert!(!call::name(call.command, form).is_empty());
    if form == Form::Plain {
        // What is known was cut at its own struct, so a handler finds that one whole.
        match call.command {
            IB_USER_VERBS_CMD_CREATE_QP => drop(call.core::<ib_uverbs_create_qp>().expect("whole")),
            IB_USER_VERBS_CMD_REG_MR => drop(call.core::<ib_uverbs_reg_mr>().expect("whole")),
            IB_USER_VERBS_CMD_MODIFY_QP => drop(call.core::<ib_uverbs_modify_qp>().expect("whole")),
            IB_USER_VERBS_CMD_DESTROY_SRQ => drop(call.core::<ib_uverbs_destroy_srq>().expect("whole")),
            _ => {}
        }
    }
    let _ = (call.core::<[u8; 64]>(), call.driver::<[u8; 32]>(), call.driver::<u64>());
    let Some((at, len)) = answers else { return };
    let core = call.core_room();
    let _ = memory.writes_only(at, core, || call.answer(&[7u8; 512]));
    let behind = at.saturating_add(core as u64);
    let _ = memory.writes_only(behind, len - core, || call.answer_driver(&[9u8; 512]));
}

/// The attributes of an ioctl, and what is asked of them.
fn attributes(bytes: &[u8]) -> Summary {
    const HDR: usize = size_of::<ib_uverbs_ioctl_hdr>();
    const ATTR: usize = size_of::<ib_uverbs_attr>();
    let memory = Memory::new();
    let mut bytes = bytes.get(..LEN).unwrap_or(bytes).to_vec();
    // Long data stand behind addresses.
    for attr in bytes.get_mut(HDR..).unwrap_or_default().chunks_exact_mut(ATTR) {
        let (mut copy, _) = ib_uverbs_attr::read_from_prefix(attr).expect("so long");
        if copy.len > 8 || copy.flags & 0x8000 != 0 {
            copy.data = memory.address(copy.data);
            copy.flags &= 0x7fff;
            attr.copy_from_slice(copy.as_bytes());
        }
    }
    let (given, at) = Memory::ending_with(&bytes);
    let Ok(mut attrs) = Attrs::read(at) else {
        return Summary { refused: 1, ..Summary::default() };
    };
    assert!(!attrs::name(attrs.object, attrs.method).is_empty());
    let count = (bytes.len() - HDR) / ATTR;
    for id in (0..8).chain([UHW_IN, UHW_IN + 1]) {
        let room = attrs.room(id);
        let there = attrs.bytes(id);
        assert!(there.as_ref().is_ok_and(Option::is_none) || there == Err(EFAULT) || count > 0);
        if let Ok(Some(bytes)) = &there {
            assert_eq!(bytes.len(), room.len);
            assert_eq!(attrs.optional::<[u8; 8]>(id).is_ok_and(|found| found.is_some()), whole(bytes));
        }
        let _ = (attrs.u32(id), attrs.flags(id), attrs.object(id), attrs.descriptor(id), attrs.only(&[id]));
        let _ = attrs.required::<[u8; 40]>(id);
    }
    if let Ok((call, form)) = Call::from_ioctl(&attrs) {
        use_call(&memory, &call, form, None);
    }
    for id in 0..8 {
        let room = attrs.room(id);
        // An address that an attribute of eight bytes and less has for a number is no room.
        if room.len > 8 {
            let _ = memory.writes_only(room.at, room.len, || attrs.put(id, &[3u8; 20]));
        }
    }
    attrs.put_number(1, 42);
    assert_eq!(attrs.write_back(), Ok(()));
    // What goes back has the numbers of the answers and is else as it came.
    let back = &given.bytes()[LEN - bytes.len()..];
    assert_eq!(bytes[..HDR], back[..HDR]);
    for (old, new) in bytes[HDR..].chunks_exact(ATTR).zip(back[HDR..].chunks_exact(ATTR)) {
        assert_eq!(old[..4], new[..4], "number and length");
    }
    Summary { taken: 1, ..Summary::default() }
}

/// Attributes for the driver.
const UHW_IN: u16 = pvrdma_ffi::uapi::ib_user_ioctl::UVERBS_ATTR_UHW_IN;

/// Eight bytes, and nothing but zeros behind them.
fn whole(bytes: &[u8]) -> bool {
    bytes.len() >= 8 && bytes[8..].iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_ffi::rng::{Rng, replay, steps};
    use pvrdma_ffi::uapi::ib_user_ioctl::RDMA_DRIVER_VMW_PVRDMA;

    /// Bytes that are right where chance would hardly ever be: lengths and numbers of a header.
    fn likely(rng: &mut Rng) -> Vec<u8> {
        let kind = rng.below(3) as u8;
        let mut bytes = vec![kind];
        match kind {
            0 => {
                bytes.extend(*rng.pick(&[
                    &[0x89u8][..],
                    &[0xc7],
                    &[0x66, 0x0f, 0x7e],
                    &[0x44, 0x87],
                    &[0xc5, 0xf9, 0x7e],
                ]));
                bytes.extend(rng.bytes(12));
            }
            1 => {
                let words = 2 + rng.below(40) as u16;
                let command = rng.below(42) as u32 | if rng.one_in(8) { 1 << 31 } else { 0 };
                let header = ib_uverbs_cmd_hdr { command, in_words: words, out_words: rng.below(60) as u16 };
                bytes.extend(header.as_bytes());
                bytes.extend(rng.bytes(usize::from(words) * 4 - 8));
            }
            _ => {
                let count = rng.below(8) as u16;
                let header = ib_uverbs_ioctl_hdr {
                    length: (size_of::<ib_uverbs_ioctl_hdr>() + usize::from(count) * 16) as u16,
                    object_id: rng.below(16) as u16,
                    method_id: rng.below(8) as u16,
                    num_attrs: count,
                    driver_id: RDMA_DRIVER_VMW_PVRDMA,
                    ..Default::default()
                };
                bytes.extend(header.as_bytes());
                for id in 0..count {
                    let (len, data) = (*rng.pick(&[0, 4, 8, 16, 40, 300]), rng.word());
                    bytes.extend(ib_uverbs_attr { attr_id: id, len, flags: 1, attr_data: 0, data }.as_bytes());
                }
            }
        }
        if rng.one_in(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.word() as u8;
        }
        bytes
    }

    #[test]
    fn no_program_harms_the_decoder() {
        let (mut rng, mut all) = (Rng::from_env(1), Summary::default());
        let runs = steps(20_000) as u32;
        for _ in 0..runs {
            let one = run(&likely(&mut rng));
            all.taken += one.taken;
            all.refused += one.refused;
            all.stores += one.stores;
        }
        println!("{all:?}");
        // Bytes must reach something, or nothing is shown.
        assert!(all.taken > runs / 8 && all.refused > runs / 16 && all.stores > runs / 16, "{all:?} in {runs} runs");
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_harm_nobody() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/program");
        replay(folder, 50, |bytes| {
            run(bytes);
            true
        });
    }
}
