//! One life of the driver: from its shared region (DSR) to the next reset.
//!
//! `function.rs` opens a session when the driver writes DSRHIGH and drops it on RESET, on the next DSRHIGH, or when
//! QEMU goes away. A session owns the device; when it is gone, no address of the driver is used any more.
//!
//! Everything read here was written by the guest: it is copied once, then judged.

use std::sync::Arc;

use pvrdma_capture::file::CaptureFile;
use pvrdma_capture::tap::{self, Capture};
use pvrdma_capture::writer::Settings;
use pvrdma_device::command::{Command, CommandError, Response};
use pvrdma_device::device::{Config, Device};
use pvrdma_device::doorbell::Doorbell;
use pvrdma_device::guest::Roce;
use pvrdma_device::memory::{Buffer, DmaAddr, Fault, Memory, PageTable};
use pvrdma_device::transport::fabric::{Fabric, Port};
use pvrdma_device::transport::fault::Faults;
use pvrdma_ffi::dev_api::*;
use zerocopy::{FromZeros, IntoBytes};

use crate::dma::DmaMap;
use crate::irq::{Irq, Ring, Rings};
use crate::pci::UAR_PAGES;
use crate::shown::Shown;
use crate::slot;
use crate::trace::Trace;
use crate::uar::Uar;
use crate::worker::{Line, Worker};

/// Most pages of an event ring; the driver uses four.
const MAX_RING_PAGES: u32 = 1025;

/// What a session needs from the function it belongs to.
pub struct Host {
    /// Guest memory.
    pub memory: Arc<DmaMap>,
    /// The way to the guest.
    pub irq: Arc<Irq>,
    /// The other guests of this server.
    pub fabric: Arc<Fabric>,
    /// What the core is to know about this device.
    pub config: Config,
    /// What is to go wrong on the way to other guests.
    pub faults: Option<Faults>,
    /// Who is told of everything.
    pub trace: Option<Arc<Trace>>,
    /// Where frames go.
    pub capture: Option<CaptureFile>,
    /// Where others find the device.
    pub shown: Arc<Shown>,
}

/// A driver that has handed in its shared region.
pub struct Session {
    driver_version: u32,
    request_slot: DmaAddr,
    response_slot: DmaAddr,
    uar: Uar,
    memory: Arc<DmaMap>,
    irq: Arc<Irq>,
    device: Arc<Device>,
    trace: Option<Arc<Trace>>,
    /// Stops before the device goes.
    _worker: Worker,
}

