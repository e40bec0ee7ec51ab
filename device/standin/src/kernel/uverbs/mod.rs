//! The uverbs side of the kernel: an opened `/dev/infiniband/uverbsN`, its commands and objects.
//!
//! A command comes in one of two forms: the old one (`call.rs`), as write(2) or wrapped in an ioctl, and native ioctl
//! attributes (`attrs.rs`). Each object's file decodes both into one request, does what `ib_uverbs` and the
//! `vmw_pvrdma` driver do before the device sees it, and issues the device's command. Numbers that programs see are
//! those of the kernel headers `rdma/ib_user_verbs.h` and `rdma/ib_user_ioctl_cmds.h`.

mod attrs;
mod call;
mod cq;
pub mod device;
mod doorbell_page;
mod errno;
mod event;
mod mr;
mod objects;
mod pd;
mod qp;
mod room;
mod srq;
#[cfg(test)]
mod wild;

use crate::kernel::events::{Channel, Events};
use crate::kernel::{fd, uar};
use crate::support::config::{self, Level};
use crate::support::trace::{self, Note};
use crate::support::{hooks, raw};
use attrs::Attrs;
use call::{Call, Form};
pub use errno::Errno;
use errno::*;
use objects::{Object, Objects};
use pvrdma_device::command::{Command, CommandError, Response};
use pvrdma_device::device::Device;
use pvrdma_device::guest::{Guest, Wire};
use pvrdma_device::handle::CtxHandle;
use pvrdma_device::memory::{Buffer, DmaAddr, Span};
use pvrdma_ffi::dev_api::pvrdma_device_caps;
use pvrdma_ffi::uapi::ib_user_ioctl as ioctl_abi;
use pvrdma_ffi::uapi::ib_user_verbs as abi;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Length of the doorbell page and of everything the device is told about.
const PAGE: u64 = 4096;
/// Completion vectors: the device has one interrupt for all CQs.
const NUM_COMP_VECTORS: u32 = 1;

impl From<CommandError> for Errno {
    fn from(error: CommandError) -> Errno {
        Errno(error.errno())
    }
}

/// What stands behind an opened device node.
pub struct Driver {
    /// The device.
    pub device: Arc<Device>,
    /// Where its interrupts go.
    pub events: Arc<Events>,
    /// Whose it is.
    pub guest: Guest,
    /// What it has for those who speak RoCE, and the index of the network interface for it.
    pub wire: Option<(Wire, u32)>,
}

/// Finds the driver at the first GET_CONTEXT of a process. The error is an errno.
pub type Probe = fn() -> std::result::Result<&'static Driver, i32>;

/// An opened device: what all descriptors of one open have in common.
pub struct File {
    /// Tells opens apart.
    id: u64,
    probe: Probe,
    /// Of the memory file that the descriptor really is.
    inode: Option<u64>,
    /// Made by GET_CONTEXT.
    context: Mutex<Option<Context>>,
}

/// A user context and what was made in it.
pub struct Context {
    driver: &'static Driver,
    file: u64,
    ctx: CtxHandle,
    /// Is its doorbell page known?
    has_page: bool,
    objects: Objects,
    /// Async events of objects that name no other event file.
    async_events: Option<Arc<Channel>>,
    note: Note,
}

