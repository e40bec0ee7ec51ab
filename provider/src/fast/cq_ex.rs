//! Extended completion queues: `ibv_create_cq_ex`, `ibv_start_poll` and the functions that read one
//! completion field by field.
//!
//! The lock of the CQ is taken by `start_poll` and held until `end_poll`, or until `start_poll`
//! fails. Entries are given back at the end, all at once.

use crate::boundary;
use crate::ring::cqe::Cqe;
use crate::support::buf::Source;
use crate::support::error::Errno;
use crate::support::loaded::libibverbs;
use crate::support::log::refuse;
use crate::support::qp_nums::{self, LOGGED};
use crate::support::sync::own_slot;
use crate::verbs::cq::{self, Cq};
use crate::verbs::pd::{DomainRef, Pd};
use core::ffi::{c_int, c_uint};
use core::ptr::NonNull;
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
        return Err(refuse(
            Errno::EOPNOTSUPP,
            format_args!("create_cq_ex: wc_flags {wc_flags:#x}: completions have {IBV_WC_STANDARD_FLAGS:#x}"),
        ));
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
/// `cq` must be a live extended CQ of ours, which the caller may use, `attr` valid.
unsafe extern "C" fn start_poll(cq: *mut ibv_cq_ex, attr: *mut ibv_poll_cq_attr) -> c_int {
    boundary::errno(|| {
        // SAFETY: promise of the caller.
        let own = unsafe { Cq::of(cq.cast()) };
        // SAFETY: promise of the caller.
        if unsafe { (*attr).comp_mask } != 0 {
            return Err(Errno::EINVAL);
        }
        // SAFETY: promise of the caller. `end_poll` opens the lock.
        let mut found = unsafe { begin(own, cq) };
        // SAFETY: the lock is held, and nobody else here refers to the ring.
        if found == Err(Errno::ENOENT) && unsafe { close_and_ask(own) } {
            // SAFETY: as above.
            found = unsafe { begin(own, cq) };
            if found.is_err() {
                // SAFETY: as above; strays may have been passed.
                unsafe { close(own) };
            }
        } else if found == Err(Errno::EIO) {
            // SAFETY: as above.
            unsafe { close(own) };
        }
        found
    })
}

/// Take the lock, for long, and walk to the first completion.
///
/// # Safety
/// `own` must be `cq`.
unsafe fn begin(own: &Cq, cq: *mut ibv_cq_ex) -> Result<(), Errno> {
    if !own.ring.enter_for_long() {
        own.ring.wait();
    }
    // SAFETY: the lock is held.
    unsafe {
        (*own.ring.data()).walk_from_head();
        walk(own, cq)
    }
}

/// # Safety
/// The lock must be held, and nobody else here refer to the ring.
#[inline(always)]
unsafe fn close(own: &Cq) {
    // SAFETY: promise of the caller.
    unsafe {
        (*own.ring.data()).end_walk();
        own.ring.leave();
    }
}

/// Nothing was found: the device may hold completions back until asked; not under the lock, since it may take
/// its time. Whether it was asked.
///
/// # Safety
/// As [`close`].
unsafe fn close_and_ask(own: &Cq) -> bool {
    // SAFETY: promise of the caller. Strays go back first.
    let is_time = unsafe {
        let ring = &mut *own.ring.data();
        ring.end_walk();
        ring.is_time_to_ask(ring.head())
    };
    let is_time = is_time || own.is_armed();
    // SAFETY: as above.
    unsafe { own.ring.leave() };
    if is_time {
        own.ring_poll();
    }
    is_time
}

