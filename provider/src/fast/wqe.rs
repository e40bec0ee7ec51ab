//! Fill a slot of a send or receive queue from a work request. All branching by opcode is here.
//!
//! [`fill_rc_fast`] and the other fast ones are for the hot loops: they check all that the others check, by comparisons
//! alone.

use crate::ring::work_queue::WorkQueue;
use crate::support::error::Errno;
use crate::support::switches::Switches;
use crate::support::sync::own_slot;
use crate::verbs::ah::{Ah, AvWords};
use crate::verbs::inline::Inline;
use crate::verbs::qp::Extras;
use core::arch::x86_64::*;
use core::mem::offset_of;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// What the device is told; inline data is refused, further bits mean nothing to it.
pub const FLAGS: u32 = IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_IP_CSUM;

/// Bytes of a send WQE before its SGL: ten words.
pub const HEADER: usize = size_of::<pvrdma_sq_wqe_hdr>();

/// Bytes of a receive WQE before its SGL.
pub const RECV_HEADER: usize = size_of::<pvrdma_rq_wqe_hdr>();

/// Where the union of a send WQE is.
pub const FORM_AT: usize = offset_of!(pvrdma_sq_wqe_hdr, wr);

/// Fields that are neighbours here and there are copied in one piece.
const _: () = {
    assert!(offset_of!(pvrdma_rq_wqe_hdr, num_sge) == 8);
    assert!(HEADER == 80 && RECV_HEADER == 16 && FORM_AT == 32 && size_of::<pvrdma_sge>() == 16);
    assert!(size_of::<ibv_sge>() == 16 && offset_of!(ibv_sge, lkey) == offset_of!(pvrdma_sge, lkey));
    assert!(offset_of!(ibv_sge, addr) == offset_of!(pvrdma_sge, addr));
    assert!(offset_of!(ibv_send_wr_rdma, remote_addr) == 0 && offset_of!(ibv_send_wr_rdma, rkey) == 8);
    assert!(offset_of!(pvrdma_sq_wqe_hdr, num_sge) == 8 && offset_of!(pvrdma_sq_wqe_hdr, opcode) == 16);
    assert!(offset_of!(pvrdma_sq_wqe_hdr, send_flags) == 20 && offset_of!(pvrdma_sq_wqe_hdr, ex) == 24);
};

/// Of the first four words of a request's union, what its opcode defines: both sides have them in the same
/// places. The rest is whatever the application left there.
#[repr(C, align(16))]
struct Masks([[u64; 4]; 8]);

static MASKS: Masks = {
    const ALL: u64 = u64::MAX;
    const LOW: u64 = u32::MAX as u64;
    let rdma = [ALL, LOW, 0, 0];
    let atomic = [ALL, ALL, ALL, LOW];
    // WRITE, WRITE_WITH_IMM, SEND, SEND_WITH_IMM, READ, CMP_AND_SWP, FETCH_AND_ADD.
    Masks([rdma, rdma, [0; 4], [0; 4], rdma, atomic, atomic, [0; 4]])
};

const _: () = assert!(IBV_WR_SEND & 1 == 0 && IBV_WR_SEND_WITH_IMM == IBV_WR_SEND | 1);

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const _: () = {
    let same = [
        (IBV_WR_RDMA_WRITE, PVRDMA_WR_RDMA_WRITE, 0),
        (IBV_WR_RDMA_WRITE_WITH_IMM, PVRDMA_WR_RDMA_WRITE_WITH_IMM, 1),
        (IBV_WR_SEND, PVRDMA_WR_SEND, 2),
        (IBV_WR_SEND_WITH_IMM, PVRDMA_WR_SEND_WITH_IMM, 3),
        (IBV_WR_RDMA_READ, PVRDMA_WR_RDMA_READ, 4),
        (IBV_WR_ATOMIC_CMP_AND_SWP, PVRDMA_WR_ATOMIC_CMP_AND_SWP, 5),
        (IBV_WR_ATOMIC_FETCH_AND_ADD, PVRDMA_WR_ATOMIC_FETCH_AND_ADD, 6),
    ];
    let mut i = 0;
    while i < same.len() {
        let (verbs, device, number) = same[i];
        assert!(verbs == number && device == number);
        i += 1;
    }
};

