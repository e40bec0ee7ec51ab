//! Layouts and constants of the ABIs around a PVRDMA device. No logic lives here except [`pabi`],
//! which finds out at run time how the loaded libibverbs lays out its private structs, and, for the
//! tests of all crates, a generator of random numbers (`rng.rs`).
//!
//! | module | between | source of truth |
//! |---|---|---|
//! | [`uapi::vmw_pvrdma`] | user space and device (rings), user space and `vmw_pvrdma.ko` | `rdma/vmw_pvrdma-abi.h` |
//! | [`uapi::ib_user_verbs`] | user space and `ib_uverbs.ko`, write() form | `rdma/ib_user_verbs.h` |
//! | [`uapi::ib_user_ioctl`] | user space and `ib_uverbs.ko`, ioctl() form | `rdma/rdma_user_ioctl_cmds.h`, `rdma/ib_user_ioctl_*.h` |
//! | [`dev_api`] | `vmw_pvrdma.ko` and the PCI function | the driver's `pvrdma_dev_api.h`, `pvrdma_verbs.h` |
//! | [`verbs`] | application and provider | `infiniband/verbs.h` |
//! | [`pvrdmadv`] | application and provider, direct verbs | here; `infiniband/pvrdmadv.h` is made of it |
//! | [`pabi`] | libibverbs and provider | `infiniband/driver.h` of each rdma-core release |
//!
//! Names are the C names, so a snake_case type is a C layout. Every struct that crosses a shared
//! memory or system call boundary is plain old data with explicit padding; other crates read and
//! write its bytes through `zerocopy` without `unsafe`. All multi-byte values are little-endian
//! unless a name says `be`. Layouts are checked against the C headers in `tests/layout.rs`.
#![allow(non_camel_case_types, reason = "types carry the name of their C struct")]

#[cfg(not(all(target_arch = "x86_64", target_endian = "little")))]
compile_error!("PVRDMA exists on x86-64 only; the private layouts of libibverbs are known for x86-64 only");

pub mod dev_api;
pub mod pabi;
pub mod pvrdmadv;
#[cfg(any(test, feature = "test-utils"))]
pub mod rng;
pub mod uapi;
pub mod verbs;
