//! GET_CONTEXT and what programs ask about the device, its port and its GIDs.

use super::attrs::Attrs;
use super::call::Call;
use super::objects::Objects;
use super::{Context, Driver, EINVAL, Errno, File, NUM_COMP_VECTORS, Result, event};
use crate::support::hooks::{self, Field};
use crate::support::trace::Note;
use pvrdma_device::command::{Command, Response};
use pvrdma_device::guest::{NETDEV, WIRE_GID};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::ib_user_ioctl::*;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{PCI_DEVICE_ID_VMWARE_PVRDMA, pvrdma_alloc_ucontext_resp};
use zerocopy::FromZeros;

/// `ib_user_verbs.h`: IB_UVERBS_DEVICE_*.
const DEVICE_PORT_ACTIVE_EVENT: u32 = 1 << 10;
const DEVICE_RC_RNR_NAK_GEN: u32 = 1 << 12;
const DEVICE_MEM_MGT_EXTENSIONS: u32 = 1 << 21;
/// `IBV_ATOMIC_HCA`: atomic among all that goes through this device.
const ATOMIC_HCA: u32 = 1;
/// `IBV_LINK_LAYER_ETHERNET`.
const LINK_LAYER_ETHERNET: u8 = 2;

// ---- context -----------------------------------------------------------------------------------

fn open<'a>(file: &File, slot: &'a mut Option<Context>) -> Result<&'a mut Context> {
    if slot.is_some() {
        return Err(EINVAL);
    }
    let driver = (file.probe)().map_err(Errno)?;
    // The number of the doorbell page is between the driver and its PCI function; here the address of the page is.
    let ctx = match driver.device.command(&Command::CreateUc { pfn: file.id })? {
        Response::CreateUc { ctx } => ctx,
        _ => return Err(EINVAL),
    };
    let context = slot.insert(Context {
        driver,
        file: file.id,
        ctx,
        has_page: false,
        objects: Objects::default(),
        async_events: None,
        note: Note::new(),
    });
    context.note(format_args!("ctx={} guest={}", ctx.0, driver.guest.index()));
    Ok(context)
}

fn ucontext(driver: &Driver) -> pvrdma_alloc_ucontext_resp {
    let qp_tab_size = hooks::answer(Field::QpTabSize, driver.device.caps().max_qp);
    pvrdma_alloc_ucontext_resp { qp_tab_size, reserved: 0 }
}

pub fn get_context(file: &File, slot: &mut Option<Context>, call: &Call) -> Result<()> {
    let context = open(file, slot)?;
    let answered = (|| {
        let async_fd = event::new_async(context)?;
        call.answer_driver(&ucontext(context.driver))?;
        call.answer(&ib_uverbs_get_context_resp { async_fd, num_comp_vectors: NUM_COMP_VECTORS })
    })();
    if answered.is_err() {
        *slot = None;
    }
    answered
}

pub fn get_context_ioctl(file: &File, slot: &mut Option<Context>, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[
        UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS,
        UVERBS_ATTR_GET_CONTEXT_CORE_SUPPORT,
        UVERBS_ATTR_UHW_IN,
        UVERBS_ATTR_UHW_OUT,
    ])?;
    let context = open(file, slot)?;
    let answered = (|| {
        attrs.put(UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS, &NUM_COMP_VECTORS)?;
        attrs.put(UVERBS_ATTR_GET_CONTEXT_CORE_SUPPORT, &IB_UVERBS_CORE_SUPPORT_OPTIONAL_MR_ACCESS)?;
        attrs.put(UVERBS_ATTR_UHW_OUT, &ucontext(context.driver))
    })();
    if answered.is_err() {
        *slot = None;
    }
    answered
}

// ---- device ------------------------------------------------------------------------------------

