//! Two hosts on a bearer that the test holds, and a clock that it turns: what each rule of a connection looks like from
//! outside.

use pvrdma_net::connection::{Connection, End, Me};
use pvrdma_net::event::{Arrival, Event, Hold, Receipt, ReplyKey, Source, Submitted, Token};
use pvrdma_net::frame::*;
use pvrdma_net::hosts::{BearerId, HALF_OPEN, HostEvent, Hosts, Why};
use pvrdma_net::limits::{Limits, Patience};
use std::time::Duration;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn me(host: u16) -> Me {
    Me { host, boot: [host as u8; 16], limits: Limits::default(), patience: Patience::default() }
}

fn gid(host: u16) -> Gid {
    let mut gid = [0; 16];
    gid[10..].copy_from_slice(&[0xff, 0xff, 127, host as u8, 82, 1]);
    gid
}

fn ends(qpn: u32) -> Ends {
    Ends { source_gid: gid(1), source_qpn: qpn, dest_gid: gid(2), dest_qpn: qpn + 1000 }
}

fn write(len: u64) -> Message {
    let op = Op::Write { remote_addr: 0x1000, rkey: 5, imm: None };
    Message { op, psn: 1, packets: 1, len, solicited: false }
}

fn read(len: u64) -> Message {
    Message { op: Op::Read { remote_addr: 0x1000, rkey: 5 }, ..write(len) }
}

/// Memory that can be read up to an offset.
struct Good(u64);

impl Source for Good {
    fn payload(&mut self, _token: Token, offset: u64, into: &mut [u8]) -> bool {
        into.fill(7);
        offset + into.len() as u64 <= self.0
    }

    fn reply(&mut self, _key: ReplyKey, offset: u64, into: &mut [u8]) -> Result<bool, Answer> {
        into.fill(8);
        if offset + into.len() as u64 <= self.0 { Ok(true) } else { Err(Answer::Nak(2)) }
    }
}

struct Wire {
    now: Duration,
    ends: [Connection; 2],
    readable: u64,
    /// Segments in the hands of the second end's caller.
    receipts: Vec<(u32, Receipt)>,
    data: u64,
    /// Datagrams that were heard, and those in the hands of the second end's caller, if it keeps them.
    datagrams: usize,
    kept: Option<Vec<Hold>>,
}

impl Wire {
    fn new() -> Wire {
        let ends = [Connection::dialed(&me(1), 1, Duration::ZERO, 2), Connection::accepted(&me(2), 2, Duration::ZERO)];
        let mut wire =
            Wire { now: ms(1), ends, readable: u64::MAX, receipts: Vec::new(), data: 0, datagrams: 0, kept: None };
        wire.ends[0].announce(&gid(1), true);
        wire.ends[1].announce(&gid(2), true);
        wire.carry();
        assert!(matches!(wire.ends[0].next_event(), Some(Event::Up(Hello { host: 2, .. }))));
        assert!(matches!(wire.ends[1].next_event(), Some(Event::Up(Hello { host: 1, .. }))));
        wire.events(0);
        wire.events(1);
        wire
    }

    fn submit(&mut self, qpn: u32, message: &Message) -> Submitted {
        self.ends[0].submit(self.now, &ends(qpn), message)
    }

    fn pending(&mut self, qpn: u32, message: &Message) -> Token {
        match self.submit(qpn, message) {
            Submitted::Pending(token) => token,
            other => panic!("{other:?}"),
        }
    }

    fn said(&mut self, end: usize, until: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.ends[end].transmit(&mut out, until, &mut Good(self.readable));
        out
    }

    fn hear(&mut self, end: usize, bytes: &[u8]) {
        let mut at = 0;
        loop {
            let (len, arrival) = self.ends[end].receive(self.now, &bytes[at..]).expect("sound frames");
            at += len;
            match arrival {
                Some(Arrival::Segment { ends, receipt, .. }) => self.receipts.push((ends.source_qpn, receipt)),
                Some(Arrival::Data { payload, hold, .. }) => {
                    self.data += payload.len() as u64;
                    self.ends[end].release(hold);
                }
                Some(Arrival::Datagram { hold, .. }) => {
                    self.datagrams += 1;
                    match &mut self.kept {
                        Some(kept) => kept.push(hold),
                        None => self.ends[end].release(hold),
                    }
                }
                None => return,
            }
        }
    }

