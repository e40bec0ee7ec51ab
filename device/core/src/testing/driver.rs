//! A guest's kernel driver: hands out memory, builds page directories, makes objects by command.

use super::cut::{Cut, Cutting, Scissors};
use super::queue::{CqRing, QpRings, QpSize, SrqRing};
use super::{Bell, Ram};
use crate::budget::DEFAULT_MEMORY_LIMIT;
use crate::clock::Clock;
use crate::command::{Command, CommandError, CreateQp, MrKind, Response};
use crate::device::{Config, Device};
use crate::handle::*;
use crate::memory::{Buffer, DmaAddr, Span};
use crate::transport::Transport;
use crate::transport::fabric::{Fabric, Port};
use pvrdma_ffi::uapi::vmw_pvrdma::{
    PVRDMA_ACCESS_LOCAL_WRITE, PVRDMA_ACCESS_REMOTE_ATOMIC, PVRDMA_ACCESS_REMOTE_READ, PVRDMA_ACCESS_REMOTE_WRITE,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a page, written down once more.
pub const PAGE: u64 = 4096;

/// Everything a region may allow.
pub const ALL_ACCESS: u32 =
    PVRDMA_ACCESS_LOCAL_WRITE | PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_READ | PVRDMA_ACCESS_REMOTE_ATOMIC;

/// `PVRDMA_QPT_RC` and `PVRDMA_QPT_UD`, written down once more.
pub const RC: u8 = 2;
/// See [`RC`].
pub const UD: u8 = 4;
/// See [`RC`].
pub const GSI: u8 = 1;

/// The GID type that these devices have (RoCE v2).
pub const GID_TYPE: u8 = 2;

/// How buffers are described to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As contiguous ranges.
    Ranges,
    /// By two-level page directories; no page follows its predecessor in memory.
    Pdir,
}

/// Both, for tests that run on each.
pub const LAYOUTS: [Layout; 2] = [Layout::Ranges, Layout::Pdir];

/// A guest with one device.
pub struct Driver {
    /// Its memory.
    pub ram: Arc<Ram>,
    /// Its interrupts.
    pub bell: Arc<Bell>,
    /// Its device.
    pub device: Arc<Device>,
    /// Its GID, at index 0.
    pub gid: Gid,
    /// How it describes buffers.
    pub layout: Layout,
    next: AtomicU64,
    /// The device as messages meet it: in the cut that `PVRDMA_CUT` asks for.
    cutting: Arc<Cutting>,
}

/// Memory that a driver gave to an object, page by page.
#[derive(Clone)]
pub struct Block {
    ram: Arc<Ram>,
    /// Addresses of its pages.
    pub pages: Vec<DmaAddr>,
    /// The same for a command.
    pub buffer: Buffer,
}

/// A registered region.
#[derive(Clone)]
pub struct Region {
    /// Handle for DESTROY_MR.
    pub mr: MrHandle,
    /// Its key, local and remote.
    pub key: u32,
    /// Address of its first byte in work requests; it tells nothing about where the byte is.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Bytes before `start` in the first page.
    pub lead: u64,
    block: Block,
}

impl Block {
    /// Address of byte `offset`.
    pub fn at(&self, offset: u64) -> DmaAddr {
        DmaAddr(self.pages[(offset / PAGE) as usize].0 + offset % PAGE)
    }

    /// Copies `len` bytes out, page by page.
    pub fn get(&self, mut offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let step = ((PAGE - offset % PAGE) as usize).min(len - bytes.len());
            bytes.extend(self.ram.get(self.at(offset), step));
            offset += step as u64;
        }
        bytes
    }

    /// Copies `bytes` in, page by page.
    pub fn set(&self, mut offset: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let step = ((PAGE - offset % PAGE) as usize).min(bytes.len());
            self.ram.set(self.at(offset), &bytes[..step]);
            bytes = &bytes[step..];
            offset += step as u64;
        }
    }

    /// The word at `offset`.
    pub fn word(&self, offset: u64) -> u32 {
        self.ram.word(self.at(offset))
    }

    /// Replaces the word at `offset`.
    pub fn set_word(&self, offset: u64, value: u32) {
        self.ram.set(self.at(offset), &value.to_le_bytes());
    }
}