/// The last opcode of a reliable connection that has the same number on both sides. (libibverbs's next,
/// LOCAL_INV, is the device's LSO.)
const LAST_RC: u32 = IBV_WR_ATOMIC_FETCH_AND_ADD;

/// The last opcode before the atomics, which are left to [`fill_rc`]: the others have a shorter union.
const LAST_SHORT: u32 = IBV_WR_RDMA_READ;

/// The row of [`MASKS`] for opcodes whose union is empty.
const NO_FORM: u32 = LAST_RC + 1;

/// Check `wr`, a request of a reliable connection, and write it to `slot`. False: it is of a form that only
/// [`fill_rc`] takes, or wrong.
///
/// Field by field, in the order of the slot: so nothing is kept in a register for long.
///
/// # Safety
/// `slot` must be a free slot of `q`, `wr` a request whose `sg_list` holds `num_sge` entries.
#[inline(always)]
pub unsafe fn fill_rc_fast(slot: *mut u8, q: *const WorkQueue, wr: *const ibv_send_wr) -> bool {
    // SAFETY: promise of the caller: the slot has room for a header and `max_sge` entries, the request and
    // its entries can be read.
    unsafe {
        let opcode = (*wr).opcode;
        let flags = (*wr).send_flags;
        if opcode > LAST_SHORT || flags & !FLAGS != 0 {
            return false;
        }
        own_slot(slot);
        let words = slot.cast::<u64>();
        slot.add(16).cast::<u32>().write(opcode);
        slot.add(20).cast::<u32>().write(flags | (*q).always);
        write_short_form(slot, opcode, &raw const (*wr).wr);
        words.write((*wr).wr_id);
        words.add(3).write((*wr).imm_data.into());
        fill_sges(slot, HEADER, (*q).max_sge, (*wr).num_sge, (*wr).sg_list)
    }
}

/// Write an SGL of up to four entries behind a header of `header` bytes, and its length into the header. False:
/// it is empty, longer, or longer than may be. One entry is what most have. No loop: that would want registers.
///
/// # Safety
/// `slot` must have room for the header and `max_sge` entries, `sg_list` hold `num_sge`.
#[inline(always)]
unsafe fn fill_sges(slot: *mut u8, header: usize, max_sge: u32, num_sge: i32, sg_list: *const ibv_sge) -> bool {
    // SAFETY: promise of the caller.
    unsafe {
        let (count, to) = (slot.add(8).cast::<u64>(), slot.add(header).cast::<__m128i>());
        let copy = |nth: usize| _mm_storeu_si128(to.add(nth), _mm_loadu_si128(sg_list.cast::<__m128i>().add(nth)));
        if num_sge == 1 {
            count.write(1);
            copy(0);
            return true;
        }
        let num_sge = num_sge as u32;
        if !(2..=4).contains(&num_sge) || num_sge > max_sge {
            return false;
        }
        count.write(num_sge.into());
        copy(0);
        copy(1);
        if num_sge > 2 {
            copy(2);
            if num_sge > 3 {
                copy(3);
            }
        }
    }
    true
}

/// As [`fill_rc_fast`], of a queue with inline memory. It takes requests of one SGE, and up to a cache line
/// of inline data. False: [`fill_extras`] can tell.
///
/// # Safety
/// As [`fill_rc_fast`]; inline data must be readable. The caller holds the lock of the send queue, and posts the
/// slot, whatever comes after it.
#[inline(always)]
pub unsafe fn fill_inline_fast(slot: *mut u8, q: *const WorkQueue, wr: *const ibv_send_wr, inline: &Inline) -> bool {
    // SAFETY: promise of the caller. One thing after the other: so little is in registers at a time.
    unsafe {
        let (opcode, flags, sge) = ((*wr).opcode, (*wr).send_flags, slot.add(HEADER).cast::<ibv_sge>());
        if opcode > LAST_SHORT || flags & !(FLAGS | IBV_SEND_INLINE) != 0 || (*wr).num_sge != 1 {
            return false;
        }
        let write = || {
            let position = inline.log.known_next()?;
            own_slot(slot);
            let words = slot.cast::<u64>();
            let flags = flags & FLAGS | (*q).always;
            slot.add(16).cast::<u32>().write(opcode);
            slot.add(20).cast::<u32>().write(flags);
            write_short_form(slot, opcode, &raw const (*wr).wr);
            words.add(3).write((*wr).imm_data.into());
            inline.log.note_flags(position, flags).note_wr_id((*wr).wr_id);
            words.write(inline.log.count(position));
            words.add(1).write(1);
            Some(position)
        };
        if flags & IBV_SEND_INLINE != 0 {
            // Of these opcodes only READ takes none.
            if opcode > IBV_WR_SEND_WITH_IMM || !inline.takes_one((*(*wr).sg_list).length) {
                return false;
            }
            let Some(position) = write() else {
                return false;
            };
            let from = (*wr).sg_list;
            (*sge).length = (*from).length;
            let count = slot.cast::<u64>().add(1);
            let put = inline.put_one(position, (*from).addr as *const u8, (*from).length, || count.write(0));
            (*sge).addr = put.addr;
            (*sge).lkey = put.lkey;
            return true;
        }
        if write().is_none() {
            return false;
        }
        copy_sges(sge.cast(), (*wr).sg_list, 1);
    }
    true
}