    /// Carries both ways until nothing is said any more.
    fn carry(&mut self) {
        loop {
            let mut said = 0;
            for end in 0..2 {
                let bytes = self.said(end, usize::MAX);
                said += bytes.len();
                self.hear(1 - end, &bytes);
            }
            if said == 0 {
                return;
            }
        }
    }

    fn events(&mut self, end: usize) -> Vec<Event> {
        std::iter::from_fn(|| self.ends[end].next_event()).collect()
    }

    /// Gives back segments of a QP.
    fn answer(&mut self, qpn: u32, answer: Answer) {
        let (these, others) = std::mem::take(&mut self.receipts).into_iter().partition(|(of, _)| *of == qpn);
        self.receipts = others;
        let these: Vec<(u32, Receipt)> = these;
        for (_, receipt) in these {
            self.ends[1].answer(receipt, answer);
        }
    }
}

#[test]
fn a_long_message_does_not_hold_up_a_short_one() {
    let mut wire = Wire::new();
    wire.pending(1, &write(1 << 30));
    let begun = wire.said(0, 1000);
    wire.hear(1, &begun);
    wire.pending(2, &write(8));
    // One segment of the long one goes before it, and no more.
    let next = wire.said(0, FRAME + 1);
    assert!(next.len() < FRAME + 200, "{} bytes", next.len());
    wire.hear(1, &next);
    assert!(wire.receipts.iter().any(|(qpn, _)| *qpn == 2));
}

#[test]
fn a_qp_whose_messages_are_not_taken_leaves_room_for_others() {
    let mut wire = Wire::new();
    for _ in 0..32 {
        wire.pending(1, &write(1 << 20));
    }
    wire.carry();
    let held = wire.receipts.len();
    assert_eq!(held as u64 * SEGMENT as u64, Limits::default().lane);
    let token = wire.pending(2, &write(8));
    wire.carry();
    wire.answer(2, Answer::Ack);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Ack)]);
    // When it takes them, the rest comes.
    for _ in 0..100 {
        wire.answer(1, Answer::Ack);
        wire.carry();
    }
    assert_eq!(wire.events(0).len(), 32);
}

#[test]
fn datagrams_that_are_not_taken_leave_room_for_requests() {
    let mut wire = Wire::new();
    wire.kept = Some(Vec::new());
    let datagram = Datagram { ends: ends(7), qkey: 0, imm: None, solicited: false, grh: [0; 40] };
    let (frame, mut sent, mut before) = (DATAGRAM_HEAD + DATAGRAM, 0, None);
    // Until nothing moves any more.
    while before != Some(wire.datagrams) {
        before = Some(wire.datagrams);
        while wire.ends[0].send_datagram(&datagram, &[7; DATAGRAM]) {
            sent += 1;
        }
        wire.carry();
    }
    let (held, share) = (wire.datagrams * frame, Limits::of_datagrams(me(2).limits.window) as usize);
    assert!((share - FRAME - frame..=share).contains(&held), "{held} of {share} bytes");
    assert!(sent > wire.datagrams, "some wait");
    wire.pending(8, &write(SEGMENT as u64));
    wire.carry();
    assert_eq!(wire.receipts.len(), 1, "a request goes past them");
    for hold in wire.kept.take().into_iter().flatten() {
        wire.ends[1].release(hold);
    }
    wire.carry();
    assert_eq!(wire.datagrams, sent, "and they go on when there is room again");
}

#[test]
fn no_room_is_said_at_once_and_room_later() {
    let mut wire = Wire::new();
    for _ in 0..32 {
        wire.pending(1, &write(8));
    }
    assert_eq!(wire.submit(1, &write(8)), Submitted::Busy);
    assert_eq!(wire.events(0), []);
    wire.carry();
    let (_, receipt) = wire.receipts.remove(0);
    wire.ends[1].answer(receipt, Answer::Ack);
    wire.carry();
    assert!(matches!(wire.events(0)[..], [Event::Answered(_, Answer::Ack), Event::Room(of)] if of == ends(1)));
    wire.pending(1, &write(8));
}

