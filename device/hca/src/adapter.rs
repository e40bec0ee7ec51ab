//! A QP of the host's own adapter, and a ring that the other host writes into.
//!
//! What the other host writes it may change at any time, so nobody here looks into the ring: bytes are copied out, and
//! what is judged is the copy.

use crate::Unusable;
use crate::card::{Card, Link};
use crate::flow::{Broken, COUNTS, Incoming, Outgoing, PIECES, Word};
use crate::port::{self, Address, Choice};
use crate::verbs::{self, Verbs, ibv_async_event};
use pvrdma_ffi::verbs::*;
use std::alloc::{self, Layout};
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, null_mut};
use std::sync::OnceLock;

/// Bytes of the ring, and of the memory that is written from. Who has a ring takes its bytes out at once, so it holds
/// what comes while he does other things; and on many machines a user may have no more than 8 MiB locked.
const RING: u32 = 2 << 20;
/// Most bytes of one WRITE: the other end begins with the first ones while the next ones are under way.
const PIECE: usize = 256 << 10;
/// Receives: for all pieces and counts that may be under way.
const RECEIVES: usize = PIECES + COUNTS;
/// Places in the send queue. What is not completed here is mostly on its way, and that is bounded as above.
const SENDS: usize = 4 * RECEIVES;

/// Places of the mask of `ibv_modify_qp`.
const TO_INIT: u32 = IBV_QP_STATE | 1 << 4 | 1 << 5 | 1 << 3;
const TO_RTR: u32 = IBV_QP_STATE | 1 << 7 | 1 << 8 | 1 << 20 | 1 << 12 | 1 << 17 | 1 << 15;
const TO_RTS: u32 = IBV_QP_STATE | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 16 | 1 << 13;
/// `IBV_PORT_ACTIVE`.
const ACTIVE: u32 = 4;
/// `IBV_LINK_LAYER_ETHERNET`.
const ETHERNET: u8 = 2;
/// `IBV_EVENT_*` that end a bearer: a CQ or a QP is in error, or the device.
const FATAL: [c_int; 5] = [0, 1, 2, 3, 8];
/// `IBV_EVENT_PORT_ERR`. Of another port it is nothing.
const PORT_ERR: c_int = 10;

/// The library, once it was there.
fn load() -> Result<&'static Verbs, Unusable> {
    static VERBS: OnceLock<Verbs> = OnceLock::new();
    match VERBS.get() {
        Some(verbs) => Ok(verbs),
        None => {
            let verbs = Verbs::load().map_err(Unusable::Library)?;
            Ok(VERBS.get_or_init(|| verbs))
        }
    }
}

/// A pointer that a verb gave.
fn got<T>(pointer: *mut T, verb: &str) -> Result<*mut T, Unusable> {
    match pointer.is_null() {
        true => Err(Unusable::Verb(format!("{verb}: {}", io::Error::last_os_error()))),
        false => Ok(pointer),
    }
}

/// What a verb that returns an errno says.
fn done(code: c_int, verb: &str) -> Result<(), Unusable> {
    match code {
        0 => Ok(()),
        -1 => Err(Unusable::Verb(format!("{verb}: {}", io::Error::last_os_error()))),
        code => Err(Unusable::Verb(format!("{verb}: {}", io::Error::from_raw_os_error(code)))),
    }
}

fn broken(broken: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, broken)
}

/// Memory that an adapter reads and writes.
struct Memory(*mut u8);

