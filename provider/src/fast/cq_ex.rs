//! Extended completion queues: `ibv_create_cq_ex`, `ibv_start_poll` and the functions that read one
//! completion field by field.
//!
//! The lock of the CQ is taken by `start_poll` and held until `end_poll`, or until `start_poll`
//! fails. Entries are given back at the end, all at once.

use crate::boundary;
use crate::fast::poll_cq::judge;
use crate::ring::cqe::Cqe;
use crate::support::buf::Source;
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::lock::Held;
use crate::support::log::refuse;
use crate::support::qp_nums;
use crate::verbs::cq::{self, Cq, CqRing, Current};
use crate::verbs::pd::{DomainRef, Pd};
use core::ffi::{c_int, c_uint};
use pvrdma_ffi::verbs::*;

/// `create_cq_ex`. `wc_flags` that no completion of this device can serve are EOPNOTSUPP.
///
/// # Safety
/// `context` must be an open context of ours, `attr` valid for what its `comp_mask` says.
pub unsafe fn create_cq_ex(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex) -> Result<*mut ibv_cq_ex, Errno> {
    // SAFETY: promise of the caller. Not the whole: in the oldest releases it has no
    // `parent_domain`.
    let (cqe, channel, comp_vector, wc_flags, comp_mask) =
        unsafe { ((*attr).cqe, (*attr).channel, (*attr).comp_vector, (*attr).wc_flags, (*attr).comp_mask) };
    if comp_mask & !(IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD) != 0 {
        return Err(refuse(Errno::EINVAL, format_args!("create_cq_ex: comp_mask {comp_mask:#x}")));
    }
    if wc_flags & !u64::from(IBV_WC_STANDARD_FLAGS) != 0 {
        let why = format_args!("create_cq_ex: wc_flags {wc_flags:#x}: completions have {IBV_WC_STANDARD_FLAGS:#x}");
        return Err(refuse(Errno::EOPNOTSUPP, why));
    }
    let flags = match comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS {
        0 => 0,
        // SAFETY: promise of the caller.
        _ => unsafe { (*attr).flags },
    };
    if flags & !IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0 {
        // IGNORE_OVERRUN: the device tells nobody whether it overran.
        return Err(refuse(Errno::EOPNOTSUPP, format_args!("create_cq_ex: flags {flags:#x}")));
    }
    let mut single_threaded = flags & IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0;
    let (mut source, mut domain_ref) = (Source { libibverbs: libibverbs()?, allocator: None }, DomainRef::NONE);
    if comp_mask & IBV_CQ_INIT_ATTR_MASK_PD != 0 {
        // SAFETY: promise of the caller.
        let domain = unsafe { (*attr).parent_domain };
        if domain.is_null() {
            return Err(Errno::EINVAL);
        }
        // SAFETY: promise of the caller.
        let domain = unsafe { Pd::of(domain) };
        if domain.parent.is_none() {
            return Err(refuse(Errno::EINVAL, format_args!("create_cq_ex: a PD that is no parent domain")));
        }
        single_threaded |= domain.single_threaded();
        source = domain.source()?;
        domain_ref = DomainRef::of(domain);
    }
    let comp_vector = c_int::try_from(comp_vector).map_err(|_| Errno::EINVAL)?;
    // SAFETY: passed on from the caller; a single-threaded CQ is used by one thread.
    let cq: *mut ibv_cq_ex =
        unsafe { cq::create(context, cq::Request { cqe, channel, comp_vector, single_threaded, source, domain_ref }) }?
            .cast();
    // SAFETY: a CQ of ours, with room for all of it, that nobody else has yet.
    unsafe { install(cq) };
    Ok(cq)
}

/// # Safety
/// `cq` must be valid for writes.
unsafe fn install(cq: *mut ibv_cq_ex) {
    // SAFETY: promise of the caller.
    unsafe {
        (*cq).start_poll = Some(start_poll);
        (*cq).next_poll = Some(next_poll);
        (*cq).end_poll = Some(end_poll);
        (*cq).read_opcode = Some(read_opcode);
        (*cq).read_vendor_err = Some(read_vendor_err);
        (*cq).read_byte_len = Some(read_byte_len);
        (*cq).read_imm_data = Some(read_imm_data);
        (*cq).read_qp_num = Some(read_qp_num);
        (*cq).read_src_qp = Some(read_src_qp);
        (*cq).read_wc_flags = Some(read_wc_flags);
        (*cq).read_slid = Some(read_slid);
        (*cq).read_sl = Some(read_sl);
        (*cq).read_dlid_path_bits = Some(read_dlid_path_bits);
    }
}