#[test]
fn who_waits_for_room_hears_of_the_end() {
    let mut wire = Wire::new();
    for _ in 0..32 {
        wire.pending(1, &write(8));
    }
    assert_eq!(wire.submit(1, &write(8)), Submitted::Busy);
    wire.carry();
    wire.ends[0].close();
    let told = wire.events(0);
    assert_eq!((told.len(), told.last()), (33, Some(&Event::RoomForAll)));
}

#[test]
fn when_all_streams_are_in_use_there_is_room_when_one_is_idle() {
    let mut wire = Wire::new();
    let streams = u32::from(Limits::default().streams);
    let first = wire.pending(0, &write(8));
    for qpn in 1..streams {
        wire.pending(qpn, &write(8));
    }
    assert_eq!(wire.submit(streams, &write(8)), Submitted::Busy);
    wire.carry();
    wire.answer(0, Answer::Ack);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(first, Answer::Ack), Event::RoomForAll]);
    // It takes the number of the idle one; both ends know.
    wire.pending(streams, &write(8));
    wire.carry();
    assert_eq!(wire.receipts.last().map(|(qpn, _)| *qpn), Some(streams));
}

#[test]
fn silence_is_told_after_300_ms_and_the_end_after_a_second() {
    let mut wire = Wire::new();
    wire.now = ms(10_000);
    let token = wire.pending(1, &write(8));
    let mut told = Vec::new();
    let mut pings = 0;
    let end = loop {
        wire.now = wire.ends[0].deadline();
        let polled = wire.ends[0].poll(wire.now);
        told.extend(wire.events(0).into_iter().map(|event| (wire.now, event)));
        let said = wire.said(0, usize::MAX);
        let mut at = 0;
        while let Ok(Some((frame, len))) = decode(&said[at..]) {
            pings += u32::from(matches!(frame, Frame::Ping { .. }));
            at += len;
        }
        if let Err(end) = polled {
            break end;
        }
    };
    assert_eq!(told, [(ms(10_300), Event::Answered(token, Answer::Silence))]);
    assert_eq!((end, wire.now, pings), (End::Silent, ms(11_000), 1));
    assert_eq!(wire.submit(1, &write(8)), Submitted::Silence);
}

#[test]
fn a_peer_that_answers_pings_is_not_silent_however_late_its_answer_is() {
    let mut wire = Wire::new();
    let token = wire.pending(1, &write(8));
    wire.carry();
    for _ in 0..200 {
        wire.now += ms(50);
        wire.ends[0].poll(wire.now).expect("it is alive");
        wire.ends[1].poll(wire.now).expect("it is alive");
        wire.carry();
    }
    assert_eq!(wire.events(0), []);
    assert!(wire.ends[0].stats().round_trip.is_some());
    wire.answer(1, Answer::Ack);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Ack)]);
}

#[test]
fn a_request_after_a_long_rest_waits_its_whole_time() {
    let mut wire = Wire::new();
    let token = wire.pending(1, &write(8));
    wire.carry();
    wire.answer(1, Answer::Ack);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Ack)]);
    wire.now += ms(4000);
    wire.pending(1, &write(8));
    assert_eq!(wire.ends[0].poll(wire.now + ms(299)), Ok(()));
    assert_eq!(wire.events(0), []);
}

/// One end sends a byte of a frame now and then, for ever.
#[test]
fn a_drip_is_no_life() {
    let mut wire = Wire::new();
    let token = wire.pending(1, &write(8));
    let begin = wire.now;
    let end = loop {
        wire.now += ms(100);
        // The first byte of a frame, again and again: no whole one.
        wire.ends[0].receive(wire.now, &[2]).expect("no frame yet");
        if let Err(end) = wire.ends[0].poll(wire.now) {
            break end;
        }
        let _ = wire.said(0, usize::MAX);
        assert!(wire.now < begin + ms(20_000));
    };
    assert_eq!(end, End::Silent);
    wire.ends[0].close();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Silence)]);
}

#[test]
fn memory_that_cannot_be_read_ends_the_message_where_it_is() {
    let mut wire = Wire::new();
    wire.readable = 300_000;
    let token = wire.pending(1, &write(1 << 20));
    let next = wire.pending(1, &write(8));
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::RequesterFault)]);
    wire.answer(1, Answer::Ack);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(next, Answer::Ack)]);
    assert_eq!(wire.ends[0].unanswered(), 0);
}

