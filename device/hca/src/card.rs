//! What the other end must know of an adapter to write into its ring.

/// The network that a port is on. Only ports of the same kind reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet, with RoCE v1.
    RoceV1,
    /// Ethernet, with RoCE v2.
    RoceV2,
}

/// See the module text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Kind of network.
    pub link: Link,
    /// Largest packet, as verbs count it: 1 is 256 bytes, 5 is 4096.
    pub mtu: u8,
    /// Local identifier, of InfiniBand.
    pub lid: u16,
    /// Address, in network order.
    pub gid: [u8; 16],
    /// Number of the QP.
    pub qpn: u32,
    /// Of the first packet that it sends.
    pub psn: u32,
    /// Key of the ring.
    pub rkey: u32,
    /// Address of the ring.
    pub addr: u64,
    /// Bytes of the ring.
    pub len: u32,
}

impl Card {
    /// Smallest and largest ring that may be named.
    pub const RINGS: std::ops::RangeInclusive<u32> = 64 << 10..=1 << 30;
}
