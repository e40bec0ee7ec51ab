//! What a client may ask for over its connection, and the answers. The specification is named in `protocol.rs`.
//!
//! `server.rs` hands in each message as it came; `function.rs` does what is asked. Whether a message is long enough for
//! what it says it is, and makes sense, is checked here; what does not is refused with an errno, and the client may go
//! on.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use pvrdma_ffi::dev_api::PVRDMA_MAX_INTERRUPTS;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::channel::Message;
use crate::eventfd::EventFd;
use crate::function::Function;
use crate::pci;
use crate::protocol::*;

/// A client and the function that it talks to.
pub struct Connection {
    function: Function,
    /// The version was agreed on.
    agreed: bool,
}

/// What a message is answered with.
struct Reply<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Reply<'_> {
    fn put(&mut self, part: &(impl IntoBytes + Immutable + ?Sized)) {
        self.bytes.extend_from_slice(part.as_bytes());
    }
}

impl Connection {
    /// A connection on which nothing was said yet.
    pub fn new(function: Function) -> Connection {
        Connection { function, agreed: false }
    }

    /// Carries out `message`. `reply` is what to send back, nothing if it is empty. False: whatever the client may say
    /// now is of no interest, since both do not speak the same protocol.
    pub fn answer(&mut self, message: Message<'_>, reply: &mut Vec<u8>) -> bool {
        let Message { header, body, fds } = message;
        reply.clear();
        reply.extend_from_slice(Header::default().as_bytes());
        let done = self.carry_out(header.command, body, fds, &mut Reply { bytes: reply });
        let (flags, error) = match &done {
            Ok(()) => (TYPE_REPLY, 0),
            Err(error) => {
                reply.truncate(size_of::<Header>());
                (TYPE_REPLY | ERROR, error.raw_os_error().unwrap_or(libc::EINVAL).unsigned_abs())
            }
        };
        let answer = Header { message_size: reply.len() as u32, flags, error, ..header };
        reply[..size_of::<Header>()].copy_from_slice(answer.as_bytes());
        if header.flags & NO_REPLY != 0 {
            reply.clear();
        }
        self.agreed
    }

    fn carry_out(&mut self, asked: u16, body: &[u8], fds: Vec<OwnedFd>, reply: &mut Reply<'_>) -> io::Result<()> {
        // Files that a command has no use for are closed.
        match asked {
            command::VERSION => self.version(body, reply),
            // The specification has it first.
            _ if !self.agreed => Err(errno(libc::EINVAL)),
            command::DMA_MAP => self.dma_map(body, fds),
            command::DMA_UNMAP => self.dma_unmap(body, reply),
            command::DEVICE_GET_INFO => device_info(body, reply),
            command::DEVICE_GET_REGION_INFO => region_info(body, reply),
            command::DEVICE_GET_IRQ_INFO => irq_info(body, reply),
            command::DEVICE_SET_IRQS => self.set_irqs(body, fds),
            command::REGION_READ => self.region_read(body, reply),
            command::REGION_WRITE => self.region_write(body, reply),
            command::DEVICE_RESET => {
                self.function.reset();
                Ok(())
            }
            // Among them DEVICE_GET_REGION_IO_FDS: a doorbell is an edge with a value and an order, and those are lost
            // in an eventfd.
            _ => Err(errno(libc::EOPNOTSUPP)),
        }
    }

    fn version(&mut self, body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
        let (proposed, _) = parse::<Version>(body)?;
        if proposed.major != 0 || self.agreed {
            self.agreed = false;
            return Err(errno(libc::EINVAL));
        }
        self.agreed = true;
        // What the client can do matters to a server that sends commands or files. This one does not, so the text that
        // came with the version is not looked at.
        reply.put(&Version { major: 0, minor: 0 });
        let capabilities = format!(
            "{{\"capabilities\":{{\"max_msg_fds\":{MAX_FDS},\"max_data_xfer_size\":{MAX_DATA},\
             \"max_dma_maps\":{MAX_RANGES}}}}}\0"
        );
        reply.put(capabilities.as_bytes());
        Ok(())
    }

    fn dma_map(&mut self, body: &[u8], fds: Vec<OwnedFd>) -> io::Result<()> {
        let (map, _) = parse::<DmaMap>(body)?;
        let mut fds = fds.into_iter();
        let file = fds.next().map(File::from);
        if fds.next().is_some() {
            return Err(errno(libc::EINVAL));
        }
        self.function.dma_map(map.flags & DMA_WRITE != 0, map.offset, map.address, map.size, file)
    }

