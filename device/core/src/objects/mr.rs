//! Memory regions: keys, bounds, access.

use crate::handle::{CtxHandle, MrHandle, PdHandle};
use crate::memory::{PageTable, Span};
use crate::transport::{Bounds, Use};
use pvrdma_ffi::uapi::vmw_pvrdma as abi;

/// A memory region.
#[derive(Debug)]
pub struct Mr {
    /// Handle for DESTROY_MR.
    pub handle: MrHandle,
    /// Owner.
    pub ctx: CtxHandle,
    /// Protection domain.
    pub pd: PdHandle,
    /// lkey and rkey alike: index in the upper 24 bits, a count in the low 8, so that a stale key of a
    /// reused index does not match.
    pub key: u32,
    /// Address of its first byte, as work requests name it.
    pub start: u64,
    /// Length in bytes.
    pub length: u64,
    /// `PVRDMA_ACCESS_*`.
    pub access: u32,
    /// Where the bytes are; `None` for a fast-register MR that is not valid.
    pub pages: Option<PageTable>,
    /// Most pages of a fast-register MR; `None` for one that was registered by a command and cannot be invalidated.
    pub fast_reg: Option<u32>,
}

impl Mr {
    /// See [`Bounds`].
    pub fn bounds(&self) -> Bounds {
        Bounds { pd: self.pd, access: self.access, start: self.start, length: self.length }
    }

    /// A fast-register region like this one, not valid.
    pub fn invalid(&self) -> Mr {
        Mr {
            handle: self.handle,
            ctx: self.ctx,
            pd: self.pd,
            key: self.key,
            start: 0,
            length: 0,
            access: 0,
            pages: None,
            fast_reg: self.fast_reg,
        }
    }

    /// Appends the pieces of `[addr, addr + len)` to `spans`; `false` if the region does not allow it.
    #[must_use]
    pub fn resolve(&self, pd: PdHandle, addr: u64, len: u64, purpose: Use, spans: &mut Vec<Span>) -> bool {
        let Some(offset) = self.bounds().check(pd, addr, len, purpose) else { return false };
        let Some(pages) = &self.pages else { return false };
        // The pages of a user region begin with the page that holds `start`.
        let lead = match pages {
            PageTable::Flat(_) => 0,
            PageTable::Pages(_) => self.start % abi::PVRDMA_PAGE_SIZE as u64,
        };
        pages.spans(lead + offset, len, spans).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_do_not_overflow_and_access_is_exact() {
        let bounds = Bounds { pd: PdHandle(1), access: abi::PVRDMA_ACCESS_REMOTE_READ, start: 0x1000, length: 0x1000 };
        let pd = PdHandle(1);
        assert_eq!(bounds.check(pd, 0x1800, 0x800, Use::RemoteRead), Some(0x800));
        assert_eq!(bounds.check(pd, 0x1800, 0x801, Use::RemoteRead), None, "one past the end");
        assert_eq!(bounds.check(pd, 0xfff, 1, Use::RemoteRead), None, "one before the start");
        assert_eq!(bounds.check(pd, 0x1800, u64::MAX, Use::RemoteRead), None, "sum overflows");
        assert_eq!(bounds.check(pd, 0x1000, 1, Use::RemoteWrite), None, "no write access");
        assert_eq!(bounds.check(PdHandle(2), 0x1000, 1, Use::RemoteRead), None, "other PD");
        assert_eq!(bounds.check(pd, 0x2000, 0, Use::LocalRead), Some(0x1000), "empty range at the end");
    }
}
