//! The kernel's side: its file table, `ib_uverbs` and the `vmw_pvrdma` driver, event files, the doorbell page.

pub mod events;
pub mod fd;
mod gsi;
pub mod segv;
pub mod site;
mod stack;
mod store;
pub mod trap;
pub mod uar;
pub mod ucma;
pub mod uverbs;
