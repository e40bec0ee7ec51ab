//! When this host's adapter is tried on the way to another host, and why it is not used.

use pvrdma_hca::{self as hca, Adapter, Choice, Unusable};
use pvrdma_net::frame::{Card, Refusal};
use std::collections::BTreeMap;
use std::time::Duration;

/// Until who has dialed tries again what was refused; each further time twice as long, and at last `SELDOM`.
const AGAIN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60);
/// From one try to the next, whoever asks for it: opening an adapter takes milliseconds.
const SOON: Duration = Duration::from_secs(1);
/// The same after an adapter was lost while it was used.
const REST: Duration = Duration::from_secs(10);

/// How often is looked whether an adapter is about to be removed.
const LOOK: Duration = Duration::from_secs(1);

/// What carries the frames of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// The connection itself.
    Tcp {
        /// Why no adapter does; `None`: this host was told to use none.
        why: Option<String>,
    },
    /// This host's adapter of that name.
    Hca {
        /// Its name.
        device: String,
    },
}

#[derive(Default)]
struct Peer {
    /// When to begin a round, if this end begins them.
    next: Option<Duration>,
    wait: Duration,
    not_before: Duration,
    carrier: Option<Carrier>,
}

/// See the module text.
#[derive(Default)]
pub struct Adapters {
    choice: Choice,
    peers: BTreeMap<u16, Peer>,
    /// When somebody last looked whether they are there.
    looked: Duration,
}

impl Adapters {
    pub fn new(choice: Choice) -> Adapters {
        Adapters { choice, ..Adapters::default() }
    }

    fn peer(&mut self, host: u16) -> &mut Peer {
        self.peers.entry(host).or_default()
    }

    /// The link to a host is there.
    pub fn up(&mut self, host: u16, now: Duration) {
        let peer = self.peer(host);
        (peer.next, peer.wait, peer.carrier) = (Some(peer.not_before.max(now)), AGAIN, None);
    }

    /// It is gone.
    pub fn down(&mut self, host: u16) {
        let peer = self.peer(host);
        (peer.next, peer.carrier) = (None, None);
    }

    /// Hosts where a round is to begin now, if this end begins them there.
    pub fn due(&mut self, now: Duration) -> Vec<u16> {
        let due = self.peers.iter_mut().filter(|(_, peer)| peer.next.is_some_and(|next| next <= now));
        due.map(|(host, peer)| {
            peer.next = None;
            *host
        })
        .collect()
    }

    /// When there are some.
    pub fn deadline(&self) -> Option<Duration> {
        self.peers.values().filter_map(|peer| peer.next).min()
    }

    /// An adapter for the link to a host, or what is said in its place.
    pub fn open(&mut self, host: u16, now: Duration) -> Result<Adapter, Refusal> {
        if self.choice == Choice::None {
            return Err(self.refuses(host, Refusal::Unwanted, None));
        }
        let peer = self.peer(host);
        let before = peer.not_before;
        peer.not_before = before.max(now + SOON);
        if now < before {
            return Err(self.refuses(host, Refusal::Soon, None));
        }
        Adapter::open(&self.choice).map_err(|why| self.refuses(host, refusal(&why), Some(why)))
    }

    /// This host refuses, and why.
    pub fn refuses(&mut self, host: u16, refusal: Refusal, more: Option<Unusable>) -> Refusal {
        let more = more.map(|why| format!(": {why}")).unwrap_or_default();
        self.peer(host).carrier = Some(Carrier::Tcp { why: Some(format!("this host {refusal}{more}")) });
        refusal
    }

    /// The other one does.
    pub fn is_refused(&mut self, host: u16, refusal: Refusal) {
        self.peer(host).carrier = Some(Carrier::Tcp { why: Some(format!("the other host {refusal}")) });
    }

    /// This end begins another round later.
    pub fn again(&mut self, host: u16, now: Duration) {
        let peer = self.peer(host);
        peer.next = Some(now + peer.wait);
        peer.wait = (peer.wait * 2).min(SELDOM);
    }

    /// Frames go over the adapter.
    pub fn carries(&mut self, host: u16, device: &str) {
        self.peer(host).carrier = Some(Carrier::Hca { device: device.to_owned() });
    }

    /// It did not do so to the end: it has a rest.
    pub fn lost(&mut self, host: u16, now: Duration) {
        self.peer(host).not_before = now + REST;
    }

