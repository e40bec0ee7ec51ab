//! Datagrams between guests: lost or not, they come as they were sent, no more than once, and to whom they were sent.

use pvrdma_device::testing::driver::{Driver, Region};
use pvrdma_device::testing::end::End;
use pvrdma_device::testing::queue::{QpSize, RecvWr, SendWr, To, sge};
use pvrdma_device::testing::rng::Rng;
use std::collections::HashMap;
use std::sync::Arc;

const QKEY: u32 = 0x1111;
const SLOTS: u64 = 16;
/// A GRH stands before what was sent.
const GRH: u64 = 40;
const SLOT: u64 = GRH + LEN;
const LEN: u64 = 256;
/// Guest, life, number, target.
const HEAD: u64 = 24;

/// Who sent it, in which of its lives, and its number there.
type Name = (u64, u64, u64);

/// The datagrams that were sent and have not come.
#[derive(Default)]
pub struct Post {
    sent: HashMap<Name, (u64, u64)>,
    pub count: u64,
    pub came: u64,
}

/// The QP of a guest.
pub struct Datagrams {
    end: End,
    region: Region,
    index: u64,
    life: u64,
    sent: u64,
    posted: u64,
}

fn content((index, life, number): Name, target: u64, len: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = [index, life << 8 | target, number].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(Rng::new(index << 40 ^ life << 20 ^ number).bytes((len - HEAD) as usize));
    bytes
}

impl Datagrams {
    pub fn new(driver: &Arc<Driver>, index: usize, life: u64) -> Datagrams {
        let ctx = driver.context();
        let cqs = (driver.cq(ctx, 64), driver.cq(ctx, 64));
        let size = QpSize { send_sge: 1, recv_sge: 1, ..QpSize::wr(SLOTS as u32) };
        let end = End::ud(driver, driver.pd(ctx), cqs, None, size, QKEY);
        let region = end.region(SLOTS * (SLOT + LEN));
        Datagrams { end, region, index: index as u64, life, sent: 0, posted: 0 }
    }

    /// Where peers send to.
    pub fn av(&self, from: &Datagrams) -> To {
        from.end.av(&self.end, QKEY)
    }

    /// Sends one, if there is room.
    pub fn send(&mut self, post: &mut Post, target: usize, to: &To, rng: &mut Rng) {
        if u64::from(self.end.qp.sends_out()) + u64::from(self.end.send_cq.waiting()) >= SLOTS {
            return;
        }
        let len = HEAD + rng.below(LEN - HEAD + 1);
        let name = (self.index, self.life, self.sent);
        let at = SLOTS * SLOT + self.sent % SLOTS * LEN;
        self.region.set(at, &content(name, target as u64, len));
        self.end.send(&SendWr::datagram(self.sent, &[sge(&self.region, at, len as u32)], to));
        self.sent += 1;
        post.sent.insert(name, (target as u64, len));
        post.count += 1;
    }

    /// Takes what has come, and is ready for more.
    pub fn take(&mut self, post: &mut Post) {
        for wc in self.end.send_cq.drain() {
            assert_eq!(wc.status, 0, "sent is done");
        }
        for wc in self.end.recv_cq.drain() {
            assert_eq!(wc.status, 0, "a datagram that does not fit");
            let at = wc.wr_id % SLOTS * SLOT;
            let bytes = self.region.get(at, wc.byte_len as usize);
            let word = |n: usize| u64::from_le_bytes(bytes[GRH as usize + 8 * n..][..8].try_into().expect("8 bytes"));
            let name = (word(0), word(1) >> 8, word(2));
            let (target, len) = post.sent.remove(&name).expect("a datagram that was sent, and comes once");
            assert_eq!(target, self.index, "to whom it was sent");
            assert!(bytes[GRH as usize..] == content(name, target, len), "as it was sent");
            let mut gid = self.end.driver.gid;
            gid[15] = name.0 as u8 + 1;
            assert_eq!((&bytes[8..24], wc.src_qp >> 15), (&gid[..], name.0 as u32), "from whom it came");
            post.came += 1;
        }
        while self.end.qp.recvs_out() < SLOTS as u32 {
            let at = self.posted % SLOTS * SLOT;
            self.end.recv(&RecvWr::new(self.posted, &[sge(&self.region, at, SLOT as u32)]));
            self.posted += 1;
        }
    }
}
