//! The kernel's side: its file table, `ib_uverbs` and the `vmw_pvrdma` driver, event files, the doorbell page.

pub mod events;
pub mod fd;
pub mod segv;
mod store;
pub mod uar;
pub mod uverbs;