impl File {
    /// A new open file, of the memory file with that inode.
    pub fn new(probe: Probe, inode: Option<u64>) -> Arc<File> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(File { id: NEXT.fetch_add(1, Ordering::Relaxed), probe, inode, context: Mutex::default() })
    }

    fn context(&self) -> MutexGuard<'_, Option<Context>> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// write(2): one command. Returns the length written.
    pub fn write(&self, from: *const c_void, len: usize) -> Result<usize> {
        guarded(|| {
            let (call, form) = Call::from_write(from as u64, len)?;
            self.old_form(&call, form)?;
            Ok(len)
        })
    }

    /// ioctl(2).
    pub fn ioctl(&self, request: u64, arg: *mut c_void) -> Result<()> {
        let level = config::get().map_or(Level::Ioctl, |config| config.level);
        if request != ioctl_abi::RDMA_VERBS_IOCTL || level == Level::Write {
            return Err(ENOTTY);
        }
        guarded(|| {
            let mut attrs = Attrs::read(arg as u64)?;
            if attrs.object == ioctl_abi::UVERBS_OBJECT_DEVICE && attrs.method == ioctl_abi::UVERBS_METHOD_INVOKE_WRITE
            {
                let (call, form) = Call::from_ioctl(&attrs)?;
                return self.old_form(&call, form);
            }
            if level == Level::Invoke {
                return Err(EPROTONOSUPPORT);
            }
            self.native_form(&mut attrs)?;
            attrs.write_back()
        })
    }

    fn old_form(&self, call: &Call, form: Form) -> Result<()> {
        let name = call::name(call.command, form);
        let mut guard = self.context();
        let result = if (call.command, form) == (abi::IB_USER_VERBS_CMD_GET_CONTEXT, Form::Plain) {
            device::get_context(self, &mut guard, call)
        } else {
            guard.as_mut().ok_or(EINVAL).and_then(|context| {
                context.find_page(self);
                context.old_form(call, form)
            })
        };
        tell(format_args!("{name}"), &mut guard, result);
        drop(guard);
        hooks::command(name);
        result
    }

    fn native_form(&self, attrs: &mut Attrs) -> Result<()> {
        let name = attrs::name(attrs.object, attrs.method);
        let mut guard = self.context();
        let is_get_context =
            (attrs.object, attrs.method) == (ioctl_abi::UVERBS_OBJECT_DEVICE, ioctl_abi::UVERBS_METHOD_GET_CONTEXT);
        let result = if is_get_context {
            device::get_context_ioctl(self, &mut guard, attrs)
        } else {
            guard.as_mut().ok_or(EINVAL).and_then(|context| {
                context.find_page(self);
                context.native_form(attrs)
            })
        };
        tell(format_args!("{name}"), &mut guard, result);
        drop(guard);
        hooks::command(name);
        result
    }
}

/// Ends the context with its last descriptor, as the kernel does when a program closes the device or dies.
impl Drop for Context {
    fn drop(&mut self) {
        // Before the device may give the number to another.
        uar::end(self.ctx);
        // The device first: afterwards no event comes any more.
        let result = self.driver.device.command(&Command::DestroyUc { ctx: self.ctx });
        self.objects.forget_events(&self.driver.events);
        if trace::enabled() {
            trace::command(format_args!("close"), &self.note, result.map(drop).map_err(CommandError::errno));
        }
    }
}

impl Context {
    fn old_form(&mut self, call: &Call, form: Form) -> Result<()> {
        use abi::*;
        match (form, call.command) {
            (Form::Plain, IB_USER_VERBS_CMD_QUERY_DEVICE) => device::query_device(self, call),
            (Form::Extended, IB_USER_VERBS_EX_CMD_QUERY_DEVICE) => device::query_device_ex(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_QUERY_PORT) => device::query_port(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_ALLOC_PD) => pd::alloc(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_DEALLOC_PD) => pd::dealloc(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_REG_MR) => mr::reg(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_DEREG_MR) => mr::dereg(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL) => event::create_comp_channel(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_CREATE_CQ) => cq::create(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_DESTROY_CQ) => cq::destroy(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_CREATE_QP) => qp::create(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_QUERY_QP) => qp::query(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_MODIFY_QP) => qp::modify(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_DESTROY_QP) => qp::destroy(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_CREATE_SRQ) => srq::create(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_MODIFY_SRQ) => srq::modify(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_QUERY_SRQ) => srq::query(self, call),
            (Form::Plain, IB_USER_VERBS_CMD_DESTROY_SRQ) => srq::destroy(self, call),
            // Address handles, memory windows, multicast, resizing, and the polling and posting of old kernels.
            _ => Err(EOPNOTSUPP),
        }
    }

