//! Bytes as frames. Nothing that they say is believed.

use super::*;

/// Bytes that are read from the front. They were counted before: `decode` has judged the length.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, rest) = self.0.split_first_chunk().expect("a body has the length that its kind gives");
        self.0 = rest;
        *now
    }

    fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.take())
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn ends(&mut self) -> Result<Ends, Bad> {
        let (source_gid, dest_gid) = (self.take(), self.take());
        let ends = Ends { source_gid, dest_gid, source_qpn: self.u32(), dest_qpn: self.u32() };
        fits(ends.source_qpn < 1 << 24 && ends.dest_qpn < 1 << 24, "qpn")?;
        Ok(ends)
    }
}

fn fits(holds: bool, field: &'static str) -> Result<(), Bad> {
    if holds { Ok(()) } else { Err(Bad::Field(field)) }
}

/// Body, most payload and flags of a kind.
pub(super) fn shape(kind: u8) -> Result<(usize, usize, u8), Bad> {
    Ok(match kind {
        kind::HELLO => (HELLO_BODY, 0, 0),
        kind::STREAM => (ENDS_BODY, 0, 0),
        kind::SEGMENT => (SEGMENT_BODY, SEGMENT, flag::FIRST | flag::LAST | flag::SOLICITED | flag::IMM | flag::INV),
        kind::DATAGRAM => (DATAGRAM_BODY, DATAGRAM, flag::SOLICITED | flag::IMM),
        kind::ANSWER => (ANSWER_BODY, 0, 0),
        kind::DATA => (DATA_BODY, SEGMENT, 0),
        kind::CANCEL => (0, 0, 0),
        kind::TAKEN => (COUNT_BODY, 0, flag::BACK),
        kind::CREDIT | kind::PING | kind::PONG => (COUNT_BODY, 0, 0),
        kind::GID => (GID_BODY, 0, 0),
        kind::BYE => (BYE_BODY, 0, 0),
        kind::ADAPTER => (ADAPTER_BODY, 0, 0),
        _ => return Err(Bad::Kind(kind)),
    })
}

/// How long the frame at the front of `bytes` is; `None` while its head is not there.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Bad> {
    let Some(head) = bytes.first_chunk::<HEAD>() else { return Ok(None) };
    let mut reader = Reader(head);
    let (len, kind, flags) = (reader.u32(), reader.u8(), reader.u8());
    let (body, payload, allowed) = shape(kind)?;
    let behind = len as usize;
    if behind < body || behind > body + payload {
        return Err(Bad::Length { kind, len });
    }
    if flags & !allowed != 0 {
        return Err(Bad::Flags(kind));
    }
    Ok(Some(HEAD + behind))
}

/// The frame at the front of `bytes` and its length; `None` while it is not all there.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Bad> {
    let Some(len) = length(bytes)? else { return Ok(None) };
    if bytes.len() < len {
        return Ok(None);
    }
    let mut reader = Reader(&bytes[4..len]);
    let (kind, flags, stream, token, word) = (reader.u8(), reader.u8(), reader.u16(), reader.u32(), reader.u32());
    let frame = match kind {
        kind::HELLO => Frame::Hello(hello(&mut reader)?),
        kind::STREAM => Frame::Stream { stream, incarnation: token, ends: reader.ends()? },
        kind::SEGMENT => {
            let segment = segment(&mut reader, flags, word)?;
            Frame::Segment { stream, token, segment, payload: reader.0 }
        }
        kind::DATAGRAM => {
            let ends = reader.ends()?;
            let (qkey, imm, grh) = (reader.u32(), reader.u32(), reader.take());
            let imm = (flags & flag::IMM != 0).then_some(imm);
            let datagram = Datagram { ends, qkey, imm, solicited: flags & flag::SOLICITED != 0, grh };
            Frame::Datagram { datagram, payload: reader.0 }
        }
        kind::ANSWER => {
            let answer = match (reader.u8(), reader.u8()) {
                (0, 0) => Answer::Ack,
                (1, code @ 0..32) => Answer::Rnr(code),
                (2, code @ 0..32) => Answer::Nak(code),
                (3, 0) => Answer::RequesterFault,
                (4, 0) => Answer::Silence,
                _ => return Err(Bad::Field("answer")),
            };
            Frame::Answer { token, answer }
        }
        kind::DATA => {
            let offset = reader.u64();
            fits(offset <= MESSAGE && !reader.0.is_empty(), "data")?;
            Frame::Data { token, offset, payload: reader.0 }
        }
        kind::CANCEL => Frame::Cancel { token },
        kind::TAKEN => Frame::Taken { stream, incarnation: token, back: flags & flag::BACK != 0, bytes: reader.u64() },
        kind::CREDIT => Frame::Credit { bytes: reader.u64() },
        kind::PING => Frame::Ping { stamp: reader.u64() },
        kind::PONG => Frame::Pong { stamp: reader.u64() },
        kind::GID => {
            let (gid, bound) = (reader.take(), reader.u8());
            fits(bound < 2, "bound")?;
            Frame::Gid { gid, bound: bound == 1 }
        }
        kind::BYE => Frame::Bye(match reader.u8() {
            0 => Reason::Stopping,
            1 => Reason::Protocol,
            _ => return Err(Bad::Field("reason")),
        }),
        kind::ADAPTER => Frame::Adapter(way(&mut reader)?),
        _ => return Err(Bad::Kind(kind)),
    };
    Ok(Some((frame, len)))
}

