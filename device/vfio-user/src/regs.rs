//! BAR 1: the registers, as values and as the actions their writes ask for.
//!
//! Called by `function.rs`, which carries the actions out before it lets the write retire: the driver reads ERR
//! right after it and takes everything for done. No action happens here, so every rule can be tested alone.

use pvrdma_device::memory::DmaAddr;
use pvrdma_ffi::dev_api::*;

/// ERR before the driver has activated the device.
const ERR_NOT_ACTIVE: u32 = 0xffff;

/// The registers that hold something.
#[derive(Debug)]
pub struct Regs {
    dsr_low: u32,
    err: u32,
    imr: u32,
    mac: [u32; 2],
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, or nothing yet.
    None,
    /// DSRHIGH: take the shared region at this address, forgetting everything from before.
    TakeDsr(DmaAddr),
    /// CTL = ACTIVATE.
    Activate,
    /// CTL = UNQUIESCE: the paired network device came up.
    Unquiesce,
    /// CTL = RESET: every object and every guest address is forgotten.
    Reset,
    /// REQUEST = 0: a command is in the slot.
    Command,
    /// IMR.
    Mask(u32),
    /// A value that no driver writes; ERR says so.
    Refused,
}

impl Default for Regs {
    fn default() -> Self {
        Regs { dsr_low: 0, err: ERR_NOT_ACTIVE, imr: 0, mac: [0; 2] }
    }
}

impl Regs {
    /// Takes a write. Registers that are read-only, and places without a register, ignore it.
    pub fn write(&mut self, offset: u32, value: u32) -> Action {
        match offset {
            PVRDMA_REG_DSRLOW => {
                self.dsr_low = value;
                Action::None
            }
            PVRDMA_REG_DSRHIGH => Action::TakeDsr(DmaAddr(u64::from(value) << 32 | u64::from(self.dsr_low))),
            PVRDMA_REG_CTL => match value {
                PVRDMA_DEVICE_CTL_ACTIVATE => Action::Activate,
                PVRDMA_DEVICE_CTL_UNQUIESCE => Action::Unquiesce,
                PVRDMA_DEVICE_CTL_RESET => Action::Reset,
                _ => Action::Refused,
            },
            PVRDMA_REG_REQUEST if value == 0 => Action::Command,
            PVRDMA_REG_IMR => {
                self.imr = value;
                Action::Mask(value)
            }
            PVRDMA_REG_MACL => {
                self.mac[0] = value;
                Action::None
            }
            PVRDMA_REG_MACH => {
                self.mac[1] = value;
                Action::None
            }
            _ => Action::None,
        }
    }

    /// Reads. ICR, which has side effects, is asked of `causes`.
    pub fn read(&self, offset: u32, causes: impl FnOnce() -> u32) -> u32 {
        match offset {
            PVRDMA_REG_VERSION => PVRDMA_VERSION,
            PVRDMA_REG_ERR => self.err,
            PVRDMA_REG_ICR => causes(),
            PVRDMA_REG_IMR => self.imr,
            PVRDMA_REG_MACL => self.mac[0],
            PVRDMA_REG_MACH => self.mac[1],
            _ => 0,
        }
    }

    /// The outcome of the last CTL or REQUEST: 0, or an errno.
    pub fn set_err(&mut self, err: u32) {
        self.err = err;
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        *self = Regs::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(regs: &Regs, offset: u32) -> u32 {
        regs.read(offset, || 0)
    }

    #[test]
    fn power_on_values() {
        let regs = Regs::default();
        assert_eq!(read(&regs, PVRDMA_REG_VERSION), 20);
        assert_eq!(read(&regs, PVRDMA_REG_ERR), 0xffff);
        for offset in [PVRDMA_REG_DSRLOW, PVRDMA_REG_ICR, PVRDMA_REG_IMR, PVRDMA_REG_MACL, 0x28, 0xffc] {
            assert_eq!(read(&regs, offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn high_half_triggers_even_when_zero() {
        let mut regs = Regs::default();
        assert_eq!(regs.write(PVRDMA_REG_DSRLOW, 0x1234_5000), Action::None);
        assert_eq!(regs.write(PVRDMA_REG_DSRHIGH, 0), Action::TakeDsr(DmaAddr(0x1234_5000)));
        assert_eq!(regs.write(PVRDMA_REG_DSRHIGH, 7), Action::TakeDsr(DmaAddr(0x7_1234_5000)));
    }

    #[test]
    fn only_zero_is_a_request() {
        let mut regs = Regs::default();
        assert_eq!(regs.write(PVRDMA_REG_REQUEST, 0), Action::Command);
        assert_eq!(regs.write(PVRDMA_REG_REQUEST, 1), Action::None);
    }

    #[test]
    fn control_values() {
        let mut regs = Regs::default();
        assert_eq!(regs.write(PVRDMA_REG_CTL, 0), Action::Activate);
        assert_eq!(regs.write(PVRDMA_REG_CTL, 1), Action::Unquiesce);
        assert_eq!(regs.write(PVRDMA_REG_CTL, 2), Action::Reset);
        assert_eq!(regs.write(PVRDMA_REG_CTL, 3), Action::Refused);
    }

    #[test]
    fn reading_err_does_not_clear_it() {
        let mut regs = Regs::default();
        regs.set_err(22);
        assert_eq!(read(&regs, PVRDMA_REG_ERR), 22);
        assert_eq!(read(&regs, PVRDMA_REG_ERR), 22);
    }

    #[test]
    fn read_only_registers_ignore_writes() {
        let mut regs = Regs::default();
        for offset in [PVRDMA_REG_VERSION, PVRDMA_REG_ERR, PVRDMA_REG_ICR, 0x28, 0xffc] {
            assert_eq!(regs.write(offset, 5), Action::None, "{offset:#x}");
        }
        assert_eq!(read(&regs, PVRDMA_REG_ERR), 0xffff);
    }

    #[test]
    fn mac_and_mask_read_back() {
        let mut regs = Regs::default();
        regs.write(PVRDMA_REG_MACL, 0x1111);
        regs.write(PVRDMA_REG_MACH, 0x2222);
        assert_eq!(regs.write(PVRDMA_REG_IMR, u32::MAX), Action::Mask(u32::MAX));
        assert_eq!((read(&regs, PVRDMA_REG_MACL), read(&regs, PVRDMA_REG_MACH)), (0x1111, 0x2222));
        assert_eq!(read(&regs, PVRDMA_REG_IMR), u32::MAX);
    }
}