/// # Safety
/// `cq` must be a live extended CQ of ours, which the caller may use.
unsafe extern "C" fn start_poll(cq: *mut ibv_cq_ex, attr: *mut ibv_poll_cq_attr) -> c_int {
    boundary::errno(|| {
        // SAFETY: the manual page: a valid attribute.
        if unsafe { (*attr).comp_mask } != 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: a live CQ. Opened below or in `end_poll`.
        let (own, mut ring) = unsafe {
            let own = Cq::of(cq.cast());
            own.ring.lock_on();
            (own, own.ring.held())
        };
        let mut found = look(own, &mut ring, cq, 0);
        // The device may hold completions back until asked.
        if found == Err((Errno::ENOENT, 0)) && own.ring_poll(&mut ring) {
            found = look(own, &mut ring, cq, 0);
        }
        found.map_err(|(errno, passed)| {
            // SAFETY: taken above; there is nothing to end.
            unsafe { leave(own, ring, passed) };
            errno
        })
    })
}

/// # Safety
/// As [`start_poll`], after a `start_poll` that gave 0.
unsafe extern "C" fn next_poll(cq: *mut ibv_cq_ex) -> c_int {
    boundary::errno(|| {
        // SAFETY: a live CQ whose lock `start_poll` has taken.
        let (own, mut ring) = unsafe {
            let own = Cq::of(cq.cast());
            (own, own.ring.held())
        };
        let passed = ring.at.map_or(0, |current| current.passed);
        look(own, &mut ring, cq, passed).map_err(|(errno, passed)| {
            if let Some(current) = &mut ring.at {
                current.passed = passed;
            }
            errno
        })
    })
}

/// # Safety
/// As [`next_poll`].
unsafe extern "C" fn end_poll(cq: *mut ibv_cq_ex) {
    boundary::nothing(|| {
        // SAFETY: as in `next_poll`.
        unsafe {
            let own = Cq::of(cq.cast());
            let ring = own.ring.held();
            let passed = ring.at.map_or(0, |current| current.passed);
            leave(own, ring, passed);
        }
    });
}

/// Make the first completion after `passed` entries the current one. ENOENT: there is none; EIO: the
/// device's counter is impossible. With the error comes how many entries are passed now.
fn look(own: &Cq, ring: &mut CqRing, cq: *mut ibv_cq_ex, mut passed: u32) -> Result<(), (Errno, u32)> {
    loop {
        match ring.consumer.ready() {
            Ok(ready) if passed < ready => {}
            Ok(_) => return Err((Errno::ENOENT, passed)),
            Err(_) => return Err((Errno::EIO, passed)),
        }
        // SAFETY: ready, and given back by `leave` only.
        let cqe = unsafe { Cqe::new(ring.entries.at(ring.consumer.slot(passed))) };
        passed += 1;
        let qp_num = qp_nums::qp_num(own.qp_nums.table(), cqe.handle());
        if let Some((qp_num, wr_id)) = judge(&ring.logs, cqe, qp_num) {
            ring.at = Some(Current { cqe, qp_num, passed });
            // SAFETY: the CQ the application polls: these two are for it to read.
            unsafe {
                (*cq).status = cqe.status();
                (*cq).wr_id = wr_id;
            }
            return Ok(());
        }
    }
}

/// Give back what was passed and open the lock.
///
/// # Safety
/// The caller must hold the lock.
unsafe fn leave(own: &Cq, mut ring: Held<'_, CqRing>, passed: u32) {
    if passed > 0 {
        ring.release(passed);
    }
    ring.at = None;
    // SAFETY: promise of the caller; the guard is not used after this.
    unsafe { own.ring.unlock() };
}

/// # Safety
/// As [`next_poll`].
#[inline(always)]
unsafe fn current<T: Default>(cq: *mut ibv_cq_ex, read: impl FnOnce(&Current) -> T) -> T {
    // SAFETY: as in `next_poll`.
    let ring = unsafe { Cq::of(cq.cast()).ring.held() };
    ring.at.as_ref().map_or_else(T::default, read)
}

macro_rules! readers {
    ($($name:ident: $ty:ty = $read:expr;)*) => {
        $(
            /// # Safety
            /// As [`next_poll`].
            unsafe extern "C" fn $name(cq: *mut ibv_cq_ex) -> $ty {
                // SAFETY: promise of the caller.
                unsafe { current(cq, $read) }
            }
        )*
    };
}