/// Why a shared region was not taken.
#[derive(Debug, thiserror::Error)]
pub enum DsrError {
    /// An address leads nowhere.
    #[error("{0} is not in guest memory")]
    Unreachable(&'static str),
    /// A value no driver writes.
    #[error("{0}")]
    Invalid(&'static str),
    /// No thread for the device.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

impl Session {
    /// Takes the shared region at `at` and fills its capabilities.
    pub fn open(host: &Host, at: DmaAddr) -> Result<Session, DsrError> {
        let mut dsr = pvrdma_device_shared_region::new_zeroed();
        host.memory.read(at, dsr.as_mut_bytes()).map_err(|Fault| DsrError::Unreachable("the shared region"))?;
        if dsr.cmd_slot_dma % 4096 != 0 || dsr.resp_slot_dma % 4096 != 0 {
            return Err(DsrError::Invalid("a command slot is not a page"));
        }
        let rings = Rings {
            events: ring(host, &dsr.async_ring_pages, size_of::<pvrdma_eqe>())?,
            cqs: ring(host, &dsr.cq_ring_pages, size_of::<pvrdma_cqne>())?,
        };
        let first_pfn = match dsr.driver_version {
            PVRDMA_PPN64_VERSION.. => dsr.uar_pfn64,
            _ => dsr.uar_pfn64 & 0xffff_ffff,
        };

        let line = Line::new(host.irq.clone(), host.trace.clone());
        let port = Port::new(&host.fabric);
        let capture = host.capture.clone().map(|file| {
            let v1 = host.config.gid_type == PVRDMA_GID_TYPE_FLAG_ROCE_V1;
            Capture::new(Settings { sink: Box::new(file), v1 }, host.memory.clone())
        });
        let (device, station) = tap::plug(port.clone(), host.faults, capture, |network| {
            Device::new(host.config, host.memory.clone(), line.clone(), network)
        });
        port.attach(station);
        host.shown.set(&device);

        let caps_at = at.offset(std::mem::offset_of!(pvrdma_device_shared_region, caps) as u64);
        caps_at
            .and_then(|caps_at| host.memory.write(caps_at, device.caps().as_bytes()))
            .map_err(|Fault| DsrError::Unreachable("the shared region"))?;
        host.irq.set_rings(Some(rings));
        Ok(Session {
            driver_version: dsr.driver_version,
            request_slot: DmaAddr(dsr.cmd_slot_dma),
            response_slot: DmaAddr(dsr.resp_slot_dma),
            uar: Uar::new(first_pfn),
            memory: host.memory.clone(),
            irq: host.irq.clone(),
            device: device.clone(),
            trace: host.trace.clone(),
            _worker: Worker::start(device, line)?,
        })
    }

    /// Runs the command in the slot, completely, and gives the value for ERR.
    pub fn command(&mut self) -> Result<(), CommandError> {
        let mut request = [0; PVRDMA_CMD_REQ_LEN];
        self.memory.read(self.request_slot, &mut request)?;
        let cmd = slot::header(&request).cmd;
        let answer = match self.run(&request) {
            Ok(response) => slot::encode(&request, &response, self.driver_version),
            // The one command whose response the driver asks for an error.
            Err(error) if cmd == PVRDMA_CMD_MODIFY_QP => slot::encode_error(&request, error.errno()),
            Err(error) => return Err(error),
        };
        // The header last: who sees its acknowledgement sees the body.
        let header_len = answer.header().len() as u64;
        self.memory.write(self.response_slot.offset(header_len)?, answer.body())?;
        self.memory.write(self.response_slot, answer.header())?;
        if slot::awaited(cmd) {
            self.irq.response();
        }
        self.irq.flush_pending();
        Ok(())
    }

    fn run(&mut self, request: &slot::Request) -> Result<Response, CommandError> {
        let command = slot::decode(request, self.driver_version)?;
        let page = match command {
            Command::CreateUc { pfn } => {
                Some(self.uar.free_page(pfn).ok_or(CommandError::Invalid("page frame of a context"))?)
            }
            _ => None,
        };
        let response = self.device.command(&command);
        if let Some(trace) = &self.trace {
            trace.command(&command, &response, |qp| self.device.path(qp));
        }
        let response = response?;
        match (&command, &response, page) {
            (_, Response::CreateUc { ctx }, Some(page)) => self.uar.give(page, *ctx),
            (Command::DestroyUc { ctx }, ..) => self.uar.take(*ctx),
            (Command::DestroyCq { cq }, ..) => self.irq.forget_cq(*cq),
            (Command::DestroyQp { qp }, ..) => self.irq.forget_qp(*qp),
            (Command::DestroySrq { srq }, ..) => self.irq.forget_srq(*srq),
            _ => {}
        }
        Ok(response)
    }

    /// A store of `value` at `offset` of BAR 2.
    pub fn doorbell(&self, offset: u64, value: u32) {
        let Some(ctx) = self.uar.owner(offset) else { return };
        if let Some(doorbell) = Doorbell::decode((offset % 4096) as usize, value) {
            if let Some(trace) = &self.trace {
                trace.doorbell(doorbell);
            }
            self.device.doorbell(ctx, doorbell);
        }
        self.irq.flush_pending();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing of the driver is touched after this, whatever was on its way.
        self.device.reset();
        self.irq.set_rings(None);
    }
}

/// An event ring as the shared region describes it; `num_pages` counts its state page.
fn ring(host: &Host, info: &pvrdma_ring_page_info, entry_len: usize) -> Result<Ring, DsrError> {
    if !(2..=MAX_RING_PAGES).contains(&info.num_pages) {
        return Err(DsrError::Invalid("an event ring without pages, or with too many"));
    }
    let buffer = Buffer::Pdir { pdir: DmaAddr(info.pdir_dma), nchunks: info.num_pages };
    let pages = PageTable::resolve(&buffer, &*host.memory)
        .map_err(|Fault| DsrError::Unreachable("the directory of an event ring"))?;
    Ring::new(pages, entry_len as u32).ok_or(DsrError::Invalid("an event ring without entries"))
}

/// The part of the core's configuration that is the same for every guest of a server.
pub fn config(node_guid: [u8; 8], index: u32, roce: Roce) -> Config {
    Config {
        node_guid,
        gid_type: roce.gid_type(),
        // Numbers differ from handles, so that whoever takes one for the other finds out.
        qpn_base: (index % 0xff + 1) << 16,
        max_uar: UAR_PAGES,
        memory_limit: pvrdma_device::budget::DEFAULT_MEMORY_LIMIT,
        mtu: 4096,
    }
}
