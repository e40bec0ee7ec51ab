//! How much of one QP may be on its way. The other end may be a process with a socket of 200 KiB, and nobody on the way
//! says when he is full: what is lost does.

/// Bytes that are never exceeded.
const MOST: u64 = 256 << 10;
/// Bytes to begin with.
const FIRST: u64 = 32 << 10;
/// Packets there is always room for. Two, so that the second one shows that the first was lost.
const LEAST: u64 = 2;

/// Grows with what is acknowledged, twofold in each round trip at first and by a packet later on; shrinks by what is
/// lost (RFC 5681 has the same two gaits).
#[derive(Clone, Copy, Debug)]
pub struct Window {
    mtu: u64,
    size: u64,
    /// Up to here it grows twofold.
    known: u64,
}

impl Window {
    pub fn new(mtu: u32) -> Window {
        let mtu = u64::from(mtu.max(1));
        Window { mtu, size: FIRST.max(LEAST * mtu), known: MOST }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn acknowledged(&mut self, bytes: u64) {
        let more = if self.size < self.known { bytes } else { self.mtu * bytes / self.size.max(1) };
        self.size = (self.size + more).min(MOST);
    }

    /// The other end says that a packet did not come.
    pub fn lost(&mut self) {
        self.known = (self.size / 2).max(LEAST * self.mtu);
        self.size = self.known;
    }

    /// The other end says nothing.
    pub fn silent(&mut self) {
        self.lost();
        self.size = LEAST * self.mtu;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_to_its_limit_and_shrinks_to_two_packets() {
        let mut window = Window::new(4096);
        for _ in 0..100 {
            window.acknowledged(window.size());
        }
        assert_eq!(window.size(), MOST);
        window.lost();
        assert_eq!(window.size(), MOST / 2);
        window.acknowledged(window.size());
        assert_eq!(window.size(), MOST / 2 + 4096, "beyond what is known to fit, slowly");
        for _ in 0..100 {
            window.silent();
        }
        assert_eq!(window.size(), 2 * 4096);
        window.lost();
        assert_eq!(window.size(), 2 * 4096);
    }
}
