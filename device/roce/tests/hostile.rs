//! Packets of a peer that does as it likes, and a device that answers as it likes: nobody is harmed, each request ends
//! once, and what is kept is bounded.
//!
//! `PVRDMA_SEED` repeats a run, `PVRDMA_STEPS` makes it longer.

use pvrdma_device::handle::{Psn, QpHandle, Qpn, Rkey};
use pvrdma_device::rings::wqe::{AtomicOp, Ext};
use pvrdma_device::testing::rng::{Rng, seed, steps};
use pvrdma_device::transport::segment::{Carried, Part};
use pvrdma_device::transport::{Answer, Endpoint, Nak, Op, Request, Token};
use pvrdma_roce::packet::{Opcode, Packet};
use pvrdma_roce::rc::Connection;
use pvrdma_roce::rc::requester::{Local, Requester};
use pvrdma_roce::rc::responder::Responder;
use pvrdma_roce::testing::random_packet;
use std::collections::BTreeSet;
use std::time::Duration;

const MTU: u32 = 256;
const LEN: u64 = MTU as u64;

const CONNECTION: Connection = Connection {
    local: Endpoint { gid: [1; 16], qpn: Qpn(0x11) },
    peer: Endpoint { gid: [2; 16], qpn: Qpn(0x22) },
    mtu: MTU,
};

/// A packet of any kind, most often about `near`, as its bytes say it.
fn with_any_packet(rng: &mut Rng, near: Psn, data: &[u8], take: &mut dyn FnMut(&Packet<'_>)) {
    let opcode = *rng.pick(&Opcode::ALL);
    let mut packet = random_packet(rng, opcode, data);
    if !rng.one_in(8) {
        packet.bth.psn = near.advance(rng.below(12) as u32).advance(0x00ff_fffa).get();
    }
    if rng.one_in(2) && opcode.has_payload() {
        // Of a length that goes on: a full packet, or a short one.
        packet.payload = &data[..if opcode.ends() { rng.below(LEN + 1) } else { LEN } as usize];
    }
    if let Some(reth) = &mut packet.reth {
        reth.len = match rng.below(3) {
            0 => packet.payload.len() as u32,
            1 => rng.below(8 * LEN) as u32,
            _ => reth.len,
        };
    }
    let mut bytes = Vec::new();
    packet.write(&mut bytes);
    take(&Packet::parse(&bytes).expect("a sound packet"));
}

/// Memory that is sometimes gone. It is never asked for what is outside of a request.
struct Memory<'a> {
    rng: &'a mut Rng,
    len: &'a dyn Fn(Token) -> Option<u64>,
    gone: Vec<Token>,
}

impl Memory<'_> {
    fn touch(&mut self, token: Token, offset: u64, len: usize) -> bool {
        let all = (self.len)(token).expect("a request that was not ended");
        assert!(!self.gone.contains(&token) && offset + len as u64 <= all, "{len} bytes from {offset} on, of {all}");
        if self.rng.one_in(50) {
            self.gone.push(token);
            return false;
        }
        true
    }
}

impl Local for Memory<'_> {
    fn payload(&mut self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.touch(token, offset, into.len())
    }

    fn arrived(&mut self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        self.touch(token, offset, bytes.len())
    }
}

fn any_op(rng: &mut Rng) -> (Op, u64) {
    let (remote_addr, rkey) = (rng.word(), Rkey(rng.word() as u32));
    let len = rng.below(6 * LEN);
    match rng.below(4) {
        0 => (Op::Send { ext: *rng.pick(&[Ext::None, Ext::Imm(1), Ext::Invalidate(Rkey(2))]) }, len),
        1 => (Op::Write { remote_addr, rkey, imm: rng.one_in(2).then_some(3) }, len),
        2 => (Op::Read { remote_addr, rkey }, len),
        _ => (Op::Atomic { remote_addr, rkey, op: AtomicOp::FetchAdd { add: 1 } }, 8),
    }
}

