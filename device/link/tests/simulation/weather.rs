//! What goes wrong between hosts: what was done to them, and when a link was not what it should be.
//!
//! A link may fail only where something was done to it, and a QP may give up only where its link was bad at each of its
//! tries.

use std::collections::VecDeque;
use std::time::Duration;

/// How long after trouble a link may go down over it: a host that was silent is given a second, and a greeting two.
const LATE: Duration = Duration::from_millis(3500);
/// How long after trouble a link may take to be there again: a dial that is in vain, the longest wait until the next,
/// a greeting that is too slow, and once more.
const BACK: Duration = Duration::from_secs(10);
/// How long a link that is back is given until all that was held up has come: addresses, and bytes on their way.
const GRACE: Duration = Duration::from_millis(60);
/// How long it is known that a link was bad: longer than any QP tries.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Link {
    /// Whether each end, the host with the lower number first, says that it is there.
    up: [bool; 2],
    /// Trouble lasts until then.
    until: Duration,
    /// When it was bad. The last may not be over.
    bad: VecDeque<(Duration, Duration)>,
}

/// See the module text.
pub struct Weather {
    hosts: usize,
    links: Vec<Link>,
}

impl Weather {
    pub fn new(hosts: u16) -> Weather {
        let hosts = usize::from(hosts);
        Weather { hosts, links: vec![Link::default(); hosts * hosts] }
    }

    fn link(&mut self, a: u16, b: u16) -> (&mut Link, usize) {
        let (low, high) = (usize::from(a.min(b)) - 1, usize::from(a.max(b)) - 1);
        (&mut self.links[low * self.hosts + high], usize::from(a > b))
    }

    /// Host `a` says that its link to `b` is there, or gone.
    pub fn is_up(&mut self, a: u16, b: u16, up: bool) {
        let (link, end) = self.link(a, b);
        link.up[end] = up;
    }

    /// Something is done to the link between them that lasts until then.
    pub fn trouble(&mut self, a: u16, b: u16, until: Duration) {
        let (link, _) = self.link(a, b);
        link.until = link.until.max(until);
    }

    /// The same for all links of a host.
    pub fn trouble_at(&mut self, host: u16, until: Duration) {
        for other in (1..=self.hosts as u16).filter(|other| *other != host) {
            self.trouble(host, other, until);
        }
    }

    /// Whether a link may go down now.
    pub fn may_go_down(&mut self, a: u16, b: u16, now: Duration) -> bool {
        let (link, _) = self.link(a, b);
        link.until > Duration::ZERO && now <= link.until + LATE
    }

    /// Whether all that may be down now has a reason.
    pub fn may_be_down(&self, now: Duration) -> bool {
        now <= self.clears() + BACK
    }

    /// When the last of what was done is over.
    pub fn clears(&self) -> Duration {
        self.links.iter().map(|link| link.until).max().unwrap_or_default()
    }

    /// Whether all links are there.
    pub fn is_fine(&self) -> bool {
        self.down().is_empty()
    }

    /// The links that are not there, by the numbers of their hosts.
    pub fn down(&self) -> Vec<(usize, usize)> {
        let all = (0..self.hosts).flat_map(|low| (low + 1..self.hosts).map(move |high| (low, high)));
        let down = all.filter(|(low, high)| self.links[low * self.hosts + high].up != [true; 2]);
        down.map(|(low, high)| (low + 1, high + 1)).collect()
    }

    /// Takes down how the links are.
    pub fn observe(&mut self, now: Duration) {
        for low in 0..self.hosts {
            for link in &mut self.links[low * self.hosts..][low + 1..self.hosts] {
                if link.up == [true; 2] && link.until < now {
                    continue;
                }
                match link.bad.back_mut().filter(|(_, end)| *end >= now) {
                    Some((_, end)) => *end = now + GRACE,
                    None => link.bad.push_back((now, now + GRACE)),
                }
                while link.bad.front().is_some_and(|(_, end)| *end + KEPT < now) {
                    link.bad.pop_front();
                }
            }
        }
    }

    /// Whether a request that was sent `times` times, the last of them `every` before now, may have failed each time.
    pub fn was_bad(&mut self, a: u16, b: u16, now: Duration, every: Duration, times: u32) -> bool {
        let bad = &self.link(a, b).0.bad;
        (1..=times).all(|back| {
            let begin = now.saturating_sub(every * back);
            bad.iter().any(|(from, to)| *from <= begin + every && *to >= begin)
        })
    }
}