    fn native_form(&mut self, attrs: &mut Attrs) -> Result<()> {
        use ioctl_abi::*;
        match (attrs.object, attrs.method) {
            (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_PORT) => device::query_port_ioctl(self, attrs),
            (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_GID_ENTRY) => device::query_gid_entry(self, attrs),
            (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_GID_TABLE) => device::query_gid_table(self, attrs),
            (UVERBS_OBJECT_ASYNC_EVENT, UVERBS_METHOD_ASYNC_EVENT_ALLOC) => event::alloc_async(self, attrs),
            (UVERBS_OBJECT_PD, UVERBS_METHOD_PD_DESTROY) => pd::destroy_ioctl(self, attrs),
            (UVERBS_OBJECT_MR, UVERBS_METHOD_MR_DESTROY) => mr::destroy_ioctl(self, attrs),
            (UVERBS_OBJECT_CQ, UVERBS_METHOD_CQ_CREATE) => cq::create_ioctl(self, attrs),
            (UVERBS_OBJECT_CQ, UVERBS_METHOD_CQ_DESTROY) => cq::destroy_ioctl(self, attrs),
            (UVERBS_OBJECT_QP, UVERBS_METHOD_QP_CREATE) => qp::create_ioctl(self, attrs),
            (UVERBS_OBJECT_QP, UVERBS_METHOD_QP_DESTROY) => qp::destroy_ioctl(self, attrs),
            (UVERBS_OBJECT_SRQ, UVERBS_METHOD_SRQ_CREATE) => srq::create_ioctl(self, attrs),
            (UVERBS_OBJECT_SRQ, UVERBS_METHOD_SRQ_DESTROY) => srq::destroy_ioctl(self, attrs),
            _ => Err(EPROTONOSUPPORT),
        }
    }

    /// The device's limits.
    fn caps(&self) -> pvrdma_device_caps {
        hooks::limits(self.driver.device.caps())
    }

    fn command(&self, command: &Command) -> Result<Response> {
        Ok(self.driver.device.command(command)?)
    }

    /// Tells the program about a new object. If there is no way to, the object must not stay: nobody could end it.
    fn deliver(&mut self, number: u32, answers: impl FnOnce() -> Result<()>) -> Result<()> {
        answers().inspect_err(|_| {
            // It is new, so nothing uses it and ending it cannot fail.
            let _ = self.end(number);
        })
    }

    fn end(&mut self, number: u32) -> Result<()> {
        match self.objects.get(number)? {
            Object::Pd(_) => pd::end(self, number),
            Object::Mr { .. } => mr::end(self, number),
            Object::Cq(_) => cq::end(self, number).map(drop),
            Object::Qp(_) => qp::end(self, number).map(drop),
            Object::Srq { .. } => srq::end(self, number).map(drop),
        }
    }

    /// Leaves a remark for the trace line of this command.
    fn note(&mut self, remark: fmt::Arguments<'_>) {
        if trace::enabled() {
            let _ = fmt::Write::write_fmt(&mut self.note, remark);
        }
    }

    /// The event file behind descriptor `fd` of this context.
    fn channel(&self, descriptor: i64) -> Result<Arc<Channel>> {
        match c_int::try_from(descriptor).ok().and_then(fd::get) {
            Some(fd::Object::Events(channel, file)) if file == self.file => Ok(channel),
            _ => Err(EBADF),
        }
    }

    /// Where async events of a new object go: the named event file, or the context's own.
    fn async_channel(&self, descriptor: Option<i64>) -> Result<Arc<Channel>> {
        match descriptor {
            Some(descriptor) => self.channel(descriptor),
            None => self.async_events.clone().ok_or(EINVAL),
        }
    }
}

