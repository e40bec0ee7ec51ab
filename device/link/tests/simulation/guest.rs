//! A guest of a host: its device, its memory, and the QP with which it sends datagrams.

use crate::datagrams::Datagrams;
use pvrdma_device::clock::Clock;
use pvrdma_device::command::Command;
use pvrdma_device::handle::{Gid, PdHandle};
use pvrdma_device::testing::driver::{Driver, GID_TYPE, Layout};
use pvrdma_device::testing::queue::CqRing;
use pvrdma_device::transport::fabric::Fabric;
use std::collections::HashMap;
use std::sync::Arc;

/// One end of a pair: number of the pair, and which of its sides.
pub type Place = (usize, usize);

/// See the module text.
pub struct Guest {
    pub driver: Arc<Driver>,
    pub pd: PdHandle,
    /// Completions of the sends of all of its connected QPs, and of their receives.
    pub cqs: [Arc<CqRing>; 2],
    /// Whose each QP is, by the number in completions.
    pub by_qp: HashMap<u64, Place>,
    pub datagrams: Datagrams,
    /// What its device could hold when it had none of the pairs' objects.
    pub budget: u64,
    /// Another one after each start of its host.
    pub life: u64,
}

impl Guest {
    /// Guest `index` of all. It will have `qps` connected QPs with up to `depth` requests, and `memory` bytes beside.
    pub fn new(
        fabric: &Arc<Fabric>,
        index: usize,
        life: u64,
        clock: &Clock,
        qps: u64,
        depth: u64,
        memory: u64,
    ) -> Guest {
        let entries = ((qps * depth * 2).next_power_of_two() as u32).max(64);
        // Rings are made anew each time that a QP is.
        let len = memory + u64::from(entries) * 128 + (qps * 24 + 2048) * 4096;
        let driver = Driver::timed(fabric, index as u8, Layout::Ranges, len as usize, clock);
        let driver = Arc::new(driver);
        let ctx = driver.context();
        let pd = driver.pd(ctx);
        let cqs = [driver.cq(ctx, entries), driver.cq(ctx, entries)];
        let datagrams = Datagrams::new(&driver, index, life);
        let budget = driver.device.budget_left();
        Guest { driver, pd, cqs, by_qp: HashMap::new(), datagrams, budget, life }
    }

    /// Has an address beside its own from now on, or no more.
    pub fn bind(&self, number: u32, gid: Gid, bound: bool) {
        let command = match bound {
            true => Command::CreateBind { index: 1 + number, gid, gid_type: GID_TYPE, vlan: 0xfff, mtu: 1024 },
            false => Command::DestroyBind { index: 1 + number, gid },
        };
        self.driver.command(command).expect("an address");
    }
}
