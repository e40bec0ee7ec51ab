//! libibverbs's private provider ABI, chosen at run time.
//!
//! One plugin file serves rdma-core v28..v65: everything of libibverbs is found by `dlsym` on the
//! library that is already loaded ([`library`]), its layout is selected by exported symbols and
//! then measured ([`layout`], [`measure`]), and the table of verbs is laid out by op name
//! ([`context_ops`]). Nobody else knows a release number.

pub mod cmd;
pub mod context_ops;
pub mod device_ops;
pub mod layout;
pub mod library;
pub mod measure;

pub use cmd::{Cmd, Functions, Resp, VERBS_LOG_ERR, VERBS_LOG_WARN};
pub use context_ops::{verbs_context_ops, verbs_mr};
pub use device_ops::{verbs_context, verbs_device, verbs_sysfs_dev};
pub use layout::{IBV_CONTEXT_SIZE, Layout, Unsupported, VERBS_CQ_ROOM, VERBS_QP_ROOM, VERBS_SRQ_ROOM};
pub use library::Libibverbs;
pub use measure::VERBS_QP_EX;
