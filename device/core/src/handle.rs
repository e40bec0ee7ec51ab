//! Object numbers, each its own type: a CQ handle cannot be passed for a QP handle by mistake.

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u32);
    )*};
}

handles! {
    /// User context (`ctx_handle`); 0 is the kernel driver, which owns UAR page 0.
    CtxHandle;
    /// Protection domain (`pd_handle`).
    PdHandle;
    /// Memory region (`mr_handle`).
    MrHandle;
    /// Completion queue (`cq_handle`, the number in doorbells).
    CqHandle;
    /// Queue pair (`qp_handle`, the number in doorbells and CQEs).
    QpHandle;
    /// Shared receive queue (`srqn`).
    SrqHandle;
    /// Queue pair number: the number peers use. 24 bits, not the handle.
    Qpn;
    /// Local key of an MR.
    Lkey;
    /// Remote key of an MR.
    Rkey;
}

/// The kernel driver's own context.
pub const KERNEL: CtxHandle = CtxHandle(0);

/// Packet sequence number: 24 bits, wraps; compare with [`Psn::ahead_of`], not with `<`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Psn(u32);

impl Psn {
    /// Keeps the low 24 bits of `raw`.
    pub const fn new(raw: u32) -> Psn {
        Psn(raw & 0x00ff_ffff)
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// `self + packets`, wrapping at 24 bits.
    pub const fn advance(self, packets: u32) -> Psn {
        Psn::new(self.0.wrapping_add(packets))
    }

    /// Whether `self` lies in the half of the circle after `other` (IBA vol. 1, 9.7.2: PSN comparison).
    pub const fn ahead_of(self, other: Psn) -> bool {
        let distance = self.since(other);
        distance != 0 && distance < 0x0080_0000
    }

    /// Packets from `other` on up to `self`.
    pub const fn since(self, other: Psn) -> u32 {
        self.0.wrapping_sub(other.0) & 0x00ff_ffff
    }
}

/// A GID: 16 bytes in network order.
pub type Gid = [u8; 16];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psn_order_survives_the_wrap() {
        let last = Psn::new(0x00ff_ffff);
        assert_eq!(last.advance(1), Psn::new(0));
        assert!(last.advance(3).ahead_of(last));
        assert!(!last.ahead_of(last.advance(3)));
        assert!(!last.ahead_of(last));
        assert_eq!(last.advance(3).since(last), 3);
    }
}