#[test]
fn a_refusal_stops_the_rest_of_a_message() {
    let mut wire = Wire::new();
    let token = wire.pending(1, &write(1 << 30));
    let begun = wire.said(0, 1);
    wire.hear(1, &begun);
    wire.answer(1, Answer::Nak(2));
    let before = wire.ends[0].stats().bytes_out;
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Nak(2))]);
    // What was on its way, and nothing of the other gigabyte.
    assert!(wire.ends[0].stats().bytes_out - before < 5 << 20);
    let next = wire.pending(1, &write(8));
    wire.carry();
    wire.answer(1, Answer::Ack);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(next, Answer::Ack)]);
}

/// One whose last segment comes after its answer has left keeps no place: its stream may be another QP's.
#[test]
fn a_refusal_that_crosses_the_rest_leaves_nothing() {
    let mut wire = Wire::new();
    let token = wire.pending(1, &write(600_000));
    let bytes = wire.said(0, usize::MAX);
    // All but the last segment.
    let len = (0..2).fold(0, |at, _| {
        let (len, arrival) = wire.ends[1].receive(wire.now, &bytes[at..]).expect("sound");
        if let Some(Arrival::Segment { ends, receipt, .. }) = arrival {
            wire.receipts.push((ends.source_qpn, receipt));
        }
        at + len
    });
    assert!(!wire.receipts.is_empty() && len < bytes.len(), "{len} of {}", bytes.len());
    let (_, receipt) = wire.receipts.remove(0);
    wire.ends[1].answer(receipt, Answer::Nak(2));
    let said = wire.said(1, usize::MAX);
    wire.hear(1, &bytes[len..]);
    wire.hear(0, &said);
    wire.answer(1, Answer::Silence);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Nak(2))]);
    let mut again = Vec::new();
    Frame::Stream { stream: 0, incarnation: 1, ends: ends(2) }.encode(&mut again);
    assert!(wire.ends[1].receive(wire.now, &again).is_ok());
}

#[test]
fn what_is_cancelled_is_not_answered() {
    let mut wire = Wire::new();
    for (message, carried) in [(write(8), false), (write(8), true), (write(1 << 30), true), (read(1 << 30), true)] {
        let token = wire.pending(1, &message);
        if carried {
            let begun = wire.said(0, 1);
            wire.hear(1, &begun);
        }
        wire.ends[0].cancel(token);
        wire.carry();
        wire.answer(1, Answer::Ack);
        wire.carry();
        assert_eq!((wire.events(0), wire.ends[0].unanswered()), (vec![], 0), "{message:?}");
    }
}

#[test]
fn what_is_read_comes_back_whole_before_its_answer() {
    let mut wire = Wire::new();
    for len in [0, 1, 8, 3 << 20] {
        let token = wire.pending(1, &read(len));
        wire.carry();
        let (_, receipt) = wire.receipts.pop().expect("a request");
        let key = receipt.key();
        wire.data = 0;
        wire.ends[1].reply(receipt);
        wire.carry();
        assert_eq!((wire.data, wire.events(0)), (len, vec![Event::Answered(token, Answer::Ack)]));
        assert_eq!(wire.events(1), [Event::ReplyEnded(key)]);
    }
    // One whose memory ends in the middle.
    wire.readable = 1 << 20;
    let token = wire.pending(1, &read(3 << 20));
    wire.carry();
    let (_, receipt) = wire.receipts.pop().expect("a request");
    wire.ends[1].reply(receipt);
    wire.carry();
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Nak(2))]);
}

#[test]
fn who_speaks_for_an_address_that_was_not_announced_is_cut_off() {
    let mut wire = Wire::new();
    let mut bytes = Vec::new();
    let stranger = Ends { source_gid: gid(3), ..ends(1) };
    Frame::Stream { stream: 0, incarnation: 0, ends: stranger }.encode(&mut bytes);
    assert_eq!(wire.ends[1].receive(wire.now, &bytes), Err(Bad::NotItsGid));
    let datagram = Datagram { ends: stranger, qkey: 0, imm: None, solicited: false, grh: [0; 40] };
    bytes.clear();
    Frame::Datagram { datagram, payload: &[] }.encode(&mut bytes);
    assert_eq!(wire.ends[1].receive(wire.now, &bytes), Err(Bad::NotItsGid));
}

