//! Completion channels and async event files: descriptors that the kernel makes for a context.

use super::attrs::Attrs;
use super::call::Call;
use super::{Context, Errno, Result};
use crate::kernel::events::Channel;
use crate::kernel::fd;
use crate::support::raw;
use pvrdma_ffi::uapi::ib_user_ioctl::UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE;
use pvrdma_ffi::uapi::ib_user_verbs::ib_uverbs_create_comp_channel_resp;
use std::sync::Arc;

/// A new event file of this context; the number is the program's descriptor.
fn new(context: &Context) -> Result<(Arc<Channel>, u32)> {
    let (channel, descriptor) = Channel::new().map_err(Errno)?;
    fd::insert(descriptor, fd::Object::Events(channel.clone(), context.file));
    Ok((channel, descriptor as u32))
}

fn undo(descriptor: u32) {
    drop(fd::remove(descriptor as i32));
    raw::close(descriptor as i32);
}

pub fn create_comp_channel(context: &mut Context, call: &Call) -> Result<()> {
    let (_, descriptor) = new(context)?;
    context.note(format_args!("fd={descriptor}"));
    call.answer(&ib_uverbs_create_comp_channel_resp { fd: descriptor }).inspect_err(|_| undo(descriptor))
}

/// Makes an async event file; the first one of a context takes the events of objects that name none.
pub fn new_async(context: &mut Context) -> Result<u32> {
    let (channel, descriptor) = new(context)?;
    context.driver.events.add_context(&channel);
    context.async_events.get_or_insert(channel);
    Ok(descriptor)
}

pub fn alloc_async(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE])?;
    let descriptor = new_async(context)?;
    context.note(format_args!("fd={descriptor}"));
    attrs.put_number(UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE, descriptor);
    Ok(())
}