/// Check `wr`, a request of a reliable connection, and write it to `slot`, which has room for `max_sge`
/// entries. `always` are flags every request gets.
///
/// # Safety
/// `slot` must be a free slot with that room, `wr.sg_list` must hold `wr.num_sge` entries.
#[inline(always)]
pub unsafe fn fill_rc(slot: *mut u8, wr: &ibv_send_wr, max_sge: u32, always: u32) -> Result<(), Errno> {
    let num_sge = check(wr, max_sge)?;
    if wr.opcode > LAST_RC {
        return Err(Errno::EINVAL);
    }
    own_slot(slot);
    // SAFETY: promise of the caller.
    unsafe {
        write_header(slot, wr.wr_id, num_sge, wr.opcode, wr.send_flags & FLAGS | always, wr.imm_data);
        write_form(slot, wr.opcode, &raw const wr.wr);
        copy_sges(slot.add(HEADER), wr.sg_list, num_sge);
    }
    Ok(())
}

/// Check `wr`, a datagram, and write it to `slot`.
///
/// # Safety
/// As [`fill_rc`]; `wr.wr.ud.ah` must be NULL or a live AH of ours.
#[inline(always)]
pub unsafe fn fill_ud(slot: *mut u8, wr: &ibv_send_wr, max_sge: u32, always: u32) -> Result<(), Errno> {
    let num_sge = check(wr, max_sge)?;
    check_datagram(wr)?;
    own_slot(slot);
    // SAFETY: promise of the caller; the AH is not NULL.
    unsafe {
        write_header(slot, wr.wr_id, num_sge, wr.opcode, wr.send_flags & FLAGS | always, wr.imm_data);
        write_datagram(slot, &wr.wr.ud);
        copy_sges(slot.add(HEADER), wr.sg_list, num_sge);
    }
    Ok(())
}

/// Check `wr`, a datagram, and write it to `slot`. False: [`fill_ud`] can tell.
///
/// # Safety
/// `slot` must be a free slot of `q`; the rest as [`fill_ud`].
#[inline(always)]
pub unsafe fn fill_ud_fast(slot: *mut u8, q: *const WorkQueue, wr: *const ibv_send_wr) -> bool {
    // SAFETY: promise of the caller.
    unsafe {
        let (opcode, flags, ah) = ((*wr).opcode, (*wr).send_flags, (*wr).wr.ud.ah);
        // SEND and SEND_WITH_IMM are neighbours.
        if opcode & !1 != IBV_WR_SEND || flags & !FLAGS != 0 || ah.is_null() {
            return false;
        }
        own_slot(slot);
        let words = slot.cast::<u64>();
        slot.add(16).cast::<u32>().write(opcode);
        slot.add(20).cast::<u32>().write(flags | (*q).always);
        write_datagram(slot, &(*wr).wr.ud);
        words.write((*wr).wr_id);
        words.add(3).write((*wr).imm_data.into());
        fill_sges(slot, HEADER, (*q).max_sge, (*wr).num_sge, (*wr).sg_list)
    }
}