/// Writes the trace line of a command.
fn tell(name: fmt::Arguments<'_>, context: &mut Option<Context>, result: Result<()>) {
    if trace::enabled() {
        let note =
            context.as_mut().map_or(const { Note::new() }, |context| std::mem::replace(&mut context.note, Note::new()));
        trace::command(name, &note, result.map_err(|errno| errno.0));
    }
}

/// Keeps a panic of ours from ending the program.
fn guarded<T>(command: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(command)).unwrap_or(Err(Errno(libc::EIO)))
}

/// One range of user memory that the device may use, checked and made present as the kernel's pinning does.
fn pin(start: u64, len: u64, writable: bool) -> Result<Span> {
    let end = start.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE)).ok_or(EINVAL)?;
    let first = start & !(PAGE - 1);
    let advice = if writable { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
    // SAFETY: it only makes pages present that the program has mapped, with the access they have; else it fails.
    let populated = unsafe { libc::madvise(first as *mut c_void, (end - first) as usize, advice) };
    if populated != 0 {
        // Before Linux 5.14 there is no such advice: at least the range must be mapped.
        let known = raw::errno() != libc::EINVAL || is_advice_known();
        if known || !is_mapped(first, end) {
            return Err(EFAULT);
        }
    }
    Ok(Span { addr: DmaAddr(start), len })
}

fn is_advice_known() -> bool {
    // SAFETY: an empty range.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_POPULATE_READ) == 0 }
}

fn is_mapped(mut at: u64, end: u64) -> bool {
    let mut pages = [0u8; 256];
    while at < end {
        let len = (end - at).min(256 * PAGE);
        // SAFETY: one byte for each page of the range, 256 at most.
        if unsafe { libc::mincore(at as *mut c_void, len as usize, pages.as_mut_ptr()) } != 0 {
            return false;
        }
        at += len;
    }
    true
}

/// Whole pages of a ring buffer. The kernel pins pages, so a length counts in pages, and the device sees no offset.
fn pin_ring(start: u64, len: u32) -> Result<Span> {
    let len = u64::from(len).next_multiple_of(PAGE);
    if len == 0 || !start.is_multiple_of(PAGE) {
        return Err(EINVAL);
    }
    pin(start, len, true)
}

fn ring(start: u64, len: u32) -> Result<Buffer> {
    Ok(Buffer::Ranges(vec![pin_ring(start, len)?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_there_cannot_be_pinned() {
        // SAFETY: a fresh anonymous mapping of two pages.
        let two = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), 8192, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        let at = two as u64;
        assert_eq!(pin(at + 10, 5000, true), Ok(Span { addr: DmaAddr(at + 10), len: 5000 }));
        // SAFETY: the second page of the mapping above, which nothing uses.
        unsafe { libc::mprotect((at + 4096) as *mut c_void, 4096, libc::PROT_READ) };
        assert_eq!(pin(at, 8192, true), Err(EFAULT));
        assert!(pin(at, 8192, false).is_ok());
        // SAFETY: as above.
        unsafe { libc::munmap((at + 4096) as *mut c_void, 4096) };
        assert_eq!(pin(at, 4097, false), Err(EFAULT));
        assert!(pin(at, 4096, true).is_ok());
        assert_eq!(pin(u64::MAX - 10, 100, false), Err(EINVAL));
        assert_eq!(pin_ring(at + 1, 4096), Err(EINVAL));
        assert_eq!(pin_ring(at, 0), Err(EINVAL));
        assert_eq!(pin_ring(at, 1), Ok(Span { addr: DmaAddr(at), len: 4096 }));
        // SAFETY: the rest of the mapping.
        unsafe { libc::munmap(two, 4096) };
    }

    #[test]
    fn a_panic_becomes_an_errno() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        assert_eq!(guarded::<()>(|| panic!("ours")), Err(Errno(libc::EIO)));
        std::panic::set_hook(quiet);
    }
}