/// What the driver makes of the capabilities (`pvrdma_query_device`).
fn device_attributes(caps: &pvrdma_device_caps) -> ib_uverbs_query_device_resp {
    let bmme = PVRDMA_BMME_FLAG_LOCAL_INV | PVRDMA_BMME_FLAG_REMOTE_INV | PVRDMA_BMME_FLAG_FAST_REG_WR;
    let mem_mgt = if caps.bmme_flags & bmme == bmme { DEVICE_MEM_MGT_EXTENSIONS } else { 0 };
    let atomics = caps.atomic_ops & (PVRDMA_ATOMIC_OP_COMP_SWAP | PVRDMA_ATOMIC_OP_FETCH_ADD) != 0;
    ib_uverbs_query_device_resp {
        fw_ver: caps.fw_ver,
        node_guid: caps.node_guid,
        sys_image_guid: caps.sys_image_guid,
        max_mr_size: caps.max_mr_size,
        page_size_cap: caps.page_size_cap,
        vendor_id: caps.vendor_id,
        vendor_part_id: PCI_DEVICE_ID_VMWARE_PVRDMA.into(),
        hw_ver: caps.hw_ver,
        max_qp: caps.max_qp,
        max_qp_wr: caps.max_qp_wr,
        device_cap_flags: caps.device_cap_flags | DEVICE_PORT_ACTIVE_EVENT | DEVICE_RC_RNR_NAK_GEN | mem_mgt,
        max_sge: caps.max_sge,
        max_sge_rd: caps.max_sge_rd,
        max_cq: caps.max_cq,
        max_cqe: caps.max_cqe,
        max_mr: caps.max_mr,
        max_pd: caps.max_pd,
        max_qp_rd_atom: caps.max_qp_rd_atom,
        max_qp_init_rd_atom: caps.max_qp_init_rd_atom,
        atomic_cap: if atomics { ATOMIC_HCA } else { 0 },
        max_ah: caps.max_ah,
        max_srq: caps.max_srq,
        max_srq_wr: caps.max_srq_wr,
        max_srq_sge: caps.max_srq_sge,
        max_pkeys: caps.max_pkeys,
        local_ca_ack_delay: caps.local_ca_ack_delay,
        phys_port_cnt: caps.phys_port_cnt,
        ..ib_uverbs_query_device_resp::new_zeroed()
    }
}

pub fn query_device(context: &mut Context, call: &Call) -> Result<()> {
    call.answer(&device_attributes(&context.caps()))
}

pub fn query_device_ex(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_ex_query_device = call.core()?;
    if asked.comp_mask != 0 || asked.reserved != 0 {
        return Err(EINVAL);
    }
    let base = device_attributes(&context.caps());
    let len = size_of::<ib_uverbs_ex_query_device_resp>().min(call.core_room());
    call.answer(&ib_uverbs_ex_query_device_resp {
        base,
        response_length: len as u32,
        device_cap_flags_ex: base.device_cap_flags.into(),
        ..ib_uverbs_ex_query_device_resp::new_zeroed()
    })
}

// ---- port --------------------------------------------------------------------------------------

fn port_attributes(context: &Context, port_num: u8) -> Result<ib_uverbs_query_port_resp> {
    let port = match context.command(&Command::QueryPort { port_num })? {
        Response::QueryPort(port) => port,
        _ => return Err(EINVAL),
    };
    Ok(ib_uverbs_query_port_resp {
        // The driver adds the first, the kernel's RoCE code the second.
        port_cap_flags: port.port_cap_flags | IB_UVERBS_PCF_CM_SUP | IB_UVERBS_PCF_IP_BASED_GIDS,
        max_msg_sz: port.max_msg_sz,
        bad_pkey_cntr: port.bad_pkey_cntr,
        qkey_viol_cntr: port.qkey_viol_cntr,
        gid_tbl_len: port.gid_tbl_len,
        pkey_tbl_len: port.pkey_tbl_len,
        lid: port.lid,
        sm_lid: port.sm_lid,
        state: port.state as u8,
        max_mtu: port.max_mtu as u8,
        active_mtu: port.active_mtu as u8,
        lmc: port.lmc,
        max_vl_num: port.max_vl_num,
        sm_sl: port.sm_sl,
        subnet_timeout: port.subnet_timeout,
        init_type_reply: port.init_type_reply,
        active_width: port.active_width,
        active_speed: port.active_speed,
        phys_state: port.phys_state,
        link_layer: LINK_LAYER_ETHERNET,
        flags: 0,
        reserved: 0,
    })
}

pub fn query_port(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_query_port = call.core()?;
    context.note(format_args!("port={}", asked.port_num));
    call.answer(&port_attributes(context, asked.port_num)?)
}