impl Region {
    /// Bytes `[offset, offset + len)`.
    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        self.block.get(self.lead + offset, len)
    }

    /// Replaces the bytes from `offset` on.
    pub fn set(&self, offset: u64, bytes: &[u8]) {
        self.block.set(self.lead + offset, bytes);
    }

    /// Addresses of its pages.
    pub fn pages(&self) -> &[DmaAddr] {
        &self.block.pages
    }

    /// Address of the page that holds byte `offset`.
    pub fn page_of(&self, offset: u64) -> DmaAddr {
        self.block.pages[((self.lead + offset) / PAGE) as usize]
    }
}

/// What a port carries, unless it is said.
const MTU: u32 = 4096;

impl Driver {
    /// A guest on `fabric`; `index` makes its GID.
    pub fn new(fabric: &Arc<Fabric>, index: u8, layout: Layout) -> Driver {
        Driver::limited(fabric, index, layout, 64 << 20, DEFAULT_MEMORY_LIMIT)
    }

    /// A guest on `fabric` for which the device holds no more than `memory_limit` bytes.
    pub fn limited(fabric: &Arc<Fabric>, index: u8, layout: Layout, ram_len: usize, memory_limit: u64) -> Driver {
        let port = Port::new(fabric);
        let driver = Driver::make(index, layout, ram_len, port.clone(), memory_limit, MTU, Clock::default());
        driver.plug(&port);
        driver
    }

    /// A guest on `fabric` whose device has its time from `clock`.
    pub fn timed(fabric: &Arc<Fabric>, index: u8, layout: Layout, ram_len: usize, clock: &Clock) -> Driver {
        let port = Port::new(fabric);
        let driver = Driver::make(index, layout, ram_len, port.clone(), DEFAULT_MEMORY_LIMIT, MTU, clock.clone());
        driver.plug(&port);
        driver
    }

    /// A guest on `fabric` whose port carries packets with so many bytes of payload.
    pub fn narrow(fabric: &Arc<Fabric>, index: u8, layout: Layout, mtu: u32) -> Driver {
        let port = Port::new(fabric);
        let driver = Driver::make(index, layout, 64 << 20, port.clone(), DEFAULT_MEMORY_LIMIT, mtu, Clock::default());
        driver.plug(&port);
        driver
    }

    /// Puts it on the fabric that `port` belongs to, and binds its GID.
    pub fn plug(&self, port: &Port) {
        port.attach(self.cutting.clone());
        self.bind();
    }

    /// From now on messages meet it in this cut, whatever `PVRDMA_CUT` says. Before `plug`.
    pub fn cut_by(&mut self, scissors: &Arc<Scissors>) {
        self.cutting = Cutting::new(&self.device, scissors);
    }

    /// A guest on any transport, with `ram_len` bytes of memory and no GID yet: see `bind`.
    pub fn on(index: u8, layout: Layout, ram_len: usize, transport: Arc<dyn Transport>) -> Driver {
        Driver::make(index, layout, ram_len, transport, DEFAULT_MEMORY_LIMIT, MTU, Clock::default())
    }

    fn make(
        index: u8,
        layout: Layout,
        ram_len: usize,
        transport: Arc<dyn Transport>,
        memory_limit: u64,
        mtu: u32,
        clock: Clock,
    ) -> Driver {
        let (ram, bell) = (Arc::new(Ram::new(ram_len)), Arc::new(Bell::default()));
        let config = Config {
            node_guid: [2, 0, 0, 0xff, 0xfe, 0, 0, index],
            gid_type: GID_TYPE,
            qpn_base: u32::from(index) << 15,
            max_uar: 16,
            memory_limit,
            mtu,
        };
        let device = Device::with_clock(config, ram.clone(), bell.clone(), transport, clock);
        let mut gid = [0; 16];
        gid[..2].copy_from_slice(&[0xfe, 0x80]);
        gid[15] = index + 1;
        // Page 0 stays unused: an address of 0 is a mistake.
        let cutting = Cutting::new(&device, &Scissors::new(Cut::from_env()));
        Driver { ram, bell, device, gid, layout, next: AtomicU64::new(PAGE), cutting }
    }

    /// Binds its GID to index 0.
    pub fn bind(&self) {
        let bind = Command::CreateBind { index: 0, gid: self.gid, gid_type: GID_TYPE, vlan: 0xfff, mtu: 1024 };
        self.device.command(&bind).expect("GID");
    }

