//! The `ibv_wr_*` functions.
//!
//! `wr_start` takes the lock of the send queue, `wr_complete` and `wr_abort` open it. What comes
//! between fills slots that the device does not see until `wr_complete`, which publishes all of them
//! or, if anything was wrong, none.
//!
//! An error ends the queue's run of free slots and the request that setters are for
//! ([`Building::slot`]), so that one comparison keeps the functions that follow from doing anything.

use crate::boundary;
use crate::fast::wqe::{FLAGS, FORM_AT, HEADER, copy_sges, takes_inline, write_datagram, write_header};
use crate::support::error::Errno;
use crate::support::sync::own_slot;
use crate::verbs::qp::{Building, Qp};
use core::arch::x86_64::{_mm_setzero_si128, _mm_storeu_si128};
use core::ffi::{c_int, c_void};
use core::mem::offset_of;
use core::ptr;
use core::slice;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// The union of a request of a reliable connection.
enum Form {
    /// None of it is used.
    Empty,
    /// Remote address and key.
    Rdma(u64, u32),
    /// These and two operands.
    Atomic(u64, u32, u64, u64),
}

impl Form {
    /// Write four words, of which the upper half of the last is 0 in every request and not written.
    ///
    /// # Safety
    /// `at` must be where the union of a slot is.
    #[inline(always)]
    unsafe fn write(self, at: *mut u8) {
        let words = at.cast::<u64>();
        // SAFETY: promise of the caller. Every x86-64 processor has SSE2.
        unsafe {
            match self {
                Self::Empty => {
                    _mm_storeu_si128(at.cast(), _mm_setzero_si128());
                    _mm_storeu_si128(at.add(16).cast(), _mm_setzero_si128());
                }
                Self::Rdma(remote_addr, rkey) => {
                    words.write(remote_addr);
                    words.add(1).cast::<u32>().write(rkey);
                    _mm_storeu_si128(at.add(12).cast(), _mm_setzero_si128());
                }
                Self::Atomic(remote_addr, rkey, compare_add, swap) => {
                    words.write(remote_addr);
                    words.add(1).write(compare_add);
                    words.add(2).write(swap);
                    words.add(3).cast::<u32>().write(rkey);
                }
            }
        }
    }
}

/// # Safety
/// `qp` must be a live extended QP of ours whose lock `wr_start` has taken.
#[inline(always)]
unsafe fn building(qp: *mut ibv_qp_ex) -> *mut Building {
    // SAFETY: promise of the caller.
    unsafe { (*qp.cast::<Qp>()).building.get() }
}

/// A batch begins.
///
/// # Safety
/// As [`building`].
#[inline(always)]
unsafe fn begin(qp: *mut ibv_qp_ex) {
    // SAFETY: promise of the caller: the lock is held. It is opened by `wr_complete` or `wr_abort`.
    unsafe {
        let (queue, building) = ((*qp.cast::<Qp>()).sq.data(), building(qp));
        Building::begin(building, (*queue).next, (*queue).tail());
    }
}

/// From now on nothing is done but to say why.
///
/// # Safety
/// As [`building`].
#[cold]
unsafe fn fail(qp: *mut ibv_qp_ex, Errno(errno): Errno) {
    // SAFETY: promise of the caller.
    unsafe {
        let (queue, building) = (&mut *(*qp.cast::<Qp>()).sq.data(), &mut *building(qp));
        if building.error == 0 {
            building.error = if queue.is_open() { errno } else { libc::EINVAL };
        }
        queue.limit = building.next;
        building.slot = ptr::null_mut();
        building.tail = queue.tail();
    }
}

