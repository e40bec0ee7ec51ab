//! The objects of a context by the numbers that uverbs gives them.
//!
//! Numbers are small, shared by all kinds, and chosen by uverbs, not by the device: device handles are found inside.
//! An object that another one uses cannot be destroyed.

use super::{EBUSY, EINVAL, Result};
use crate::kernel::events::Events;
use pvrdma_device::handle::{CqHandle, MrHandle, PdHandle, QpHandle, Qpn, SrqHandle};
use std::collections::BTreeMap;

/// A QP as uverbs knows it.
#[derive(Clone, Copy, Debug)]
pub struct Qp {
    pub handle: QpHandle,
    pub qpn: Qpn,
    pub pd: u32,
    pub send_cq: u32,
    pub recv_cq: u32,
    pub srq: Option<u32>,
}

/// An object. Plain numbers name other objects of the table.
#[derive(Clone, Copy, Debug)]
pub enum Object {
    Pd(PdHandle),
    Mr { handle: MrHandle, pd: u32 },
    Cq(CqHandle),
    Qp(Qp),
    Srq { handle: SrqHandle, pd: u32 },
}

/// See the module text.
#[derive(Default)]
pub struct Objects {
    table: BTreeMap<u32, Object>,
}

macro_rules! lookups {
    ($($name:ident($pattern:pat => $found:expr) -> $type:ty;)*) => {$(
        /// The object of this kind with that number.
        pub fn $name(&self, number: u32) -> Result<$type> {
            match self.table.get(&number).copied() {
                Some($pattern) => Ok($found),
                _ => Err(EINVAL),
            }
        }
    )*};
}

impl Objects {
    lookups! {
        pd(Object::Pd(pd) => pd) -> PdHandle;
        mr(Object::Mr { handle, .. } => handle) -> MrHandle;
        cq(Object::Cq(cq) => cq) -> CqHandle;
        qp(Object::Qp(qp) => qp) -> Qp;
        srq(Object::Srq { handle, .. } => handle) -> SrqHandle;
    }

    /// The object with that number, of whatever kind.
    pub fn get(&self, number: u32) -> Result<Object> {
        self.table.get(&number).copied().ok_or(EINVAL)
    }

    /// Enters an object; returns its number, the lowest that is free.
    pub fn insert(&mut self, object: Object) -> u32 {
        let number = (0..).zip(self.table.keys()).find(|(n, taken)| n != *taken);
        let number = number.map_or(self.table.len() as u32, |(n, _)| n);
        self.table.insert(number, object);
        number
    }

    /// Takes an object out.
    pub fn remove(&mut self, number: u32) {
        self.table.remove(&number);
    }

    /// `EBUSY` if another object uses this one.
    pub fn check_unused(&self, number: u32) -> Result<()> {
        let used = self.table.values().any(|object| match *object {
            Object::Pd(_) | Object::Cq(_) => false,
            Object::Mr { pd, .. } | Object::Srq { pd, .. } => pd == number,
            Object::Qp(qp) => [qp.pd, qp.send_cq, qp.recv_cq].contains(&number) || qp.srq == Some(number),
        });
        if used { Err(EBUSY) } else { Ok(()) }
    }

    /// The context ends: no event may name its objects any more.
    pub fn forget_events(&self, events: &Events) {
        for object in self.table.values() {
            match *object {
                Object::Cq(cq) => drop(events.remove_cq(cq)),
                Object::Qp(qp) => drop(events.remove_qp(qp.handle)),
                Object::Srq { handle, .. } => drop(events.remove_srq(handle)),
                Object::Pd(_) | Object::Mr { .. } => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::uverbs::EBUSY;

    #[test]
    fn numbers_are_reused_and_typed() {
        let mut objects = Objects::default();
        let pd = objects.insert(Object::Pd(PdHandle(70)));
        let cq = objects.insert(Object::Cq(CqHandle(80)));
        assert_eq!((pd, cq), (0, 1));
        assert_eq!(objects.pd(pd), Ok(PdHandle(70)));
        assert_eq!(objects.pd(cq), Err(EINVAL));
        assert_eq!(objects.cq(5), Err(EINVAL));
        objects.remove(pd);
        assert_eq!(objects.insert(Object::Cq(CqHandle(81))), 0);
        assert_eq!(objects.insert(Object::Cq(CqHandle(82))), 2);
    }

    #[test]
    fn what_is_used_stays() {
        let mut objects = Objects::default();
        let pd = objects.insert(Object::Pd(PdHandle(1)));
        let cq = objects.insert(Object::Cq(CqHandle(1)));
        let mr = objects.insert(Object::Mr { handle: MrHandle(1), pd });
        assert_eq!(objects.check_unused(pd), Err(EBUSY));
        objects.remove(mr);
        assert_eq!(objects.check_unused(pd), Ok(()));
        let qp = Qp { handle: QpHandle(2), qpn: Qpn(2), pd, send_cq: cq, recv_cq: cq, srq: None };
        let qp = objects.insert(Object::Qp(qp));
        assert_eq!((objects.check_unused(pd), objects.check_unused(cq)), (Err(EBUSY), Err(EBUSY)));
        assert_eq!(objects.check_unused(qp), Ok(()));
    }
}