    // ---- memory --------------------------------------------------------------------------------

    /// `count` pages, one after the other.
    pub fn alloc(&self, count: u64) -> DmaAddr {
        let at = self.next.fetch_add(count * PAGE, Ordering::Relaxed);
        assert!(at + count * PAGE <= self.ram.len(), "the guest is out of memory");
        DmaAddr(at)
    }

    /// An object's memory: `parts` page counts, one after the other in the object, apart in memory.
    pub fn block(&self, parts: &[u64]) -> Block {
        let mut pages = Vec::new();
        let mut spans = Vec::new();
        for &count in parts.iter().filter(|count| **count > 0) {
            let at = self.alloc(count + 1);
            spans.push(Span { addr: at, len: count * PAGE });
            let mut part: Vec<_> = (0..count).map(|page| DmaAddr(at.0 + page * PAGE)).collect();
            if self.layout == Layout::Pdir {
                part.reverse();
            }
            pages.extend(part);
        }
        let buffer = match self.layout {
            Layout::Ranges => Buffer::Ranges(spans),
            Layout::Pdir => Buffer::Pdir { pdir: self.pdir(&pages), nchunks: pages.len() as u32 },
        };
        Block { ram: self.ram.clone(), pages, buffer }
    }

    /// A page directory that names `pages`: a page of table addresses, tables of page addresses.
    pub fn pdir(&self, pages: &[DmaAddr]) -> DmaAddr {
        let directory = self.alloc(1);
        for (n, group) in pages.chunks(512).enumerate() {
            let table = self.alloc(1);
            self.ram.set(DmaAddr(directory.0 + n as u64 * 8), &table.0.to_le_bytes());
            let entries: Vec<u8> = group.iter().flat_map(|page| page.0.to_le_bytes()).collect();
            self.ram.set(table, &entries);
        }
        directory
    }

    // ---- objects -------------------------------------------------------------------------------

    /// Sends a command.
    pub fn command(&self, command: Command) -> Result<Response, CommandError> {
        self.device.command(&command)
    }

    /// A new context.
    pub fn context(&self) -> CtxHandle {
        let Ok(Response::CreateUc { ctx }) = self.command(Command::CreateUc { pfn: 1 }) else { panic!("CREATE_UC") };
        ctx
    }

    /// A new PD.
    pub fn pd(&self, ctx: CtxHandle) -> PdHandle {
        let Ok(Response::CreatePd { pd }) = self.command(Command::CreatePd { ctx }) else { panic!("CREATE_PD") };
        pd
    }

    /// A region of `len` bytes that begins `lead` bytes into its first page.
    pub fn try_region(&self, pd: PdHandle, len: u64, lead: u64, access: u32) -> Result<Region, CommandError> {
        let mut block = self.block(&[(lead + len).div_ceil(PAGE)]);
        if let Buffer::Ranges(ranges) = &mut block.buffer {
            ranges[0] = Span { addr: DmaAddr(ranges[0].addr.0 + lead), len };
        }
        self.register(pd, block, len, lead, access)
    }

    /// The memory of `region`, registered (once more) with all rights.
    pub fn register_again(&self, pd: PdHandle, region: &Region) -> Region {
        self.register(pd, region.block.clone(), region.len, region.lead, ALL_ACCESS).expect("CREATE_MR")
    }

    /// Pages of some object, registered with all rights.
    pub fn register_pages(&self, pd: PdHandle, pages: &[DmaAddr]) -> Region {
        let buffer = Buffer::Pdir { pdir: self.pdir(pages), nchunks: pages.len() as u32 };
        let block = Block { ram: self.ram.clone(), pages: pages.to_vec(), buffer };
        self.register(pd, block, pages.len() as u64 * PAGE, 0, ALL_ACCESS).expect("CREATE_MR")
    }

    fn register(&self, pd: PdHandle, block: Block, len: u64, lead: u64, access: u32) -> Result<Region, CommandError> {
        // A user address: the offset in the page is that of the first byte, the rest is the process's own affair.
        let start = 0x7f00_0000_0000 + block.pages[0].0 + lead;
        let kind = MrKind::User(block.buffer.clone());
        match self.command(Command::CreateMr { pd, start, length: len, access_flags: access, kind })? {
            Response::CreateMr { mr, lkey, rkey } => {
                assert_eq!(lkey.0, rkey.0, "the device has one key for both uses");
                Ok(Region { mr, key: lkey.0, start, len, lead, block })
            }
            other => panic!("CREATE_MR answered {other:?}"),
        }
    }