/// Check `wr`, with all that `extras` allows, and write it to `slot`. ENOMEM: too many requests
/// with inline memory are on their way.
///
/// # Safety
/// As [`fill_rc`] or [`fill_ud`]. Inline data must be readable. The caller holds the lock of the
/// send queue, and posts the slot, whatever comes after it.
pub unsafe fn fill_extras(
    slot: *mut u8,
    wr: &ibv_send_wr,
    max_sge: u32,
    always: u32,
    extras: &Extras,
) -> Result<(), Errno> {
    // Also refuses a negative count.
    let mut num_sge = wr.num_sge as u32;
    if num_sge > max_sge {
        return Err(Errno::EINVAL);
    }
    let opcode = match wr.opcode {
        opcode if extras.ud => check_datagram(wr).map(|()| opcode)?,
        opcode if opcode <= LAST_RC => opcode,
        IBV_WR_SEND_WITH_INV if extras.switches.has(Switches::SEND_WITH_INV) => PVRDMA_WR_SEND_WITH_INV,
        IBV_WR_LOCAL_INV if extras.switches.has(Switches::LOCAL_INV) => PVRDMA_WR_LOCAL_INV,
        _ => return Err(Errno::EINVAL),
    };
    let flags = wr.send_flags & FLAGS | always;
    let wants_inline = wr.send_flags & IBV_SEND_INLINE != 0;
    own_slot(slot);
    // SAFETY: of all that follows, promise of the caller.
    unsafe {
        let wr_id = match &extras.inline {
            None if wants_inline => return Err(Errno::EINVAL),
            None => wr.wr_id,
            Some(inline) => {
                let position = inline.log.next().ok_or(Errno::ENOMEM)?;
                if wants_inline {
                    if !takes_inline(opcode) {
                        return Err(Errno::EINVAL);
                    }
                    let sge = inline.gather(
                        position,
                        (0..num_sge as usize).map(|i| {
                            let sge = wr.sg_list.add(i).read();
                            (sge.addr as *const u8, sge.length as usize)
                        }),
                    )?;
                    // It fits: there is room for one entry at least.
                    copy_sges(slot.add(HEADER), &sge, 1);
                    num_sge = u32::from(sge.length != 0);
                }
                inline.log.note(position, wr.wr_id, flags)
            }
        };
        // What is immediate data for some opcodes is the key to invalidate for others, on both sides.
        write_header(slot, wr_id, num_sge, opcode, flags, wr.imm_data);
        if extras.ud {
            write_datagram(slot, &wr.wr.ud);
        } else {
            write_form(slot, wr.opcode.min(NO_FORM), &raw const wr.wr);
        }
        if !wants_inline {
            copy_sges(slot.add(HEADER), wr.sg_list, num_sge);
        }
    }
    Ok(())
}

/// May the payload of this device opcode be given inline?
#[inline(always)]
pub fn takes_inline(opcode: u32) -> bool {
    matches!(
        opcode,
        PVRDMA_WR_SEND
            | PVRDMA_WR_SEND_WITH_IMM
            | PVRDMA_WR_SEND_WITH_INV
            | PVRDMA_WR_RDMA_WRITE
            | PVRDMA_WR_RDMA_WRITE_WITH_IMM
    )
}

/// How many entries the SGL has, if that can be, and nothing is asked for that the device lacks.
#[inline(always)]
fn check(wr: &ibv_send_wr, max_sge: u32) -> Result<u32, Errno> {
    // Also refuses a negative count.
    let num_sge = wr.num_sge as u32;
    if num_sge > max_sge || wr.send_flags & IBV_SEND_INLINE != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(num_sge)
}

