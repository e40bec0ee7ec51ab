//! The objects of a device: what commands make, work requests name and the engine works on. They hold state and keep
//! its rules; who moves work from one to another is the engine.

pub mod cq;
pub mod mr;
pub mod qp;
pub mod recv_queue;
pub mod send_queue;
pub mod srq;
pub mod table;
