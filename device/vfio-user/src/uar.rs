//! BAR 2: which page belongs to which context.
//!
//! Called by `function.rs` for every doorbell, so it is one indexed load; and by `session.rs` when contexts come and
//! go. Page 0 is the kernel driver's. Offset and value are decoded by the core's `Doorbell`.

use pvrdma_device::handle::{CtxHandle, KERNEL};

use crate::pci::UAR_PAGES;

/// Owners of the UAR pages.
pub struct Uar {
    pages: Box<[Option<CtxHandle>]>,
    /// Page frame of page 0, as the driver named it.
    first_pfn: u64,
}

impl Uar {
    /// All pages free but the kernel's; `first_pfn` is what the shared region says.
    pub fn new(first_pfn: u64) -> Uar {
        let mut pages = vec![None; UAR_PAGES as usize].into_boxed_slice();
        pages[0] = Some(KERNEL);
        Uar { pages, first_pfn }
    }

    /// The page a CREATE_UC asks for, if it is one that a context may have and nobody has.
    pub fn free_page(&self, pfn: u64) -> Option<usize> {
        let page = usize::try_from(pfn.checked_sub(self.first_pfn)?).ok()?;
        matches!(self.pages.get(page), Some(None)).then_some(page)
    }

    /// Gives a page to a context.
    pub fn give(&mut self, page: usize, ctx: CtxHandle) {
        if let Some(place) = self.pages.get_mut(page) {
            *place = Some(ctx);
        }
    }

    /// Takes a context's page back.
    pub fn take(&mut self, ctx: CtxHandle) {
        for place in self.pages.iter_mut().skip(1) {
            if *place == Some(ctx) {
                *place = None;
            }
        }
    }

    /// The context that rings when BAR 2 is written at `offset`.
    pub fn owner(&self, offset: u64) -> Option<CtxHandle> {
        *self.pages.get(usize::try_from(offset / 4096).ok()?)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_zero_is_the_kernels() {
        let uar = Uar::new(0xfe000);
        assert_eq!(uar.owner(0), Some(KERNEL));
        assert_eq!(uar.free_page(0xfe000), None);
    }

    #[test]
    fn page_follows_its_context() {
        let mut uar = Uar::new(0xfe000);
        let page = uar.free_page(0xfe003).unwrap();
        uar.give(page, CtxHandle(9));
        assert_eq!(uar.owner(0x3004), Some(CtxHandle(9)));
        assert_eq!(uar.free_page(0xfe003), None, "taken");
        uar.take(CtxHandle(9));
        assert_eq!(uar.owner(0x3004), None);
        assert_eq!(uar.free_page(0xfe003), Some(3));
    }

    #[test]
    fn pages_outside_the_bar_do_not_exist() {
        let uar = Uar::new(0xfe000);
        for pfn in [0, 0xfdfff, 0xfe000 + u64::from(UAR_PAGES), u64::MAX] {
            assert_eq!(uar.free_page(pfn), None, "{pfn:#x}");
        }
        assert_eq!(uar.owner(u64::from(UAR_PAGES) * 4096), None);
        assert_eq!(uar.owner(u64::MAX), None);
    }

    #[test]
    fn the_kernels_page_cannot_be_taken() {
        let mut uar = Uar::new(1);
        uar.take(KERNEL);
        assert_eq!(uar.owner(4), Some(KERNEL));
    }
}
