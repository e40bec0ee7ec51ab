//! How much may be written into the other end's ring, and what has come into this one.
//!
//! A ring is a stream of bytes: the n-th byte stands at n modulo its length. Each piece of the stream is one RDMA WRITE
//! with immediate data, which is its length; it never goes over the ring's end. Who takes bytes out says so from time
//! to time: a WRITE of nothing, whose immediate data is a count of the bytes so far, with the highest bit set.
//!
//! Each piece and each count needs a receive at the other end. So both ends count pieces too: those that are not known
//! to be taken are at most `PIECES`, and after `TELL_PIECES` of them it is said. What comes is judged: a piece that
//! there was no room for, or a count of what was never sent, ends the bearer.

use std::collections::VecDeque;

/// Pieces that may be under way.
pub const PIECES: usize = 64;
/// Pieces after which it is said that they are taken.
const TELL_PIECES: usize = 16;
/// Counts that may be under way in one direction, beside the pieces: one for each `TELL_PIECES`, and one for each
/// quarter of the ring; and the one that proves the way.
pub const COUNTS: usize = PIECES / TELL_PIECES + 4 + 1;
/// Tells a count from a piece.
const COUNT: u32 = 1 << 31;

/// The other end does not keep to what was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A piece without bytes, over the ring's end, or of another length than was written.
    #[error("a piece of {0} bytes, which cannot be")]
    Piece(u32),
    /// There was no room for it.
    #[error("more than there was room for")]
    Room,
    /// It has not been sent so much.
    #[error("it has taken what was never sent, or nothing more")]
    Count,
}

/// What the immediate data says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// So many bytes were written.
    Piece(u32),
    /// So many bytes have been taken out since the beginning, modulo 2^31.
    Count(u32),
}

impl Word {
    /// As immediate data, in this host's order.
    pub fn pack(self) -> u32 {
        match self {
            Word::Piece(len) => len,
            Word::Count(count) => count | COUNT,
        }
    }

    /// What immediate data says.
    pub fn unpack(word: u32) -> Word {
        match word & COUNT {
            0 => Word::Piece(word),
            _ => Word::Count(word & !COUNT),
        }
    }
}

/// What this end writes.
#[derive(Debug)]
pub struct Outgoing {
    /// Lengths of the other end's ring, and of the memory that is written from; each a power of two.
    rings: [u64; 2],
    sent: u64,
    taken: u64,
    /// Where pieces end that are not known to be taken.
    ends: VecDeque<u64>,
    /// The other end has counted nothing, which proves the way, and does so once.
    proved: bool,
}

impl Outgoing {
    pub fn new(theirs: u32, staging: u32) -> Outgoing {
        Outgoing { rings: [theirs.into(), staging.into()], sent: 0, taken: 0, ends: VecDeque::new(), proved: false }
    }

    /// How long the next piece may be, and where it goes in the other end's ring and in the memory here.
    pub fn room(&self) -> Option<(usize, [usize; 2])> {
        let offsets = self.rings.map(|ring| self.sent % ring);
        let free = self.rings.map(|ring| ring - (self.sent - self.taken));
        let rest = [0, 1].map(|at| free[at].min(self.rings[at] - offsets[at]));
        let len = rest[0].min(rest[1]) as usize;
        (len > 0 && self.ends.len() < PIECES).then_some((len, offsets.map(|offset| offset as usize)))
    }

    pub fn sent(&mut self, len: usize) {
        self.sent += len as u64;
        self.ends.push_back(self.sent);
    }

    /// The other end has counted.
    pub fn counted(&mut self, count: u32) -> Result<(), Broken> {
        let more = u64::from(count.wrapping_sub(self.taken as u32) & !COUNT);
        // Counts that say nothing could go on for ever.
        let idle = more == 0 && std::mem::replace(&mut self.proved, true);
        if idle || more > self.sent - self.taken {
            return Err(Broken::Count);
        }
        self.taken += more;
        while self.ends.front().is_some_and(|end| *end <= self.taken) {
            self.ends.pop_front();
        }
        Ok(())
    }
}

/// What the other end writes.
#[derive(Debug)]
pub struct Incoming {
    ring: u64,
    came: u64,
    taken: u64,
    /// What of it was said.
    told: u64,
    /// Where pieces end that are not taken yet.
    ends: VecDeque<u64>,
    /// Pieces that are taken, and the other end does not know it.
    untold: usize,
}

impl Incoming {
    pub fn new(ring: u32) -> Incoming {
        Incoming { ring: ring.into(), came: 0, taken: 0, told: 0, ends: VecDeque::new(), untold: 0 }
    }

    /// A piece was written, of which the other end says `len` and the adapter `written` bytes.
    pub fn came(&mut self, len: u32, written: u32) -> Result<(), Broken> {
        let bytes = u64::from(len);
        if len == 0 || len != written || self.came % self.ring + bytes > self.ring {
            return Err(Broken::Piece(len));
        }
        // By what it knows: what was taken and not yet said does not count.
        if self.came + bytes - self.told > self.ring || self.ends.len() + self.untold >= PIECES {
            return Err(Broken::Room);
        }
        self.came += bytes;
        self.ends.push_back(self.came);
        Ok(())
    }