impl Memory {
    const LAYOUT: Layout = match Layout::from_size_align(RING as usize, 4096) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };

    fn new() -> Memory {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc::alloc_zeroed(Self::LAYOUT) };
        if memory.is_null() {
            alloc::handle_alloc_error(Self::LAYOUT);
        }
        Memory(memory)
    }

    fn copy_out(&self, at: usize, into: &mut [u8]) {
        assert!(at + into.len() <= RING as usize);
        // SAFETY: the source is within the memory, by the line above. The adapter may write there meanwhile if the
        // other host breaks the rules: then any bytes are copied, and all are valid ones.
        unsafe { ptr::copy_nonoverlapping(self.0.add(at), into.as_mut_ptr(), into.len()) };
    }

    fn copy_in(&mut self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= RING as usize);
        // SAFETY: within the memory, by the line above. The adapter at most reads there.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.0.add(at), from.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout, and nobody has it any more: see `Adapter::drop`.
        unsafe { alloc::dealloc(self.0, Self::LAYOUT) };
    }
}

/// See the module text. All pointers are null until they are made, and valid from then on until `drop`.
pub struct Adapter {
    verbs: &'static Verbs,
    name: String,
    /// Where sysfs has its character device, as long as anybody may open it, and the inode there.
    node: (PathBuf, Option<u64>),
    context: *mut ibv_context,
    pd: *mut ibv_pd,
    channel: *mut ibv_comp_channel,
    receives: *mut ibv_cq,
    sends: *mut ibv_cq,
    qp: *mut ibv_qp,
    keys: [*mut ibv_mr; 2],
    ring: Memory,
    staging: Memory,
    port: u8,
    address: Address,
    card: Card,
    peer: Option<Card>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// Of the send queue.
    posted: u64,
    completed: u64,
    /// An event follows the next receive that completes.
    armed: bool,
}

// SAFETY: verbs may be called from any thread (ibv_* manual pages), and there is one owner at a time.
unsafe impl Send for Adapter {}

impl Adapter {
    /// An adapter of this host, with a ring of its own.
    pub fn open(choice: &Choice) -> Result<Adapter, Unusable> {
        let verbs = load()?;
        let mut count = 0;
        // SAFETY: there is room for the count.
        let list = unsafe { (verbs.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            // A kernel without RDMA has no list at all.
            return Err(Unusable::NoDevice);
        }
        let mut opened = Err(Unusable::NoDevice);
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has `count` devices, and a name of each ends with a 0.
            let (device, name) = unsafe {
                let device = *list.add(at);
                (device, CStr::from_ptr((verbs.ibv_get_device_name)(device)).to_string_lossy().into_owned())
            };
            if match choice {
                Choice::None => true,
                Choice::Auto => false,
                Choice::Named(named) => *named != name,
            } {
                continue;
            }
            // SAFETY: a device of the list, which is not given back yet.
            opened = unsafe { Adapter::on(verbs, device, &name) };
            if opened.is_ok() {
                break;
            }
        }
        // SAFETY: made above; a device that is open keeps what it needs of it.
        unsafe { (verbs.ibv_free_device_list)(list) };
        opened
    }

    /// # Safety
    /// `device` must be one of a list of `verbs`.
    unsafe fn on(verbs: &'static Verbs, device: *mut ibv_device, name: &str) -> Result<Adapter, Unusable> {
        let nowhere = Address { index: 0, gid: [0; 16], link: Link::InfiniBand };
        let card =
            Card { link: Link::InfiniBand, mtu: 1, lid: 0, gid: [0; 16], qpn: 0, psn: 0, rkey: 0, addr: 0, len: RING };
        // SAFETY: promise of the caller; libibverbs has ended the text with a 0.
        let node = unsafe { CStr::from_ptr((*device).dev_path.as_ptr()) };
        let node = PathBuf::from(OsStr::from_bytes(node.to_bytes()));
        let mut adapter = Adapter {
            verbs,
            name: name.to_owned(),
            node: (node.clone(), inode(&node)),
            context: null_mut(),
            pd: null_mut(),
            channel: null_mut(),
            receives: null_mut(),
            sends: null_mut(),
            qp: null_mut(),
            keys: [null_mut(); 2],
            ring: Memory::new(),
            staging: Memory::new(),
            port: 1,
            address: nowhere,
            card,
            peer: None,
            incoming: Incoming::new(RING),
            outgoing: Outgoing::new(RING, RING),
            posted: 0,
            completed: 0,
            armed: false,
        };
        // SAFETY: promise of the caller.
        adapter.context = got(unsafe { (verbs.ibv_open_device)(device) }, "ibv_open_device")?;
        let port = adapter.find_port()?;
        adapter.make()?;
        adapter.card = Card {
            link: adapter.address.link,
            mtu: (port.active_mtu as u8).clamp(1, 5),
            lid: port.lid,
            gid: adapter.address.gid,
            // SAFETY: both were made just now.
            qpn: unsafe { (*adapter.qp).qp_num },
            psn: random()? & 0x00ff_ffff,
            // SAFETY: as above.
            rkey: unsafe { (*adapter.keys[0]).rkey },
            addr: adapter.ring.0.expose_provenance() as u64,
            len: RING,
        };
        Ok(adapter)
    }

