//! The objects, and their slow verbs: create, modify, query, destroy. Each asks the kernel by way of
//! libibverbs.

pub mod ah;
pub mod context;
pub mod cq;
pub mod inline;
pub mod mr;
pub mod neighbour;
pub mod pd;
pub mod port;
pub mod qp;
pub mod srq;
