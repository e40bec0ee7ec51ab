//! Cuts messages into pieces, as a network does, so that tests of whole messages are tests of pieces too: the harness
//! puts this in front of a device that receives, on the fabric and on the wire.
//!
//! `PVRDMA_CUT` says how long a piece is: `whole` (as they come, if it is not set), a number of packets (`1`, `3`), or
//! of bytes (`256K`), or `mixed`: some of each, and each time anew, so that a message which is sent again comes in
//! another cut.

use crate::device::Device;
use crate::memory::{Memory, Span};
use crate::testing::rng::Rng;
use crate::transport::segment::{Carried, Cutter, Segment};
use crate::transport::{Answer, CopyFault, Far, Request, Requester, Responder, Token};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, PoisonError};

/// How long a piece is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// As long as the message.
    #[default]
    Whole,
    /// So many packets.
    Packets(u32),
    /// As many packets as these bytes hold.
    Bytes(u64),
    /// Now so, now so, by a seed.
    Mixed(u64),
}

/// Each of them once.
pub const CUTS: [Cut; 5] = [Cut::Whole, Cut::Packets(1), Cut::Packets(3), Cut::Bytes(256 << 10), Cut::Mixed(1)];

impl Cut {
    /// What `PVRDMA_CUT` says.
    pub fn from_env() -> Cut {
        let Ok(cut) = std::env::var("PVRDMA_CUT") else { return Cut::Whole };
        match cut.as_str() {
            "whole" => Cut::Whole,
            "mixed" => Cut::Mixed(1),
            _ => match cut.strip_suffix('K') {
                Some(kib) => Cut::Bytes(kib.parse::<u64>().expect("PVRDMA_CUT") << 10),
                None => Cut::Packets(cut.parse().expect("PVRDMA_CUT: whole, mixed, packets or bytes")),
            },
        }
    }
}

/// What cuts.
pub struct Scissors {
    cut: Cut,
    random: Mutex<Rng>,
}

impl Scissors {
    /// Scissors that cut so.
    pub fn new(cut: Cut) -> Arc<Scissors> {
        let seed = if let Cut::Mixed(seed) = cut { seed } else { 0 };
        Arc::new(Scissors { cut, random: Mutex::new(Rng::new(seed)) })
    }

    /// Whether they cut anything.
    pub fn cut_anything(&self) -> bool {
        self.cut != Cut::Whole
    }

    /// The next piece of a message.
    pub fn next(&self, cutter: &mut Cutter) -> Option<(u64, Carried)> {
        let packets = match self.cut {
            Cut::Whole => u32::MAX,
            Cut::Packets(packets) => packets,
            Cut::Bytes(bytes) => cutter.packets_in(bytes),
            Cut::Mixed(_) => {
                let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
                *random.pick(&[u32::MAX, 1, 1, 2, 3, 64])
            }
        };
        cutter.next(packets)
    }
}

impl Default for Scissors {
    fn default() -> Scissors {
        Scissors { cut: Cut::Whole, random: Mutex::new(Rng::new(0)) }
    }
}

/// A device to which messages come in pieces, one after the other.
pub struct Cutting {
    device: Arc<Device>,
    scissors: Arc<Scissors>,
}

impl Cutting {
    /// `device` behind `scissors`.
    pub fn new(device: &Arc<Device>, scissors: &Arc<Scissors>) -> Arc<Cutting> {
        Arc::new(Cutting { device: device.clone(), scissors: scissors.clone() })
    }
}

impl Responder for Cutting {
    fn receive(&self, request: &Request, far: &dyn Far) -> Answer {
        let mut cutter = Cutter::new(request);
        let mut back = Vec::new();
        while let Some((offset, carried)) = self.scissors.next(&mut cutter) {
            let segment = match carried {
                Carried::Whole(request) => return self.device.receive(&request, far),
                Carried::Segment(segment) => segment,
            };
            let piece = Piece { far, offset, len: segment.len, back: RefCell::default() };
            let answer = self.device.receive_segment(&segment, &piece);
            if answer != Answer::Ack {
                return answer;
            }
            back.append(&mut piece.back.into_inner());
        }
        // What a READ brings is here as a whole: the requester waits in this very call.
        if !back.is_empty() && far.put(&back).is_err() {
            return Answer::RequesterFault;
        }
        Answer::Ack
    }

    fn receive_segment(&self, piece: &Segment, far: &dyn Far) -> Answer {
        self.device.receive_segment(piece, far)
    }
}

impl Requester for Cutting {
    fn payload(&self, token: Token, offset: u64, into: &mut [u8]) -> bool {
        self.device.payload(token, offset, into)
    }

    fn arrived(&self, token: Token, offset: u64, bytes: &[u8]) -> bool {
        self.device.arrived(token, offset, bytes)
    }

    fn answered(&self, token: Token, answer: Answer) {
        self.device.answered(token, answer);
    }

    fn room(&self) {
        self.device.room();
    }
}

/// A piece of a payload that is within reach.
struct Piece<'a> {
    far: &'a dyn Far,
    offset: u64,
    len: u64,
    back: RefCell<Vec<u8>>,
}

impl Far for Piece<'_> {
    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        assert_eq!(crate::memory::total(into), self.len - skip, "all of the piece that is new, and no more");
        self.far.pull_from(self.offset + skip, memory, into)
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        push_to(&self.back, memory, from)
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.far.put(bytes)
    }

    fn acknowledge(&self) {
        self.far.acknowledge();
    }
}

/// A payload that was carried by value, and what goes back.
pub struct ByValue {
    /// The payload of a piece.
    pub bytes: Vec<u8>,
    /// What a READ or an atomic operation brings.
    pub back: RefCell<Vec<u8>>,
}

impl Far for ByValue {
    fn pull_from(&self, skip: u64, memory: &dyn Memory, into: &[Span]) -> Result<(), CopyFault> {
        let bytes = &self.bytes[skip as usize..];
        assert_eq!(crate::memory::total(into), bytes.len() as u64, "all of the piece that is new, and no more");
        memory.scatter(into, bytes).map_err(|_| CopyFault::Near)
    }

    fn push(&self, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
        push_to(&self.back, memory, from)
    }

    fn put(&self, bytes: &[u8]) -> Result<(), CopyFault> {
        self.back.borrow_mut().extend(bytes);
        Ok(())
    }
}

fn push_to(back: &RefCell<Vec<u8>>, memory: &dyn Memory, from: &[Span]) -> Result<(), CopyFault> {
    let mut back = back.borrow_mut();
    let start = back.len();
    back.resize(start + crate::memory::total(from) as usize, 0);
    memory.gather(from, &mut back[start..]).map_err(|_| CopyFault::Near)
}
