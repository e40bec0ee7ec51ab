//! What PCI sees: configuration space, BAR sizes, the MSI-X capability.
//!
//! Called by `server.rs` for region 7 and for the tables the protocol hands to QEMU. QEMU keeps the MSI-X table
//! itself and routes the vectors; BAR 0 exists so that it has a place.

use pvrdma_ffi::dev_api::{
    PVRDMA_MAX_INTERRUPTS, PVRDMA_PCI_RESOURCE_MSIX, PVRDMA_PCI_RESOURCE_REG, PVRDMA_PCI_RESOURCE_UAR,
};

/// VMware's vendor number and the device number of PVRDMA.
const VENDOR: u16 = 0x15ad;
const DEVICE: u16 = 0x0820;
/// Network controller, other.
const CLASS: u16 = 0x0280;

/// Number of UAR pages: one for the kernel driver and one for each open user context. A power of two, as the
/// driver demands of `max_uar`.
pub const UAR_PAGES: u32 = 512;

/// Size of each BAR, by index.
pub const BAR_LEN: [u64; 6] = {
    let mut len = [0; 6];
    len[PVRDMA_PCI_RESOURCE_MSIX] = 0x4000;
    len[PVRDMA_PCI_RESOURCE_REG] = 0x1000;
    len[PVRDMA_PCI_RESOURCE_UAR] = UAR_PAGES as u64 * 4096;
    len
};

/// Size of the configuration space.
pub const CONFIG_LEN: usize = 256;

const COMMAND: usize = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const BAR_FIRST: usize = 0x10;
const BAR_END: usize = 0x28;
const CAP_POINTER: usize = 0x34;
const MSIX_CAP: usize = 0x40;
const MSIX_CONTROL: usize = MSIX_CAP + 2;
/// MSI-X enable and function mask: the bits of the control word that software may set.
const MSIX_CONTROL_WRITABLE: u16 = 0xc000;
const MSIX_PBA: u32 = 0x2000;

/// The configuration space of one function.
pub struct Config {
    bytes: [u8; CONFIG_LEN],
    /// Which bits software may change.
    writable: [u8; CONFIG_LEN],
}

impl Default for Config {
    fn default() -> Self {
        let mut config = Config { bytes: [0; CONFIG_LEN], writable: [0; CONFIG_LEN] };
        config.set16(0x00, VENDOR);
        config.set16(0x02, DEVICE);
        config.set16(0x06, 0x0010); // status: there is a capability list
        config.set16(0x0a, CLASS);
        config.set16(0x2c, VENDOR);
        config.set16(0x2e, DEVICE);
        config.bytes[CAP_POINTER] = MSIX_CAP as u8;
        config.allow16(COMMAND, COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF);

        // All BARs are 32-bit memory: type bits 0. Sizing reads back the bits that can be set.
        for (index, len) in BAR_LEN.into_iter().enumerate() {
            if let Ok(len @ 1..) = u32::try_from(len) {
                let mask = !(len - 1);
                config.writable[BAR_FIRST + index * 4..][..4].copy_from_slice(&mask.to_le_bytes());
            }
        }

        config.bytes[MSIX_CAP] = 0x11;
        config.set16(MSIX_CONTROL, PVRDMA_MAX_INTERRUPTS as u16 - 1);
        config.allow16(MSIX_CONTROL, MSIX_CONTROL_WRITABLE);
        let bir = PVRDMA_PCI_RESOURCE_MSIX as u32;
        config.bytes[MSIX_CAP + 4..][..4].copy_from_slice(&bir.to_le_bytes());
        config.bytes[MSIX_CAP + 8..][..4].copy_from_slice(&(MSIX_PBA | bir).to_le_bytes());
        config
    }
}

impl Config {
    fn set16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn allow16(&mut self, at: usize, mask: u16) {
        self.writable[at..at + 2].copy_from_slice(&mask.to_le_bytes());
    }

    /// Reads; bytes past the end are all ones, as on an empty bus.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(offset) = usize::try_from(offset) else { return };
        for (place, byte) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *place = *byte;
        }
    }

    /// Writes the bits that software may change and ignores the others.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(offset) = usize::try_from(offset) else { return };
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((place, mask), byte) in places.zip(data) {
            *place = (*place & !mask) | (byte & mask);
        }
    }

    /// Whether the function may write to guest memory and raise interrupts.
    pub fn bus_master(&self) -> bool {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]) & COMMAND_MASTER != 0
    }

    /// Back to power-on, as a function reset does; addresses of BARs go too.
    pub fn reset(&mut self) {
        *self = Config::default();
    }
}

const _: () = assert!(BAR_END == BAR_FIRST + 6 * 4 && UAR_PAGES.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(config: &Config, offset: u64) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn driver_finds_its_numbers() {
        assert_eq!(read32(&Config::default(), 0), 0x0820_15ad);
    }

    #[test]
    fn bar_sizing_answers_the_size() {
        let mut config = Config::default();
        for (index, len) in BAR_LEN.into_iter().enumerate() {
            let at = BAR_FIRST as u64 + index as u64 * 4;
            config.write(at, &u32::MAX.to_le_bytes());
            let expected = if len == 0 { 0 } else { !(len as u32 - 1) };
            assert_eq!(read32(&config, at), expected, "BAR {index}");
        }
    }

    #[test]
    fn bus_master_follows_the_command_register() {
        let mut config = Config::default();
        assert!(!config.bus_master());
        config.write(COMMAND as u64, &0x0006u16.to_le_bytes());
        assert!(config.bus_master());
        config.write(COMMAND as u64, &0x0002u16.to_le_bytes());
        assert!(!config.bus_master());
    }

    #[test]
    fn identity_cannot_be_written() {
        let mut config = Config::default();
        config.write(0, &[0; CONFIG_LEN]);
        assert_eq!(read32(&config, 0), 0x0820_15ad);
    }

    #[test]
    fn msix_capability_names_three_vectors() {
        let config = Config::default();
        assert_eq!(read32(&config, MSIX_CAP as u64), 0x0002_0011);
        assert_eq!(read32(&config, MSIX_CAP as u64 + 8), MSIX_PBA);
    }

    #[test]
    fn accesses_past_the_end_are_harmless() {
        let mut config = Config::default();
        let mut data = [0; 8];
        config.read(252, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        config.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff; 8]);
        config.write(u64::MAX, &[1; 8]);
        config.write(254, &[1; 8]);
    }
}
