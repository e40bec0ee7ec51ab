//! The PCI function: routes QEMU's requests to registers, doorbells, configuration space and memory map.
//!
//! `server.rs` runs one of these for each connection. Values come from a guest that may be hostile; a request
//! that makes no sense is ignored or reads as all ones, and costs the guest nothing but its own time.

use std::fs::File;
use std::io;
use std::sync::Arc;

use pvrdma_device::device::Config;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_ffi::dev_api::{PVRDMA_PCI_RESOURCE_REG, PVRDMA_PCI_RESOURCE_UAR};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, ServerBackend};

use crate::complaints::Complaints;
use crate::dma::DmaMap;
use crate::irq::Irq;
use crate::pci;
use crate::regs::{Action, Regs};
use crate::session::{Host, Session};

const REG: u32 = PVRDMA_PCI_RESOURCE_REG as u32;
const UAR: u32 = PVRDMA_PCI_RESOURCE_UAR as u32;

/// ERR for a command or control value that cannot be carried out.
const EINVAL: u32 = libc::EINVAL as u32;

/// One guest's PVRDMA function.
pub struct Function {
    host: Host,
    pci: pci::Config,
    regs: Regs,
    session: Option<Session>,
    complaints: Complaints,
}

impl Function {
    /// A function after power-on.
    pub fn new(fabric: Arc<Fabric>, config: Config, complaints: Complaints) -> Function {
        let memory = Arc::new(DmaMap::default());
        let irq = Arc::new(Irq::new(memory.clone()));
        Function {
            host: Host { memory, irq, fabric, config },
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
}

impl ServerBackend for Function {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match (region, <&mut [u8; 4]>::try_from(&mut *data)) {
            (VFIO_PCI_CONFIG_REGION_INDEX, _) => self.pci.read(offset, data),
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
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
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
            (VFIO_PCI_CONFIG_REGION_INDEX, _) => {
                self.pci.write(offset, data);
                self.host.irq.set_bus_master(self.pci.bus_master());
            }
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        let writable = flags.contains(DmaMapFlags::WRITE);
        let file = fd.as_ref().map(|file| (file, offset));
        self.host.memory.map(address, size, file, writable).inspect_err(|error| {
            self.complaints.add(format_args!("guest memory at {address:#x}, {size:#x} bytes, not mapped: {error}"));
        })
    }

    fn dma_unmap(&mut self, flags: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.host.memory.clear();
            return Ok(());
        }
        self.host.memory.unmap(address, size).inspect_err(|error| {
            self.complaints.add(format_args!("guest memory at {address:#x}, {size:#x} bytes, not unmapped: {error}"));
        })
    }

    fn reset(&mut self) -> io::Result<()> {
        self.session = None;
        self.regs.reset();
        self.pci.reset();
        self.host.irq.set_mask(0);
        self.host.irq.set_bus_master(false);
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> io::Result<()> {
        if index != VFIO_PCI_MSIX_IRQ_INDEX || flags & VFIO_IRQ_SET_ACTION_TRIGGER == 0 {
            return Ok(());
        }
        if flags & VFIO_IRQ_SET_DATA_EVENTFD == 0 && count == 0 {
            // All of them off.
            for vector in 0..pvrdma_ffi::dev_api::PVRDMA_MAX_INTERRUPTS {
                self.host.irq.set_vector(vector as usize, None);
            }
            return Ok(());
        }
        // A vector without a file is switched off.
        let mut fds = fds.into_iter();
        for vector in start..start.saturating_add(count).min(pvrdma_ffi::dev_api::PVRDMA_MAX_INTERRUPTS) {
            self.host.irq.set_vector(vector as usize, fds.next());
        }
        Ok(())
    }
}
