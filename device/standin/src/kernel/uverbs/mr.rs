//! Memory regions.

use super::attrs::Attrs;
use super::call::Call;
use super::objects::Object;
use super::{Context, EINVAL, EOPNOTSUPP, PAGE, Result, pin};
use pvrdma_device::command::{Command, MrKind, Response};
use pvrdma_device::memory::Buffer;
use pvrdma_ffi::uapi::ib_user_ioctl::UVERBS_ATTR_DESTROY_MR_HANDLE;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::*;

/// `IB_ACCESS_FLUSH_GLOBAL` and `_PERSISTENT`.
const ACCESS_FLUSH: u32 = 3 << 8;
/// Bits 0 to 9, and the optional range 20 to 29.
const ACCESS_KNOWN: u32 = 0x3ff | 0x3ff0_0000;

/// What the kernel refuses before the driver is asked (`ib_check_mr_access`).
fn check_access(access: u32) -> Result<()> {
    let remote_write = PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_ATOMIC;
    if access & remote_write != 0 && access & PVRDMA_ACCESS_LOCAL_WRITE == 0 {
        return Err(EINVAL);
    }
    if access & !ACCESS_KNOWN != 0 {
        return Err(EINVAL);
    }
    if access & (PVRDMA_ACCESS_ON_DEMAND | ACCESS_FLUSH) != 0 {
        return Err(EOPNOTSUPP);
    }
    Ok(())
}

pub fn reg(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_reg_mr = call.core()?;
    let (start, length, access) = (asked.start, asked.length, asked.access_flags);
    context.note(format_args!("pd=#{} start={start:#x} length={length} access={access:#x}", asked.pd_handle));
    if start % PAGE != asked.hca_va % PAGE {
        return Err(EINVAL);
    }
    check_access(access)?;
    let pd = context.objects.pd(asked.pd_handle)?;
    if length == 0 || length > context.driver.device.caps().max_mr_size {
        return Err(EINVAL);
    }
    // As in the kernel's `ib_access_writable`: what the device may write must be writable now.
    let writes = PVRDMA_ACCESS_LOCAL_WRITE | PVRDMA_ACCESS_REMOTE_WRITE | PVRDMA_ACCESS_REMOTE_ATOMIC;
    let span = pin(start, length, access & (writes | PVRDMA_ACCESS_MW_BIND) != 0)?;
    // The driver tells the device the address of the memory and never another one to name it by.
    let kind = MrKind::User(Buffer::Ranges(vec![span]));
    let create = Command::CreateMr { pd, start, length, access_flags: access, kind };
    let (handle, lkey, rkey) = match context.command(&create)? {
        Response::CreateMr { mr, lkey, rkey } => (mr, lkey.0, rkey.0),
        _ => return Err(EINVAL),
    };
    let mr_handle = context.objects.insert(Object::Mr { handle, pd: asked.pd_handle });
    context.note(format_args!(" mr=#{mr_handle} lkey={lkey:#x} rkey={rkey:#x}"));
    context.deliver(mr_handle, || call.answer(&ib_uverbs_reg_mr_resp { mr_handle, lkey, rkey }))
}

pub fn dereg(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_dereg_mr = call.core()?;
    end(context, asked.mr_handle)
}

pub fn destroy_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_DESTROY_MR_HANDLE])?;
    end(context, attrs.object(UVERBS_ATTR_DESTROY_MR_HANDLE)?)
}

pub fn end(context: &mut Context, number: u32) -> Result<()> {
    context.note(format_args!("mr=#{number}"));
    let mr = context.objects.mr(number)?;
    context.command(&Command::DestroyMr { mr })?;
    context.objects.remove(number);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_flags_are_judged_as_the_kernel_does() {
        for good in [0, 1, 0b111, 0xf, 1 << 7, 1 << 20, 1 | 1 << 29] {
            assert_eq!(check_access(good), Ok(()), "{good:#x}");
        }
        for bad in [0b10, 0b1000, 1 << 10, 1 << 30] {
            assert_eq!(check_access(bad), Err(EINVAL), "{bad:#x}");
        }
        for unsupported in [1 << 6, 1 << 8, 1 << 9] {
            assert_eq!(check_access(unsupported), Err(EOPNOTSUPP), "{unsupported:#x}");
        }
    }
}
