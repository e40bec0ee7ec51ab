//! What the stress stories share: how much of them is run, and from which seed.
//!
//! By default each runs a short form. With `PVRDMA_STRESS` set in the environment it is the long one, for a machine
//! that has an hour. `PVRDMA_SEED` repeats a run: every program says which seed it took.

/// `short`, or `long` when the long forms were asked for.
pub fn amount<T>(short: T, long: T) -> T {
    if std::env::var_os("PVRDMA_STRESS").is_some() { long } else { short }
}

/// Numbers that look random; splitmix64.
pub struct Chance(u64);

impl Chance {
    /// The numbers that belong to `seed`.
    pub fn new(seed: u64) -> Chance {
        Chance(seed)
    }

    /// From `PVRDMA_SEED`, or from the clock. Said aloud, so that a failure shows it.
    pub fn from_environment() -> Chance {
        let given = std::env::var("PVRDMA_SEED").ok().map(|seed| seed.parse().expect("PVRDMA_SEED is a number"));
        let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64 & 0xffff_ffff);
        let seed = given.unwrap_or_else(clock);
        println!("PVRDMA_SEED={seed}");
        Chance::new(seed)
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.any() % limit
    }
}