/// Make the next entry the current one, if it is known to be there and of a plain QP.
///
/// # Safety
/// As [`start_poll`], after a `start_poll` that gave 0.
unsafe extern "C" fn next_poll(cq: *mut ibv_cq_ex) -> c_int {
    // SAFETY: promise of the caller: the lock is held.
    unsafe {
        let ring = (*cq.cast::<Cq>()).ring.data();
        let walk = &raw mut (*ring).walk;
        let next = (*walk).next;
        if next == (*walk).limit {
            return next_poll_slowly(cq);
        }
        let entry = Cqe::new(NonNull::new_unchecked(next.cast_mut()));
        own_slot(next);
        let qp_num = qp_nums::qp_num((*ring).qp_nums(), entry.handle());
        // 1..LOGGED in one comparison: a plain QP.
        if qp_num.wrapping_sub(1) >= LOGGED - 1 {
            return next_poll_slowly(cq);
        }
        (*walk).next = next.add(1);
        (*walk).qp_num = qp_num;
        (*cq).status = entry.status();
        (*cq).wr_id = entry.wr_id();
        0
    }
}

/// [`next_poll`] in other cases.
///
/// # Safety
/// As [`next_poll`].
#[inline(never)]
unsafe extern "C" fn next_poll_slowly(cq: *mut ibv_cq_ex) -> c_int {
    // SAFETY: promise of the caller.
    unsafe {
        let own = cq.cast::<Cq>();
        if (*own).is_armed() {
            return next_poll_armed(cq);
        }
        // Most often all has been walked. (So it has where nobody walks.)
        if (*(*own).ring.data()).is_walked() {
            return libc::ENOENT;
        }
        boundary::errno(|| walk(&*own, cq))
    }
}

/// [`next_poll_slowly`] since the CQ was armed: whoever did so goes to sleep when nothing is left, so the device
/// must be asked for what it holds back. Under the lock, which is the application's: once for each time it arms.
///
/// # Safety
/// As [`next_poll`].
#[cold]
#[inline(never)]
unsafe extern "C" fn next_poll_armed(cq: *mut ibv_cq_ex) -> c_int {
    boundary::errno(|| {
        // SAFETY: promise of the caller.
        unsafe {
            let own = Cq::of(cq.cast());
            if (*own.ring.data()).walk.next.is_null() {
                return Err(Errno::ENOENT);
            }
            match walk(own, cq) {
                Err(Errno::ENOENT) => {
                    own.ring_poll();
                    walk(own, cq)
                }
                found => found,
            }
        }
    })
}

/// # Safety
/// As [`next_poll`].
unsafe extern "C" fn end_poll(cq: *mut ibv_cq_ex) {
    // SAFETY: promise of the caller.
    unsafe { close(&*cq.cast::<Cq>()) }
}

/// Make the next completion the current one, whatever it is. ENOENT: there is none; EIO: the device's counter
/// is impossible.
///
/// # Safety
/// The lock of `own`, which is `cq`, must be held, and a walk have begun.
unsafe fn walk(own: &Cq, cq: *mut ibv_cq_ex) -> Result<(), Errno> {
    // SAFETY: promise of the caller, and nobody else here refers to the ring.
    let ring = unsafe { &mut *own.ring.data() };
    loop {
        if ring.walk.next == ring.walk.limit && !ring.walk_on().map_err(|_| Errno::EIO)? {
            return Err(Errno::ENOENT);
        }
        own_slot(ring.walk.next);
        // SAFETY: before the limit entries are there; none is at NULL. One after it is inside, or the end.
        let entry = unsafe { Cqe::new(NonNull::new_unchecked(ring.walk.next.cast_mut())) };
        ring.walk.next = ring.walk.next.wrapping_add(1);
        let qp_num = qp_nums::qp_num(own.qp_nums.table(), entry.handle());
        if let Some((qp_num, wr_id)) = own.whose(entry, qp_num) {
            ring.walk.qp_num = qp_num;
            // SAFETY: the CQ the application polls: these two are for it to read.
            unsafe {
                (*cq).status = entry.status();
                (*cq).wr_id = wr_id;
            }
            return Ok(());
        }
        // Not for the application; it may still read the one before, at the place before the next.
        ring.keep_last(entry);
    }
}