#[test]
fn a_hostile_responder_harms_no_requester() {
    let mut rng = Rng::new(seed(1));
    let data = rng.bytes(4096);
    let mut half = Requester::new(CONNECTION);
    let (mut now, mut psn, mut epoch) = (Duration::ZERO, Psn::new(0x00ff_ff00), 0);
    let mut owed: Vec<Request> = Vec::new();
    let (mut ended, mut sent) = (0u64, 0u64);
    for _ in 0..steps(30_000) {
        now += Duration::from_micros(rng.below(2000));
        match rng.below(8) {
            0 | 1 if owed.len() < 32 => {
                // As the device does: from the oldest on that was not acknowledged.
                let (op, len) = any_op(&mut rng);
                let packets = len.div_ceil(LEN).max(1) as u32;
                epoch += 1;
                let Connection { local, peer, .. } = CONNECTION;
                let token = Token { qp: QpHandle(1), epoch, psn };
                let (solicited, alone) = (false, false);
                let request = Request { token, source: local, dest: peer, psn, packets, op, len, solicited, alone };
                psn = psn.advance(packets);
                owed.push(request);
                half.submit(&request);
            }
            2 if rng.one_in(10) && !owed.is_empty() => {
                let at = rng.below(owed.len() as u64) as usize;
                let taken = owed.split_off(at);
                psn = taken[0].psn;
                taken.iter().for_each(|request| half.cancel(request.token));
                // Whoever is taken back does not hear what became of it.
                let late: BTreeSet<u32> = taken.iter().map(|request| request.token.epoch).collect();
                while let Some((token, answer)) = half.answer() {
                    assert!(late.contains(&token.epoch) || owed.iter().any(|of| of.token == token), "{answer:?}");
                    owed.retain(|of| of.token != token);
                    ended += 1;
                }
            }
            3 => half.expire(now),
            _ => {}
        }
        let lens: Vec<(Token, u64)> = owed.iter().map(|request| (request.token, request.len)).collect();
        let len = |token: Token| lens.iter().find(|(of, _)| *of == token).map(|(_, len)| *len);
        let mut own = Rng::new(rng.word());
        let mut memory = Memory { rng: &mut own, len: &len, gone: Vec::new() };
        let near = owed.first().map_or(psn, |request| request.psn);
        if rng.one_in(2) {
            with_any_packet(&mut rng, near, &data, &mut |packet| half.receive(now, packet, &mut memory));
        }
        half.transmit(now, &mut memory, &mut |packet| {
            assert!(packet.is_sound() && !packet.bth.opcode.is_response());
            sent += 1;
        });
        // The device ended these itself, and takes back all behind them.
        let gone = memory.gone;
        let mut first_bad = owed.iter().position(|request| gone.contains(&request.token));
        owed.retain(|request| !gone.contains(&request.token));
        while let Some((token, answer)) = half.answer() {
            ended += 1;
            let at = owed.iter().position(|request| request.token == token).expect("it has not ended before");
            let behind_gone = first_bad.is_some_and(|first| at >= first);
            assert!(answer == Answer::Silence || at == 0 && !behind_gone || first_bad.is_some(), "{answer:?} of {at}");
            owed.remove(at);
            if let Some(first) = &mut first_bad {
                *first -= usize::from(at < *first);
            } else if answer != Answer::Ack {
                first_bad = Some(0);
            }
        }
        if let Some(first) = first_bad {
            let behind = owed.split_off(first.min(owed.len()));
            assert!(behind.is_empty(), "all of them were answered by silence");
            psn = owed.last().map_or(near, |request| request.psn.advance(request.packets));
        }
        assert_eq!(half.len(), owed.len());
        assert!(half.deadline().is_none() || !half.is_empty());
    }
    println!("{ended} ended, {sent} packets");
    assert!(ended > 100 && sent > 100);
}

#[test]
fn a_hostile_requester_and_a_strange_device_harm_no_responder() {
    let mut rng = Rng::new(seed(2));
    let data = rng.bytes(4096);
    let start = Psn::new(0x00ff_ff00);
    let mut half = Responder::new(CONNECTION, start);
    // Pieces that are with the device, what they hold, and what they ask for.
    let mut pieces: Vec<(u64, u64, usize, usize)> = Vec::new();
    let mut near = start;
    let (mut count, mut sent) = (0u64, 0u64);
    for _ in 0..steps(30_000) {
        with_any_packet(&mut rng, near, &data, &mut |packet| half.receive(packet));
        while !rng.one_in(4)
            && let Some(piece) = half.piece()
        {
            count += 1;
            let (psn, packets, len, reads) = match piece.carried {
                Carried::Whole(request) => (request.psn, request.packets, request.len, request.op.reads()),
                Carried::Segment(of) => (of.psn, of.packets, of.len, matches!(of.part, Part::Read { .. })),
            };
            assert_eq!(piece.bytes.len() as u64, if reads { 0 } else { len });
            near = psn.advance(packets);
            pieces.push((piece.ticket, len, piece.bytes.len(), if reads { len as usize } else { 0 }));
        }
        assert!(pieces.len() <= 256 && pieces.iter().map(|(_, _, held, _)| held).sum::<usize>() <= 256 << 10);
        assert!(pieces.iter().map(|(.., back)| back).sum::<usize>() <= 192 << 10);
        while !pieces.is_empty() && !rng.one_in(3) {
            let at = rng.below(pieces.len() as u64) as usize;
            let (ticket, .., back) = pieces.remove(at);
            let all = [
                Answer::RnrNak(200),
                Answer::Nak(Nak::SequenceError),
                Answer::Nak(Nak::RemoteAccess),
                Answer::RequesterFault,
                Answer::Silence,
            ];
            let answer = if rng.one_in(8) { *rng.pick(&all) } else { Answer::Ack };
            let back = if rng.one_in(20) { rng.below(20) as usize } else { back };
            half.answered(ticket, answer, vec![0; back]);
            let poked = rng.one_in(10);
            if poked {
                half.answered(ticket, Answer::Ack, Vec::new());
                half.answered(ticket + rng.below(5), Answer::Silence, Vec::new());
                half.answered(rng.word(), Answer::Ack, Vec::new());
            }
            if poked || answer != Answer::Ack {
                // Nothing behind it is done.
                for (ticket, ..) in pieces.drain(..) {
                    half.answered(ticket, Answer::Nak(Nak::SequenceError), Vec::new());
                }
                near = near.advance(0x00ff_fff8);
            }
        }
        half.transmit(rng.below(5000) as usize, &mut |packet| {
            assert!(packet.is_sound() && packet.bth.opcode.is_response());
            sent += 1;
        });
    }
    println!("{count} pieces, {sent} packets");
    assert!(count > 100 && sent > 100);
}