readers! {
    read_opcode: u32 = |current| current.cqe.opcode();
    read_vendor_err: u32 = |current| current.cqe.vendor_err();
    read_byte_len: u32 = |current| current.cqe.byte_len();
    read_imm_data: u32 = |current| current.cqe.imm_data();
    read_qp_num: u32 = |current| current.qp_num;
    read_src_qp: u32 = |current| current.cqe.src_qp();
    read_wc_flags: c_uint = |current| current.cqe.wc_flags();
    read_slid: u32 = |current| current.cqe.slid();
    read_sl: u8 = |current| current.cqe.sl();
    read_dlid_path_bits: u8 = |current| current.cqe.dlid_path_bits();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::testing::mock::{Mock, send_cqe};
    use pvrdma_ffi::uapi::vmw_pvrdma::*;

    /// The mock's CQ as an extended one.
    fn extended(mock: &mut Mock) -> *mut ibv_cq_ex {
        let cq = core::ptr::from_mut(&mut *mock.cq).cast();
        // SAFETY: a CQ of ours.
        unsafe { install(cq) };
        cq
    }

    fn start(cq: *mut ibv_cq_ex) -> c_int {
        let mut attr = ibv_poll_cq_attr { comp_mask: 0 };
        // SAFETY: a live CQ; the tests end what they start.
        unsafe { start_poll(cq, &mut attr) }
    }

    fn drain(cq: *mut ibv_cq_ex) -> Vec<u64> {
        let mut wr_ids = Vec::new();
        let mut ret = start(cq);
        let any = ret == 0;
        while ret == 0 {
            // SAFETY: a live CQ that is being polled.
            unsafe {
                wr_ids.push((*cq).wr_id);
                ret = next_poll(cq);
            }
        }
        assert_eq!(ret, libc::ENOENT);
        if any {
            // SAFETY: started above.
            unsafe { end_poll(cq) };
        }
        wr_ids
    }

    #[test]
    fn completions_come_in_order_and_slots_go_back_at_the_end() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        for round in 0..5 {
            (0..4).for_each(|i| mock.put(send_cqe(10 * round + i)));
            assert_eq!(drain(cq), (0..4).map(|i| 10 * round + i).collect::<Vec<_>>());
        }
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), 0);
        assert_eq!(drain(cq), []);
        assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), PVRDMA_UAR_CQ_POLL | Mock::CQN);
    }

    #[test]
    fn every_field_can_be_read() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        mock.put(pvrdma_cqe {
            wr_id: 1,
            qp: Mock::HANDLE.into(),
            opcode: PVRDMA_WC_RECV,
            status: PVRDMA_WC_GENERAL_ERR,
            byte_len: 3,
            imm_data: 4,
            src_qp: 5,
            wc_flags: PVRDMA_WC_WITH_INVALIDATE | PVRDMA_WC_WITH_NETWORK_HDR_TYPE,
            vendor_err: 6,
            pkey_index: 7,
            slid: 8,
            sl: 9,
            dlid_path_bits: 10,
            ..Default::default()
        });
        assert_eq!(start(cq), 0);
        // SAFETY: being polled.
        unsafe {
            assert_eq!(((*cq).wr_id, (*cq).status), (1, IBV_WC_GENERAL_ERR));
            assert_eq!((read_opcode(cq), read_vendor_err(cq), read_byte_len(cq)), (IBV_WC_RECV, 6, 3));
            assert_eq!((read_imm_data(cq), read_qp_num(cq), read_src_qp(cq)), (4, Mock::QPN, 5));
            assert_eq!((read_wc_flags(cq), read_slid(cq)), (IBV_WC_WITH_INV, 8));
            assert_eq!((read_sl(cq), read_dlid_path_bits(cq)), (9, 10));
            end_poll(cq);
        }
    }

    #[test]
    fn the_lock_is_open_after_every_way_out() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        let mut attr = ibv_poll_cq_attr { comp_mask: 1 };
        // SAFETY: a live CQ.
        assert_eq!(unsafe { start_poll(cq, &mut attr) }, libc::EINVAL);
        drop(mock.cq.ring.lock());
        assert_eq!(start(cq), libc::ENOENT);
        drop(mock.cq.ring.lock());
        mock.put(send_cqe(0));
        assert_eq!(drain(cq), [0]);
        drop(mock.cq.ring.lock());
        mock.set_cq_tail(u32::MAX);
        assert_eq!(start(cq), libc::EIO);
        drop(mock.cq.ring.lock());
    }

    #[test]
    fn strays_are_passed_over_and_given_back() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        for (handle, wr_id) in [(9, 0), (Mock::HANDLE.into(), 1), (9, 2), (Mock::HANDLE.into(), 3)] {
            mock.put(pvrdma_cqe { qp: handle, ..send_cqe(wr_id) });
        }
        assert_eq!(drain(cq), [1, 3]);
        (0..4).for_each(|i| mock.put(pvrdma_cqe { qp: 9, ..send_cqe(i) }));
        assert_eq!(drain(cq), []);
        (0..4).for_each(|i| mock.put(send_cqe(i)));
        assert_eq!(drain(cq), [0, 1, 2, 3]);
    }
}