    /// The first port that is up and has an address.
    fn find_port(&mut self) -> Result<ibv_port_attr, Unusable> {
        let mut attr = std::mem::MaybeUninit::<ibv_device_attr>::zeroed();
        // SAFETY: the struct is all numbers, so zero is a value; the verb fills it.
        let attr = unsafe {
            done((self.verbs.ibv_query_device)(self.context, attr.as_mut_ptr()), "ibv_query_device")?;
            attr.assume_init()
        };
        for number in 1..=attr.phys_port_cnt {
            let mut port = ibv_port_attr_room::default();
            // SAFETY: the context is open; there is room for the port of any release.
            let code = unsafe { (self.verbs.ibv_query_port)(self.context, number, &raw mut port) };
            let port = port.attr;
            if code != 0 || port.state != ACTIVE {
                continue;
            }
            if let Some(address) = port::address(&self.name, number, port.link_layer != ETHERNET) {
                (self.port, self.address) = (number, address);
                return Ok(port);
            }
        }
        Err(Unusable::Inactive)
    }

    /// All that a QP needs, and receives for what comes.
    fn make(&mut self) -> Result<(), Unusable> {
        let verbs = self.verbs;
        // SAFETY: the context is open, what is made here is of it, and the memory is there until `drop`, which gives
        // back the keys first.
        unsafe {
            never_wait((*self.context).async_fd)?;
            self.pd = got((verbs.ibv_alloc_pd)(self.context), "ibv_alloc_pd")?;
            self.channel = got((verbs.ibv_create_comp_channel)(self.context), "ibv_create_comp_channel")?;
            never_wait((*self.channel).fd)?;
            let write = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
            for (at, (memory, access)) in [(self.ring.0, write), (self.staging.0, 0)].into_iter().enumerate() {
                self.keys[at] = got(
                    (verbs.ibv_reg_mr)(self.pd, memory.cast(), RING as usize, access as c_int),
                    "ibv_reg_mr (the limit on locked memory?)",
                )?;
            }
            let cq = |len: usize| {
                got((verbs.ibv_create_cq)(self.context, len as c_int, null_mut(), self.channel, 0), "ibv_create_cq")
            };
            self.receives = cq(RECEIVES)?;
            self.sends = cq(SENDS)?;
            let mut attr = ibv_qp_init_attr {
                qp_context: null_mut(),
                send_cq: self.sends,
                recv_cq: self.receives,
                srq: null_mut(),
                cap: ibv_qp_cap {
                    max_send_wr: SENDS as u32,
                    max_recv_wr: RECEIVES as u32,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: 0,
                },
                qp_type: IBV_QPT_RC,
                sq_sig_all: 1,
                padding: 0,
            };
            self.qp = got((verbs.ibv_create_qp)(self.pd, &raw mut attr), "ibv_create_qp")?;
        }
        let attr = ibv_qp_attr {
            qp_state: IBV_QPS_INIT,
            port_num: self.port,
            // Into the ring, that is: nothing else has a key that lets anybody in.
            qp_access_flags: IBV_ACCESS_REMOTE_WRITE,
            ..Default::default()
        };
        self.modify(attr, TO_INIT, "ibv_modify_qp to INIT")?;
        (0..RECEIVES).try_for_each(|_| self.receive())
    }

