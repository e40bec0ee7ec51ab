//! A hostile program before the connection manager's device. Bytes are a command as it writes it.
//!
//! Called by the tests below with random bytes and by the fuzz target (`device/standin/fuzz`) with bytes that a fuzzer
//! grew. It is about decoding alone; what commands do in any order is `tests/c/cm_model.c`'s. Whatever the bytes:
//! nothing panics, a body is no longer than was written, an answer no longer than its room, and an address that was
//! understood says the same when it is written again.

use super::address::Address;
use super::call::{Call, Result};
use pvrdma_ffi::uapi::rdma_user_cm::*;
use std::mem::offset_of;
use zerocopy::FromBytes;

/// Inputs that begin with it are for here; others are for `uverbs`.
pub const MARK: u8 = 0xcc;
/// What is nobody's in an answer's memory.
const UNTOUCHED: u8 = 0xa5;

/// What came of some bytes, so that a test can tell whether they reach anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Commands whose body was long enough.
    pub taken: u32,
    /// Those that were refused.
    pub refused: u32,
    /// Addresses that were understood.
    pub addresses: u32,
}

/// One input.
pub fn run(bytes: &[u8]) -> Summary {
    let mut summary = Summary::default();
    let call = match Call::read(bytes.as_ptr() as u64, bytes.len()) {
        Ok(call) => call,
        Err(errno) => {
            assert_eq!(errno, libc::EINVAL, "the bytes are there");
            return Summary { refused: 1, ..summary };
        }
    };
    assert!(call.body.len() + size_of::<rdma_ucm_cmd_hdr>() <= bytes.len());
    assert!(call.command <= RDMA_USER_CM_CMD_WRITE_CM_EVENT);
    match body(&call, &mut summary) {
        Ok(()) => summary.taken += 1,
        Err(errno) => {
            assert!(matches!(errno, libc::EINVAL | libc::EAFNOSUPPORT), "{errno}");
            summary.refused += 1;
        }
    }
    answer(&call);
    summary
}

/// As the commands take theirs apart.
fn body(call: &Call, summary: &mut Summary) -> Result<()> {
    let mut addresses: Vec<Vec<u8>> = Vec::new();
    match call.command {
        RDMA_USER_CM_CMD_CREATE_ID => {
            call.body::<rdma_ucm_create_id>()?;
        }
        RDMA_USER_CM_CMD_BIND_IP => addresses.push(call.body::<rdma_ucm_bind_ip>()?.addr.to_vec()),
        RDMA_USER_CM_CMD_BIND => addresses.push(call.body::<rdma_ucm_bind>()?.addr.to_vec()),
        RDMA_USER_CM_CMD_RESOLVE_IP => {
            let body: rdma_ucm_resolve_ip = call.body()?;
            addresses.extend([body.src_addr.to_vec(), body.dst_addr.to_vec()]);
        }
        RDMA_USER_CM_CMD_RESOLVE_ADDR => {
            let body: rdma_ucm_resolve_addr = call.body()?;
            addresses.extend([body.src_addr.to_vec(), body.dst_addr.to_vec()]);
        }
        RDMA_USER_CM_CMD_CONNECT => grown::<rdma_ucm_connect>(call, offset_of!(rdma_ucm_connect, ece))?,
        RDMA_USER_CM_CMD_ACCEPT => grown::<rdma_ucm_accept>(call, offset_of!(rdma_ucm_accept, ece))?,
        RDMA_USER_CM_CMD_REJECT => {
            call.body::<rdma_ucm_reject>()?;
        }
        RDMA_USER_CM_CMD_SET_OPTION => {
            call.body::<rdma_ucm_set_option>()?;
        }
        RDMA_USER_CM_CMD_MIGRATE_ID => {
            call.body::<rdma_ucm_migrate_id>()?;
        }
        RDMA_USER_CM_CMD_RESOLVE_IB_SERVICE => {
            call.body::<rdma_ucm_resolve_ib_service>()?;
        }
        RDMA_USER_CM_CMD_WRITE_CM_EVENT => {
            call.body::<rdma_ucm_write_cm_event>()?;
        }
        _ => {
            call.body::<rdma_ucm_query>()?;
        }
    }
    for bytes in addresses {
        let Some(address) = Address::parse(&bytes)? else { continue };
        summary.addresses += 1;
        let mut again = vec![0; address.len()];
        address.write(&mut again);
        assert_eq!(Address::parse(&again), Ok(Some(address)));
        assert_eq!(address.with_port(7).port(), 7);
        assert_eq!(address.any().len(), address.len());
    }
    Ok(())
}

fn grown<T: FromBytes>(call: &Call, least: usize) -> Result<()> {
    let taken = call.grown_body::<T>(least);
    assert_eq!(taken.is_ok(), call.body.len() >= least);
    taken.map(drop)
}

fn answer(call: &Call) {
    let mut memory = [UNTOUCHED; 1024];
    let done = call.answer_at(memory.as_mut_ptr() as u64, &[1; 512]);
    assert_eq!(done, Ok(()));
    let written = memory.iter().take_while(|byte| **byte == 1).count();
    assert_eq!(written, call.room.min(512));
    assert!(memory[written..].iter().all(|byte| *byte == UNTOUCHED), "behind {written} bytes");
    assert_eq!(call.wants(512).is_ok(), call.room >= 512);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_ffi::rng::{Rng, replay};

    /// Commands that are nearly right.
    fn likely(rng: &mut Rng) -> Vec<u8> {
        let len = rng.below(400) as usize;
        let mut bytes = rng.bytes(len + 8);
        if !rng.one_in(5) {
            bytes[..4].copy_from_slice(&(rng.below(24) as u32).to_ne_bytes());
            bytes[4..6].copy_from_slice(&(rng.below(2 + len as u64) as u16).to_ne_bytes());
            bytes[6..8].copy_from_slice(&(rng.below(600) as u16).to_ne_bytes());
        }
        for _ in 0..4 {
            let at = rng.below(bytes.len() as u64 - 1) as usize;
            let family = *rng.pick(&[0u16, 2, 10, 27]);
            bytes[at & !1..][..2].copy_from_slice(&family.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn no_program_harms_the_decoder() {
        let (mut rng, mut all) = (Rng::from_env(1), Summary::default());
        for _ in 0..50_000 {
            let one = run(&likely(&mut rng));
            all.taken += one.taken;
            all.refused += one.refused;
            all.addresses += one.addresses;
        }
        // Bytes must reach something, or nothing is shown.
        assert!(all.taken > 10_000 && all.refused > 5_000 && all.addresses > 20, "{all:?}");
    }

    #[test]
    fn inputs_that_a_fuzzer_kept_harm_nobody() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/program");
        replay(folder, 5, |bytes| bytes.strip_prefix(&[MARK]).map(run).is_some());
    }
}
