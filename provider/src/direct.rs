//! Direct verbs, `infiniband/pvrdmadv.h`: where the rings of an object are, for programs that post and poll by
//! themselves. These are the only names that the plugin exports (`provider/pvrdmadv.map`); `cargo xtask headers` makes
//! the header of this file and of `ffi/src/pvrdmadv.rs`, comments included.
//!
//! Programs may hand in objects of any provider. So the device comes first: an object is ours if its device is, and
//! nothing else of it is looked at before that.

use crate::boundary;
use crate::support::devices;
use crate::support::error::Errno;
use crate::verbs::ah::Ah;
use crate::verbs::context::Context;
use crate::verbs::cq::Cq;
use crate::verbs::qp::Qp;
use crate::verbs::srq::Srq;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::pvrdmadv::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;
use zerocopy::transmute;

/// Their version, where the linker takes one (`build.rs`). In the module of the functions, so that it comes into the
/// same object: the assembler says it of what is there.
#[cfg(versioned)]
macro_rules! version {
    ($($name:literal)*) => {
        core::arch::global_asm!($(concat!(".symver ", $name, ", ", $name, "@@@PVRDMADV_1.0")),*);
    };
}

#[cfg(versioned)]
version!("pvrdmadv_is_supported" "pvrdmadv_query_context" "pvrdmadv_query_qp" "pvrdmadv_query_cq"
    "pvrdmadv_query_srq" "pvrdmadv_query_ah");

/// Longer than any of the structs will ever be: what is said to be longer is no length.
const LONGEST: u32 = 4096;

/// Fill the caller's struct, of `inlen` bytes, with what is `found`. EINVAL: shorter than the first version was. What
/// the caller knows and we do not is 0.
///
/// # Safety
/// `attr` must be NULL or valid for a write of `inlen` bytes.
unsafe fn answer<T: Copy>(attr: *mut T, inlen: u32, found: impl FnOnce() -> Result<T, Errno>) -> Result<(), Errno> {
    if attr.is_null() || (inlen as usize) < size_of::<T>() || inlen > LONGEST {
        return Err(Errno::EINVAL);
    }
    let found = found()?;
    // SAFETY: promise of the caller; a T fits. Unaligned: it is the caller's memory.
    unsafe {
        ptr::write_bytes(attr.cast::<u8>(), 0, inlen as usize);
        attr.write_unaligned(found);
    }
    Ok(())
}

/// EINVAL: there is none; EOPNOTSUPP: it belongs to another provider, or to another copy of this one.
///
/// # Safety
/// `context` must be NULL or an open context of any provider.
unsafe fn check(context: *mut ibv_context) -> Result<(), Errno> {
    if context.is_null() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: promise of the caller; every libibverbs has the device at the front.
    match devices::is_ours(unsafe { (*context).device }) {
        true => Ok(()),
        false => Err(Errno::EOPNOTSUPP),
    }
}

/// An object's context, which all of them begin with.
macro_rules! context_of {
    ($object:expr) => {
        if $object.is_null() { ptr::null_mut() } else { (*$object).context }
    };
}

/// Does the device belong to this provider?
#[unsafe(no_mangle)]
pub extern "C" fn pvrdmadv_is_supported(device: *mut ibv_device) -> bool {
    boundary::catch(|| Ok(devices::is_ours(device))).unwrap_or(false)
}

/// Where the doorbells of an open device are. 0, or an errno.
///
/// # Safety
/// attr has room for inlen bytes: sizeof(*attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvrdmadv_query_context(
    context: *mut ibv_context,
    attr: *mut pvrdmadv_context,
    inlen: u32,
) -> c_int {
    // SAFETY: the context is open, and of this provider when `check` says so; the rest is the caller's promise.
    boundary::errno(|| unsafe {
        check(context)?;
        answer(attr, inlen, || {
            Ok(pvrdmadv_context {
                comp_mask: 0,
                uar: Context::of(context)?.uar.at().cast(),
                uar_size: PVRDMA_PAGE_SIZE as u32,
                qp_offset: PVRDMA_UAR_QP_OFFSET as u32,
                cq_offset: PVRDMA_UAR_CQ_OFFSET as u32,
                srq_offset: PVRDMA_UAR_SRQ_OFFSET as u32,
            })
        })
    })
}

/// Where the two queues of a QP are. 0, or an errno.
///
/// # Safety
/// attr has room for inlen bytes: sizeof(*attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvrdmadv_query_qp(qp: *mut ibv_qp, attr: *mut pvrdmadv_qp, inlen: u32) -> c_int {
    // SAFETY: as above; the QP lives.
    boundary::errno(|| unsafe {
        check(context_of!(qp))?;
        answer(attr, inlen, || Qp::of(qp).show())
    })
}