    fn modify(&mut self, mut attr: ibv_qp_attr, mask: u32, verb: &str) -> Result<(), Unusable> {
        // SAFETY: the QP is there; `attr` has all that the mask names.
        done(unsafe { (self.verbs.ibv_modify_qp)(self.qp, &raw mut attr, mask as c_int) }, verb)
    }

    fn receive(&mut self) -> Result<(), Unusable> {
        let mut wr = ibv_recv_wr { wr_id: 0, next: null_mut(), sg_list: null_mut(), num_sge: 0 };
        // SAFETY: the QP is there, and the list is one that names no memory.
        done(unsafe { verbs::post_recv(self.qp, &mut wr) }, "ibv_post_recv")
    }

    /// Name of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the other end must know.
    pub fn card(&self) -> Card {
        self.card
    }

    /// For a poll: what it says is told to [`Adapter::is_ready`].
    pub fn descriptors(&self) -> [RawFd; 2] {
        // SAFETY: both are there.
        unsafe { [(*self.channel).fd, (*self.context).async_fd] }
    }

    /// From now on the other end, which has this card, may write, and may be written to.
    pub fn connect(&mut self, peer: &Card) -> Result<(), Unusable> {
        if peer.link != self.card.link {
            return Err(Unusable::Kind);
        }
        if (peer.gid, peer.qpn) == (self.card.gid, self.card.qpn) {
            // Two networks may give the same address; this one's own QP would answer.
            return Err(Unusable::Verb("the other host's address is this adapter's own".into()));
        }
        let mut dgid = [0; 2];
        for (half, bytes) in dgid.iter_mut().zip(peer.gid.chunks_exact(8)) {
            *half = u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        }
        let ah_attr = ibv_ah_attr {
            grh: ibv_global_route { dgid, sgid_index: self.address.index, hop_limit: 64, ..Default::default() },
            dlid: peer.lid,
            is_global: 1,
            port_num: self.port,
            ..Default::default()
        };
        let attr = ibv_qp_attr {
            qp_state: IBV_QPS_RTR,
            path_mtu: self.card.mtu.min(peer.mtu).into(),
            dest_qp_num: peer.qpn,
            rq_psn: peer.psn,
            sq_psn: self.card.psn,
            ah_attr,
            min_rnr_timer: 12,
            timeout: 14,
            retry_cnt: 7,
            rnr_retry: 7,
            ..Default::default()
        };
        self.modify(attr, TO_RTR, "ibv_modify_qp to RTR")?;
        self.modify(ibv_qp_attr { qp_state: IBV_QPS_RTS, ..attr }, TO_RTS, "ibv_modify_qp to RTS")?;
        self.outgoing = Outgoing::new(peer.len, RING);
        self.peer = Some(*peer);
        Ok(())
    }

    /// Sends nothing, to see whether it arrives: see [`Adapter::is_proved`].
    pub fn prove(&mut self) -> io::Result<()> {
        // SAFETY: the CQ is there.
        done(unsafe { verbs::req_notify_cq(self.sends) }, "ibv_req_notify_cq").map_err(io::Error::other)?;
        self.send(Word::Count(0), [0, 0], 0)
    }

    /// Whether something that was sent has arrived. An error: it never will.
    pub fn is_proved(&mut self) -> io::Result<bool> {
        self.reap()?;
        Ok(self.completed > 0)
    }

    /// An error: the adapter is about to be taken away, which waits until nobody has it open. Some drivers tell of it
    /// by an event (`IBV_EVENT_DEVICE_FATAL`); others, software RoCE among them, by nothing else than this.
    pub fn is_there(&self) -> io::Result<()> {
        let (node, before) = &self.node;
        match before {
            // Another device may have got the same number.
            Some(before) if inode(node) != Some(*before) => {
                Err(io::Error::other(format!("{}: it was removed", self.name)))
            }
            _ => Ok(()),
        }
    }