/// There is no known free slot: find some. False: there are none, or something is wrong already.
///
/// # Safety
/// As [`building`].
#[cold]
#[inline(never)]
unsafe fn make_room(qp: *mut ibv_qp_ex) -> bool {
    // SAFETY: promise of the caller.
    unsafe {
        let building = &mut *building(qp);
        if building.error != 0 {
            return false;
        }
        // Only datagrams lack an address.
        if building.lacks_address {
            fail(qp, Errno::EINVAL);
            return false;
        }
        let queue = &mut *(*qp.cast::<Qp>()).sq.data();
        match queue.refill(building.tail) {
            Ok(()) => {
                building.next = queue.next;
                true
            }
            Err(errno) => {
                fail(qp, errno);
                false
            }
        }
    }
}

/// Fill the header of the slot at `building.next`, which is free, with `wr_id`.
///
/// # Safety
/// As [`building`].
#[inline(always)]
unsafe fn fill(qp: *mut ibv_qp_ex, wr_id: u64, opcode: u32, ex: u32, form: Form) {
    // SAFETY: promise of the caller. `wr_flags` is the application's to set and ours to read. The slot has
    // room for a header; words 8 and 9 are of no opcode of a connection, and of a datagram
    // `wr_set_ud_addr` writes them.
    unsafe {
        let (queue, building) = ((*qp.cast::<Qp>()).sq.data(), building(qp));
        let slot = (*building).next;
        own_slot(slot);
        let flags = (*qp).wr_flags & FLAGS | (*queue).always;
        write_header(slot, wr_id, 0, opcode, flags, ex);
        form.write(slot.add(FORM_AT));
        (*building).slot = slot;
        (*building).next = (*queue).after(slot);
        (*building).tail = (*building).tail.wrapping_add(1);
    }
}

/// All requests, each by `$request` and, where there is no known free slot, once more after `make_room`.
macro_rules! requests {
    ($request:ident) => {
        requests! { $request:
            wr_send() = PVRDMA_WR_SEND, 0, Form::Empty;
            wr_send_imm(imm_data: u32) = PVRDMA_WR_SEND_WITH_IMM, imm_data, Form::Empty;
            wr_send_inv(rkey: u32) = PVRDMA_WR_SEND_WITH_INV, rkey, Form::Empty;
            wr_local_inv(rkey: u32) = PVRDMA_WR_LOCAL_INV, rkey, Form::Empty;
            wr_rdma_write(rkey: u32, remote_addr: u64) = PVRDMA_WR_RDMA_WRITE, 0, Form::Rdma(remote_addr, rkey);
            wr_rdma_write_imm(rkey: u32, remote_addr: u64, imm_data: u32) =
                PVRDMA_WR_RDMA_WRITE_WITH_IMM, imm_data, Form::Rdma(remote_addr, rkey);
            wr_rdma_read(rkey: u32, remote_addr: u64) = PVRDMA_WR_RDMA_READ, 0, Form::Rdma(remote_addr, rkey);
            wr_atomic_cmp_swp(rkey: u32, remote_addr: u64, compare: u64, swap: u64) =
                PVRDMA_WR_ATOMIC_CMP_AND_SWP, 0, Form::Atomic(remote_addr, rkey, compare, swap);
            wr_atomic_fetch_add(rkey: u32, remote_addr: u64, add: u64) =
                PVRDMA_WR_ATOMIC_FETCH_AND_ADD, 0, Form::Atomic(remote_addr, rkey, add, 0);
        }
    };
    ($request:ident: $($name:ident($($arg:ident: $ty:ty),*) = $opcode:expr, $ex:expr, $form:expr;)*) => {
        $(
            /// # Safety
            /// As [`building`].
            pub unsafe extern "C" fn $name(qp: *mut ibv_qp_ex $(, $arg: $ty)*) {
                #[cold]
                #[inline(never)]
                unsafe extern "C" fn after_make_room(qp: *mut ibv_qp_ex $(, $arg: $ty)*) {
                    // SAFETY: promise of the caller.
                    unsafe {
                        if make_room(qp) {
                            $name(qp $(, $arg)*);
                        }
                    }
                }
                // SAFETY: promise of the caller.
                unsafe {
                    // At the limit; or behind it, if the application has done what takes the lock meanwhile, in
                    // a thread that no lock keeps from itself.
                    if (*building(qp)).next >= (*(*qp.cast::<Qp>()).sq.data()).limit {
                        return after_make_room(qp $(, $arg)*);
                    }
                    $request(qp, $opcode, $ex, $form);
                }
            }
        )*
    };
}

