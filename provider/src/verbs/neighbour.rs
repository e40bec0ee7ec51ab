//! Resolved destinations of address handles, kept for a while.

use crate::support::error::Errno;
use pvrdma_ffi::verbs::ibv_ah_attr;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use zerocopy::transmute;

/// A MAC address.
pub type Mac = [u8; 6];

/// A GID in wire order.
pub type Gid = [u8; 16];

/// The destination's GID.
pub fn gid_of(attr: &ibv_ah_attr) -> Gid {
    transmute!(attr.grh.dgid)
}

/// What the kernel's answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Neighbour {
    gid: Gid,
    port: u8,
    sgid_index: u8,
}

impl Neighbour {
    /// Of an address handle.
    pub fn of(attr: &ibv_ah_attr) -> Self {
        Self { gid: gid_of(attr), port: attr.port_num, sgid_index: attr.grh.sgid_index }
    }
}

/// Resolved destinations, so that an AH for a known one costs no system call.
#[derive(Debug, Default)]
pub struct Neighbours(Mutex<HashMap<Neighbour, (Mac, Instant)>>);

/// How long an answer is good: about as long as the kernel itself believes one without asking
/// again. (An AH keeps its MAC for life, so this bounds only what new ones get.)
const LIFETIME: Duration = Duration::from_secs(30);

/// Most answers kept. A table that is full is emptied: rare, and the next asks fill it again.
const MOST: usize = 4096;

impl Neighbours {
    /// The MAC of `key`: the one known, or what `ask` says.
    pub fn find(&self, key: Neighbour, ask: impl FnOnce() -> Result<Mac, Errno>) -> Result<Mac, Errno> {
        let table = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((mac, at)) = table().get(&key)
            && at.elapsed() < LIFETIME
        {
            return Ok(*mac);
        }
        // Not under the lock: others need not wait for this one.
        let mac = ask()?;
        let mut table = table();
        if table.len() >= MOST {
            table.clear();
        }
        table.insert(key, (mac, Instant::now()));
        Ok(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBAL: Gid = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const MAPPED: Gid = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];

    fn attr(gid: Gid) -> ibv_ah_attr {
        let mut attr = ibv_ah_attr { is_global: 1, port_num: 1, ..Default::default() };
        attr.grh.dgid = transmute!(gid);
        attr
    }

    #[test]
    fn a_known_address_is_not_asked_for_again() {
        let neighbours = Neighbours::default();
        let key = |gid| Neighbour::of(&attr(gid));
        assert_eq!(neighbours.find(key(GLOBAL), || Err(Errno::EHOSTUNREACH)), Err(Errno::EHOSTUNREACH));
        assert_eq!(neighbours.find(key(GLOBAL), || Ok([1; 6])), Ok([1; 6]));
        assert_eq!(neighbours.find(key(GLOBAL), || Err(Errno::EIO)), Ok([1; 6]));
        // Another address is another question, and so is another source.
        assert_eq!(neighbours.find(key(MAPPED), || Ok([2; 6])), Ok([2; 6]));
        let other_source = Neighbour { sgid_index: 1, ..key(GLOBAL) };
        assert_eq!(neighbours.find(other_source, || Ok([3; 6])), Ok([3; 6]));
    }

    #[test]
    fn the_table_stays_bounded() {
        let neighbours = Neighbours::default();
        for i in 0..2 * MOST as u64 {
            let gid = transmute!([i, 1]);
            assert_eq!(neighbours.find(Neighbour::of(&attr(gid)), || Ok([0; 6])), Ok([0; 6]));
        }
        assert!(neighbours.0.lock().is_ok_and(|table| table.len() <= MOST));
    }
}