    /// Where bytes stand that are not taken yet, and how many in a row.
    pub fn there(&self) -> (usize, usize) {
        let offset = self.taken % self.ring;
        (offset as usize, (self.came - self.taken).min(self.ring - offset) as usize)
    }

    pub fn took(&mut self, len: usize) {
        self.taken += len as u64;
        debug_assert!(self.taken <= self.came);
        while self.ends.front().is_some_and(|end| *end <= self.taken) {
            self.ends.pop_front();
            self.untold += 1;
        }
    }

    /// What is to be said of it, if it is time.
    pub fn count(&mut self) -> Option<Word> {
        if self.untold < TELL_PIECES && self.taken - self.told < self.ring / 4 {
            return None;
        }
        self.told = self.taken;
        self.untold = 0;
        Some(Word::Count(self.taken as u32 & !COUNT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_ffi::rng::Rng;

    const RING: u32 = 1 << 10;

    /// Both ends, with messages that are late: every byte arrives where it should, nobody waits for ever, and no more
    /// receives are taken than there are.
    #[test]
    fn a_stream_passes_whatever_is_late() {
        for seed in 1..40 {
            let mut rng = Rng::new(seed);
            // Staging memory of its own size.
            let mut out = Outgoing::new(RING, RING / 2);
            let mut into = Incoming::new(RING);
            let (mut memory, mut pieces, mut counts) = (vec![0u8; RING as usize], VecDeque::new(), VecDeque::new());
            let (mut sent, mut got, mut idle) = (0u64, 0u64, 0);
            while got < 200_000 {
                idle += 1;
                assert!(idle < 10_000, "it stands still: {out:?} {into:?}");
                match rng.below(4) {
                    0 => {
                        let Some((room, [at, _])) = out.room() else { continue };
                        let wanted = if seed % 2 == 0 { 1 + rng.below(5) } else { 1 + rng.below(700) };
                        let len = room.min(wanted as usize);
                        for place in &mut memory[at..at + len] {
                            *place = sent as u8;
                            sent += 1;
                        }
                        out.sent(len);
                        pieces.push_back(len as u32);
                        assert!(pieces.len() <= PIECES);
                    }
                    1 => {
                        let Some(len) = pieces.pop_front() else { continue };
                        assert_eq!(into.came(len, len), Ok(()));
                    }
                    2 => {
                        let (at, there) = into.there();
                        let len = there.min(1 + rng.below(300) as usize);
                        for place in &memory[at..at + len] {
                            assert_eq!(*place, got as u8);
                            got += 1;
                        }
                        into.took(len);
                        if let Some(Word::Count(count)) = into.count() {
                            counts.push_back(count);
                            assert!(counts.len() < COUNTS);
                        }
                        idle = if len > 0 { 0 } else { idle };
                    }
                    _ => {
                        let Some(count) = counts.pop_front() else { continue };
                        assert_eq!(out.counted(count), Ok(()));
                    }
                }
            }
        }
    }

    #[test]
    fn a_piece_that_cannot_be_ends_it() {
        let mut into = Incoming::new(RING);
        assert_eq!(into.came(0, 0), Err(Broken::Piece(0)));
        assert_eq!(into.came(5, 4), Err(Broken::Piece(5)));
        assert_eq!(into.came(RING + 1, RING + 1), Err(Broken::Piece(RING + 1)));
        assert_eq!(into.came(RING - 1, RING - 1), Ok(()));
        assert_eq!(into.came(2, 2), Err(Broken::Piece(2)), "over the end");
        assert_eq!(into.came(1, 1), Ok(()));
        assert_eq!(into.came(1, 1), Err(Broken::Room));
        into.took(1);
        assert_eq!(into.came(1, 1), Err(Broken::Room), "it was taken, and the other end cannot know");
    }

    #[test]
    fn more_pieces_than_there_are_receives_end_it() {
        let mut into = Incoming::new(RING);
        for _ in 0..PIECES {
            assert_eq!(into.came(1, 1), Ok(()));
        }
        assert_eq!(into.came(1, 1), Err(Broken::Room));
    }

    #[test]
    fn a_count_of_what_was_never_sent_ends_it() {
        let mut out = Outgoing::new(RING, RING);
        assert_eq!(out.counted(0), Ok(()), "it proves the way");
        assert_eq!(out.counted(0), Err(Broken::Count), "it was proved");
        assert_eq!(out.counted(1), Err(Broken::Count));
        out.sent(10);
        assert_eq!(out.counted(4), Ok(()));
        assert_eq!(out.counted(3), Err(Broken::Count), "backwards");
        assert_eq!(out.counted(11), Err(Broken::Count));
        assert_eq!(out.counted(10), Ok(()));
        // Counts begin anew after 2^31 bytes.
        (out.sent, out.taken) = ((1 << 33) + 5, (1 << 33) - 3);
        assert_eq!(out.counted(5), Ok(()));
        assert_eq!(out.taken, (1 << 33) + 5);
    }

    #[test]
    fn words_are_told_apart() {
        for word in [Word::Piece(1), Word::Piece(1 << 22), Word::Count(0), Word::Count(!COUNT)] {
            assert_eq!(Word::unpack(word.pack()), word);
        }
    }
}