/// For a reliable connection without inline data, and what is the same for all.
pub mod plain {
    use super::*;

    /// # Safety
    /// `qp` must be a live extended QP of ours.
    pub unsafe extern "C" fn wr_start(qp: *mut ibv_qp_ex) {
        // SAFETY: promise of the caller.
        unsafe {
            if !(*qp.cast::<Qp>()).sq.enter_alone_for_long() {
                return wr_start_shared(qp);
            }
            begin(qp);
        }
    }

    /// [`wr_start`] where there are threads, or the lock is taken.
    #[inline(never)]
    unsafe extern "C" fn wr_start_shared(qp: *mut ibv_qp_ex) {
        // SAFETY: promise of the caller.
        unsafe {
            let sq = &raw const (*qp.cast::<Qp>()).sq;
            if !(*sq).enter_for_long() {
                (*sq).wait();
            }
            begin(qp);
        }
    }

    /// # Safety
    /// As [`building`].
    pub unsafe extern "C" fn wr_complete(qp: *mut ibv_qp_ex) -> c_int {
        // SAFETY: promise of the caller.
        unsafe {
            let building = building(qp);
            let own = qp.cast::<Qp>();
            let (queue, tail) = ((*own).sq.data(), (*building).tail);
            // Nothing was filled, or there was an error.
            if tail == (*queue).tail() {
                return any::wr_complete(qp);
            }
            (*queue).next = (*building).next;
            (*queue).publish(tail);
            (*own).sq.leave();
            0
        }
    }

    /// # Safety
    /// As [`building`].
    #[inline(always)]
    unsafe fn request(qp: *mut ibv_qp_ex, opcode: u32, ex: u32, form: Form) {
        // SAFETY: promise of the caller; `wr_id` is the application's to set and ours to read.
        unsafe { fill(qp, (*qp).wr_id, opcode, ex, form) }
    }

    requests!(request);

    /// # Safety
    /// As [`building`].
    pub unsafe extern "C" fn wr_set_sge(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
        // SAFETY: promise of the caller. A slot has room for one entry at least.
        unsafe {
            let slot = (*building(qp)).slot;
            if slot.is_null() {
                return fail(qp, Errno::EINVAL);
            }
            set_count(slot, 1);
            let to = slot.add(HEADER).cast::<pvrdma_sge>();
            (*to).addr = addr;
            (*to).length = length;
            (*to).lkey = lkey;
        }
    }

    /// # Safety
    /// As [`building`]; `sg_list` must hold `num_sge` entries.
    pub unsafe extern "C" fn wr_set_sge_list(qp: *mut ibv_qp_ex, num_sge: usize, sg_list: *const ibv_sge) {
        // SAFETY: promise of the caller. A slot has room for `max_sge` entries.
        unsafe {
            let slot = (*building(qp)).slot;
            let num_sge = if sg_list.is_null() { 0 } else { num_sge };
            if slot.is_null() || num_sge > (*(*qp.cast::<Qp>()).sq.data()).max_sge as usize {
                return fail(qp, Errno::EINVAL);
            }
            set_count(slot, num_sge as u32);
            copy_sges(slot.add(HEADER), sg_list, num_sge as u32);
        }
    }
}

/// # Safety
/// `slot` must be one.
#[inline(always)]
unsafe fn set_count(slot: *mut u8, num_sge: u32) {
    // SAFETY: promise of the caller.
    unsafe { slot.add(offset_of!(pvrdma_sq_wqe_hdr, num_sge)).cast::<u32>().write(num_sge) };
}

