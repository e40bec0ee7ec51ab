//! Fast-register memory regions: made valid by a FAST_REG_MR work request, invalid by LOCAL_INV or by a peer's
//! SEND_WITH_INV (IBA vol. 1, 10.6.5).
//!
//! A region object never changes: the table gets another one in its place, so that who holds the former has all of it.

use crate::engine::Engine;
use crate::handle::Rkey;
use crate::memory::{Buffer, PageTable};
use crate::objects::mr::Mr;
use crate::objects::qp::Qp;
use crate::rings::wqe::FastReg;
use pvrdma_ffi::uapi::vmw_pvrdma as abi;
use std::sync::Arc;

const PAGE_SHIFT: u32 = abi::PVRDMA_PAGE_SIZE.trailing_zeros();

impl Engine {
    /// The region that `qp` may fill or invalidate by `rkey`; its key's low byte is the consumer's to choose.
    fn fast_reg_mr(&self, qp: &Qp, rkey: Rkey) -> Option<Arc<Mr>> {
        self.mr(rkey.0 >> 8).filter(|mr| mr.fast_reg.is_some() && mr.pd == qp.pd)
    }

    /// The same if it is valid under just this key.
    fn valid_fast_reg_mr(&self, qp: &Qp, rkey: Rkey) -> Option<Arc<Mr>> {
        self.fast_reg_mr(qp, rkey).filter(|mr| mr.key == rkey.0 && mr.pages.is_some())
    }

    /// FAST_REG_MR. `false`: the region is no such region, is valid already, or is too small.
    pub(crate) fn fast_reg(&self, qp: &Qp, reg: &FastReg) -> bool {
        let Some(mr) = self.fast_reg_mr(qp, reg.rkey).filter(|mr| mr.pages.is_none()) else { return false };
        let lead = reg.iova_start % abi::PVRDMA_PAGE_SIZE as u64;
        let room = u64::from(reg.page_list_len) << PAGE_SHIFT;
        let fits = reg.page_shift == PAGE_SHIFT
            && mr.fast_reg.is_some_and(|max| reg.page_list_len <= max)
            && lead + u64::from(reg.length) <= room
            && reg.iova_start.checked_add(u64::from(reg.length)).is_some();
        if !fits {
            return false;
        }
        // Read now: the driver rewrites the list before each work request.
        let list = Buffer::Pdir { pdir: reg.pl_pdir, nchunks: reg.page_list_len };
        let Ok(pages) = PageTable::resolve(&list, self.memory()) else { return false };
        self.replace_mr(Mr {
            key: reg.rkey.0,
            start: reg.iova_start,
            length: u64::from(reg.length),
            access: reg.access_flags,
            pages: Some(pages),
            ..mr.invalid()
        })
    }

    /// LOCAL_INV: on return nobody touches the region's memory any more.
    pub(crate) fn local_inv(&self, qp: &Qp, rkey: Rkey) -> bool {
        let Some(mr) = self.valid_fast_reg_mr(qp, rkey) else { return false };
        let replaced = self.replace_mr(mr.invalid());
        self.quiesce();
        replaced
    }

    /// Whether a peer of `qp` may have `rkey` invalidated.
    pub(crate) fn may_invalidate(&self, qp: &Qp, rkey: Rkey) -> bool {
        self.valid_fast_reg_mr(qp, rkey).is_some()
    }

    /// SEND_WITH_INV: on return no peer touches the region's memory any more. What its owner posted from it is its own
    /// affair, and is not waited for: requesters of two devices that send each other such messages would wait in a
    /// ring.
    pub(crate) fn invalidate_for_peer(&self, qp: &Qp, rkey: Rkey) {
        if let Some(mr) = self.valid_fast_reg_mr(qp, rkey) {
            self.replace_mr(mr.invalid());
            self.quiesce_responders();
        }
    }
}
