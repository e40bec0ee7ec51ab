//! How fast a port is, in one number: `query_port_speed`, which NCCL asks for. Libibverbs has it from
//! rdma-core 62 on; no command of the kernel is needed, `query_port` says all.

use crate::support::error::Errno;
use crate::verbs::context;
use pvrdma_ffi::verbs::*;

/// Lanes of an `active_width` (IBA, PortInfo:LinkWidthActive).
fn lanes(width: u8) -> Option<u64> {
    match width {
        1 => Some(1),
        2 => Some(4),
        4 => Some(8),
        8 => Some(12),
        16 => Some(2),
        _ => None,
    }
}

/// One lane of an `active_speed`, in 100 Mb/s (IBA, PortInfo:LinkSpeedActive and LinkSpeedExtActive).
fn lane_speed(speed: u8) -> Option<u64> {
    match speed {
        1 => Some(25),
        2 => Some(50),
        4 | 8 => Some(100),
        16 => Some(140),
        32 => Some(250),
        64 => Some(500),
        128 => Some(1000),
        _ => None,
    }
}

/// `query_port_speed`, in 100 Mb/s. EOPNOTSUPP for a width or a speed that has no name: the caller
/// then does with what `query_port` says.
///
/// # Safety
/// `context` must be a live context of ours; `speed` is valid for a write.
pub unsafe fn query_port_speed(context: *mut ibv_context, port: u32, speed: *mut u64) -> Result<(), Errno> {
    let port = u8::try_from(port).map_err(|_| Errno::EINVAL)?;
    let mut room = ibv_port_attr_room::default();
    // SAFETY: as long as any libibverbs has it; the context is the caller's promise.
    unsafe { context::query_port(context, port, (&raw mut room).cast()) }?;
    let lanes = lanes(room.attr.active_width).ok_or(Errno::EOPNOTSUPP)?;
    let lane = lane_speed(room.attr.active_speed).ok_or(Errno::EOPNOTSUPP)?;
    // SAFETY: promise of the caller.
    unsafe { speed.write(lanes * lane) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_trade_have_their_speeds() {
        // 4X QDR, 4X EDR and 8X HDR, in 100 Mb/s.
        for (width, speed, expected) in [(2, 4, 400), (2, 32, 1000), (4, 64, 4000)] {
            assert_eq!(lanes(width).zip(lane_speed(speed)).map(|(lanes, lane)| lanes * lane), Some(expected));
        }
        assert!([0, 3, 255].iter().all(|code| lanes(*code).is_none() && lane_speed(*code).is_none()));
    }
}
