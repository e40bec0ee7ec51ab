//! Uses two functions of the loaded libibverbs as measuring instruments, so that a build whose
//! symbols look familiar but whose structs differ is noticed before anything is registered.
//!
//! `verbs_set_ops` copies the members of the table it is given into the context; fed with marker
//! values instead of functions, it shows how many members there are and where each one lands.
//! `ibv_qp_to_qp_ex` looks at one word of a QP and so shows where that word is. Neither call has
//! any other effect, and no marker is ever called.

use super::context_ops::VerbsSetOps;
use core::ffi::c_void;

/// `struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *)`.
pub type QpToQpEx = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// What the loaded library does, whatever its version.
#[derive(Debug)]
pub struct Measured {
    /// Members of `verbs_context_ops`.
    pub op_count: usize,
    /// Bytes from the `verbs_context` to the `ibv_context` inside it.
    pub context_offset: usize,
    /// Bytes from the `verbs_qp` to its `comp_mask`; `None` unless exactly one offset answers.
    pub qp_comp_mask: Option<usize>,
    /// The context after the call: markers where ops were copied.
    context: Vec<u64>,
}

/// Marker of op `i` is `MARKER + i`: an address no user process has mapped.
const MARKER: u64 = 0x6d61_726b_0000_0000;
/// More than any table has; libibverbs reads as many as it knows.
const MARKERS: usize = 256;
/// Words of the scratch `verbs_context`; the largest known one has 87.
const CONTEXT_WORDS: usize = 512;
/// Words of the scratch private part; the largest known one has 97.
const PRIVATE_WORDS: usize = 1024;
/// Offset of the op table in the private part, in all releases.
const PRIVATE_OPS: usize = 24;
/// Bytes from the `ibv_context` to the last of its 32 op pointers.
const LAST_OP: usize = 8 + 31 * 8;
/// Where `verbs_qp.comp_mask` is looked for.
const QP_WORDS: usize = 128;
const QP_COMP_MASK_FIRST: usize = 344;
/// `VERBS_QP_EX`, the bit `ibv_qp_to_qp_ex` tests: the QP's `ibv_qp_ex` part is filled.
pub const VERBS_QP_EX: u32 = 2;

impl Measured {
    /// Measure.
    ///
    /// # Safety
    /// `set_ops` and `qp_to_qp_ex` must be the functions of those names of one libibverbs.
    pub unsafe fn take(set_ops: VerbsSetOps, qp_to_qp_ex: QpToQpEx) -> Self {
        let markers: Vec<*const c_void> = (0..MARKERS).map(|i| (MARKER + i as u64) as *const c_void).collect();
        let mut private = vec![0u64; PRIVATE_WORDS];
        // `priv` sits at a release-dependent place in verbs_context, so every word points there.
        let mut context = vec![private.as_mut_ptr() as u64; CONTEXT_WORDS];

        // SAFETY: the context is larger than any verbs_context, each of its words is a valid
        // pointer to a private part larger than any known one, and the table has more members
        // than libibverbs reads. The function only copies pointers (caller: it is verbs_set_ops).
        unsafe { set_ops(context.as_mut_ptr().cast(), markers.as_ptr()) };

        let op_count = private[PRIVATE_OPS / 8..].iter().take_while(|word| marker_index(**word).is_some()).count();
        let last = context.iter().rposition(|word| marker_index(*word).is_some()).unwrap_or(0);
        Self {
            op_count,
            context_offset: (last * 8).saturating_sub(LAST_OP),
            // SAFETY: passed on from the caller.
            qp_comp_mask: unsafe { qp_comp_mask(qp_to_qp_ex) },
            context,
        }
    }

    /// Index of the op whose pointer was left at `slot`, in bytes from the `ibv_context`.
    pub fn op_in_slot(&self, slot: isize) -> Option<usize> {
        let at = self.context_offset.checked_add_signed(slot)?;
        marker_index(*self.context.get(at / 8)?)
    }
}

fn marker_index(word: u64) -> Option<usize> {
    let index = word.wrapping_sub(MARKER);
    (index < MARKERS as u64).then_some(index as usize)
}

/// # Safety
/// As [`Measured::take`].
unsafe fn qp_comp_mask(qp_to_qp_ex: QpToQpEx) -> Option<usize> {
    let answers = |offset: &usize| {
        let mut qp = vec![0u64; QP_WORDS];
        qp[offset / 8] = VERBS_QP_EX.into();
        // SAFETY: 1 KiB of zeroes is a larger object than any verbs_qp; the function reads one
        // word of it (caller: it is ibv_qp_to_qp_ex).
        let qp_ex = unsafe { qp_to_qp_ex(qp.as_mut_ptr().cast()) };
        !qp_ex.is_null()
    };
    let mut found = (QP_COMP_MASK_FIRST..QP_WORDS * 8).step_by(8).filter(answers);
    match (found.next(), found.next()) {
        (Some(offset), None) => Some(offset),
        _ => None,
    }
}
