//! Datagrams of those who speak RoCE, for guests of this host.
//!
//! Those for connection managers go to all programs that have one, so they are judged once, here, and there are so many
//! in a second: what weighs little to send must not cost all guests their time.

use pvrdma_device::handle::{Gid, Psn, QpHandle, Qpn};
use pvrdma_device::rings::wqe::{Grh, QpKind};
use pvrdma_device::transport::{Endpoint, Op, Request, Token};
use pvrdma_fabric::segment::GSI;
use pvrdma_fabric::transport::HostTransport;
use pvrdma_roce::message;
use pvrdma_roce::packet::Packet;
use std::sync::Arc;
use std::time::Duration;

/// What a datagram's header says of its way where nobody told: as a host sends by itself.
const HOPS: u8 = 64;
/// Whether this is a message of a connection manager (IBA vol. 1, 13.4.3 and 16.7).
fn is_for_managers(qkey: u32, payload: &[u8]) -> bool {
    const QKEY: u32 = 0x8001_0000;
    const LEN: usize = 256;
    // Base version, class, class version.
    const CM: [u8; 3] = [1, 7, 2];
    qkey == QKEY && payload.len() == LEN && payload.starts_with(&CM)
}

/// How many messages connection managers have to look at, in a second and at once: each costs all programs that have
/// one. Who asks again is heard later.
const RATE: f64 = 4000.0;
const BURST: f64 = 1000.0;

/// See the module text.
pub struct Datagrams {
    transport: Arc<HostTransport>,
    /// Messages for managers that there is room for, and since when.
    left: f64,
    since: Duration,
}

impl Datagrams {
    pub fn new(transport: Arc<HostTransport>) -> Datagrams {
        Datagrams { transport, left: BURST, since: Duration::ZERO }
    }

    /// One has come from an address, to ours. It is lost if its QP has no room for it, as at a switch.
    pub fn arrived(&mut self, now: Duration, (source, own): (&Gid, &Gid), packet: &Packet<'_>) {
        let Some(deth) = packet.deth else { return };
        let dest = Endpoint { gid: *own, qpn: Qpn(packet.bth.dest_qpn) };
        let is_there = match dest.qpn.0 {
            GSI => is_for_managers(deth.qkey, packet.payload) && self.may_be_heard(now),
            _ => self.transport.segment().published(dest.qpn).is_some_and(|known| known.kind == QpKind::Ud),
        };
        if !is_there {
            return;
        }
        let psn = Psn::new(packet.bth.psn);
        let grh = Grh { hop_limit: HOPS, ..Grh::default() };
        let request = Request {
            token: Token { qp: QpHandle(0), epoch: 0, psn },
            source: Endpoint { gid: *source, qpn: Qpn(deth.source_qpn) },
            dest,
            psn,
            packets: 1,
            op: Op::Datagram { qkey: deth.qkey, imm: packet.imm.map(message::immediate), grh },
            len: packet.payload.len() as u64,
            solicited: packet.bth.solicited,
            alone: false,
        };
        self.transport.submit_datagram(&request, packet.payload);
    }

    fn may_be_heard(&mut self, now: Duration) -> bool {
        let may = refill(&mut self.left, now.saturating_sub(self.since)) >= 1.0;
        self.since = now;
        self.left -= f64::from(u8::from(may));
        may
    }
}

/// Room that there is after some time.
fn refill(left: &mut f64, passed: Duration) -> f64 {
    *left = (*left + passed.as_secs_f64() * RATE).min(BURST);
    *left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_hear_of_messages_for_them() {
        let mut mad = [0; 256];
        mad[..3].copy_from_slice(&[1, 7, 2]);
        assert!(is_for_managers(0x8001_0000, &mad));
        assert!(!is_for_managers(0x8001_0001, &mad) && !is_for_managers(0x8001_0000, &mad[..255]));
        // Of the subnet's manager.
        mad[1] = 0x81;
        assert!(!is_for_managers(0x8001_0000, &mad));
    }

    #[test]
    fn they_hear_of_so_many() {
        let mut left = BURST;
        let mut heard = |passed: u64| {
            let mut passed = Duration::from_millis(passed);
            let mut is_heard = |_: &i32| {
                let may = refill(&mut left, std::mem::take(&mut passed)) >= 1.0;
                left -= f64::from(u8::from(may));
                may
            };
            (0..5000).filter(|n| is_heard(n)).count()
        };
        assert_eq!([heard(0), heard(100), heard(0), heard(10_000)], [1000, 400, 0, 1000]);
    }
}
