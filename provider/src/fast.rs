//! The hot verbs: they touch rings and the doorbell page, make no system call, and allocate, print and
//! panic nowhere. `ibv_create_qp_ex` and `ibv_create_cq_ex` are here too, beside the functions that they
//! put into the objects.

pub mod cq_ex;
pub mod poll_cq;
pub mod post;
pub mod post_recv;
pub mod post_send;
pub mod qp_ex;
pub mod wqe;
pub mod wr;
