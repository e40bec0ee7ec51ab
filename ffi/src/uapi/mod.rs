//! The kernel's user-space ABI, one file per kernel header.

pub mod ib_user_ioctl;
pub mod ib_user_verbs;
pub mod rdma_user_cm;
pub mod vmw_pvrdma;
