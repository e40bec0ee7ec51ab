//! What time it is for a device: that of the machine, and in a test of timers whatever the test says.

use std::time::Instant;

#[cfg(any(test, feature = "test-utils"))]
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Where a device takes the time from. The machine's, unless it was made by `Clock::by_hand` (for tests).
#[derive(Clone, Debug, Default)]
pub struct Clock {
    #[cfg(any(test, feature = "test-utils"))]
    hand: Option<Arc<Hand>>,
}

/// A clock that stands still until it is set.
#[cfg(any(test, feature = "test-utils"))]
#[derive(Debug)]
struct Hand {
    begin: Instant,
    /// Nanoseconds since.
    passed: AtomicU64,
}

impl Clock {
    /// The time.
    pub fn now(&self) -> Instant {
        #[cfg(any(test, feature = "test-utils"))]
        if let Some(hand) = &self.hand {
            // Relaxed: a number that nothing else is read by.
            return hand.begin + Duration::from_nanos(hand.passed.load(Ordering::Relaxed));
        }
        Instant::now()
    }

    /// One that stands still until it is set; its copies go with it.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn by_hand() -> Clock {
        Clock { hand: Some(Arc::new(Hand { begin: Instant::now(), passed: AtomicU64::new(0) })) }
    }

    /// So much has passed since it was made. The machine's clock takes no notice.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn set(&self, passed: Duration) {
        if let Some(hand) = &self.hand {
            hand.passed.store(passed.as_nanos() as u64, Ordering::Relaxed);
        }
    }
}
