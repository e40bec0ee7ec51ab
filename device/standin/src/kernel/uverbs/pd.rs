//! Protection domains.

use super::attrs::Attrs;
use super::call::Call;
use super::objects::Object;
use super::{Context, EINVAL, Result};
use pvrdma_device::command::{Command, Response};
use pvrdma_ffi::uapi::ib_user_ioctl::UVERBS_ATTR_DESTROY_PD_HANDLE;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::pvrdma_alloc_pd_resp;

pub fn alloc(context: &mut Context, call: &Call) -> Result<()> {
    let pd = match context.command(&Command::CreatePd { ctx: context.ctx })? {
        Response::CreatePd { pd } => pd,
        _ => return Err(EINVAL),
    };
    let number = context.objects.insert(Object::Pd(pd));
    context.note(format_args!("pd=#{number} pdn={}", pd.0));
    context.deliver(number, || {
        call.answer_driver(&pvrdma_alloc_pd_resp { pdn: pd.0, reserved: 0 })?;
        call.answer(&ib_uverbs_alloc_pd_resp { pd_handle: number })
    })
}

pub fn dealloc(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_dealloc_pd = call.core()?;
    end(context, asked.pd_handle)
}

pub fn destroy_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_DESTROY_PD_HANDLE])?;
    end(context, attrs.object(UVERBS_ATTR_DESTROY_PD_HANDLE)?)
}

pub fn end(context: &mut Context, number: u32) -> Result<()> {
    context.note(format_args!("pd=#{number}"));
    let pd = context.objects.pd(number)?;
    context.objects.check_unused(number)?;
    context.command(&Command::DestroyPd { pd })?;
    context.objects.remove(number);
    Ok(())
}
