//! Fill a slot of a send or receive queue from a work request. All branching by opcode is here.

use crate::support::error::Errno;
use crate::support::send_log::Logged;
use crate::support::switches::Switches;
use crate::verbs::ah::Ah;
use crate::verbs::qp::Extras;
use core::ptr::{self, NonNull};
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// What the device is told; inline data is refused, further bits mean nothing to it.
pub const FLAGS: u32 = IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_IP_CSUM;

/// A send WQE header as ten words: `pvrdma_sq_wqe_hdr` with its union spelled out.
pub type SendHeader = [u64; size_of::<pvrdma_sq_wqe_hdr>() / 8];

/// Judge `wr`, a request of a reliable connection, and write it to `slot`. `always` are flags every
/// request gets.
///
/// The whole header is written, zeroes where the opcode defines nothing, so that nothing of the
/// slot's previous request remains.
///
/// # Safety
/// `slot` must be a reserved slot with room for `max_sge` entries, `wr.sg_list` must point to
/// `wr.num_sge` entries.
#[inline(always)]
pub unsafe fn fill_rc(slot: NonNull<u8>, wr: &ibv_send_wr, max_sge: u32, always: u32) -> Result<(), Errno> {
    let num_sge = judge(wr, max_sge)?;
    let form = rc_form(wr)?;
    // SAFETY: promise of the caller.
    unsafe { write(slot, header(wr, wr.wr_id, wr.opcode, num_sge, always, form), wr.sg_list, num_sge) };
    Ok(())
}

/// Judge `wr`, a datagram, and write it to `slot`. `always` are flags every request gets.
///
/// # Safety
/// As [`fill_rc`]; `wr.wr.ud.ah` must be NULL or a live AH of ours.
#[inline(always)]
pub unsafe fn fill_ud(slot: NonNull<u8>, wr: &ibv_send_wr, max_sge: u32, always: u32) -> Result<(), Errno> {
    let num_sge = judge(wr, max_sge)?;
    // SAFETY: promise of the caller.
    let form = unsafe { ud_form(wr) }?;
    // SAFETY: promise of the caller.
    unsafe { write(slot, header(wr, wr.wr_id, wr.opcode, num_sge, always, form), wr.sg_list, num_sge) };
    Ok(())
}

