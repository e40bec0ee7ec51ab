//! What hosts say about their RDMA adapters, which may carry all frames but the first ones.

use super::Gid;
use thiserror::Error;

/// What must be known of a host's RDMA adapter to write into its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    /// Kind of network: 1 InfiniBand, 2 RoCE v1, 3 RoCE v2.
    pub link: u8,
    /// Largest packet, as verbs count it: 1 to 5.
    pub mtu: u8,
    /// Local identifier, of InfiniBand.
    pub lid: u16,
    /// Address.
    pub gid: Gid,
    /// Number of the QP.
    pub qpn: u32,
    /// Of the first packet that it sends.
    pub psn: u32,
    /// Key of the ring.
    pub rkey: u32,
    /// Bytes of the ring, a power of two.
    pub len: u32,
    /// Address of the ring.
    pub addr: u64,
}

impl Card {
    /// Rings that may be named.
    const RINGS: std::ops::RangeInclusive<u32> = 64 << 10..=1 << 30;

    pub(super) fn is_sound(&self) -> bool {
        let ring = Card::RINGS.contains(&self.len) && self.len.is_power_of_two();
        let numbers = self.qpn < 1 << 24 && self.psn < 1 << 24;
        (1..=3).contains(&self.link) && (1..=5).contains(&self.mtu) && ring && numbers
    }
}

/// Why a host's adapter is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("was not told to use one (--hca)")]
    Unwanted,
    #[error("has none")]
    Missing,
    #[error("has none whose port is active")]
    Inactive,
    #[error("cannot open its adapter")]
    Failed,
    #[error("has one on another kind of network")]
    Kind,
    #[error("has one that does not reach the other")]
    Unreachable,
    #[error("does not try again so soon")]
    Soon,
}

impl Refusal {
    pub(super) const ALL: [Refusal; 7] = [
        Refusal::Unwanted,
        Refusal::Missing,
        Refusal::Inactive,
        Refusal::Failed,
        Refusal::Kind,
        Refusal::Unreachable,
        Refusal::Soon,
    ];
}

/// What hosts say about the way of their frames: over the connection, or over their adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Here is mine.
    Offer(Card),
    /// None, or no longer.
    Refuse(Refusal),
    /// All that the sender sends from now on goes over its adapter.
    Switch,
}
