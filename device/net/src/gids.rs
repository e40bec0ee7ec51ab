//! Which host has which address.
//!
//! Hosts say it of themselves. Of those that claim the same address the first keeps it, until it gives it up or its
//! link is dead and another one claims it.

use crate::frame::Gid;
use std::collections::HashMap;

/// Highest number of a host. It is a byte of the addresses of its guests on the stand-in.
pub const MAX_HOST: u16 = 254;

/// Whether a host may have an address at all. Addresses in 127.0.0.0/8, and the link-local ones that stand-in guests
/// have, hold the number of their host.
pub fn may_have(host: u16, gid: &Gid) -> bool {
    match *gid {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, number, ..] => u16::from(number) == host,
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0xc9, 0x00, 0xff, 0xfe, 0x00, number, _] => u16::from(number) == host,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 | 1] => false,
        _ => true,
    }
}

/// See the module text.
#[derive(Debug, Default)]
pub struct Gids {
    /// The owner, and those that claim it too.
    claims: HashMap<Gid, Vec<u16>>,
}

impl Gids {
    /// Who has it.
    pub fn owner(&self, gid: &Gid) -> Option<u16> {
        self.claims.get(gid)?.first().copied()
    }

    /// All of them, with their owners.
    pub fn owners(&self) -> impl Iterator<Item = (Gid, u16)> + '_ {
        self.claims.iter().filter_map(|(gid, claims)| Some((*gid, *claims.first()?)))
    }

    /// A host claims an address. Who has it now, if that is another one.
    pub fn claim(&mut self, host: u16, gid: &Gid) -> Option<u16> {
        let claims = self.claims.entry(*gid).or_default();
        if !claims.contains(&host) {
            claims.push(host);
        }
        claims.first().copied().filter(|owner| *owner != host)
    }

    /// A host gives an address up. Who has it now, if it was this one's and is another's.
    pub fn give_up(&mut self, host: u16, gid: &Gid) -> Option<u16> {
        let claims = self.claims.get_mut(gid)?;
        let owned = claims.first() == Some(&host);
        claims.retain(|claim| *claim != host);
        let next = claims.first().copied().filter(|_| owned);
        if claims.is_empty() {
            self.claims.remove(gid);
        }
        next
    }

    /// A host cannot be reached: who else claims its addresses has them. They are returned, with their new owners.
    pub fn lost(&mut self, host: u16) -> Vec<(Gid, u16)> {
        let mut moved = Vec::new();
        for (gid, claims) in &mut self.claims {
            if claims.first() == Some(&host) && claims.len() > 1 {
                claims.rotate_left(1);
                moved.push((*gid, claims[0]));
            }
        }
        moved.sort_unstable();
        moved
    }

    /// A host begins anew: it will say which addresses it has.
    pub fn forget(&mut self, host: u16) -> Vec<(Gid, u16)> {
        let mut gids: Vec<Gid> = self.claims.iter().filter(|(_, by)| by.contains(&host)).map(|(gid, _)| *gid).collect();
        gids.sort_unstable();
        gids.into_iter().filter_map(|gid| Some((gid, self.give_up(host, &gid)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Gid = [1; 16];
    const B: Gid = [2; 16];

    #[test]
    fn the_first_owner_keeps_it_and_a_moved_one_moves() {
        let mut gids = Gids::default();
        assert_eq!((gids.claim(1, &A), gids.claim(2, &A), gids.claim(2, &B)), (None, Some(1), None));
        assert_eq!(gids.owner(&A), Some(1));
        assert_eq!(gids.give_up(1, &A), Some(2));
        assert_eq!((gids.owner(&A), gids.give_up(2, &A), gids.owner(&A)), (Some(2), None, None));
        assert_eq!(gids.owner(&B), Some(2));
    }

    #[test]
    fn the_claim_of_a_dead_host_is_the_last() {
        let mut gids = Gids::default();
        gids.claim(1, &A);
        gids.claim(1, &B);
        gids.claim(2, &A);
        assert_eq!(gids.lost(1), [(A, 2)]);
        assert_eq!((gids.owner(&A), gids.owner(&B)), (Some(2), Some(1)));
        assert_eq!(gids.forget(1), []);
        assert_eq!((gids.owner(&A), gids.owner(&B)), (Some(2), None));
        assert_eq!(gids.claim(1, &A), Some(2));
        assert_eq!(gids.forget(2), [(A, 1)]);
    }

    #[test]
    fn an_address_with_a_number_is_that_hosts() {
        let v4 = |a: [u8; 4]| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]];
        assert!(may_have(3, &v4([127, 3, 82, 1])) && !may_have(4, &v4([127, 3, 82, 1])));
        assert!(may_have(4, &v4([10, 3, 82, 1])));
        let mut local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0xc9, 0, 0xff, 0xfe, 0, 3, 9];
        assert!(may_have(3, &local) && !may_have(4, &local));
        // The adapter of a virtual machine.
        local[8..11].copy_from_slice(&[0x02, 0x50, 0x56]);
        assert!(may_have(4, &local));
        assert!(!may_have(4, &[0; 16]));
    }
}