/// For QPs of any kind.
pub mod any {
    use super::*;

    /// # Safety
    /// `qp` must be a live extended QP of ours.
    pub unsafe extern "C" fn wr_start(qp: *mut ibv_qp_ex) {
        // SAFETY: promise of the caller.
        unsafe {
            plain::wr_start(qp);
            let own = Qp::of(qp.cast());
            let building = &mut *building(qp);
            building.lacks_address = false;
            building.log_start = own.extras.inline.as_ref().map(|inline| inline.log.posted());
        }
    }

    /// # Safety
    /// As [`building`].
    #[inline(never)]
    pub unsafe extern "C" fn wr_complete(qp: *mut ibv_qp_ex) -> c_int {
        // SAFETY: promise of the caller.
        unsafe {
            let (own, building) = (Qp::of(qp.cast()), &mut *building(qp));
            // No request: nothing to post, but a closed queue is one all the same.
            let queue = &mut *own.sq.data();
            let any = building.tail != queue.tail();
            if !any && building.error == 0 && !queue.is_open() {
                building.error = libc::EINVAL;
            }
            if building.lacks_address && building.error == 0 {
                building.error = libc::EINVAL;
            }
            if building.error != 0 {
                rewind(own, building);
            } else if any {
                queue.next = building.next;
                queue.publish(building.tail);
            }
            let error = building.error;
            own.sq.leave();
            error
        }
    }

    /// # Safety
    /// As [`building`].
    pub unsafe extern "C" fn wr_abort(qp: *mut ibv_qp_ex) {
        // SAFETY: promise of the caller.
        unsafe {
            let own = Qp::of(qp.cast());
            rewind(own, &*building(qp));
            own.sq.leave();
        }
    }

    /// Nothing of what was built happens. The slots were never published.
    ///
    /// # Safety
    /// The lock of the send queue must be held, and nobody else refer to the queue.
    unsafe fn rewind(own: &Qp, building: &Building) {
        // SAFETY: promise of the caller.
        unsafe { (*own.sq.data()).rewind() };
        if let (Some(inline), Some(start)) = (&own.extras.inline, building.log_start) {
            inline.log.rewind(start);
        }
    }

    /// # Safety
    /// As [`building`].
    unsafe fn request(qp: *mut ibv_qp_ex, opcode: u32, ex: u32, form: Form) {
        // SAFETY: promise of the caller; `wr_id` and `wr_flags` are the application's to set and ours to
        // read.
        unsafe {
            let own = Qp::of(qp.cast());
            if (*building(qp)).lacks_address {
                return fail(qp, Errno::EINVAL);
            }
            let (mut wr_id, mut position) = ((*qp).wr_id, None);
            if let Some(inline) = &own.extras.inline {
                let Some(next) = inline.log.next() else {
                    return fail(qp, Errno::ENOMEM);
                };
                let flags = (*qp).wr_flags | (*own.sq.data()).always;
                wr_id = inline.log.note(next, wr_id, flags);
                position = Some(next);
            }
            fill(qp, wr_id, opcode, ex, form);
            let building = &mut *building(qp);
            building.position = position;
            building.lacks_address = own.extras.ud;
        }
    }

    requests!(request);

    /// # Safety
    /// As [`building`]; `addr` must be readable for `length` bytes.
    pub unsafe extern "C" fn wr_set_inline_data(qp: *mut ibv_qp_ex, addr: *mut c_void, length: usize) {
        // SAFETY: promise of the caller.
        unsafe { set_inline_or_fail(qp, &[ibv_data_buf { addr, length }]) }
    }

    /// # Safety
    /// As [`building`]; `buf_list` must hold `num_buf` entries, each readable.
    pub unsafe extern "C" fn wr_set_inline_data_list(
        qp: *mut ibv_qp_ex,
        num_buf: usize,
        buf_list: *const ibv_data_buf,
    ) {
        let bufs = match num_buf {
            0 => &[],
            _ if buf_list.is_null() => &[],
            // SAFETY: promise of the caller.
            _ => unsafe { slice::from_raw_parts(buf_list, num_buf) },
        };
        // SAFETY: promise of the caller.
        unsafe { set_inline_or_fail(qp, bufs) }
    }