    /// The poll says that there may be something, on one of both descriptors. An error: the adapter is of no use any
    /// more.
    pub fn is_ready(&mut self) -> io::Result<()> {
        self.armed = false;
        loop {
            let mut event = ibv_async_event { element: null_mut(), event_type: 0 };
            // SAFETY: the context is open and never waits; an event is given back at once.
            let text = unsafe {
                if (self.verbs.ibv_get_async_event)(self.context, &raw mut event) != 0 {
                    return Ok(());
                }
                (self.verbs.ibv_ack_async_event)(&raw mut event);
                CStr::from_ptr((self.verbs.ibv_event_type_str)(event.event_type))
            };
            let down = event.event_type == PORT_ERR && event.element.addr() as u8 == self.port;
            if down || FATAL.contains(&event.event_type) {
                return Err(io::Error::other(format!("{}: {}", self.name, text.to_string_lossy())));
            }
        }
    }

    /// Bytes that have come, as many as there is room for. `WouldBlock`: none, and the poll tells of the next ones.
    pub fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            self.take_in()?;
            let mut read = 0;
            // Up to the ring's end, and from its beginning.
            for _ in 0..2 {
                let (at, there) = self.incoming.there();
                let len = there.min(room.len() - read);
                self.ring.copy_out(at, &mut room[read..read + len]);
                self.incoming.took(len);
                read += len;
            }
            if read > 0 {
                if let Some(count) = self.incoming.count() {
                    self.send(count, [0, 0], 0)?;
                }
                return Ok(read);
            }
            if self.armed {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.arm()?;
        }
    }

    /// Sends as many bytes as may be. `WouldBlock`: none; the poll tells when there may be room.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reap()?;
        let Some((room, places)) = self.outgoing.room().filter(|_| self.has_places()) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let len = bytes.len().min(room).min(PIECE);
        self.staging.copy_in(places[1], &bytes[..len]);
        self.send(Word::Piece(len as u32), places, len)?;
        self.outgoing.sent(len);
        Ok(len)
    }

    /// Whether [`Adapter::write`] would send anything.
    pub fn has_room(&self) -> bool {
        self.has_places() && self.outgoing.room().is_some()
    }

    /// Places are kept for counts: without them both ends would wait for each other.
    fn has_places(&self) -> bool {
        self.posted - self.completed < (SENDS - COUNTS) as u64
    }

    fn send(&mut self, word: Word, places: [usize; 2], len: usize) -> io::Result<()> {
        let Some(peer) = self.peer else { return Err(io::ErrorKind::NotConnected.into()) };
        // SAFETY: the key is there.
        let lkey = unsafe { (*self.keys[1]).lkey };
        let from = self.staging.0.expose_provenance() + places[1];
        let mut sge = ibv_sge { addr: from as u64, length: len as u32, lkey };
        let mut wr = ibv_send_wr {
            wr_id: 0,
            next: null_mut(),
            sg_list: &raw mut sge,
            num_sge: if len > 0 { 1 } else { 0 },
            opcode: IBV_WR_RDMA_WRITE_WITH_IMM,
            send_flags: IBV_SEND_SIGNALED,
            imm_data: word.pack().to_be(),
            wr: ibv_send_wr_union { atomic: ibv_send_wr_atomic::default() },
            remote_srqn: 0,
            bind_mw_or_tso: [0; 6],
        };
        wr.wr.rdma = ibv_send_wr_rdma { remote_addr: peer.addr.wrapping_add(places[0] as u64), rkey: peer.rkey };
        // SAFETY: the QP is there. The piece is of the staging memory, which has this key, and nobody writes there
        // until the other end has taken it.
        done(unsafe { verbs::post_send(self.qp, &mut wr) }, "ibv_post_send").map_err(io::Error::other)?;
        self.posted += 1;
        Ok(())
    }

    /// The next completion of a CQ, which must be a good one.
    fn poll(&mut self, cq: *mut ibv_cq) -> io::Result<Option<ibv_wc>> {
        let mut wc = ibv_wc::default();
        // SAFETY: `cq` is one of both, and is there.
        match unsafe { verbs::poll_cq(cq, &mut wc) } {
            0 => Ok(None),
            1 if wc.status == IBV_WC_SUCCESS => Ok(Some(wc)),
            1 => {
                // SAFETY: the function takes any number and gives a text that lives for ever.
                let status = unsafe { CStr::from_ptr((self.verbs.ibv_wc_status_str)(wc.status)) };
                Err(io::Error::other(format!("{}: {}", self.name, status.to_string_lossy())))
            }
            code => Err(io::Error::other(format!("{}: ibv_poll_cq: {code}", self.name))),
        }
    }

    fn take_in(&mut self) -> io::Result<()> {
        while let Some(wc) = self.poll(self.receives)? {
            // By its kind: a SEND would be nothing that was agreed on.
            if wc.opcode != IBV_WC_RECV_RDMA_WITH_IMM {
                return Err(broken(Broken::Piece(wc.byte_len)));
            }
            match Word::unpack(u32::from_be(wc.imm_data)) {
                Word::Piece(len) => self.incoming.came(len, wc.byte_len).map_err(broken)?,
                Word::Count(count) => self.outgoing.counted(count).map_err(broken)?,
            }
            self.receive().map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn reap(&mut self) -> io::Result<()> {
        while self.poll(self.sends)?.is_some() {
            self.completed += 1;
        }
        Ok(())
    }

    /// Asks for an event of the next receive that completes. What has completed before has none, so it is looked for
    /// once more.
    fn arm(&mut self) -> io::Result<()> {
        let (mut cq, mut of) = (null_mut(), ptr::null_mut::<c_void>());
        // SAFETY: the channel is there and never waits; each event is given back at once.
        unsafe {
            while (self.verbs.ibv_get_cq_event)(self.channel, &raw mut cq, &raw mut of) == 0 {
                (self.verbs.ibv_ack_cq_events)(cq, 1);
            }
            done(verbs::req_notify_cq(self.receives), "ibv_req_notify_cq").map_err(io::Error::other)?;
        }
        self.armed = true;
        Ok(())
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: each was made by the verb beside it and is given back once, after all that is made of it. Errors
        // leave nobody anything to do. After the QP is gone the adapter touches no memory.
        unsafe {
            if !self.qp.is_null() {
                (self.verbs.ibv_destroy_qp)(self.qp);
            }
            for cq in [self.sends, self.receives].into_iter().filter(|cq| !cq.is_null()) {
                (self.verbs.ibv_destroy_cq)(cq);
            }
            for key in self.keys.into_iter().filter(|key| !key.is_null()) {
                (self.verbs.ibv_dereg_mr)(key);
            }
            if !self.channel.is_null() {
                (self.verbs.ibv_destroy_comp_channel)(self.channel);
            }
            if !self.pd.is_null() {
                (self.verbs.ibv_dealloc_pd)(self.pd);
            }
            if !self.context.is_null() {
                (self.verbs.ibv_close_device)(self.context);
            }
        }
    }
}

/// Calls on a descriptor return at once.
fn never_wait(descriptor: RawFd) -> Result<(), Unusable> {
    // SAFETY: no pointers.
    let code = unsafe {
        let flags = libc::fcntl(descriptor, libc::F_GETFL);
        libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    done(code.min(0), "fcntl")
}

/// What tells a file from another one of the same name, if it is there.
fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|found| found.ino())
}

fn random() -> Result<u32, Unusable> {
    let mut bytes = [0; 4];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Unusable::Verb(format!("/dev/urandom: {error}")))?;
    Ok(u32::from_le_bytes(bytes))
}