/// Can it be sent as a datagram?
#[inline(always)]
fn check_datagram(wr: &ibv_send_wr) -> Result<(), Errno> {
    // SAFETY: a pointer, filled by the caller in a request for a UD QP; any bytes are one.
    let ah = unsafe { wr.wr.ud.ah };
    if !matches!(wr.opcode, IBV_WR_SEND | IBV_WR_SEND_WITH_IMM) || ah.is_null() {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The words before the union: `opcode` is the device's, `ex` immediate data or a key.
///
/// # Safety
/// `slot` must be 8-aligned and have room for a header.
#[inline(always)]
pub unsafe fn write_header(slot: *mut u8, wr_id: u64, num_sge: u32, opcode: u32, flags: u32, ex: u32) {
    // SAFETY: promise of the caller. Two halves for opcode and flags: to join them costs more than a store.
    unsafe {
        let words = slot.cast::<u64>();
        words.write(wr_id);
        words.add(1).write(num_sge.into());
        slot.add(16).cast::<u32>().write(opcode);
        slot.add(20).cast::<u32>().write(flags);
        words.add(3).write(ex.into());
    }
}

/// The union of a request of a reliable connection.
///
/// Words 8 and 9 of the slot are not written: no opcode of such a queue uses them, so they are 0 from the
/// day the memory was mapped.
///
/// # Safety
/// `slot` must be 8-aligned and have room for a header, `opcode` at most [`NO_FORM`], `union` readable.
#[inline(always)]
unsafe fn write_form(slot: *mut u8, opcode: u32, union: *const ibv_send_wr_union) {
    // SAFETY: promise of the caller; every such opcode has its row in MASKS. Any bytes are a vector.
    unsafe {
        let masks = (&raw const MASKS).cast::<__m128i>().add(2 * opcode as usize);
        let (union, form) = (union.cast::<__m128i>(), slot.add(FORM_AT).cast::<__m128i>());
        _mm_storeu_si128(form, _mm_and_si128(_mm_loadu_si128(union), *masks));
        _mm_storeu_si128(form.add(1), _mm_and_si128(_mm_loadu_si128(union.add(1)), *masks.add(1)));
    }
}

/// [`write_form`] for opcodes up to [`LAST_SHORT`]: they use its first half only.
///
/// # Safety
/// As [`write_form`].
#[inline(always)]
unsafe fn write_short_form(slot: *mut u8, opcode: u32, union: *const ibv_send_wr_union) {
    // SAFETY: as in `write_form`.
    unsafe {
        let masks = (&raw const MASKS).cast::<__m128i>().add(2 * opcode as usize);
        let form = slot.add(FORM_AT).cast::<__m128i>();
        _mm_storeu_si128(form, _mm_and_si128(_mm_loadu_si128(union.cast()), *masks));
        _mm_storeu_si128(form.add(1), _mm_setzero_si128());
    }
}

/// The union of a datagram.
///
/// # Safety
/// `slot` must be 8-aligned and have room for a header; `ud.ah` must be a live AH of ours.
#[inline(always)]
pub unsafe fn write_datagram(slot: *mut u8, ud: &ibv_send_wr_ud) {
    // SAFETY: promise of the caller. An address vector is five words.
    unsafe {
        let form = slot.add(FORM_AT).cast::<u64>();
        form.write(u64::from(ud.remote_qpn) | u64::from(ud.remote_qkey) << 32);
        form.add(1).cast::<AvWords>().write(*Ah::of(ud.ah).av());
    }
}

/// Check `wr`, a receive, and write it to `slot`. False: [`fill_recv`] can tell.
///
/// # Safety
/// `slot` must be a free slot of `q`, `wr` a request whose `sg_list` holds `num_sge` entries.
#[inline(always)]
pub unsafe fn fill_recv_fast(slot: *mut u8, q: *const WorkQueue, wr: *const ibv_recv_wr) -> bool {
    own_slot(slot);
    // SAFETY: promise of the caller.
    unsafe {
        slot.cast::<u64>().write((*wr).wr_id);
        fill_sges(slot, RECV_HEADER, (*q).max_sge, (*wr).num_sge, (*wr).sg_list)
    }
}

/// Check `wr`, a receive, and write it to `slot`, which has room for `max_sge` entries.
///
/// # Safety
/// As [`fill_rc`].
pub unsafe fn fill_recv(slot: *mut u8, wr: &ibv_recv_wr, max_sge: u32) -> Result<(), Errno> {
    // Also refuses a negative count.
    let num_sge = wr.num_sge as u32;
    if num_sge > max_sge {
        return Err(Errno::EINVAL);
    }
    own_slot(slot);
    // SAFETY: promise of the caller.
    unsafe {
        let words = slot.cast::<u64>();
        words.write(wr.wr_id);
        words.add(1).write(num_sge.into());
        copy_sges(slot.add(RECV_HEADER), wr.sg_list, num_sge);
    }
    Ok(())
}

/// Copy an SGL into a slot. Both kinds of entry are {u64 address, u32 length, u32 lkey}.
///
/// # Safety
/// `to` and `from` must each hold `count` entries.
#[inline(always)]
pub unsafe fn copy_sges(to: *mut u8, from: *const ibv_sge, count: u32) {
    let (to, from) = (to.cast::<__m128i>(), from.cast::<__m128i>());
    for i in 0..count as usize {
        // SAFETY: promise of the caller. Volatile only to keep the compiler from turning a loop of
        // one or two rounds into a call of memcpy.
        unsafe { to.add(i).write_volatile(_mm_loadu_si128(from.add(i))) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ring::counters::{QueueShape, Size, Words, recv_stride, send_stride};
    use crate::ring::uar::Uar;
    use core::mem::zeroed;
    use core::ptr::NonNull;

    #[repr(C, align(64))]
    struct Room([u8; 256]);

    /// What an earlier request left, but for the two words that none writes.
    fn room() -> Room {
        let mut room = Room([0xaa; 256]);
        room.0[64..80].fill(0);
        room
    }

    fn parse(room: &Room) -> (pvrdma_sq_wqe_hdr, pvrdma_sge) {
        // SAFETY: both are plain integers and lie inside the room.
        unsafe {
            let at = room.0.as_ptr();
            (at.cast::<pvrdma_sq_wqe_hdr>().read(), at.add(80).cast::<pvrdma_sge>().read())
        }
    }

    fn send(opcode: u32, sge: &mut ibv_sge) -> ibv_send_wr {
        // SAFETY: all-zero integers and pointers are valid.
        let mut wr: ibv_send_wr = unsafe { zeroed() };
        wr.wr_id = 0x1122_3344_5566_7788;
        wr.opcode = opcode;
        wr.sg_list = sge;
        wr.num_sge = 1;
        wr.send_flags = IBV_SEND_SIGNALED;
        wr.imm_data = 0xdead_beef;
        wr
    }

    fn fill(room: &mut Room, wr: &ibv_send_wr) -> Result<(), Errno> {
        // SAFETY: the room has space for three entries; `sg_list` points to what `num_sge` says.
        unsafe { fill_rc(room.0.as_mut_ptr(), wr, 3, 0) }
    }

    /// In both ways, which must agree.
    fn receive(room: &mut Room, wr: &ibv_recv_wr) -> Result<(), Errno> {
        let shape = QueueShape { size: Size::ONE, max_sge: 3, stride: 64 };
        let (mut words, mut page) = (pvrdma_ring::default(), [0u32; 1024]);
        // SAFETY: words and page live as long as the queue; the room has space for three entries.
        unsafe {
            let uar = Uar::from_page(NonNull::from(&mut page).cast());
            let words = Words::new(NonNull::from(&mut words));
            let queue = WorkQueue::new(words, NonNull::from(&mut room.0).cast(), shape, uar.qp());
            let mut other = Room(room.0);
            let fast = fill_recv_fast(other.0.as_mut_ptr(), &queue, wr);
            let result = fill_recv(room.0.as_mut_ptr(), wr, 3);
            assert!(!fast || result.is_ok() && room.0 == other.0, "{result:?}");
            result
        }
    }

    const SGE: ibv_sge = ibv_sge { addr: 0x7000_0000_1000, length: 64, lkey: 0x99 };

    #[test]
    fn strides_are_those_of_the_device() {
        let expected = [
            (1, 128, 32),
            (2, 128, 64),
            (3, 128, 64),
            (4, 256, 128),
            (7, 256, 128),
            (8, 256, 256),
            (11, 256, 256),
            (12, 512, 256),
            (15, 512, 256),
            (16, 512, 512),
            (27, 512, 512),
            (28, 1024, 512),
        ];
        for (sge, sq, rq) in expected {
            assert_eq!((send_stride(sge), recv_stride(sge)), (Some(sq), Some(rq)), "{sge} SGEs");
        }
    }

    #[test]
    fn rdma_write_lands_in_the_devices_fields() {
        let mut sge = SGE;
        let mut wr = send(IBV_WR_RDMA_WRITE, &mut sge);
        wr.wr.rdma = ibv_send_wr_rdma { remote_addr: 0x4242, rkey: 7 };
        let mut room = room();
        fill(&mut room, &wr).unwrap();
        let (hdr, out) = parse(&room);
        assert_eq!(hdr.wr_id, wr.wr_id);
        assert_eq!(hdr.num_sge, 1);
        assert_eq!(hdr.opcode, PVRDMA_WR_RDMA_WRITE);
        assert_eq!(hdr.send_flags, PVRDMA_SEND_SIGNALED);
        assert_eq!(hdr.wr[..8], 0x4242u64.to_le_bytes());
        assert_eq!(hdr.wr[8..12], 7u32.to_le_bytes());
        assert_eq!((out.addr, out.length, out.lkey), (SGE.addr, SGE.length, SGE.lkey));
    }

    #[test]
    fn atomics_land_in_the_devices_fields() {
        let mut sge = SGE;
        let mut wr = send(IBV_WR_ATOMIC_CMP_AND_SWP, &mut sge);
        wr.wr.atomic = ibv_send_wr_atomic { remote_addr: 1, compare_add: 2, swap: 3, rkey: 4 };
        let mut room = room();
        fill(&mut room, &wr).unwrap();
        let (hdr, _) = parse(&room);
        assert_eq!(hdr.opcode, PVRDMA_WR_ATOMIC_CMP_AND_SWP);
        let words: Vec<u64> = hdr.wr[..32].chunks(8).map(|w| u64::from_le_bytes(w.try_into().unwrap())).collect();
        assert_eq!(words, [1, 2, 3, 4]);
    }

    #[test]
    fn nothing_of_the_previous_request_remains() {
        let mut sge = SGE;
        let mut room = room();
        fill(&mut room, &send(IBV_WR_SEND_WITH_IMM, &mut sge)).unwrap();
        let (hdr, _) = parse(&room);
        assert_eq!(hdr.ex, 0xdead_beef);
        assert_eq!((hdr.total_len, hdr.reserved), (0, 0));
        assert_eq!(hdr.wr, [0; 48]);
    }

    #[test]
    fn opcodes_the_device_would_misread_are_refused() {
        let mut sge = SGE;
        for opcode in [7, 8, 9, 10, 11, 14, 15, 16, u32::MAX] {
            let mut room = room();
            assert_eq!(fill(&mut room, &send(opcode, &mut sge)), Err(Errno::EINVAL), "{opcode}");
            assert_eq!(room.0, super::tests::room().0, "opcode {opcode} touched the slot");
        }
    }

    #[test]
    fn inline_and_bad_sge_counts_are_refused() {
        let mut sge = SGE;
        let mut room = room();
        let mut wr = send(IBV_WR_SEND, &mut sge);
        wr.send_flags |= IBV_SEND_INLINE;
        assert_eq!(fill(&mut room, &wr), Err(Errno::EINVAL));
        for count in [-1, i32::MIN, 4, i32::MAX] {
            let mut wr = send(IBV_WR_SEND, &mut sge);
            wr.num_sge = count;
            assert_eq!(fill(&mut room, &wr), Err(Errno::EINVAL), "num_sge {count}");
            let wr = ibv_recv_wr { wr_id: 0, next: core::ptr::null_mut(), sg_list: &mut sge, num_sge: count };
            // SAFETY: refused before the list is read.
            assert_eq!(receive(&mut room, &wr), Err(Errno::EINVAL), "num_sge {count}");
        }
    }

    #[test]
    fn unknown_send_flags_do_not_reach_the_device() {
        let mut sge = SGE;
        let mut wr = send(IBV_WR_SEND, &mut sge);
        wr.send_flags = !IBV_SEND_INLINE;
        let mut room = room();
        fill(&mut room, &wr).unwrap();
        assert_eq!(parse(&room).0.send_flags, PVRDMA_SEND_FLAGS_MASK & !PVRDMA_SEND_INLINE);
    }

    #[test]
    fn receive_lands_in_the_devices_fields() {
        let mut sges = [SGE, ibv_sge { addr: 1, length: 2, lkey: 3 }];
        let wr = ibv_recv_wr { wr_id: 5, next: core::ptr::null_mut(), sg_list: sges.as_mut_ptr(), num_sge: 2 };
        let mut room = room();
        // SAFETY: room for three entries, two are given.
        receive(&mut room, &wr).unwrap();
        // SAFETY: plain integers inside the room.
        let (hdr, second) = unsafe {
            let at = room.0.as_ptr();
            (at.cast::<pvrdma_rq_wqe_hdr>().read(), at.add(32).cast::<pvrdma_sge>().read())
        };
        assert_eq!((hdr.wr_id, hdr.num_sge, hdr.total_len), (5, 2, 0));
        assert_eq!((second.addr, second.length, second.lkey), (1, 2, 3));
    }
}
