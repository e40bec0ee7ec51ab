//! For tests: random numbers by a seed, random frames, a peer that does as it likes, settings that
//! are anything, and the wires of a simulation.

pub mod hostile;
#[cfg(feature = "identity")]
pub mod settings;
pub mod wires;

use crate::frame::*;
pub use pvrdma_ffi::rng::{Rng, replay};

/// Fewer than 2^`bits`, small ones as often as large ones.
pub fn size(rng: &mut Rng, bits: u32) -> u64 {
    let bits = rng.below(u64::from(bits) + 1) as u32;
    rng.word() & ((1 << bits) - 1)
}

/// Any ends.
pub fn random_ends(rng: &mut Rng) -> Ends {
    let mut gid = || {
        let mut gid = [0; 16];
        gid.fill_with(|| rng.word() as u8);
        gid
    };
    let (source_gid, dest_gid) = (gid(), gid());
    Ends { source_gid, dest_gid, source_qpn: size(rng, 24) as u32, dest_qpn: size(rng, 24) as u32 }
}

/// A greeting in range.
pub fn random_hello(rng: &mut Rng) -> Hello {
    let mut boot = [0; 16];
    boot.fill_with(|| rng.word() as u8);
    Hello {
        versions: (1, 1 + size(rng, 10) as u16),
        host: rng.word() as u16,
        boot,
        window: 2 * FRAME as u64 + size(rng, 40),
        lane: 2 * FRAME as u64 + size(rng, 40),
        requests: 1 + size(rng, 31) as u32,
        streams: 1 + size(rng, 15) as u16,
        gids: rng.word() as u16,
        adapters: rng.one_in(2),
    }
}

/// Anything about adapters.
pub fn random_way(rng: &mut Rng) -> Way {
    let refusals = [Refusal::Unwanted, Refusal::Missing, Refusal::Inactive, Refusal::Failed, Refusal::Kind];
    match rng.below(3) {
        0 => Way::Offer(Card {
            link: 1 + rng.below(3) as u8,
            mtu: 1 + rng.below(5) as u8,
            lid: rng.word() as u16,
            gid: random_ends(rng).source_gid,
            qpn: size(rng, 24) as u32,
            psn: size(rng, 24) as u32,
            rkey: rng.word() as u32,
            len: 1 << (16 + rng.below(15)),
            addr: rng.word(),
        }),
        1 => Way::Refuse(refusals[rng.below(5) as usize]),
        _ => Way::Switch,
    }
}

/// Any message.
pub fn random_message(rng: &mut Rng) -> Message {
    let (remote_addr, rkey, word) = (rng.word(), rng.word() as u32, rng.word() as u32);
    let op = match rng.below(8) {
        0 => Op::Send { ext: Ext::None },
        1 => Op::Send { ext: Ext::Imm(word) },
        2 => Op::Send { ext: Ext::Invalidate(word) },
        3 => Op::Write { remote_addr, rkey, imm: None },
        4 => Op::Write { remote_addr, rkey, imm: Some(word) },
        5 => Op::Read { remote_addr, rkey },
        6 => Op::CompareSwap { remote_addr, rkey, compare: rng.word(), swap: rng.word() },
        _ => Op::FetchAdd { remote_addr, rkey, add: rng.word() },
    };
    let len = if op.atomic() { 8 } else { size(rng, 31) };
    Message { op, psn: size(rng, 24) as u32, packets: 1 + size(rng, 23) as u32, len, solicited: rng.one_in(2) }
}

/// Any answer.
pub fn random_answer(rng: &mut Rng) -> Answer {
    match rng.below(5) {
        0 => Answer::Ack,
        1 => Answer::Rnr(rng.below(32) as u8),
        2 => Answer::Nak(rng.below(32) as u8),
        3 => Answer::RequesterFault,
        _ => Answer::Silence,
    }
}

/// Any frame, with a part of `payload`, which is no longer than a datagram.
pub fn random_frame<'a>(rng: &mut Rng, payload: &'a [u8]) -> Frame<'a> {
    let (stream, token) = (rng.word() as u16, rng.word() as u32);
    let part = &payload[..rng.below(payload.len() as u64 + 1) as usize];
    match rng.below(14) {
        0 => Frame::Hello(random_hello(rng)),
        1 => Frame::Stream { stream, incarnation: token, ends: random_ends(rng) },
        2..4 => {
            let message = random_message(rng);
            let here = if message.op.reads() { 0 } else { (part.len() as u64).max(1).min(message.len) };
            let here = here.min(payload.len() as u64);
            // At the start, in the middle, at the end.
            let offset = match rng.below(3) {
                _ if message.op.reads() => 0,
                0 => 0,
                1 => rng.below(message.len - here + 1),
                _ => message.len - here,
            };
            let segment = Segment { message, offset, len: here as u32 };
            Frame::Segment { stream, token, segment, payload: &payload[..here as usize] }
        }
        4 => {
            let mut grh = [0; 40];
            grh.fill_with(|| rng.word() as u8);
            let imm = rng.one_in(2).then_some(rng.word() as u32);
            let solicited = rng.one_in(2);
            let datagram = Datagram { ends: random_ends(rng), qkey: rng.word() as u32, imm, solicited, grh };
            Frame::Datagram { datagram, payload: part }
        }
        5 => Frame::Answer { token, answer: random_answer(rng) },
        6 => Frame::Data { token, offset: size(rng, 31), payload: &payload[..part.len().max(1)] },
        7 => Frame::Cancel { token },
        8 => Frame::Taken { stream, incarnation: token, back: rng.one_in(2), bytes: rng.word() },
        9 => Frame::Credit { bytes: rng.word() },
        10 => Frame::Ping { stamp: rng.word() },
        11 => Frame::Gid { gid: random_ends(rng).dest_gid, bound: rng.one_in(2) },
        12 => Frame::Adapter(random_way(rng)),
        _ => match rng.below(3) {
            0 => Frame::Pong { stamp: rng.word() },
            1 => Frame::Bye(Reason::Stopping),
            _ => Frame::Bye(Reason::Protocol),
        },
    }
}