fn hello(reader: &mut Reader<'_>) -> Result<Hello, Bad> {
    if reader.take() != MAGIC {
        return Err(Bad::Magic);
    }
    let versions = (reader.u16(), reader.u16());
    if !(versions.0..=versions.1).contains(&VERSION) {
        return Err(Bad::Version(versions.0, versions.1));
    }
    let host = reader.u16();
    // With room for what a later version of this end says; one that does not know it does not ask.
    let can = reader.u16();
    let hello = Hello {
        versions,
        host,
        boot: reader.take(),
        window: reader.u64(),
        lane: reader.u64(),
        requests: reader.u32(),
        streams: reader.u16(),
        gids: reader.u16(),
        adapters: can & can::ADAPTERS != 0,
    };
    // A window that one segment does not fit into would stand still for ever.
    fits(hello.window >= 2 * FRAME as u64 && hello.lane >= 2 * FRAME as u64, "window")?;
    fits(hello.requests > 0 && hello.streams > 0, "limits")?;
    Ok(hello)
}

fn way(reader: &mut Reader<'_>) -> Result<Way, Bad> {
    let (what, link, mtu, _) = (reader.u8(), reader.u8(), reader.u8(), reader.u8());
    match what {
        0 => {
            let lid = reader.u16();
            reader.u16();
            let gid = reader.take();
            let (qpn, psn, rkey, len) = (reader.u32(), reader.u32(), reader.u32(), reader.u32());
            let card = Card { link, mtu, lid, gid, qpn, psn, rkey, len, addr: reader.u64() };
            fits(card.is_sound(), "card")?;
            Ok(Way::Offer(card))
        }
        1 => Refusal::ALL.get(usize::from(link)).copied().map(Way::Refuse).ok_or(Bad::Field("refusal")),
        2 => Ok(Way::Switch),
        _ => Err(Bad::Field("way")),
    }
}

fn segment(reader: &mut Reader<'_>, flags: u8, word: u32) -> Result<Segment, Bad> {
    let (remote_addr, rkey, extra) = (reader.u64(), reader.u32(), reader.u32());
    let (len, offset, packets, reserved) = (reader.u64(), reader.u64(), reader.u32(), reader.u32());
    let (first, second) = (reader.u64(), reader.u64());
    let (imm, inv) = (flags & flag::IMM != 0, flags & flag::INV != 0);
    let imm_value = imm.then_some(extra);
    let op = match (word >> 24) as u8 {
        op::SEND if imm && inv => return Err(Bad::Flags(kind::SEGMENT)),
        op::SEND if imm => Op::Send { ext: Ext::Imm(extra) },
        op::SEND if inv => Op::Send { ext: Ext::Invalidate(extra) },
        op::SEND => Op::Send { ext: Ext::None },
        _ if inv => return Err(Bad::Flags(kind::SEGMENT)),
        op::WRITE => Op::Write { remote_addr, rkey, imm: imm_value },
        _ if imm => return Err(Bad::Flags(kind::SEGMENT)),
        op::READ => Op::Read { remote_addr, rkey },
        op::COMPARE_SWAP => Op::CompareSwap { remote_addr, rkey, compare: first, swap: second },
        op::FETCH_ADD => Op::FetchAdd { remote_addr, rkey, add: first },
        _ => return Err(Bad::Field("operation")),
    };
    let solicited = flags & flag::SOLICITED != 0;
    let message = Message { op, psn: word & 0x00ff_ffff, packets, len, solicited };
    fits(message.is_sound() && reserved == 0, "message")?;
    let here = reader.0.len() as u64;
    let within = match op.reads() {
        true => here == 0 && offset == 0,
        // Only a message without bytes has a segment without any.
        false => offset <= len && here <= len - offset && (here > 0 || len == 0),
    };
    fits(within, "offset")?;
    let segment = Segment { message, offset, len: here as u32 };
    let said = (flags & flag::FIRST != 0, flags & flag::LAST != 0);
    fits(said == (segment.first(), segment.last()), "first or last")?;
    Ok(segment)
}
