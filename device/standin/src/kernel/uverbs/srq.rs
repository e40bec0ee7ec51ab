//! Shared receive queues.

use super::attrs::Attrs;
use super::call::Call;
use super::objects::Object;
use super::{Context, EINVAL, EOPNOTSUPP, Result, ring};
use crate::kernel::events::Channel;
use crate::support::hooks;
use pvrdma_device::command::{Command, Response};
use pvrdma_device::handle::SrqHandle;
use pvrdma_ffi::dev_api::{PVRDMA_SRQ_LIMIT, PVRDMA_SRQT_BASIC};
use pvrdma_ffi::uapi::ib_user_ioctl::*;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{pvrdma_create_srq, pvrdma_create_srq_resp};
use std::sync::Arc;

/// CREATE_SRQ, whatever its form.
struct Create {
    user_handle: u64,
    pd: u32,
    max_wr: u32,
    max_sge: u32,
    srq_limit: u32,
    srq_type: u32,
    async_events: Arc<Channel>,
    driver: pvrdma_create_srq,
}

fn make(context: &mut Context, create: Create) -> Result<(u32, SrqHandle)> {
    let Create { max_wr, max_sge, srq_limit, .. } = create;
    context.note(format_args!("pd=#{} wr={max_wr} sge={max_sge} limit={srq_limit}", create.pd));
    let caps = context.caps();
    if caps.max_srq == 0 || create.srq_type != u32::from(PVRDMA_SRQT_BASIC) {
        return Err(EOPNOTSUPP);
    }
    if max_wr > caps.max_srq_wr || max_sge > caps.max_srq_sge {
        return Err(EINVAL);
    }
    let pd = context.objects.pd(create.pd)?;
    let buffer = ring(create.driver.buf_addr, create.driver.buf_size)?;
    let command = Command::CreateSrq { pd, max_wr, max_sge, srq_limit, srq_type: PVRDMA_SRQT_BASIC, buffer };
    let srq = match context.command(&command)? {
        Response::CreateSrq { srq } => srq,
        _ => return Err(EINVAL),
    };
    context.driver.events.add_srq(srq, create.user_handle, create.async_events);
    let number = context.objects.insert(Object::Srq { handle: srq, pd: create.pd });
    context.note(format_args!(" srq=#{number} srqn={}", srq.0));
    hooks::made(number, srq.0, &[(create.driver.buf_addr, create.driver.buf_size)]);
    Ok((number, srq))
}

pub fn create(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_create_srq = call.core()?;
    let create = Create {
        user_handle: asked.user_handle,
        pd: asked.pd_handle,
        max_wr: asked.max_wr,
        max_sge: asked.max_sge,
        srq_limit: asked.srq_limit,
        srq_type: PVRDMA_SRQT_BASIC.into(),
        async_events: context.async_channel(None)?,
        driver: call.driver()?,
    };
    let (number, srq) = make(context, create)?;
    context.deliver(number, || {
        call.answer_driver(&pvrdma_create_srq_resp { srqn: srq.0, reserved: 0 })?;
        call.answer(&ib_uverbs_create_srq_resp {
            srq_handle: number,
            max_wr: asked.max_wr,
            max_sge: asked.max_sge,
            srqn: 0,
        })
    })
}

pub fn create_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[
        UVERBS_ATTR_CREATE_SRQ_HANDLE,
        UVERBS_ATTR_CREATE_SRQ_PD_HANDLE,
        UVERBS_ATTR_CREATE_SRQ_USER_HANDLE,
        UVERBS_ATTR_CREATE_SRQ_MAX_WR,
        UVERBS_ATTR_CREATE_SRQ_MAX_SGE,
        UVERBS_ATTR_CREATE_SRQ_LIMIT,
        UVERBS_ATTR_CREATE_SRQ_TYPE,
        UVERBS_ATTR_CREATE_SRQ_EVENT_FD,
        UVERBS_ATTR_CREATE_SRQ_RESP_MAX_WR,
        UVERBS_ATTR_CREATE_SRQ_RESP_MAX_SGE,
        UVERBS_ATTR_UHW_IN,
        UVERBS_ATTR_UHW_OUT,
    ])?;
    let create = Create {
        user_handle: attrs.required(UVERBS_ATTR_CREATE_SRQ_USER_HANDLE)?,
        pd: attrs.object(UVERBS_ATTR_CREATE_SRQ_PD_HANDLE)?,
        max_wr: attrs.u32(UVERBS_ATTR_CREATE_SRQ_MAX_WR)?,
        max_sge: attrs.u32(UVERBS_ATTR_CREATE_SRQ_MAX_SGE)?,
        srq_limit: attrs.u32(UVERBS_ATTR_CREATE_SRQ_LIMIT)?,
        srq_type: attrs.u32(UVERBS_ATTR_CREATE_SRQ_TYPE)?,
        async_events: context.async_channel(attrs.descriptor(UVERBS_ATTR_CREATE_SRQ_EVENT_FD)?)?,
        driver: attrs.required(UVERBS_ATTR_UHW_IN)?,
    };
    let (max_wr, max_sge) = (create.max_wr, create.max_sge);
    let (number, srq) = make(context, create)?;
    attrs.put_number(UVERBS_ATTR_CREATE_SRQ_HANDLE, number);
    context.deliver(number, || {
        attrs.put(UVERBS_ATTR_CREATE_SRQ_RESP_MAX_WR, &max_wr)?;
        attrs.put(UVERBS_ATTR_CREATE_SRQ_RESP_MAX_SGE, &max_sge)?;
        attrs.put(UVERBS_ATTR_UHW_OUT, &pvrdma_create_srq_resp { srqn: srq.0, reserved: 0 })
    })
}

pub fn modify(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_modify_srq = call.core()?;
    context.note(format_args!("srq=#{} mask={:#x} limit={}", asked.srq_handle, asked.attr_mask, asked.srq_limit));
    let srq = context.objects.srq(asked.srq_handle)?;
    if asked.attr_mask & PVRDMA_SRQ_LIMIT == 0 {
        return Err(EINVAL);
    }
    context.command(&Command::ModifySrq { srq, attr_mask: asked.attr_mask, srq_limit: asked.srq_limit })?;
    Ok(())
}

pub fn query(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_query_srq = call.core()?;
    context.note(format_args!("srq=#{}", asked.srq_handle));
    let srq = context.objects.srq(asked.srq_handle)?;
    match context.command(&Command::QuerySrq { srq })? {
        Response::QuerySrq { max_wr, max_sge, srq_limit } => {
            call.answer(&ib_uverbs_query_srq_resp { max_wr, max_sge, srq_limit, reserved: 0 })
        }
        _ => Err(EINVAL),
    }
}

pub fn end(context: &mut Context, number: u32) -> Result<ib_uverbs_destroy_srq_resp> {
    context.note(format_args!("srq=#{number}"));
    let srq = context.objects.srq(number)?;
    context.objects.check_unused(number)?;
    context.command(&Command::DestroySrq { srq })?;
    context.objects.remove(number);
    Ok(ib_uverbs_destroy_srq_resp { events_reported: context.driver.events.remove_srq(srq) })
}

pub fn destroy(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_destroy_srq = call.core()?;
    let answer = end(context, asked.srq_handle)?;
    call.answer(&answer)
}

pub fn destroy_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_DESTROY_SRQ_HANDLE, UVERBS_ATTR_DESTROY_SRQ_RESP])?;
    let answer = end(context, attrs.object(UVERBS_ATTR_DESTROY_SRQ_HANDLE)?)?;
    attrs.put(UVERBS_ATTR_DESTROY_SRQ_RESP, &answer)
}