/// Frames that are sound by themselves, and wrong where they stand.
#[test]
fn frames_out_of_place_end_the_connection() {
    let message = write(8);
    let segment = Segment { message, offset: 0, len: 8 };
    let middle = Segment { message: write(1 << 20), offset: 1 << 18, len: 8 };
    let good = Frame::Segment { stream: 0, token: 1, segment, payload: &[0; 8] };
    let open = Frame::Stream { stream: 0, incarnation: 0, ends: ends(1) };
    let cases: &[(&[Frame<'_>], Bad)] = &[
        (&[good], Bad::Stream(0)),
        (&[Frame::Stream { stream: u16::MAX, incarnation: 0, ends: ends(1) }], Bad::TooMany),
        (&[open, Frame::Segment { stream: 0, token: 1, segment: middle, payload: &[0; 8] }], Bad::Order),
        (&[Frame::Answer { token: 1, answer: Answer::Ack }], Bad::Token(1)),
        (&[Frame::Data { token: 1, offset: 0, payload: &[0] }], Bad::Token(1)),
        (&[Frame::Credit { bytes: 1 }], Bad::Window),
        (&[Frame::Taken { stream: 9, incarnation: 0, back: false, bytes: 0 }], Bad::Stream(9)),
        (&[Frame::Taken { stream: 9, incarnation: 0, back: true, bytes: 0 }], Bad::Stream(9)),
    ];
    for (frames, bad) in cases {
        let mut wire = Wire::new();
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        assert_eq!(wire.ends[1].receive(wire.now, &bytes), Err(*bad), "{frames:?}");
    }
    // An open stream with a request, named anew; a token twice.
    for (frame, bad) in [(open, Bad::Stream(0)), (good, Bad::Token(1))] {
        let mut wire = Wire::new();
        let mut bytes = Vec::new();
        [open, good].iter().for_each(|frame| frame.encode(&mut bytes));
        wire.hear(1, &bytes);
        bytes.clear();
        frame.encode(&mut bytes);
        assert_eq!(wire.ends[1].receive(wire.now, &bytes), Err(bad));
    }
}

/// The other end breaks a message off and names the stream anew, as if it were the one before, while this end's caller
/// still has a segment of that.
#[test]
fn what_is_given_back_late_counts_for_the_stream_that_it_came_on() {
    let mut wire = Wire::new();
    let open = Frame::Stream { stream: 0, incarnation: 0, ends: ends(1) };
    let segment = Segment { message: write(8), offset: 0, len: 8 };
    let said = |frames: &[Frame<'_>]| {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        bytes
    };
    wire.hear(1, &said(&[open, Frame::Segment { stream: 0, token: 1, segment, payload: &[0; 8] }]));
    wire.hear(1, &said(&[Frame::Cancel { token: 1 }]));
    wire.said(1, usize::MAX);
    wire.hear(1, &said(&[open]));
    wire.answer(1, Answer::Ack);
    wire.hear(1, &said(&[Frame::Segment { stream: 0, token: 2, segment, payload: &[0; 8] }]));
    assert_eq!(wire.receipts.len(), 1);
}

#[test]
fn more_than_the_window_ends_the_connection() {
    let mut wire = Wire::new();
    let mut bytes = Vec::new();
    for n in 0..5 {
        Frame::Stream { stream: n, incarnation: 0, ends: ends(u32::from(n)) }.encode(&mut bytes);
    }
    let payload = vec![0; SEGMENT];
    let mut refused = None;
    for n in 0..20u32 {
        let segment = Segment { message: write(1 << 30), offset: u64::from(n / 5) << 18, len: SEGMENT as u32 };
        Frame::Segment { stream: (n % 5) as u16, token: n % 5, segment, payload: &payload }.encode(&mut bytes);
        let result = wire.ends[1].receive(wire.now, &bytes);
        match result {
            Ok((_, Some(Arrival::Segment { receipt, .. }))) => wire.receipts.push((0, receipt)),
            Err(bad) => {
                refused = Some((n, bad));
                break;
            }
            other => panic!("{other:?}"),
        }
        bytes.clear();
    }
    assert_eq!(refused, Some((15, Bad::Window)));
}

#[test]
fn a_greeting_comes_first_once_and_from_who_it_is() {
    let hello = |host| {
        let mut out = Vec::new();
        Connection::dialed(&me(host), 1, Duration::ZERO, 2).transmit(&mut out, 1, &mut Good(0));
        out
    };
    let mut called = Connection::accepted(&me(2), 1, Duration::ZERO);
    assert_eq!(called.receive(ms(1), &[0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Err(Bad::Greeting));
    let mut called = Connection::accepted(&me(2), 1, Duration::ZERO);
    called.prove(3);
    assert_eq!(called.receive(ms(1), &hello(1)), Err(Bad::Host { says: 1, is: 3 }));
    let mut called = Connection::accepted(&me(2), 1, Duration::ZERO);
    // Nothing is said to who has not greeted.
    let mut out = Vec::new();
    called.transmit(&mut out, 1000, &mut Good(0));
    assert!(out.is_empty());
    assert!(called.receive(ms(1), &hello(1)).is_ok());
    assert_eq!(called.receive(ms(1), &hello(1)), Err(Bad::Greeting));
    let mut dialed = Connection::dialed(&me(1), 1, Duration::ZERO, 2);
    assert_eq!(dialed.receive(ms(1), &hello(3)), Err(Bad::Host { says: 3, is: 2 }));
}

// ---- hosts ----------------------------------------------------------------------------------------------------

fn events(hosts: &mut Hosts) -> Vec<HostEvent> {
    std::iter::from_fn(|| hosts.next_event()).collect()
}

fn said(hosts: &mut Hosts, now: Duration, bearer: BearerId) -> Vec<u8> {
    let mut out = Vec::new();
    hosts.transmit(now, bearer, &mut out, usize::MAX, &mut Good(u64::MAX));
    out
}

/// Host 1 dials host 2.
fn linked(one: &mut Hosts, two: &mut Hosts, now: Duration) -> (BearerId, BearerId) {
    let (a, b) = (one.dialed(now, 2), two.accept(now).expect("room"));
    for _ in 0..3 {
        let bytes = said(one, now, a);
        two.receive(now, b, &bytes);
        let bytes = said(two, now, b);
        one.receive(now, a, &bytes);
    }
    (a, b)
}

#[test]
fn strangers_take_no_more_than_their_places_and_two_seconds() {
    let mut hosts = Hosts::new(&me(2), Duration::ZERO, [1]);
    // One of them is for the host that dials.
    let places = HALF_OPEN + 1;
    let bearers: Vec<BearerId> = (0..places).map(|_| hosts.accept(ms(1)).expect("a place")).collect();
    assert_eq!(hosts.accept(ms(1)), None);
    assert_eq!(hosts.deadline(), Some(ms(2001)));
    hosts.poll(ms(2000));
    assert_eq!(events(&mut hosts), []);
    hosts.poll(ms(2001));
    let closed = events(&mut hosts);
    assert_eq!(closed.len(), places);
    for bearer in bearers {
        assert!(closed.contains(&HostEvent::Close(bearer, Why::End(End::Bad(Bad::TooSlow)))));
    }
    assert!(hosts.accept(ms(2002)).is_some());
}

/// One that comes back is dialed by all others at once.
#[test]
fn all_hosts_of_a_fabric_may_dial_one_at_the_same_moment() {
    let last = 254;
    let mut hosts = Hosts::new(&me(last), ms(0), 1..=last);
    let called: Vec<BearerId> = (1..last).map(|_| hosts.accept(ms(1)).expect("a place")).collect();
    // And as many strangers as ever.
    assert!((0..HALF_OPEN).all(|_| hosts.accept(ms(1)).is_some()) && hosts.accept(ms(1)).is_none());
    for (number, bearer) in (1..last).zip(called) {
        let mut other = Hosts::new(&me(number), ms(0), [last]);
        let dialed = other.dialed(ms(1), last);
        let greeting = said(&mut other, ms(1), dialed);
        assert_eq!(hosts.receive(ms(1), bearer, &greeting), (greeting.len(), None));
        assert_eq!(events(&mut hosts), [HostEvent::Up { host: number, restarted: false }]);
    }
}

#[test]
fn a_host_that_is_not_in_the_list_is_refused() {
    let (mut one, mut two) = (Hosts::new(&me(1), ms(0), [2]), Hosts::new(&me(2), ms(0), [3]));
    let (_, b) = linked(&mut one, &mut two, ms(1));
    assert_eq!(events(&mut two), [HostEvent::Close(b, Why::NoSuchHost(1))]);
}

#[test]
fn a_newer_connection_takes_the_place_of_one_that_is_half_open() {
    let (mut one, mut two) = (Hosts::new(&me(1), ms(0), [2]), Hosts::new(&me(2), ms(0), [1]));
    let (_, older) = linked(&mut one, &mut two, ms(1));
    assert_eq!(events(&mut two), [HostEvent::Up { host: 1, restarted: false }]);
    // Host 1 dies and comes back; nobody has told host 2.
    let boot = [9; 16];
    let mut one = Hosts::new(&Me { boot, ..me(1) }, ms(500), [2]);
    linked(&mut one, &mut two, ms(500));
    let up = HostEvent::Up { host: 1, restarted: true };
    assert_eq!(events(&mut two), [HostEvent::Close(older, Why::Newer), HostEvent::Down(1), up]);
}

#[test]
fn dialing_again_takes_twice_as_long_each_time_up_to_two_seconds() {
    let mut one = Hosts::new(&me(1), ms(0), [2]);
    let mut tries = Vec::new();
    while tries.len() < 8 {
        let now = one.deadline().expect("a try");
        one.poll(now);
        assert_eq!(events(&mut one), [HostEvent::Dial(2)]);
        assert_eq!(one.deadline(), None);
        one.dial_failed(now, 2);
        tries.push(now.as_millis());
    }
    assert_eq!(tries, [0, 100, 300, 700, 1500, 3100, 5100, 7100]);
    // The one with the higher number waits to be called.
    assert_eq!(Hosts::new(&me(2), ms(0), [1]).deadline(), None);
}

#[test]
fn a_host_that_claims_an_address_with_anothers_number_is_cut_off() {
    let (mut one, mut two) = (Hosts::new(&me(1), ms(0), [2]), Hosts::new(&me(2), ms(0), [1]));
    one.bind(&gid(3));
    // The one for which it is cut off, and one behind.
    one.bind(&gid(4));
    let (_, b) = linked(&mut one, &mut two, ms(1));
    let told = events(&mut two);
    assert!(told.contains(&HostEvent::Close(b, Why::End(End::Bad(Bad::NotItsGid)))), "{told:?}");
    assert_eq!((two.owner(&gid(3)), two.owner(&gid(4))), (None, None));
}

#[test]
fn of_two_hosts_with_an_address_the_first_keeps_it_until_it_goes() {
    let shared = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    let (mut one, mut two) = (Hosts::new(&me(1), ms(0), [2]), Hosts::new(&me(2), ms(0), [1]));
    two.bind(&shared);
    one.bind(&shared);
    let (a, b) = linked(&mut one, &mut two, ms(1));
    assert!(events(&mut two).contains(&HostEvent::Conflict { gid: shared, owner: 2, other: 1 }));
    assert!(events(&mut one).contains(&HostEvent::Conflict { gid: shared, owner: 1, other: 2 }));
    two.unbind(&shared);
    assert_eq!(events(&mut two), [HostEvent::Moved { gid: shared, to: 1 }]);
    let bytes = said(&mut two, ms(2), b);
    one.receive(ms(2), a, &bytes);
    assert_eq!((one.owner(&shared), two.owner(&shared)), (Some(1), Some(1)));
}

/// Host 1 has announced an address that host 2 has too, and was not cut off for it: but it is not believed either.
#[test]
fn requests_from_an_address_that_is_anothers_go_nowhere() {
    let shared = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
    let (mut one, mut two) = (Hosts::new(&me(1), ms(0), [2]), Hosts::new(&me(2), ms(0), [1]));
    two.bind(&shared);
    two.bind(&gid(2));
    one.bind(&shared);
    one.bind(&gid(1));
    let (a, b) = linked(&mut one, &mut two, ms(1));
    events(&mut one);
    for (source, dest, arrives) in [(gid(1), gid(2), true), (shared, gid(2), false)] {
        let ends = Ends { source_gid: source, dest_gid: dest, ..ends(1) };
        let Submitted::Pending(token) = one.submit(ms(2), &ends, &write(8)) else { panic!("it is known") };
        let bytes = said(&mut one, ms(2), a);
        let (_, arrival) = two.receive(ms(2), b, &bytes);
        assert_eq!(arrival.is_some(), arrives);
        if let Some(Arrival::Segment { receipt, .. }) = arrival {
            two.answer(ms(2), receipt, Answer::Ack);
        }
        let bytes = said(&mut two, ms(2), b);
        one.receive(ms(2), a, &bytes);
        let answer = if arrives { Answer::Ack } else { Answer::Silence };
        assert_eq!(events(&mut one), [HostEvent::Answered(token, answer)]);
    }
}

#[test]
fn who_stops_says_good_bye() {
    let (mut one, mut two) = (Hosts::new(&me(1), ms(0), [2]), Hosts::new(&me(2), ms(0), [1]));
    let (a, b) = linked(&mut one, &mut two, ms(1));
    events(&mut two);
    one.stop();
    let bytes = said(&mut one, ms(2), a);
    two.receive(ms(2), b, &bytes);
    assert_eq!(events(&mut two), [HostEvent::Close(b, Why::Bye(Reason::Stopping)), HostEvent::Down(1)]);
}

fn card() -> Card {
    Card { link: 3, mtu: 3, lid: 0, gid: gid(1), qpn: 7, psn: 8, rkey: 9, len: 1 << 20, addr: 0x1000 }
}

/// Frames change over to the adapters in the middle of a message, and nothing of it is lost.
#[test]
fn frames_change_over_to_adapters() {
    let mut wire = Wire::new();
    let token = wire.pending(1, &write(3 << 20));
    let begun = wire.said(0, FRAME);
    wire.hear(1, &begun);
    assert!(wire.ends[0].may_offer() && !wire.ends[1].may_offer());
    let offer = Way::Offer(card());
    for end in [0, 1] {
        assert!(wire.ends[end].say_of_adapter(offer));
        let said = wire.said(end, FRAME);
        wire.hear(1 - end, &said);
        assert_eq!(wire.events(1 - end), [Event::Adapter(offer)]);
    }
    assert!(wire.ends[0].say_of_adapter(Way::Switch));
    let last = wire.said(0, usize::MAX);
    assert_eq!(decode(&last), Ok(Some((Frame::Adapter(Way::Switch), last.len()))), "nothing is behind it");
    assert_eq!(wire.ends[0].over_adapter(), (false, true));
    let by_adapter = wire.said(0, FRAME);
    assert!(!by_adapter.is_empty());
    wire.hear(1, &last);
    assert_eq!(wire.ends[1].over_adapter(), (true, false));
    wire.hear(1, &by_adapter);
    let last = wire.said(1, usize::MAX);
    wire.hear(0, &last);
    assert_eq!([0, 1].map(|end| wire.ends[end].over_adapter()), [(true, true); 2]);
    for _ in 0..10 {
        wire.answer(1, Answer::Ack);
        wire.carry();
    }
    assert_eq!(wire.events(0), [Event::Answered(token, Answer::Ack)]);
    assert!(wire.ends.iter().all(|end| end.stats().adapter));
}

#[test]
fn what_is_sent_behind_the_change_to_adapters_ends_the_connection() {
    let mut wire = Wire::new();
    for end in [0, 1] {
        wire.ends[end].say_of_adapter(Way::Offer(card()));
        let said = wire.said(end, FRAME);
        wire.hear(1 - end, &said);
    }
    wire.ends[0].say_of_adapter(Way::Switch);
    let mut said = wire.said(0, FRAME);
    Frame::Ping { stamp: 1 }.encode(&mut said);
    assert_eq!(wire.ends[1].receive(ms(2), &said).err(), Some(Bad::Adapter));
}

/// A release that does not know frames about adapters ends a connection that has one.
#[test]
fn an_older_release_is_told_nothing_of_adapters() {
    for adapters in [true, false] {
        let mut one = Connection::dialed(&me(1), 1, ms(0), 2);
        let mut out = Vec::new();
        let Limits { window, lane, requests, streams, gids, .. } = Limits::default();
        let hello = Hello { versions: (1, 1), host: 2, boot: [2; 16], window, lane, requests, streams, gids, adapters };
        Frame::Hello(hello).encode(&mut out);
        one.receive(ms(1), &out).expect("sound");
        assert_eq!((one.may_offer(), one.say_of_adapter(Way::Offer(card()))), (adapters, adapters));
    }
}
