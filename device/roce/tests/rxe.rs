//! Frames that Linux's software adapter has sent (`data/README.md` says how they were had): each is read, its checksum
//! is right, and it is written again byte for byte.

use pvrdma_roce::frame::{BadFrame, Frame};
use pvrdma_roce::headers::{Envelope, Network};
use pvrdma_roce::icrc;
use pvrdma_roce::packet::{BTH, Malformed, Opcode, Packet, Syndrome, nak};
use std::collections::BTreeSet;

/// The frames of a capture, and whether there was more than its records say.
fn frames(mut file: &'static [u8]) -> Vec<&'static [u8]> {
    let mut take = |len: usize| {
        let (head, rest) = file.split_at_checked(len)?;
        file = rest;
        Some(head)
    };
    assert_eq!(take(24).unwrap()[..4], 0xa1b2_c3d4u32.to_le_bytes());
    let mut frames = Vec::new();
    while let Some(record) = take(16) {
        frames.push(take(u32::from_le_bytes(record[8..12].try_into().unwrap()) as usize).unwrap());
    }
    frames
}

fn all() -> Vec<&'static [u8]> {
    frames(include_bytes!("data/rxe.pcap"))
}

#[test]
fn each_frame_is_read_and_written_again_as_it_was() {
    for bytes in all() {
        let frame = Frame::parse(bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
        let mut again = Vec::new();
        frame.write(&mut again);
        assert_eq!(again, bytes, "{frame:?}");
    }
}

#[test]
fn one_changed_byte_is_seen() {
    for bytes in all() {
        let network = Frame::parse(bytes).unwrap().envelope.size();
        // The PSN, and the last byte that the checksum is over.
        for at in [14 + network + BTH - 1, bytes.len() - icrc::ICRC - 1] {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0x40;
            assert_eq!(Frame::parse(&changed), Err(BadFrame::Icrc));
        }
    }
}

#[test]
fn the_checksum_tells_the_identification() {
    let mut looked_at = 0;
    for bytes in all() {
        let frame = Frame::parse(bytes).unwrap();
        let Network::V4 { source, dest, id, dont_fragment } = frame.envelope.network else { continue };
        let network = Network::V4 { source, dest, id: 0, dont_fragment };
        let unknown = Envelope { network, ..frame.envelope };
        let found = icrc::check_any_id(&unknown, &bytes[14 + unknown.size()..]);
        assert_eq!(found.map(|(_, id)| id), Some(id));
        looked_at += u32::from(id != 0);
    }
    assert!(looked_at > 10);
}

/// All opcodes but one are there, over IPv4, and some over IPv6: the data is worth what it is for.
#[test]
fn nearly_all_that_can_be_sent_is_there() {
    let frames: Vec<_> = all().into_iter().map(|bytes| Frame::parse(bytes).unwrap()).collect();
    let opcodes: BTreeSet<_> = frames.iter().map(|frame| frame.packet.bth.opcode).collect();
    let missing: Vec<_> = Opcode::ALL.into_iter().filter(|opcode| !opcodes.contains(opcode)).collect();
    assert_eq!(missing, [Opcode::DatagramImm]);
    assert!(frames.iter().any(|frame| matches!(frame.envelope.network, Network::V6 { .. })));
    let pads: BTreeSet<_> = frames.iter().map(|frame| frame.packet.pad()).collect();
    assert_eq!(pads, BTreeSet::from([0, 1, 2, 3]));
    let syndromes: Vec<_> = frames.iter().filter_map(|frame| Some(frame.packet.aeth?.syndrome)).collect();
    assert!(syndromes.contains(&Syndrome::Nak(nak::REMOTE_ACCESS)));
    assert!(syndromes.iter().any(|syndrome| matches!(syndrome, Syndrome::Rnr(_))));
    assert!(frames.iter().any(|frame| frame.packet.bth.solicited && frame.packet.bth.ack_req));
}

/// What was sent says what the programs asked for.
#[test]
fn fields_say_what_was_asked_for() {
    let frames = all();
    let find = |opcode| -> Packet<'_> {
        frames
            .iter()
            .map(|bytes| Frame::parse(bytes).unwrap().packet)
            .find(|packet| packet.bth.opcode == opcode)
            .unwrap()
    };
    assert_eq!(find(Opcode::SendOnlyImm).imm, Some(0x0102_0304));
    assert_eq!(find(Opcode::SendOnlyImm).payload.len(), 3);
    assert_eq!(find(Opcode::WriteOnlyImm).reth.unwrap().len, 9);
    let swap = find(Opcode::CompareSwap).atomic.unwrap();
    assert_eq!((swap.compare, swap.swap_or_add), (41, 7));
    assert_eq!(find(Opcode::FetchAdd).atomic.unwrap().swap_or_add, 41);
    assert_eq!(find(Opcode::SendOnlyInvalidate).invalidate, Some(0x12_3400));
    assert_eq!(find(Opcode::AtomicAcknowledge).atomic_ack, Some(41));
}

#[test]
fn what_is_no_frame_of_roce_is_told_from_one_that_is_broken() {
    assert_eq!(Frame::parse(&[0; 13]), Err(BadFrame::Short(13)));
    assert!(matches!(Frame::parse(&[0; 60]), Err(BadFrame::Envelope(_))));
    let (bytes, envelope) = (all()[0], Frame::parse(all()[0]).unwrap().envelope);
    let mut reserved = bytes[..bytes.len() - icrc::ICRC].to_vec();
    let start = 14 + envelope.size();
    reserved[start] = 0x15;
    icrc::append(&envelope, &mut reserved, start);
    assert_eq!(Frame::parse(&reserved), Err(BadFrame::Packet(Malformed::Opcode(0x15))));
}