    /// Whether it is time to look if they are all there; then that is done.
    pub fn are_looked_at(&mut self, now: Duration) -> bool {
        let due = now >= self.next_look();
        if due {
            self.looked = now;
        }
        due
    }

    /// When it is time for that.
    pub fn next_look(&self) -> Duration {
        self.looked + LOOK
    }

    /// What carries the frames of the link to a host.
    pub fn carrier(&self, host: u16) -> Carrier {
        let wanted = self.choice != Choice::None;
        let none = || Carrier::Tcp { why: wanted.then(|| "nothing was said of adapters".to_owned()) };
        self.peers.get(&host).filter(|_| wanted).and_then(|peer| peer.carrier.clone()).unwrap_or_else(none)
    }
}

/// As the other host hears it.
pub fn refusal(why: &Unusable) -> Refusal {
    match why {
        Unusable::Library(_) | Unusable::NoDevice => Refusal::Missing,
        Unusable::Inactive => Refusal::Inactive,
        Unusable::Verb(_) => Refusal::Failed,
        Unusable::Kind => Refusal::Kind,
    }
}

/// What the other host must know, as it is said.
pub fn said(card: &hca::Card) -> Card {
    let hca::Card { link, mtu, lid, gid, qpn, psn, rkey, addr, len } = *card;
    let link = match link {
        hca::Link::InfiniBand => 1,
        hca::Link::RoceV1 => 2,
        hca::Link::RoceV2 => 3,
    };
    Card { link, mtu, lid, gid, qpn, psn, rkey, len, addr }
}

/// What the other host has said, which was found to be in range.
pub fn heard(card: &Card) -> hca::Card {
    let Card { link, mtu, lid, gid, qpn, psn, rkey, len, addr } = *card;
    let link = match link {
        1 => hca::Link::InfiniBand,
        2 => hca::Link::RoceV1,
        _ => hca::Link::RoceV2,
    };
    hca::Card { link, mtu, lid, gid, qpn, psn, rkey, addr, len }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_host_that_was_told_nothing_uses_no_adapter() {
        let mut adapters = Adapters::default();
        adapters.up(2, s(1));
        assert_eq!(adapters.due(s(1)), [2]);
        assert_eq!(adapters.open(2, s(1)).err(), Some(Refusal::Unwanted));
        assert_eq!(adapters.carrier(2), Carrier::Tcp { why: None });
        assert_eq!((adapters.due(s(100)), adapters.deadline()), (vec![], None));
    }

    #[test]
    fn tries_are_seldom() {
        let mut adapters = Adapters::new(Choice::Named("of-no-name".into()));
        adapters.up(2, s(1));
        assert_eq!(adapters.deadline(), Some(s(1)));
        for (at, next) in [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 124), (124, 184)] {
            assert_eq!((adapters.due(s(at - 1)), adapters.due(s(at))), (vec![], vec![2]));
            assert_eq!(adapters.open(2, s(at)).err(), Some(Refusal::Missing));
            assert_eq!(adapters.open(2, s(at)).err(), Some(Refusal::Soon), "a host that asks all the time");
            adapters.again(2, s(at));
            assert_eq!(adapters.deadline(), Some(s(next)));
        }
    }

    #[test]
    fn one_that_was_lost_has_a_rest() {
        let mut adapters = Adapters::new(Choice::Auto);
        adapters.carries(2, "mlx5_0");
        assert_eq!(adapters.carrier(2), Carrier::Hca { device: "mlx5_0".into() });
        adapters.lost(2, s(100));
        adapters.down(2);
        adapters.up(2, s(101));
        assert!(matches!(adapters.carrier(2), Carrier::Tcp { .. }));
        assert_eq!(adapters.deadline(), Some(s(110)));
        assert_eq!(adapters.open(2, s(102)).err(), Some(Refusal::Soon));
    }

    #[test]
    fn a_card_is_said_and_heard() {
        for link in [hca::Link::InfiniBand, hca::Link::RoceV1, hca::Link::RoceV2] {
            let card = hca::Card { link, mtu: 5, lid: 1, gid: [2; 16], qpn: 3, psn: 4, rkey: 5, addr: 6, len: 1 << 20 };
            assert_eq!(heard(&said(&card)), card);
        }
    }
}
