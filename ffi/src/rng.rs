//! Numbers for tests that can be had again: [`Rng`] from a seed, printed by whoever uses it, and [`Input`] from bytes
//! that a fuzzer grew. Here because both halves of the project need them and neither imports the other. Behind the
//! feature `test-utils`.
#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a mistake of a test ends the test")]

/// A generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator of [`seed`].
    pub fn from_env(otherwise: u64) -> Self {
        Self(seed(otherwise))
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `list`.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.word() as u8).collect()
    }
}

/// Takes numbers off bytes; nothing but zeros when they have ended.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::from(self.byte()) % limit.max(1)
    }

    /// A small number, a number next to a power of two, or four bytes as they come.
    pub fn number(&mut self) -> u32 {
        let kind = self.byte();
        match kind {
            0..128 => u32::from(kind & 31),
            128..160 => 1 << (kind & 31),
            160..192 => (1u32 << (kind & 31)).wrapping_sub(1),
            192..224 => (1u32 << (kind & 31)).wrapping_add(1),
            _ => u32::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    /// One bit of the next byte.
    pub fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    /// True once in a few times.
    pub fn rarely(&mut self) -> bool {
        self.byte() >= 224
    }

    /// One of `from`, if there is any.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let index = self.below(from.len());
        from.get(index).copied()
    }

    /// Most often one of `known`, or any number.
    pub fn known(&mut self, known: &[u32]) -> u32 {
        match self.byte() {
            n @ 0..224 if !known.is_empty() => known[usize::from(n) % known.len()],
            _ => self.number(),
        }
    }

    /// Have the bytes ended?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Has `run` take each of the inputs that a fuzzer kept, the files of `folder`; there are more than `least` that it did
/// take. Prints which one it is.
pub fn replay(folder: &str, least: u32, mut run: impl FnMut(&[u8]) -> bool) {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the seeds of the fuzz target") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        count += u32::from(run(&std::fs::read(&path).expect("a seed")));
    }
    assert!(count > least, "{count} seeds");
}

/// The number in the environment variable `PVRDMA_SEED`, or `otherwise`. Prints it, so that a failed test names it.
pub fn seed(otherwise: u64) -> u64 {
    let seed = std::env::var("PVRDMA_SEED").map_or(otherwise, |seed| seed.parse().expect("PVRDMA_SEED: a number"));
    println!("PVRDMA_SEED={seed}");
    seed
}

/// The number in the environment variable `PVRDMA_STEPS`, or `otherwise`: how long a test is to be.
pub fn steps(otherwise: u64) -> u64 {
    std::env::var("PVRDMA_STEPS").map_or(otherwise, |steps| steps.parse().expect("PVRDMA_STEPS: a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let words = |seed| {
            let mut rng = Rng::new(seed);
            [rng.word(), rng.word(), rng.below(10)]
        };
        // From the description of the algorithm, so that a seed in an old report stays worth something.
        assert_eq!(words(0)[..2], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        assert_eq!(words(7), words(7));
        assert_ne!(words(7), words(8));
    }

    #[test]
    fn bytes_end_in_zeros() {
        let mut input = Input(&[5, 130, 165, 200, 255, 1, 2, 3, 4, 9]);
        assert_eq!((input.below(3), input.number(), input.number(), input.number()), (2, 4, 31, 257));
        assert_eq!((input.number(), input.byte(), input.is_empty()), (0x0403_0201, 9, true));
        assert_eq!((input.byte(), input.number(), input.below(0)), (0, 0, 0));
    }
}