pub fn query_port_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_QUERY_PORT_PORT_NUM, UVERBS_ATTR_QUERY_PORT_RESP])?;
    let port_num: u8 = attrs.required(UVERBS_ATTR_QUERY_PORT_PORT_NUM)?;
    context.note(format_args!("port={port_num}"));
    let legacy_resp = port_attributes(context, port_num)?;
    let answer = ib_uverbs_query_port_resp_ex { legacy_resp, port_cap_flags2: 0, reserved: [0; 6] };
    attrs.put(UVERBS_ATTR_QUERY_PORT_RESP, &answer)
}

// ---- GIDs --------------------------------------------------------------------------------------

/// Entry of the GID table; `None` if it is empty.
fn gid_entry(context: &Context, index: u32) -> Option<ib_uverbs_gid_entry> {
    let gid = context.driver.device.gid(index)?;
    let (high, low) = gid.split_at(8);
    let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    Some(ib_uverbs_gid_entry {
        gid: [half(high), half(low)],
        gid_index: index,
        port_num: 1,
        gid_type: context.driver.guest.roce().gid_type().into(),
        netdev_ifindex: match context.driver.wire {
            Some((_, wire)) if index == WIRE_GID => wire,
            _ => ifindex(NETDEV),
        },
    })
}

/// The index of a network interface; 0: there is none.
pub fn ifindex(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    // SAFETY: a terminated string.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

pub fn query_gid_entry(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[
        UVERBS_ATTR_QUERY_GID_ENTRY_PORT,
        UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX,
        UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS,
        UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY,
    ])?;
    let port = attrs.u32(UVERBS_ATTR_QUERY_GID_ENTRY_PORT)?;
    let index = attrs.u32(UVERBS_ATTR_QUERY_GID_ENTRY_GID_INDEX)?;
    let flags = attrs.flags(UVERBS_ATTR_QUERY_GID_ENTRY_FLAGS)?;
    context.note(format_args!("port={port} index={index}"));
    if flags != 0 || port != 1 || index >= context.driver.device.caps().gid_tbl_len {
        return Err(EINVAL);
    }
    let entry = gid_entry(context, index).ok_or(Errno(libc::ENODATA))?;
    attrs.put(UVERBS_ATTR_QUERY_GID_ENTRY_RESP_ENTRY, &entry)
}

pub fn query_gid_table(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    use zerocopy::IntoBytes;
    attrs.only(&[
        UVERBS_ATTR_QUERY_GID_TABLE_ENTRY_SIZE,
        UVERBS_ATTR_QUERY_GID_TABLE_FLAGS,
        UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES,
        UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES,
    ])?;
    let entry_len: u64 = attrs.required(UVERBS_ATTR_QUERY_GID_TABLE_ENTRY_SIZE)?;
    let room = attrs.room(UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES).len as u64;
    if attrs.flags(UVERBS_ATTR_QUERY_GID_TABLE_FLAGS)? != 0 || entry_len == 0 || entry_len > room {
        return Err(EINVAL);
    }
    let entries = (0..context.driver.device.caps().gid_tbl_len).filter_map(|index| gid_entry(context, index));
    let mut bytes = Vec::new();
    let mut count = 0u64;
    for entry in entries {
        // All or nothing: a cut list would pass for the whole.
        if count == room / entry_len {
            return Err(EINVAL);
        }
        // Each entry takes the length that the program knows, shorter or longer than ours.
        let mut padded = vec![0; entry_len as usize];
        let len = padded.len().min(size_of_val(&entry));
        padded[..len].copy_from_slice(&entry.as_bytes()[..len]);
        bytes.append(&mut padded);
        count += 1;
    }
    attrs.put_bytes(UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES, &bytes)?;
    attrs.put(UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES, &count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_follow_the_capabilities() {
        let caps = pvrdma_device_caps { max_sge: 16, device_cap_flags: 1, ..Default::default() };
        let plain = device_attributes(&caps);
        assert_eq!((plain.device_cap_flags, plain.atomic_cap, plain.max_sge), (0x1401, 0, 16));
        let rich = pvrdma_device_caps { atomic_ops: 1, bmme_flags: 7, ..caps };
        let rich = device_attributes(&rich);
        assert_eq!((rich.device_cap_flags, rich.atomic_cap), (0x20_1401, ATOMIC_HCA));
        assert_eq!(rich.vendor_part_id, 0x820);
    }
}
