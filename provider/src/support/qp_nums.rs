//! From the handle a completion carries to the QP number the application knows.

use crate::support::error::Errno;
use crate::support::sync::{AtomicU32, Ordering, yield_now};
use std::time::{Duration, Instant};

/// QP number by QP handle: completions carry the handle, applications know the number. A slot is
/// 0 (no QP has that number) while its handle is not in use.
#[derive(Debug)]
pub struct QpNums(Box<QpNumTable>);

/// Set in the slot of a QP whose completions are found by a [`crate::support::send_log`]. QP numbers have 24
/// bits.
pub const LOGGED: u32 = 1 << 31;

/// In the slot of a QP that is being destroyed: a stray to whoever polls, and not free yet. Not a
/// plain number and not 0, so that the hot loop needs no further comparison.
pub const LEAVING: u32 = LOGGED;

/// How long a create waits for the destroy of the QP that had its handle.
const PATIENCE: Duration = Duration::from_secs(5);

/// As many slots as a completion's 16 bits of handle can name, so that none can be out of range.
pub type QpNumTable = [AtomicU32; 1 << 16];

/// The number of the QP with this handle, or 0.
#[inline(always)]
#[allow(clippy::indexing_slicing, reason = "a u16 is below 2^16")]
pub fn qp_num(table: &QpNumTable, handle: u16) -> u32 {
    table[handle as usize].load(Ordering::Relaxed)
}

impl QpNums {
    /// All unused. Zeroed pages that nobody touched cost no memory.
    pub fn new() -> Result<Self, Errno> {
        let layout = std::alloc::Layout::new::<QpNumTable>();
        // SAFETY: the layout has a size; all-zero bytes are a valid array of atomics; the pointer
        // comes from the allocator Box frees with.
        unsafe {
            let table = std::alloc::alloc_zeroed(layout);
            if table.is_null() {
                return Err(Errno::ENOMEM);
            }
            Ok(Self(Box::from_raw(table.cast())))
        }
    }

    /// The table, for several look-ups in a row.
    #[inline(always)]
    pub fn table(&self) -> &QpNumTable {
        &self.0
    }

    /// Enter or, with 0, remove a QP.
    #[allow(clippy::indexing_slicing, reason = "a u16 is below 2^16")]
    pub fn set(&self, handle: u16, qp_num: u32) {
        // Release: what was done for the QP that had this handle comes before its next one, see
        // `claim`.
        self.0[handle as usize].store(qp_num, Ordering::Release);
    }

    /// Enter a QP that the kernel has just given this handle. EIO: another one has it, which no
    /// device may do.
    ///
    /// Waits for a thread that is about to end its destroy of the former owner: the kernel has
    /// freed the handle, that thread still has to remove completions by it, and would remove those
    /// of the new QP. EAGAIN after five seconds: `ibv_destroy_qp` waits until the events of its QP were
    /// acknowledged, perhaps by the very thread that is waiting here.
    #[allow(clippy::indexing_slicing, reason = "a u16 is below 2^16")]
    pub fn claim(&self, handle: u16, qp_num: u32) -> Result<(), Errno> {
        let place = &self.0[handle as usize];
        let begin = Instant::now();
        loop {
            // Acquire: see `set`.
            match place.compare_exchange(0, qp_num, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(LEAVING) if begin.elapsed() > PATIENCE => return Err(Errno::EAGAIN),
                Err(LEAVING) => yield_now(),
                Err(_) => return Err(Errno::EIO),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_handle_a_completion_can_carry_has_a_slot() {
        let table = QpNums::new().map_err(|e| e.0);
        let Ok(table) = table else { unreachable!("{table:?}") };
        assert_eq!(qp_num(table.table(), u16::MAX), 0);
        table.set(u16::MAX, 7);
        let look_up = |handle| qp_num(table.table(), handle);
        assert_eq!((look_up(u16::MAX), look_up(0)), (7, 0));
    }
}
