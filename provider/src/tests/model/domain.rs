//! Protection domains, parent domains, thread domains, and what is made in them besides queues:
//! address handles and memory regions. What has users is EBUSY.

use super::{Answer, Lane, made, said};
use crate::ops::OPS;
use crate::verbs::ah::Ah;
use crate::verbs::pd::DomainRef;
use crate::verbs::pd::Pd;
use core::ffi::c_int;
use core::ptr;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// Most of a kind.
const MOST: usize = 5;

/// A PD or a parent domain.
#[derive(Debug)]
pub struct PdModel {
    pub pd: *mut ibv_pd,
    /// Of a parent domain: what it stands for.
    real: Option<u32>,
    td: Option<u32>,
    users: u32,
    /// Belongs to all threads; never to be had without users.
    pinned: bool,
}

#[derive(Debug)]
pub struct TdModel {
    td: *mut ibv_td,
    users: u32,
}

#[derive(Debug)]
pub struct AhModel {
    pub ah: *mut ibv_ah,
    pub av: pvrdma_av,
    pd: u32,
}

#[derive(Debug)]
pub struct MrModel {
    mr: *mut ibv_mr,
    pd: u32,
}

impl Lane<'_> {
    /// The domains that every thread has.
    pub fn common_domains(&mut self) {
        let world = self.world();
        let (real, parent) = (self.id(), self.id());
        self.pds.insert(real, PdModel { pd: world.real_pd, real: None, td: None, users: 1, pinned: true });
        self.pds.insert(parent, PdModel { pd: world.pd, real: Some(real), td: None, users: 0, pinned: true });
    }

    /// Something comes into a domain (`change` is 1) or leaves it. A parent domain counts all, a real PD
    /// what the kernel knows of.
    pub fn hold(&mut self, pd: u32, in_kernel: bool, change: i32) {
        // Address handles exist in user space alone, so a real PD may go before them.
        let Some(real) = self.pds.get(&pd).map(|pd| pd.real) else {
            assert!(!in_kernel);
            return;
        };
        let mut count = |pd| {
            let users = &mut self.pds.get_mut(&pd).unwrap().users;
            *users = users.checked_add_signed(change).unwrap();
        };
        real.iter().for_each(|_| count(pd));
        if in_kernel {
            count(real.unwrap_or(pd));
        }
    }

    /// Any domain.
    pub fn any_pd(&mut self) -> (u32, *mut ibv_pd) {
        let id = self.any_key(|lane| &lane.pds).unwrap();
        (id, self.pds[&id].pd)
    }

    /// Any parent domain.
    pub fn any_parent(&mut self) -> (u32, *mut ibv_pd) {
        let parents: Vec<_> =
            self.pds.iter().filter(|(_, pd)| pd.real.is_some()).map(|(id, pd)| (*id, pd.pd)).collect();
        *self.rng.pick(&parents)
    }

    /// One random verb of those here.
    pub fn domain_step(&mut self) {
        match self.rng.below(12) {
            0 => self.alloc_pd(),
            1 => self.dealloc_pd(),
            2 => self.alloc_td(),
            3 => self.dealloc_td(),
            4 => self.alloc_parent_domain(),
            5 => self.reg_mr(),
            6 => self.dereg_mr(),
            7 => self.destroy_ah(),
            _ => self.create_ah(),
        }
    }

    fn alloc_pd(&mut self) {
        if self.pds.len() >= 2 * MOST {
            return;
        }
        let lie = self.lie();
        // SAFETY: an open context.
        let got = made(|| unsafe { OPS.alloc_pd.unwrap()(self.world().context) });
        self.honest();
        // What the kernel says is passed on.
        if let Some(pd) = self.judge("alloc_pd", got, lie.map_or(Ok(()), Err)) {
            let id = self.id();
            self.pds.insert(id, PdModel { pd, real: None, td: None, users: 0, pinned: false });
        }
    }

    fn dealloc_pd(&mut self) {
        let id = self.any_pd().0;
        let model = &self.pds[&id];
        if model.pinned && model.users == 0 {
            return;
        }
        let expected = if model.users > 0 { Err(libc::EBUSY) } else { Ok(()) };
        self.end_pd(id, expected);
    }

    fn end_pd(&mut self, id: u32, expected: Answer<()>) {
        // SAFETY: a live PD, not used any more if this succeeds.
        let got = said(unsafe { OPS.dealloc_pd.unwrap()(self.pds[&id].pd) });
        if self.judge("dealloc_pd", got, expected).is_some() {
            let gone = self.pds.remove(&id).unwrap();
            gone.real.iter().for_each(|real| self.pds.get_mut(real).unwrap().users -= 1);
            gone.td.iter().for_each(|td| self.tds.get_mut(td).unwrap().users -= 1);
        }
    }

    fn alloc_td(&mut self) {
        if self.tds.len() >= MOST {
            return;
        }
        let comp_mask = u32::from(self.rng.one_in(4));
        let mut attr = ibv_td_init_attr { comp_mask };
        // SAFETY: an open context, a valid attribute.
        let got = made(|| unsafe { OPS.alloc_td.unwrap()(self.world().context, &mut attr) });
        let expected = if comp_mask == 0 { Ok(()) } else { Err(libc::EINVAL) };
        if let Some(td) = self.judge("alloc_td", got, expected) {
            let id = self.id();
            self.tds.insert(id, TdModel { td, users: 0 });
        }
    }

    fn dealloc_td(&mut self) {
        if let Some(id) = self.any_key(|lane| &lane.tds) {
            self.end_td(id);
        }
    }

    fn end_td(&mut self, id: u32) {
        let model = &self.tds[&id];
        let expected = if model.users > 0 { Err(libc::EBUSY) } else { Ok(()) };
        // SAFETY: a live TD, not used any more if this succeeds.
        let got = said(unsafe { OPS.dealloc_td.unwrap()(model.td) });
        if self.judge("dealloc_td", got, expected).is_some() {
            self.tds.remove(&id);
        }
    }

    fn alloc_parent_domain(&mut self) {
        if self.pds.len() >= 2 * MOST {
            return;
        }
        let (real, pd) = self.any_pd();
        let td = if self.rng.one_in(2) { self.any_key(|lane| &lane.tds) } else { None };
        let td_ptr = td.map_or(ptr::null_mut(), |td| self.tds[&td].td);
        let mut attr = self.world().guarded(pd, td_ptr);
        if self.rng.one_in(3) {
            // Memory of our own. What is not in the mask is not looked at.
            attr.comp_mask = 0;
        }
        // A domain of a domain is none.
        let mut expected = if self.pds[&real].real.is_some() { Err(libc::EINVAL) } else { Ok(()) };
        match self.rng.below(16) {
            0 => (attr.pd, expected) = (ptr::null_mut(), Err(libc::EINVAL)),
            1 => (attr.comp_mask, expected) = (1 << 7, Err(libc::EINVAL)),
            2 if attr.comp_mask != 0 => (attr.alloc, expected) = (None, Err(libc::EINVAL)),
            3 if attr.comp_mask != 0 => (attr.free, expected) = (None, Err(libc::EINVAL)),
            // Leave, and not a demand.
            4 => attr.comp_mask |= IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC,
            _ => {}
        }
        // SAFETY: an open context, a valid attribute.
        let got = made(|| unsafe { OPS.alloc_parent_domain.unwrap()(self.world().context, &mut attr) });
        if let Some(pd) = self.judge("alloc_parent_domain", got, expected) {
            let id = self.id();
            self.pds.get_mut(&real).unwrap().users += 1;
            td.iter().for_each(|td| self.tds.get_mut(td).unwrap().users += 1);
            self.pds.insert(id, PdModel { pd, real: Some(real), td, users: 0, pinned: false });
        }
    }

    fn create_ah(&mut self) {
        if self.ahs.len() >= MOST {
            return;
        }
        let (id, pd) = self.any_pd();
        let word = self.rng.word();
        let av = pvrdma_av {
            port_pd: 0x0100_0000 | id,
            dgid: [word as u8; 16],
            hop_limit: (word >> 8) as u8,
            dmac: [(word >> 16) as u8; 6],
            ..Default::default()
        };
        // By hand: the verb looks up ports and neighbours, which are not there.
        // SAFETY: a live PD.
        let ah = Ah::new(av, DomainRef::of(unsafe { Pd::of(pd) })).into_verbs();
        self.hold(id, false, 1);
        self.ahs.push(AhModel { ah, av, pd: id });
    }

    /// Requests that are on their way have a copy of the address.
    fn destroy_ah(&mut self) {
        if !self.ahs.is_empty() {
            let index = self.rng.below(self.ahs.len() as u64) as usize;
            let gone = self.ahs.swap_remove(index);
            // SAFETY: a live AH.
            let got = said(unsafe { OPS.destroy_ah.unwrap()(gone.ah) });
            self.judge("destroy_ah", got, Ok(()));
            self.hold(gone.pd, false, -1);
        }
    }

    fn reg_mr(&mut self) {
        if self.mrs.len() >= MOST {
            return;
        }
        let (id, pd) = self.any_pd();
        let (addr, lie) = (0x1000 * (1 + self.rng.below(100)), self.lie());
        let (mut iova, mut access) = (addr, IBV_ACCESS_LOCAL_WRITE);
        match self.rng.below(6) {
            // The device knows a region by its address only.
            0 => iova = addr + 1,
            1 => access |= IBV_ACCESS_ZERO_BASED,
            _ => {}
        }
        let expected = match (iova == addr && access == IBV_ACCESS_LOCAL_WRITE, lie) {
            (false, _) => Err(libc::EOPNOTSUPP),
            (true, Some(errno)) => Err(errno),
            (true, None) => Ok(()),
        };
        let start = ptr::without_provenance_mut(addr as usize);
        // SAFETY: a live PD; the memory is only passed to the kernel.
        let got = made(|| unsafe { OPS.reg_mr.unwrap()(pd, start, 4096, iova, access as c_int) });
        self.honest();
        if let Some(mr) = self.judge("reg_mr", got, expected) {
            self.hold(id, true, 1);
            self.mrs.push(MrModel { mr, pd: id });
        }
    }

    fn dereg_mr(&mut self) {
        if !self.mrs.is_empty() {
            let (index, lie) = (self.rng.below(self.mrs.len() as u64) as usize, self.lie());
            // SAFETY: a live region, not used any more if this succeeds.
            let got = said(unsafe { OPS.dereg_mr.unwrap()(self.mrs[index].mr.cast()) });
            self.honest();
            if self.judge("dereg_mr", got, lie.map_or(Ok(()), Err)).is_some() {
                let gone = self.mrs.swap_remove(index);
                self.hold(gone.pd, true, -1);
            }
        }
    }

    /// All of them go. Before that each is EBUSY as long as it has users.
    pub fn end_domains(&mut self) {
        while !self.ahs.is_empty() {
            self.destroy_ah();
        }
        while !self.mrs.is_empty() {
            self.dereg_mr();
        }
        // Parent domains were made after what they stand for.
        for id in self.pds.keys().copied().collect::<Vec<_>>().into_iter().rev() {
            if !self.pds[&id].pinned {
                self.end_pd(id, Ok(()));
            }
        }
        for id in self.tds.keys().copied().collect::<Vec<_>>() {
            self.end_td(id);
        }
        let left: Vec<_> = self.pds.values().map(|pd| (pd.pinned, pd.users)).collect();
        assert_eq!(left, [(true, 1), (true, 0)]);
        assert!(self.tds.is_empty());
    }
}