/// What is read of the current completion; `T`'s default where there is none.
///
/// # Safety
/// As [`next_poll`].
#[inline(always)]
unsafe fn current<T: Default>(cq: *mut ibv_cq_ex, read: impl FnOnce(Cqe, u32) -> T) -> T {
    // SAFETY: promise of the caller: the lock is held; the entry is given back by `end_poll` only. Who walks
    // has passed an entry.
    unsafe {
        let walk = &raw const (*(*cq.cast::<Cq>()).ring.data()).walk;
        match NonNull::new((*walk).next.cast_mut()) {
            None => T::default(),
            Some(next) => read(Cqe::new(next.sub(1)), (*walk).qp_num),
        }
    }
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
    read_opcode: u32 = |entry, _| entry.opcode();
    read_vendor_err: u32 = |entry, _| entry.vendor_err();
    read_byte_len: u32 = |entry, _| entry.byte_len();
    read_imm_data: u32 = |entry, _| entry.imm_data();
    read_qp_num: u32 = |_, qp_num| qp_num;
    read_src_qp: u32 = |entry, _| entry.src_qp();
    read_wc_flags: c_uint = |entry, _| entry.wc_flags();
    read_slid: u32 = |entry, _| entry.slid();
    read_sl: u8 = |entry, _| entry.sl();
    read_dlid_path_bits: u8 = |entry, _| entry.dlid_path_bits();
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
        // A new CQ counts as one that something came to.
        assert_eq!(drain(cq), []);
        mock.rung(PVRDMA_UAR_CQ_OFFSET);
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
            network_hdr_type: PVRDMA_NETWORK_IPV4,
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
    fn what_a_device_puts_when_asked_is_found_in_the_same_call_or_a_known_number_later() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        for quiet in 0..100 {
            (0..quiet).for_each(|_| assert_eq!(drain(cq), []));
            mock.rung(PVRDMA_UAR_CQ_OFFSET);
            let polls = (1..).find(|_| {
                assert_eq!(drain(cq), []);
                mock.rung(PVRDMA_UAR_CQ_OFFSET) != 0
            });
            assert!(polls.unwrap() <= crate::ring::cq_ring::RATION);
            mock.put(send_cqe(quiet));
            assert_eq!(drain(cq), [quiet]);
        }
    }

    #[test]
    fn who_armed_and_walks_to_the_end_has_asked_the_device() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        for _ in 0..3 {
            mock.put(send_cqe(1));
            cq::req_notify_cq(&mock.cq, false);
            mock.rung(PVRDMA_UAR_CQ_OFFSET);
            assert_eq!(drain(cq), [1]);
            assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), PVRDMA_UAR_CQ_POLL | Mock::CQN);
            mock.put(send_cqe(2));
            assert_eq!(drain(cq), [2]);
            assert_eq!(mock.rung(PVRDMA_UAR_CQ_OFFSET), 0);
        }
    }

    #[test]
    fn a_walk_goes_on_where_the_ring_wraps_and_with_what_came_meanwhile() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        for first in 0..8 {
            (0..3).for_each(|i| mock.put(send_cqe(10 * first + i)));
            assert_eq!(start(cq), 0);
            // SAFETY: being polled.
            unsafe {
                assert_eq!(((*cq).wr_id, next_poll(cq)), (10 * first, 0));
                // There is room for one more: nothing was given back yet.
                mock.put(send_cqe(10 * first + 3));
                assert_eq!(((*cq).wr_id, next_poll(cq)), (10 * first + 1, 0));
                assert_eq!(((*cq).wr_id, next_poll(cq)), (10 * first + 2, 0));
                assert_eq!(((*cq).wr_id, next_poll(cq)), (10 * first + 3, libc::ENOENT));
                assert_eq!(next_poll(cq), libc::ENOENT);
                end_poll(cq);
            }
            mock.put(send_cqe(99));
            assert_eq!(drain(cq), [99]);
        }
    }

    #[test]
    fn after_the_last_one_it_can_still_be_read() {
        for strays in 0..3 {
            let mut mock = Mock::new(4, 1, 4);
            let cq = extended(&mut mock);
            // Wherever the ring wraps.
            for round in 0..8 {
                mock.put(pvrdma_cqe { byte_len: 100 + round, ..send_cqe(1) });
                (0..strays).for_each(|_| mock.put(pvrdma_cqe { qp: 9, byte_len: 7, ..send_cqe(1) }));
                assert_eq!(start(cq), 0);
                // SAFETY: being polled.
                unsafe {
                    assert_eq!(next_poll(cq), libc::ENOENT);
                    assert_eq!((read_byte_len(cq), read_qp_num(cq)), (100 + round, Mock::QPN), "{strays} strays");
                    end_poll(cq);
                }
            }
        }
    }

    fn one(mock: &Mock) -> Option<u64> {
        let mut wc = ibv_wc::default();
        // SAFETY: room for one.
        (unsafe { crate::testing::mock::poll_cq(&mock.cq, 1, &mut wc) } == 1).then_some(wc.wr_id)
    }

    /// What no lock keeps a thread from doing to itself must do no harm to the ring.
    #[test]
    fn an_end_without_a_beginning_gives_nothing_back() {
        let mut mock = Mock::single_threaded(4, 4);
        let cq = extended(&mut mock);
        for round in 0..20 {
            assert_eq!(start(cq), libc::ENOENT);
            mock.put(send_cqe(round));
            assert_eq!(one(&mock), Some(round));
            // SAFETY: a live CQ; not a call that an application should make.
            unsafe { end_poll(cq) };
            assert_eq!(one(&mock), None);
        }
    }

    #[test]
    fn a_qp_that_goes_while_its_completions_are_walked_leaves_the_others() {
        const OTHER: u16 = 7;
        let mut mock = Mock::single_threaded(4, 8);
        mock.cq.qp_nums.set(OTHER, 70);
        let cq = extended(&mut mock);
        // Wherever the ring wraps.
        for round in 0..32 {
            for (handle, byte_len) in [(Mock::HANDLE, round), (OTHER, 99), (Mock::HANDLE, 99), (OTHER, 99)] {
                mock.put(pvrdma_cqe { qp: handle.into(), byte_len, ..send_cqe(handle.into()) });
            }
            (0..round % 3).for_each(|_| mock.put(send_cqe(5)));
            assert_eq!(start(cq), 0);
            mock.cq.remove_completions_of(Mock::HANDLE);
            let mut rest = Vec::new();
            // SAFETY: being polled.
            unsafe {
                assert_eq!((read_byte_len(cq), read_qp_num(cq)), (round, Mock::QPN), "what is current stays so");
                while next_poll(cq) == 0 {
                    rest.push(((*cq).wr_id, read_qp_num(cq)));
                }
                end_poll(cq);
            }
            assert_eq!(rest, [(OTHER.into(), 70); 2]);
            assert_eq!(one(&mock), None);
        }
    }

    #[test]
    fn a_poll_in_a_walk_moves_the_ring_forwards_only() {
        let mut mock = Mock::single_threaded(4, 8);
        let cq = extended(&mut mock);
        for round in 0..10 {
            (0..4).for_each(|i| mock.put(send_cqe(10 * round + i)));
            assert_eq!(start(cq), 0);
            assert_eq!(
                (one(&mock), one(&mock), one(&mock)),
                (Some(10 * round), Some(10 * round + 1), Some(10 * round + 2))
            );
            // SAFETY: being polled.
            unsafe { end_poll(cq) };
            assert_eq!((one(&mock), one(&mock)), (Some(10 * round + 3), None));
        }
    }

    #[test]
    fn what_is_read_when_nobody_polls_is_nothing() {
        let mut mock = Mock::new(4, 1, 4);
        let cq = extended(&mut mock);
        mock.put(pvrdma_cqe { byte_len: 7, ..send_cqe(1) });
        // SAFETY: a live CQ.
        unsafe {
            assert_eq!((read_byte_len(cq), read_qp_num(cq)), (0, 0));
            assert_eq!(next_poll(cq), libc::ENOENT);
            assert_eq!(drain(cq), [1]);
            assert_eq!((read_byte_len(cq), next_poll(cq)), (0, libc::ENOENT));
        }
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
