//! The C library's side: functions under its names, which the program calls instead. Each asks whether it is about our
//! device, our descriptors, our sysfs tree or our trap; if not, it does what the C library does.

mod attributes;
mod calls;
pub mod library;
pub mod netdev;
mod next;
mod paths;
pub mod preload;
pub mod signals;
mod system_call;