/// Where a CQ is. 0, or an errno.
///
/// # Safety
/// attr has room for inlen bytes: sizeof(*attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvrdmadv_query_cq(cq: *mut ibv_cq, attr: *mut pvrdmadv_cq, inlen: u32) -> c_int {
    // SAFETY: as above; the CQ lives.
    boundary::errno(|| unsafe {
        check(context_of!(cq))?;
        answer(attr, inlen, || Cq::of(cq).show())
    })
}

/// Where an SRQ is. 0, or an errno.
///
/// # Safety
/// attr has room for inlen bytes: sizeof(*attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvrdmadv_query_srq(srq: *mut ibv_srq, attr: *mut pvrdmadv_srq, inlen: u32) -> c_int {
    // SAFETY: as above; the SRQ lives.
    boundary::errno(|| unsafe {
        check(context_of!(srq))?;
        answer(attr, inlen, || Srq::of(srq).show())
    })
}

/// What a datagram to an AH has in its request. 0, or an errno.
///
/// # Safety
/// attr has room for inlen bytes: sizeof(*attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvrdmadv_query_ah(ah: *mut ibv_ah, attr: *mut pvrdmadv_ah, inlen: u32) -> c_int {
    // SAFETY: as above; the AH lives.
    boundary::errno(|| unsafe {
        check(context_of!(ah))?;
        answer(attr, inlen, || Ok(pvrdmadv_ah { comp_mask: 0, av: transmute!(*Ah::of(ah).av()) }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::mock::Mock;
    use core::cell::Cell;

    /// What `answer` says and leaves in the caller's memory.
    fn answered(inlen: u32) -> (Result<(), Errno>, [u64; 8], bool) {
        let mut room = [u64::MAX; 8];
        let looked = Cell::new(false);
        let found = || {
            looked.set(true);
            Ok(pvrdmadv_context {
                comp_mask: 0,
                uar: ptr::null_mut(),
                uar_size: 1,
                qp_offset: 2,
                cq_offset: 3,
                srq_offset: 4,
            })
        };
        // SAFETY: what is longer than the room is refused.
        let result = unsafe { answer(room.as_mut_ptr().cast(), inlen, found) };
        (result, room, looked.get())
    }

    #[test]
    fn a_struct_that_is_too_short_or_none_is_not_touched() {
        for inlen in [0, 8, 31, 4097, u32::MAX] {
            assert_eq!(answered(inlen), (Err(Errno::EINVAL), [u64::MAX; 8], false), "{inlen}");
        }
        // SAFETY: NULL is allowed.
        let none = unsafe { answer(ptr::null_mut::<pvrdmadv_context>(), 32, || Err(Errno::EIO)) };
        assert_eq!(none, Err(Errno::EINVAL));
    }

    #[test]
    fn a_longer_struct_has_zeros_in_what_is_not_known() {
        let filled = [0, 0, 1 | 2 << 32, 3 | 4 << 32];
        let (result, room, _) = answered(32);
        assert_eq!((result, room.split_at(4)), (Ok(()), (&filled[..], &[u64::MAX; 4][..])));
        let (result, room, _) = answered(48);
        assert_eq!((result, room.split_at(4)), (Ok(()), (&filled[..], &[0, 0, u64::MAX, u64::MAX][..])));
    }

    #[test]
    fn a_device_is_ours_from_its_making_to_its_end() {
        let device: *mut ibv_device = ptr::without_provenance_mut(0x1000);
        assert!(!pvrdmadv_is_supported(device));
        devices::enter(device);
        assert!(pvrdmadv_is_supported(device));
        devices::leave(device);
        assert!(!pvrdmadv_is_supported(device) && !pvrdmadv_is_supported(ptr::null_mut()));
    }

    #[test]
    fn queues_are_told_as_they_are() {
        let mock = Mock::inline(4, 64);
        let shown = mock.qp.show().unwrap_or_else(|errno| unreachable!("{errno:?}"));
        assert_eq!(shown.qp_handle, Mock::HANDLE.into());
        assert_eq!(shown.flags, PVRDMADV_QP_OWN_WR_ID);
        assert_eq!((shown.sq.num_entries, shown.sq.entry_size, shown.sq.max_sge), (4, 128, 2));
        assert_eq!(shown.sq.buf, mock.sq_ring.slots.cast());
        assert_eq!((shown.sq.prod_tail, shown.rq.cons_head), (mock.sq_ring.prod_tail, mock.rq_ring.cons_head));
        assert_eq!(shown.rq.doorbell_value, PVRDMA_UAR_QP_RECV | u32::from(Mock::HANDLE));
        let with_srq = Mock::with_srq(4, 1, 8);
        assert_eq!(with_srq.qp.show().map(|shown| shown.rq), Ok(pvrdmadv_wq::NONE));
        let shared = with_srq.srq.show().map(|shown| (shown.srq_handle, shown.wq.num_entries));
        assert_eq!(shared, Ok((Mock::SRQN, Mock::SRQ_WR)));
        assert_eq!(Mock::signaling_all().qp.show().map(|shown| shown.flags), Ok(PVRDMADV_QP_SIG_ALL));
    }
}
