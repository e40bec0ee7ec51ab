//! What is off by default because nobody could try it on VMware's own device, and how it is switched
//! on: the environment variable [`VARIABLE`], read once when a context is opened. The table for
//! users is in `provider/README.md`; a new switch is one row there and one in `Switches::WORDS`.

use crate::support::log::warn;
use core::ffi::{CStr, c_char};

/// A list of words, separated by commas.
pub const VARIABLE: &CStr = c"PVRDMA_ENABLE";

unsafe extern "C" {
    /// glibc's; crate libc does not have it. NULL in a program with more rights than its user.
    fn secure_getenv(name: *const c_char) -> *mut c_char;
}

/// The switches that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switches(u8);

impl Switches {
    /// `IBV_WR_SEND_WITH_INV` is accepted.
    pub const SEND_WITH_INV: Self = Self(1);
    /// `IBV_WR_LOCAL_INV` is accepted.
    pub const LOCAL_INV: Self = Self(1 << 1);

    /// The word of each switch.
    const WORDS: [(&'static str, Self); 2] = [("send_with_inv", Self::SEND_WITH_INV), ("local_inv", Self::LOCAL_INV)];

    /// As the environment of this process has them. A program with more rights than its user
    /// (set-user-ID) gets the defaults.
    pub fn of_environment() -> Self {
        // SAFETY: the name is NUL-terminated. What comes back is NULL or a NUL-terminated string
        // that stays as long as nobody changes the environment, which is a program's own duty.
        unsafe {
            let value = secure_getenv(VARIABLE.as_ptr());
            if value.is_null() {
                return Self::default();
            }
            Self::of_words(&CStr::from_ptr(value).to_string_lossy())
        }
    }

    /// Words that are no switch are passed over, with a warning: an environment may be older or
    /// newer than we are, or mistyped.
    fn of_words(text: &str) -> Self {
        let mut sum = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match Self::WORDS.iter().find(|(name, _)| *name == word) {
                Some((_, switch)) => sum.0 |= switch.0,
                None => warn(format_args!("PVRDMA_ENABLE: there is no switch {word:?}")),
            }
        }
        sum
    }

    /// Is any switch on?
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// Is this one on?
    #[inline(always)]
    pub fn has(self, switch: Self) -> bool {
        self.0 & switch.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_switch_on_what_they_name_and_nothing_else() {
        assert_eq!(Switches::of_words(""), Switches::default());
        assert_eq!(Switches::of_words("send_with_inv"), Switches::SEND_WITH_INV);
        assert_eq!(Switches::of_words("local_inv , send"), Switches::LOCAL_INV);
        let both = Switches::of_words("local_inv,send_with_inv");
        assert!(both.has(Switches::SEND_WITH_INV) && both.has(Switches::LOCAL_INV) && both.any());
    }
}