    /// A region that is page-aligned and allows everything.
    pub fn region(&self, pd: PdHandle, len: u64) -> Region {
        self.try_region(pd, len, 0, ALL_ACCESS).expect("CREATE_MR")
    }

    /// Ends a region.
    pub fn dereg(&self, region: &Region) {
        self.command(Command::DestroyMr { mr: region.mr }).expect("DESTROY_MR");
    }

    /// A new CQ.
    pub fn cq(&self, ctx: CtxHandle, cqe: u32) -> Arc<CqRing> {
        let block = self.block(&[1 + (u64::from(cqe) * 64).div_ceil(PAGE)]);
        let create = Command::CreateCq { ctx, cqe, buffer: block.buffer.clone() };
        let Ok(Response::CreateCq { cq, cqe: made }) = self.command(create) else { panic!("CREATE_CQ") };
        assert_eq!(made, cqe, "the ring must have the size that was asked for");
        Arc::new(CqRing::new(self.device.clone(), ctx, cq, cqe, block))
    }

    /// A new SRQ of `(WQEs, SGEs of each)`.
    pub fn srq(&self, ctx: CtxHandle, pd: PdHandle, size: (u32, u32), srq_limit: u32) -> Arc<SrqRing> {
        let block = self.block(&[1 + (u64::from(size.0) * SrqRing::stride(size)).div_ceil(PAGE)]);
        let buffer = block.buffer.clone();
        let create = Command::CreateSrq { pd, max_wr: size.0, max_sge: size.1, srq_limit, srq_type: 0, buffer };
        let Ok(Response::CreateSrq { srq }) = self.command(create) else { panic!("CREATE_SRQ") };
        Arc::new(SrqRing::new(self.device.clone(), ctx, srq, size, block))
    }

    /// CREATE_QP of an RC QP, and the memory it is given.
    pub fn qp_command(&self, pd: PdHandle, send_cq: CqHandle, recv_cq: CqHandle, size: QpSize) -> (Command, Block) {
        let sq_pages = (u64::from(size.send_wr) * u64::from(size.send_stride())).div_ceil(PAGE);
        let rq_pages = (u64::from(size.recv_wr) * u64::from(size.recv_stride())).div_ceil(PAGE);
        let block = self.block(&[1 + sq_pages, rq_pages]);
        let create = CreateQp {
            pd,
            send_cq,
            recv_cq,
            srq: None,
            max_send_wr: size.send_wr,
            max_recv_wr: size.recv_wr,
            max_send_sge: size.send_sge,
            max_recv_sge: size.recv_sge,
            sq_sig_all: size.sig_all,
            qp_type: 2,
            buffer: block.buffer.clone(),
            send_chunks: sq_pages as u32,
        };
        (Command::CreateQp(Box::new(create)), block)
    }

    /// A new RC QP in RESET.
    pub fn qp(&self, pd: PdHandle, send_cq: &Arc<CqRing>, recv_cq: &Arc<CqRing>, size: QpSize) -> QpRings {
        self.qp_of(RC, None, pd, (send_cq, recv_cq), size)
    }

    /// A new QP of a type in RESET; with an SRQ it has no receive ring.
    pub fn qp_of(
        &self,
        qp_type: u8,
        srq: Option<&SrqRing>,
        pd: PdHandle,
        (send_cq, recv_cq): (&Arc<CqRing>, &Arc<CqRing>),
        mut size: QpSize,
    ) -> QpRings {
        if srq.is_some() {
            size.recv_wr = 0;
            size.recv_sge = 0;
        }
        let (create, block) = self.qp_command(pd, send_cq.handle, recv_cq.handle, size);
        let Command::CreateQp(mut create) = create else { unreachable!("a CREATE_QP") };
        create.qp_type = qp_type;
        create.srq = srq.map(|srq| srq.handle);
        match self.command(Command::CreateQp(create)) {
            Ok(Response::CreateQp { qpn, qp }) => QpRings::new(self.device.clone(), send_cq.ctx, qp, qpn, size, block),
            other => panic!("CREATE_QP answered {other:?}"),
        }
    }
}