    /// # Safety
    /// As [`building`]; `bufs` must be readable.
    unsafe fn set_inline_or_fail(qp: *mut ibv_qp_ex, bufs: &[ibv_data_buf]) {
        // SAFETY: promise of the caller.
        let set = boundary::catch(|| unsafe { set_inline(Qp::of(qp.cast()), &*building(qp), bufs) });
        if let Err(errno) = set {
            // SAFETY: promise of the caller.
            unsafe { fail(qp, errno) };
        }
    }

    /// # Safety
    /// `building` must be that of `own`, whose lock is held; `bufs` must be readable.
    unsafe fn set_inline(own: &Qp, building: &Building, bufs: &[ibv_data_buf]) -> Result<(), Errno> {
        if building.slot.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: a slot with its header.
        let opcode = unsafe { building.slot.add(offset_of!(pvrdma_sq_wqe_hdr, opcode)).cast::<u32>().read() };
        if !takes_inline(opcode) {
            return Err(Errno::EINVAL);
        }
        let (Some(inline), Some(position)) = (&own.extras.inline, building.position) else {
            // No inline memory, but nothing to put there either?
            if bufs.iter().any(|buf| buf.length != 0) {
                return Err(Errno::EINVAL);
            }
            // SAFETY: a slot.
            unsafe { set_count(building.slot, 0) };
            return Ok(());
        };
        let pieces = bufs.iter().map(|buf| (buf.addr.cast_const().cast(), buf.length));
        // SAFETY: the position is that of this request, which the device does not see yet; the rest is
        // the caller's promise. A slot has room for one entry.
        unsafe {
            let sge = inline.gather(position, pieces)?;
            set_count(building.slot, u32::from(sge.length != 0));
            copy_sges(building.slot.add(HEADER), &sge, 1);
        }
        Ok(())
    }

    /// # Safety
    /// As [`building`]; `ah` must be NULL or a live AH of ours.
    pub unsafe extern "C" fn wr_set_ud_addr(qp: *mut ibv_qp_ex, ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32) {
        // SAFETY: promise of the caller. The union has its place in every slot.
        unsafe {
            let building = building(qp);
            let slot = (*building).slot;
            if slot.is_null() || !Qp::of(qp.cast()).extras.ud || ah.is_null() {
                return fail(qp, Errno::EINVAL);
            }
            write_datagram(slot, &ibv_send_wr_ud { ah, remote_qpn, remote_qkey });
            (*building).lacks_address = false;
        }
    }
}

/// Operations that were not asked for at creation, or that the device does not have.
pub mod not_offered {
    use super::*;

    macro_rules! not_offered {
        ($($name:ident($($ty:ty),*);)*) => {
            $(
                /// # Safety
                /// As [`building`].
                pub unsafe extern "C" fn $name(qp: *mut ibv_qp_ex $(, _: $ty)*) {
                    // SAFETY: promise of the caller.
                    unsafe { fail(qp, Errno::EOPNOTSUPP) }
                }
            )*
        };
    }

    not_offered! {
        wr_send();
        wr_send_imm(u32);
        wr_send_inv(u32);
        wr_local_inv(u32);
        wr_rdma_write(u32, u64);
        wr_rdma_write_imm(u32, u64, u32);
        wr_rdma_read(u32, u64);
        wr_atomic_cmp_swp(u32, u64, u64, u64);
        wr_atomic_fetch_add(u32, u64, u64);
        wr_bind_mw(*mut c_void, u32, *const c_void);
        wr_send_tso(*mut c_void, u16, u16);
        wr_set_xrc_srqn(u32);
    }
}