/// Judge `wr`, with all that `extras` allows, and write it to `slot`. ENOMEM: too many requests
/// with inline memory are on their way.
///
/// # Safety
/// As [`fill_rc`] or [`fill_ud`]. Inline data must be readable. The caller holds the lock of the
/// send queue, and posts the slot, whatever comes after it.
pub unsafe fn fill_extras(
    slot: NonNull<u8>,
    wr: &ibv_send_wr,
    max_sge: u32,
    always: u32,
    extras: &Extras,
) -> Result<(), Errno> {
    // Also refuses a negative count.
    let num_sge = wr.num_sge as u32;
    if num_sge > max_sge {
        return Err(Errno::EINVAL);
    }
    let (opcode, form) = match wr.opcode {
        // SAFETY: promise of the caller.
        _ if extras.ud => (wr.opcode, unsafe { ud_form(wr) }?),
        IBV_WR_SEND_WITH_INV if extras.switches.has(Switches::SEND_WITH_INV) => (PVRDMA_WR_SEND_WITH_INV, [0; 6]),
        IBV_WR_LOCAL_INV if extras.switches.has(Switches::LOCAL_INV) => (PVRDMA_WR_LOCAL_INV, [0; 6]),
        _ => (wr.opcode, rc_form(wr)?),
    };
    let wants_inline = wr.send_flags & IBV_SEND_INLINE != 0;
    let Some(inline) = &extras.inline else {
        if wants_inline {
            return Err(Errno::EINVAL);
        }
        // SAFETY: promise of the caller.
        unsafe { write(slot, header(wr, wr.wr_id, opcode, num_sge, always, form), wr.sg_list, num_sge) };
        return Ok(());
    };
    let position = inline.log.next().ok_or(Errno::ENOMEM)?;
    let gathered = match wants_inline {
        false => None,
        true if !takes_inline(opcode) => return Err(Errno::EINVAL),
        // SAFETY: promise of the caller.
        true => Some(unsafe {
            inline.gather(
                position,
                (0..num_sge as usize).map(|i| {
                    let sge = wr.sg_list.add(i).read();
                    (sge.addr as *const u8, sge.length as usize)
                }),
            )
        }?),
    };
    let signaled = (wr.send_flags | always) & IBV_SEND_SIGNALED != 0;
    let wr_id = inline.log.note(position, Logged { wr_id: wr.wr_id, signaled });
    let (sg_list, num_sge) = match &gathered {
        None => (wr.sg_list.cast_const(), num_sge),
        Some(sge) => (ptr::from_ref(sge), u32::from(sge.length != 0)),
    };
    // SAFETY: promise of the caller; the one entry of inline data fits too, as there is room for
    // one at least.
    unsafe { write(slot, header(wr, wr_id, opcode, num_sge, always, form), sg_list, num_sge) };
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

/// The union of a header, by opcode.
pub type Form = [u64; 6];

/// The union of a request of a reliable connection. Opcodes 0..=6 have the same number on both
/// sides; from 7 on they do not (libibverbs's LOCAL_INV is the device's LSO).
#[inline(always)]
fn rc_form(wr: &ibv_send_wr) -> Result<Form, Errno> {
    // SAFETY: each member is plain integers, and the opcode says which the caller filled.
    unsafe {
        match wr.opcode {
            IBV_WR_SEND | IBV_WR_SEND_WITH_IMM => Ok([0; 6]),
            IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM | IBV_WR_RDMA_READ => {
                Ok(rdma_form(wr.wr.rdma.remote_addr, wr.wr.rdma.rkey))
            }
            IBV_WR_ATOMIC_CMP_AND_SWP | IBV_WR_ATOMIC_FETCH_AND_ADD => {
                let atomic = wr.wr.atomic;
                Ok(atomic_form(atomic.remote_addr, atomic.rkey, atomic.compare_add, atomic.swap))
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Of an RDMA request.
#[inline(always)]
pub fn rdma_form(remote_addr: u64, rkey: u32) -> Form {
    [remote_addr, rkey.into(), 0, 0, 0, 0]
}

/// Of an atomic.
#[inline(always)]
pub fn atomic_form(remote_addr: u64, rkey: u32, compare_add: u64, swap: u64) -> Form {
    [remote_addr, compare_add, swap, rkey.into(), 0, 0]
}

/// Of a datagram.
///
/// # Safety
/// `ah` must be a live AH of ours.
#[inline(always)]
pub unsafe fn datagram_form(ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32) -> Form {
    // SAFETY: promise of the caller.
    let [w0, w1, w2, w3, w4] = unsafe { Ah::of(ah) }.av();
    [u64::from(remote_qpn) | u64::from(remote_qkey) << 32, w0, w1, w2, w3, w4]
}

/// The union of a datagram.
///
/// # Safety
/// `wr.wr.ud.ah` must be NULL or a live AH of ours.
#[inline(always)]
unsafe fn ud_form(wr: &ibv_send_wr) -> Result<Form, Errno> {
    // SAFETY: plain integers and a pointer, filled by the caller in a request for a UD QP.
    let ud = unsafe { wr.wr.ud };
    if !matches!(wr.opcode, IBV_WR_SEND | IBV_WR_SEND_WITH_IMM) || ud.ah.is_null() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: promise of the caller.
    Ok(unsafe { datagram_form(ud.ah, ud.remote_qpn, ud.remote_qkey) })
}

/// How many entries the SGL has, if that can be, and nothing is asked for that the device lacks.
#[inline(always)]
fn judge(wr: &ibv_send_wr, max_sge: u32) -> Result<u32, Errno> {
    // Also refuses a negative count.
    let num_sge = wr.num_sge as u32;
    if num_sge > max_sge || wr.send_flags & IBV_SEND_INLINE != 0 {
        return Err(Errno::EINVAL);
    }
    Ok(num_sge)
}

/// The whole header.
#[inline(always)]
fn header(wr: &ibv_send_wr, wr_id: u64, opcode: u32, num_sge: u32, always: u32, form: Form) -> SendHeader {
    let flags = wr.send_flags & FLAGS | always;
    let [w4, w5, w6, w7, w8, w9] = form;
    // What is immediate data for some opcodes is the key to invalidate for others, on both sides.
    [wr_id, num_sge.into(), u64::from(opcode) | u64::from(flags) << 32, wr.imm_data.into(), w4, w5, w6, w7, w8, w9]
}

/// # Safety
/// `slot` must be 8-aligned and have room for the header and `num_sge` entries, which `sg_list`
/// must hold.
#[inline(always)]
unsafe fn write(slot: NonNull<u8>, header: SendHeader, sg_list: *const ibv_sge, num_sge: u32) {
    // SAFETY: promise of the caller.
    unsafe {
        slot.cast::<SendHeader>().write(header);
        copy_sges(slot.add(size_of::<SendHeader>()), sg_list, num_sge);
    }
}

/// Judge `wr` and write it to `slot`.
///
/// # Safety
/// As [`fill_rc`].
#[inline(always)]
pub unsafe fn fill_recv(slot: NonNull<u8>, wr: &ibv_recv_wr, max_sge: u32) -> Result<(), Errno> {
    // Also refuses a negative count.
    let num_sge = wr.num_sge as u32;
    if num_sge > max_sge {
        return Err(Errno::EINVAL);
    }
    let header: [u64; 2] = [wr.wr_id, num_sge.into()];
    // SAFETY: the slot is ours, 8-aligned, and holds header and entries (promise of the caller).
    unsafe {
        slot.cast::<[u64; 2]>().write(header);
        copy_sges(slot.add(size_of_val(&header)), wr.sg_list, num_sge);
    }
    Ok(())
}

/// Copy an SGL into a slot.
///
/// # Safety
/// `to` and `from` must each hold `count` entries; `to` must be 8-aligned.
#[inline(always)]
pub unsafe fn copy_sges(to: NonNull<u8>, from: *const ibv_sge, count: u32) {
    // Both kinds of entry are {u64 address, u32 length, u32 lkey}: two words.
    let (to, from) = (to.cast::<[u64; 2]>().as_ptr(), from.cast::<[u64; 2]>());
    for i in 0..count as usize {
        // SAFETY: promise of the caller. Volatile only to keep the compiler from turning a loop of
        // one or two rounds into a call of memcpy.
        unsafe {
            let [addr, length_and_lkey] = from.add(i).read();
            let to = to.add(i).cast::<u64>();
            to.write_volatile(addr);
            to.add(1).write_volatile(length_and_lkey);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ring::counters::{recv_stride, send_stride};
    use core::mem::zeroed;

    #[repr(C, align(64))]
    struct Room([u8; 256]);

    fn room() -> Room {
        Room([0xaa; 256])
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
        unsafe { fill_rc(NonNull::from(&mut room.0).cast(), wr, 3, 0) }
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
            assert_eq!(room.0, [0xaa; 256], "opcode {opcode} touched the slot");
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
            let ret = unsafe { fill_recv(NonNull::from(&mut room.0).cast(), &wr, 3) };
            assert_eq!(ret, Err(Errno::EINVAL), "num_sge {count}");
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
        unsafe { fill_recv(NonNull::from(&mut room.0).cast(), &wr, 3) }.unwrap();
        // SAFETY: plain integers inside the room.
        let (hdr, second) = unsafe {
            let at = room.0.as_ptr();
            (at.cast::<pvrdma_rq_wqe_hdr>().read(), at.add(32).cast::<pvrdma_sge>().read())
        };
        assert_eq!((hdr.wr_id, hdr.num_sge, hdr.total_len), (5, 2, 0));
        assert_eq!((second.addr, second.length, second.lkey), (1, 2, 3));
    }
}
