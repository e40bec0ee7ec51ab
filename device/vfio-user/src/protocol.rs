//! Layouts and numbers of the vfio-user protocol, version 0.0.
//!
//! Used by `channel.rs` (the header) and `connection.rs` (all else). The names are those of the "vfio-user Protocol
//! Specification" (interop/vfio-user in QEMU's documents); each item names its section. All fields are in the
//! byte order of the host. What is marked "vfio.h" has its numbers from `<linux/vfio.h>`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "Commands": numbers in `Header::command`, as far as this server carries them out.
pub mod command {
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DEVICE_RESET: u16 = 13;
}

/// "Header": what every message begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// Chosen by the sender of a command, echoed in its reply.
    pub message_id: u16,
    /// One of `command`.
    pub command: u16,
    /// Of the whole message, this header included.
    pub message_size: u32,
    /// `TYPE_*`, `NO_REPLY`, `ERROR`.
    pub flags: u32,
    /// An errno, in a reply with `ERROR`.
    pub error: u32,
}

/// Bits of `Header::flags` that hold the type of the message.
pub const TYPE_MASK: u32 = 0xf;
/// A message that asks for something.
pub const TYPE_COMMAND: u32 = 0;
/// A message that answers one.
pub const TYPE_REPLY: u32 = 1;
/// The sender of a command wants no reply.
pub const NO_REPLY: u32 = 1 << 4;
/// The reply is the header alone, and tells an error.
pub const ERROR: u32 = 1 << 5;

/// "VFIO_USER_VERSION": followed by a JSON text and a NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Version {
    /// Changes with what cannot be understood by an older end.
    pub major: u16,
    /// Changes with what can.
    pub minor: u16,
}

/// "VFIO_USER_DMA_MAP": comes with the file, if the range can be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmaMap {
    /// Size of this structure.
    pub argsz: u32,
    /// `DMA_READ`, `DMA_WRITE`.
    pub flags: u32,
    /// Of the range in the file.
    pub offset: u64,
    /// First DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// The device may write to the range; vfio.h `VFIO_DMA_MAP_FLAG_WRITE`.
pub const DMA_WRITE: u32 = 1 << 1;

/// "VFIO_USER_DMA_UNMAP", command and reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DmaUnmap {
    /// Most bytes that the reply may have.
    pub argsz: u32,
    /// `UNMAP_*`.
    pub flags: u32,
    /// First DMA address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// vfio.h `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`: for migration, which this server does not have.
pub const UNMAP_GET_DIRTY: u32 = 1 << 0;
/// vfio.h `VFIO_DMA_UNMAP_FLAG_ALL`: every range, whatever address and size say.
pub const UNMAP_ALL: u32 = 1 << 1;

/// "VFIO_USER_DEVICE_GET_INFO", command and reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceInfo {
    /// Bytes of the payload.
    pub argsz: u32,
    /// vfio.h `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// Regions, by index from 0.
    pub num_regions: u32,
    /// Kinds of interrupts, by index from 0.
    pub num_irqs: u32,
}

/// The device can be reset.
pub const DEVICE_RESETS: u32 = 1 << 0;
/// It is a PCI device: its regions and interrupts have the numbers that vfio.h gives those.
pub const DEVICE_IS_PCI: u32 = 1 << 1;

/// "VFIO_USER_DEVICE_GET_REGION_INFO", command and reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegionInfo {
    /// Bytes of the payload.
    pub argsz: u32,
    /// `REGION_*`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where capabilities follow; none do.
    pub cap_offset: u32,
    /// Bytes of the region.
    pub size: u64,
    /// Of the region in its file, if it can be mapped; none can.
    pub offset: u64,
}

/// The region can be read.
pub const REGION_READABLE: u32 = 1 << 0;
/// The region can be written.
pub const REGION_WRITABLE: u32 = 1 << 1;
/// Number of regions of a PCI device (vfio.h `VFIO_PCI_NUM_REGIONS`): six BARs, ROM, configuration space, VGA.
pub const REGIONS: u32 = 9;
/// Index of the configuration space (vfio.h `VFIO_PCI_CONFIG_REGION_INDEX`).
pub const CONFIG_REGION: u32 = 7;

/// "VFIO_USER_DEVICE_GET_IRQ_INFO", command and reply.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqInfo {
    /// Bytes of the payload.
    pub argsz: u32,
    /// `IRQ_*`.
    pub flags: u32,
    /// Which kind of interrupt.
    pub index: u32,
    /// How many vectors there are.
    pub count: u32,
}

/// Vectors of this kind are told by eventfds.
pub const IRQ_EVENTFD: u32 = 1 << 0;
/// All of them are set up at once.
pub const IRQ_NORESIZE: u32 = 1 << 3;
/// Kinds of interrupts of a PCI device (vfio.h `VFIO_PCI_NUM_IRQS`): INTx, MSI, MSI-X, error, request.
pub const IRQS: u32 = 5;
/// Index of MSI-X (vfio.h `VFIO_PCI_MSIX_IRQ_INDEX`).
pub const MSIX_IRQ: u32 = 2;

/// "VFIO_USER_DEVICE_SET_IRQS": comes with eventfds, one for each vector, or with none.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct IrqSet {
    /// Size of this structure and of what follows it.
    pub argsz: u32,
    /// `IRQ_SET_*`: one kind of data, one action.
    pub flags: u32,
    /// Which kind of interrupt.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

/// Nothing comes with the command.
pub const IRQ_SET_DATA_NONE: u32 = 1 << 0;
/// Eventfds come with the command; a vector that gets none is switched off.
pub const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
/// What is to be set is how vectors are raised.
pub const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;

/// "VFIO_USER_REGION_READ" and "VFIO_USER_REGION_WRITE", command and reply; data follows in the reply of the first and
/// in the command of the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RegionAccess {
    /// Of the first byte in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes of data.
    pub count: u32,
}

/// Files that may come with one message: "max_msg_fds" of the capabilities.
pub const MAX_FDS: usize = 8;
/// Bytes of data that one message may carry: "max_data_xfer_size". QEMU reads the configuration space in one piece, and
/// everything else in words.
pub const MAX_DATA: usize = 4096;
/// Ranges of memory that a guest may have: "max_dma_maps". QEMU has about ten.
pub const MAX_RANGES: usize = 512;
/// Bytes that may follow a header. Whatever a message is, it is not longer, so one buffer holds it.
pub const MAX_BODY: usize = size_of::<RegionAccess>() + MAX_DATA;

const _: () = assert!(
    size_of::<Header>() == 16
        && size_of::<Version>() == 4
        && size_of::<DmaMap>() == 32
        && size_of::<DmaUnmap>() == 24
        && size_of::<DeviceInfo>() == 16
        && size_of::<RegionInfo>() == 32
        && size_of::<IrqInfo>() == 16
        && size_of::<IrqSet>() == 20
        && size_of::<RegionAccess>() == 16
);
