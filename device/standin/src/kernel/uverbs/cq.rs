//! Completion queues.

use super::attrs::Attrs;
use super::call::Call;
use super::objects::Object;
use super::{Context, EINVAL, EOPNOTSUPP, NUM_COMP_VECTORS, Result, ring};
use crate::kernel::events::Channel;
use crate::support::hooks::{self, Field};
use pvrdma_device::command::{Command, Response};
use pvrdma_device::handle::CqHandle;
use pvrdma_ffi::uapi::ib_user_ioctl::*;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{pvrdma_create_cq, pvrdma_create_cq_resp};
use std::sync::Arc;

/// CREATE_CQ, whatever its form.
struct Create {
    user_handle: u64,
    cqe: u32,
    comp_vector: u32,
    flags: u64,
    completions: Option<Arc<Channel>>,
    async_events: Arc<Channel>,
    driver: pvrdma_create_cq,
}

struct Created {
    number: u32,
    cqe: u32,
    cq: CqHandle,
}

fn make(context: &mut Context, create: Create) -> Result<Created> {
    context.note(format_args!("cqe={} buf={:#x}+{:#x}", create.cqe, create.driver.buf_addr, create.driver.buf_size));
    if create.flags != 0 {
        return Err(EOPNOTSUPP);
    }
    if create.comp_vector >= NUM_COMP_VECTORS {
        return Err(EINVAL);
    }
    let max_cqe = context.caps().max_cqe;
    let cqe = create.cqe.checked_next_power_of_two().filter(|_| create.cqe != 0);
    let cqe = cqe.filter(|&cqe| cqe <= max_cqe).ok_or(EINVAL)?;
    let buffer = ring(create.driver.buf_addr, create.driver.buf_size)?;
    let (cq, cqe) = match context.command(&Command::CreateCq { ctx: context.ctx, cqe, buffer })? {
        Response::CreateCq { cq, cqe } => (cq, cqe),
        _ => return Err(EINVAL),
    };
    context.driver.events.add_cq(cq, create.user_handle, create.completions, create.async_events);
    let number = context.objects.insert(Object::Cq(cq));
    context.note(format_args!(" cq=#{number} cqn={}", cq.0));
    hooks::made(number, cq.0, &[(create.driver.buf_addr, create.driver.buf_size)]);
    Ok(Created { number, cqe: hooks::answer(Field::Cqe, cqe), cq })
}

pub fn create(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_create_cq = call.core()?;
    let completions = match asked.comp_channel {
        // Any negative number means none.
        ..0 => None,
        descriptor => Some(context.channel(descriptor.into())?),
    };
    let create = Create {
        user_handle: asked.user_handle,
        cqe: asked.cqe,
        comp_vector: asked.comp_vector,
        flags: 0,
        completions,
        async_events: context.async_channel(None)?,
        driver: call.driver()?,
    };
    let made = make(context, create)?;
    context.deliver(made.number, || {
        call.answer_driver(&pvrdma_create_cq_resp { cqn: made.cq.0, reserved: 0 })?;
        call.answer(&ib_uverbs_create_cq_resp { cq_handle: made.number, cqe: made.cqe })
    })
}

pub fn create_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[
        UVERBS_ATTR_CREATE_CQ_HANDLE,
        UVERBS_ATTR_CREATE_CQ_CQE,
        UVERBS_ATTR_CREATE_CQ_USER_HANDLE,
        UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL,
        UVERBS_ATTR_CREATE_CQ_COMP_VECTOR,
        UVERBS_ATTR_CREATE_CQ_FLAGS,
        UVERBS_ATTR_CREATE_CQ_RESP_CQE,
        UVERBS_ATTR_CREATE_CQ_EVENT_FD,
        UVERBS_ATTR_UHW_IN,
        UVERBS_ATTR_UHW_OUT,
    ])?;
    let completions = attrs.descriptor(UVERBS_ATTR_CREATE_CQ_COMP_CHANNEL)?;
    let create = Create {
        user_handle: attrs.required(UVERBS_ATTR_CREATE_CQ_USER_HANDLE)?,
        cqe: attrs.u32(UVERBS_ATTR_CREATE_CQ_CQE)?,
        comp_vector: attrs.u32(UVERBS_ATTR_CREATE_CQ_COMP_VECTOR)?,
        flags: attrs.flags(UVERBS_ATTR_CREATE_CQ_FLAGS)?,
        completions: completions.map(|descriptor| context.channel(descriptor)).transpose()?,
        async_events: context.async_channel(attrs.descriptor(UVERBS_ATTR_CREATE_CQ_EVENT_FD)?)?,
        driver: attrs.required(UVERBS_ATTR_UHW_IN)?,
    };
    let made = make(context, create)?;
    attrs.put_number(UVERBS_ATTR_CREATE_CQ_HANDLE, made.number);
    context.deliver(made.number, || {
        attrs.put(UVERBS_ATTR_CREATE_CQ_RESP_CQE, &made.cqe)?;
        attrs.put(UVERBS_ATTR_UHW_OUT, &pvrdma_create_cq_resp { cqn: made.cq.0, reserved: 0 })
    })
}

/// Ends a CQ; the answer says how many of its events the program has read and must still acknowledge.
pub fn end(context: &mut Context, number: u32) -> Result<ib_uverbs_destroy_cq_resp> {
    context.note(format_args!("cq=#{number}"));
    let cq = context.objects.cq(number)?;
    context.objects.check_unused(number)?;
    context.command(&Command::DestroyCq { cq })?;
    context.objects.remove(number);
    let (comp_events_reported, async_events_reported) = context.driver.events.remove_cq(cq);
    context.note(format_args!(" events={comp_events_reported}+{async_events_reported}"));
    Ok(ib_uverbs_destroy_cq_resp { comp_events_reported, async_events_reported })
}

pub fn destroy(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_destroy_cq = call.core()?;
    let answer = end(context, asked.cq_handle)?;
    call.answer(&answer)
}

pub fn destroy_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_DESTROY_CQ_HANDLE, UVERBS_ATTR_DESTROY_CQ_RESP])?;
    let answer = end(context, attrs.object(UVERBS_ATTR_DESTROY_CQ_HANDLE)?)?;
    attrs.put(UVERBS_ATTR_DESTROY_CQ_RESP, &answer)
}