    fn dma_unmap(&mut self, body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
        let (unmap, _) = parse::<DmaUnmap>(body)?;
        match unmap.flags {
            0 => self.function.dma_unmap(unmap.address, unmap.size)?,
            UNMAP_ALL => self.function.dma_unmap_all(),
            flags if flags & UNMAP_GET_DIRTY != 0 => return Err(errno(libc::EOPNOTSUPP)),
            _ => return Err(errno(libc::EINVAL)),
        }
        reply.put(&unmap);
        Ok(())
    }

    fn set_irqs(&mut self, body: &[u8], fds: Vec<OwnedFd>) -> io::Result<()> {
        let (set, _) = parse::<IrqSet>(body)?;
        let end = set.start.checked_add(set.count).filter(|end| *end <= irqs_of(set.index));
        let (Some(end), true) = (end, set.index < IRQS) else { return Err(errno(libc::EINVAL)) };
        if set.index != MSIX_IRQ || set.flags & IRQ_SET_ACTION_TRIGGER == 0 {
            // Vectors there are none of, or masks, which QEMU keeps itself.
            return Ok(());
        }
        match set.flags & !IRQ_SET_ACTION_TRIGGER {
            // Without vectors it means: all of them off.
            IRQ_SET_DATA_NONE if set.count == 0 => {
                self.function.set_vectors(0, PVRDMA_MAX_INTERRUPTS, &mut None.into_iter())
            }
            IRQ_SET_DATA_EVENTFD if fds.is_empty() => self.function.set_vectors(set.start, end, &mut None.into_iter()),
            IRQ_SET_DATA_EVENTFD if fds.len() == set.count as usize => {
                let eventfds = fds.into_iter().map(EventFd::new).collect::<io::Result<Vec<_>>>();
                let eventfds =
                    eventfds.inspect_err(|error| self.function.complain(format_args!("interrupts: {error}")))?;
                self.function.set_vectors(set.start, end, &mut eventfds.into_iter());
            }
            _ => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }

    fn region_read(&mut self, body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
        let (access, _) = parse::<RegionAccess>(body)?;
        let count = access.count as usize;
        if access.region >= REGIONS || count > MAX_DATA {
            return Err(errno(libc::EINVAL));
        }
        reply.put(&access);
        let at = reply.bytes.len();
        reply.bytes.resize(at + count, 0);
        self.function.region_read(access.region, access.offset, &mut reply.bytes[at..]);
        Ok(())
    }

    fn region_write(&mut self, body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
        let (access, data) = parse::<RegionAccess>(body)?;
        if access.region >= REGIONS || data.len() != access.count as usize {
            return Err(errno(libc::EINVAL));
        }
        self.function.region_write(access.region, access.offset, data);
        reply.put(&access);
        Ok(())
    }
}

fn device_info(body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
    parse::<DeviceInfo>(body)?;
    let argsz = size_of::<DeviceInfo>() as u32;
    reply.put(&DeviceInfo { argsz, flags: DEVICE_RESETS | DEVICE_IS_PCI, num_regions: REGIONS, num_irqs: IRQS });
    Ok(())
}

/// No region can be mapped: a doorbell is an edge, and memory would lose it.
fn region_info(body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
    let (RegionInfo { index, .. }, _) = parse::<RegionInfo>(body)?;
    let size = match index {
        CONFIG_REGION => pci::CONFIG_LEN as u64,
        0..REGIONS => pci::BAR_LEN.get(index as usize).copied().unwrap_or(0),
        _ => return Err(errno(libc::EINVAL)),
    };
    let flags = if size > 0 { REGION_READABLE | REGION_WRITABLE } else { 0 };
    reply.put(&RegionInfo { argsz: size_of::<RegionInfo>() as u32, flags, index, cap_offset: 0, size, offset: 0 });
    Ok(())
}

fn irq_info(body: &[u8], reply: &mut Reply<'_>) -> io::Result<()> {
    let (IrqInfo { index, .. }, _) = parse::<IrqInfo>(body)?;
    if index >= IRQS {
        return Err(errno(libc::EINVAL));
    }
    let count = irqs_of(index);
    let flags = if count > 0 { IRQ_EVENTFD | IRQ_NORESIZE } else { 0 };
    reply.put(&IrqInfo { argsz: size_of::<IrqInfo>() as u32, flags, index, count });
    Ok(())
}

/// Vectors of a kind of interrupt: there is MSI-X only.
fn irqs_of(index: u32) -> u32 {
    if index == MSIX_IRQ { PVRDMA_MAX_INTERRUPTS } else { 0 }
}

/// The structure that a body begins with, and what follows it.
fn parse<T: FromBytes>(body: &[u8]) -> io::Result<(T, &[u8])> {
    T::read_from_prefix(body).map_err(|_| errno(libc::EINVAL))
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
