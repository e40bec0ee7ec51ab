//! The PCI function: routes QEMU's requests to registers, doorbells, configuration space and memory map.
//!
//! `connection.rs` has one of these for each client. Values come from a guest that may be hostile; a request
//! that makes no sense is ignored or reads as all ones, and costs the guest nothing but its own time.

use std::fmt::Arguments;
use std::fs::File;
use std::io;
use std::sync::Arc;

use pvrdma_capture::file::CaptureFile;
use pvrdma_device::device::Config;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_device::transport::fault::Faults;
use pvrdma_ffi::dev_api::{PVRDMA_PCI_RESOURCE_REG, PVRDMA_PCI_RESOURCE_UAR};

use crate::complaints::Complaints;
use crate::dma::DmaMap;
use crate::eventfd::EventFd;
use crate::irq::Irq;
use crate::pci;
use crate::protocol::CONFIG_REGION;
use crate::regs::{Action, Regs};
use crate::session::{Host, Session};
use crate::shown::Shown;
use crate::trace::{Trace, TraceFile};

const REG: u32 = PVRDMA_PCI_RESOURCE_REG as u32;
const UAR: u32 = PVRDMA_PCI_RESOURCE_UAR as u32;

/// ERR for a command or control value that cannot be carried out.
const EINVAL: u32 = libc::EINVAL as u32;

/// What the functions of a socket, one for each of its clients, have in common.
pub struct Plan {
    /// What the core is to know.
    pub config: Config,
    /// What is to go wrong on the way to other guests.
    pub faults: Option<Faults>,
    /// Where traces go, and what their lines begin with.
    pub trace: Option<(TraceFile, String)>,
    /// Where frames go.
    pub capture: Option<CaptureFile>,
    /// Where others find the device that there is.
    pub shown: Arc<Shown>,
}

/// One guest's PVRDMA function.
pub struct Function {
    host: Host,
    pci: pci::Config,
    regs: Regs,
    session: Option<Session>,
    complaints: Arc<Complaints>,
}

impl Function {
    /// A function after power-on.
    pub fn new(fabric: Arc<Fabric>, plan: &Plan, complaints: Arc<Complaints>) -> Function {
        let memory = Arc::new(DmaMap::default());
        let irq = Arc::new(Irq::new(memory.clone()));
        let trace = plan.trace.clone().map(|(file, name)| Arc::new(Trace::new(file, name)));
        Function {
            host: Host {
                memory,
                irq,
                fabric,
                config: plan.config,
                faults: plan.faults,
                trace,
                capture: plan.capture.clone(),
                shown: plan.shown.clone(),
            },
            pci: pci::Config::default(),
            regs: Regs::default(),
            session: None,
            complaints,
        }
    }

    /// A register was written; everything it asks for is done on return.
    fn act(&mut self, action: Action) {
        match action {
            Action::None => {}
            Action::TakeDsr(at) => {
                // A new driver (after kexec, say) needs no RESET: the old one's objects go here.
                self.session = None;
                match Session::open(&self.host, at) {
                    Ok(session) => self.session = Some(session),
                    // The driver finds no capabilities and gives up.
                    Err(error) => self.complaints.add(format_args!("shared region refused: {error}")),
                }
            }
            Action::Activate if self.session.is_some() => {
                self.host.irq.activate();
                self.regs.set_err(0);
            }
            Action::Unquiesce => self.regs.set_err(0),
            Action::Reset => {
                self.session = None;
                self.regs.set_err(0);
            }
            Action::Command => {
                let err = match self.session.as_mut().map(Session::command) {
                    Some(Ok(())) => 0,
                    Some(Err(error)) => {
                        self.complaints.add(format_args!("command refused: {error}"));
                        error.errno().unsigned_abs()
                    }
                    None => EINVAL,
                };
                self.regs.set_err(err);
            }
            Action::Mask(mask) => self.host.irq.set_mask(mask),
            Action::Activate | Action::Refused => self.regs.set_err(EINVAL),
        }
    }

    /// REGION_READ. What is no register, or outside, reads as all ones, as on an empty bus.
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) {
        match (region, <&mut [u8; 4]>::try_from(&mut *data)) {
            (CONFIG_REGION, _) => self.pci.read(offset, data),
            (REG, Ok(word)) => {
                let value = match u32::try_from(offset) {
                    Ok(offset) => self.regs.read(offset, || self.host.irq.take_causes()),
                    Err(_) => u32::MAX,
                };
                *word = value.to_le_bytes();
            }
            // The MSI-X table is QEMU's; doorbells are write-only; registers are 32 bits wide.
            _ => data.fill(0xff),
        }
    }

    /// REGION_WRITE.
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) {
        match (region, <[u8; 4]>::try_from(data)) {
            (UAR, Ok(word)) => {
                if let Some(session) = &self.session {
                    session.doorbell(offset, u32::from_le_bytes(word));
                }
            }
            (REG, Ok(word)) => {
                if let Ok(offset) = u32::try_from(offset) {
                    let action = self.regs.write(offset, u32::from_le_bytes(word));
                    self.act(action);
                }
            }
            (CONFIG_REGION, _) => {
                self.pci.write(offset, data);
                self.host.irq.set_bus_master(self.pci.bus_master());
            }
            _ => {}
        }
    }

    /// DMA_MAP.
    pub fn dma_map(
        &mut self,
        writable: bool,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        let file = file.as_ref().map(|file| (file, offset));
        self.host.memory.map(address, size, file, writable).inspect_err(|error| {
            self.complain(format_args!("guest memory at {address:#x}, {size:#x} bytes, not mapped: {error}"));
        })
    }

    /// DMA_UNMAP.
    pub fn dma_unmap(&mut self, address: u64, size: u64) -> io::Result<()> {
        self.host.memory.unmap(address, size).inspect_err(|error| {
            self.complain(format_args!("guest memory at {address:#x}, {size:#x} bytes, not unmapped: {error}"));
        })
    }

    /// DMA_UNMAP of everything.
    pub fn dma_unmap_all(&mut self) {
        self.host.memory.clear();
    }

    /// DEVICE_RESET.
    pub fn reset(&mut self) {
        self.session = None;
        self.regs.reset();
        self.pci.reset();
        self.host.irq.set_mask(0);
        self.host.irq.set_bus_master(false);
    }

    /// SET_IRQS for MSI-X: who hears of vectors `start..end`. Those that get no eventfd are switched off.
    pub fn set_vectors(&mut self, start: u32, end: u32, eventfds: &mut dyn Iterator<Item = EventFd>) {
        for vector in start..end {
            self.host.irq.set_vector(vector as usize, eventfds.next());
        }
    }

    /// Tells the log.
    pub fn complain(&self, what: Arguments<'_>) {
        self.complaints.add(what);
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<DmaMap> {
        &self.host.memory
    }
}
