//! Queue pairs.

use super::attrs::Attrs;
use super::call::Call;
use super::objects::{Object, Qp};
use super::{Context, EINVAL, EOPNOTSUPP, PAGE, Result, pin_ring};
use crate::kernel::events::Channel;
use crate::support::hooks::{self, Field};
use crate::support::trace;
use pvrdma_device::command::{Command, CreateQp, Response};
use pvrdma_device::guest;
use pvrdma_device::memory::Buffer;
use pvrdma_fabric::say::say;
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::ib_user_ioctl::*;
use pvrdma_ffi::uapi::ib_user_verbs::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{pvrdma_create_qp, pvrdma_create_qp_resp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::FromZeros;

// ---- create ------------------------------------------------------------------------------------

/// CREATE_QP, whatever its form.
struct Create {
    user_handle: u64,
    pd: u32,
    send_cq: u32,
    recv_cq: u32,
    srq: Option<u32>,
    cap: ib_uverbs_qp_cap,
    qp_type: u32,
    flags: u64,
    async_events: Arc<Channel>,
    driver: pvrdma_create_qp,
    /// Room for the driver's answer.
    room: usize,
}

/// What the kernel and the driver let through. The device judges the rest.
fn check(create: &Create) -> Result<u8> {
    let qp_type = match u8::try_from(create.qp_type) {
        Ok(kind @ (PVRDMA_QPT_RC | PVRDMA_QPT_UD)) => kind,
        // The kernel keeps these to itself.
        Ok(PVRDMA_QPT_SMI | PVRDMA_QPT_GSI) => return Err(EINVAL),
        _ => return Err(EOPNOTSUPP),
    };
    if create.flags & !u64::from(IB_UVERBS_QP_CREATE_SQ_SIG_ALL) != 0 {
        return Err(EOPNOTSUPP);
    }
    // A provider without room for it does not know that handle and number differ.
    if create.room < size_of::<pvrdma_create_qp_resp>() {
        return Err(EOPNOTSUPP);
    }
    Ok(qp_type)
}

struct Created {
    number: u32,
    qp: Qp,
    cap: ib_uverbs_qp_cap,
}

fn make(context: &mut Context, create: Create) -> Result<Created> {
    let ib_uverbs_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, .. } = create.cap;
    context.note(format_args!(
        "type={} pd=#{} cq=#{},#{} wr={max_send_wr},{max_recv_wr} sge={max_send_sge},{max_recv_sge}",
        create.qp_type, create.pd, create.send_cq, create.recv_cq,
    ));
    let qp_type = check(&create)?;
    let pd = context.objects.pd(create.pd)?;
    let (send_cq, recv_cq) = (context.objects.cq(create.send_cq)?, context.objects.cq(create.recv_cq)?);
    let srq = create.srq.map(|srq| context.objects.srq(srq)).transpose()?;

    let send = pin_ring(create.driver.sbuf_addr, create.driver.sbuf_size)?;
    let mut ranges = vec![send];
    if srq.is_none() {
        ranges.push(pin_ring(create.driver.rbuf_addr, create.driver.rbuf_size)?);
    }
    let pages: u64 = ranges.iter().map(|range| range.len / PAGE).sum();
    if pages > u64::from(u16::MAX) {
        // The command counts them in 16 bits.
        return Err(EINVAL);
    }
    let sq_sig_all = create.flags & u64::from(IB_UVERBS_QP_CREATE_SQ_SIG_ALL) != 0;
    let command = CreateQp {
        pd,
        send_cq,
        recv_cq,
        srq,
        max_send_wr,
        max_recv_wr,
        max_send_sge,
        max_recv_sge,
        sq_sig_all,
        qp_type,
        buffer: Buffer::Ranges(ranges),
        // The first page is the ring state.
        send_chunks: (send.len / PAGE) as u32 - 1,
    };
    let (handle, qpn) = match context.command(&Command::CreateQp(Box::new(command)))? {
        Response::CreateQp { qp, qpn } => (qp, qpn),
        _ => return Err(EINVAL),
    };
    context.driver.events.add_qp(handle, create.user_handle, create.async_events);
    let Create { pd, send_cq, recv_cq, srq, driver, .. } = create;
    let qp = Qp { handle, qpn, pd, send_cq, recv_cq, srq };
    let number = context.objects.insert(Object::Qp(qp));
    context.note(format_args!(" qp=#{number} qpn={:#x} handle={}", qpn.0, handle.0));
    hooks::made(number, handle.0, &[(driver.sbuf_addr, driver.sbuf_size), (driver.rbuf_addr, driver.rbuf_size)]);
    // The driver answers what was asked for, except that there is no inline data.
    let cap = ib_uverbs_qp_cap { max_inline_data: 0, ..create.cap };
    Ok(Created { number, qp, cap })
}

impl Created {
    fn driver(&self) -> pvrdma_create_qp_resp {
        pvrdma_create_qp_resp { qpn: self.qp.qpn.0, qp_handle: hooks::answer(Field::QpHandle, self.qp.handle.0) }
    }
}

pub fn create(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_create_qp = call.core()?;
    let create = Create {
        user_handle: asked.user_handle,
        pd: asked.pd_handle,
        send_cq: asked.send_cq_handle,
        recv_cq: asked.recv_cq_handle,
        srq: (asked.is_srq != 0).then_some(asked.srq_handle),
        cap: ib_uverbs_qp_cap {
            max_send_wr: asked.max_send_wr,
            max_recv_wr: asked.max_recv_wr,
            max_send_sge: asked.max_send_sge,
            max_recv_sge: asked.max_recv_sge,
            max_inline_data: asked.max_inline_data,
        },
        qp_type: asked.qp_type.into(),
        flags: if asked.sq_sig_all != 0 { IB_UVERBS_QP_CREATE_SQ_SIG_ALL.into() } else { 0 },
        async_events: context.async_channel(None)?,
        driver: call.driver()?,
        room: call.driver_room(),
    };
    let made = make(context, create)?;
    context.deliver(made.number, || {
        call.answer_driver(&made.driver())?;
        call.answer(&ib_uverbs_create_qp_resp {
            qp_handle: made.number,
            qpn: made.qp.qpn.0,
            max_send_wr: made.cap.max_send_wr,
            max_recv_wr: made.cap.max_recv_wr,
            max_send_sge: made.cap.max_send_sge,
            max_recv_sge: made.cap.max_recv_sge,
            max_inline_data: made.cap.max_inline_data,
            reserved: 0,
        })
    })
}

pub fn create_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[
        UVERBS_ATTR_CREATE_QP_HANDLE,
        UVERBS_ATTR_CREATE_QP_PD_HANDLE,
        UVERBS_ATTR_CREATE_QP_SRQ_HANDLE,
        UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE,
        UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE,
        UVERBS_ATTR_CREATE_QP_USER_HANDLE,
        UVERBS_ATTR_CREATE_QP_CAP,
        UVERBS_ATTR_CREATE_QP_TYPE,
        UVERBS_ATTR_CREATE_QP_FLAGS,
        UVERBS_ATTR_CREATE_QP_EVENT_FD,
        UVERBS_ATTR_CREATE_QP_RESP_CAP,
        UVERBS_ATTR_CREATE_QP_RESP_QP_NUM,
        UVERBS_ATTR_UHW_IN,
        UVERBS_ATTR_UHW_OUT,
    ])?;
    let qp_type: u32 = attrs.u32(UVERBS_ATTR_CREATE_QP_TYPE)?;
    let create = Create {
        user_handle: attrs.required(UVERBS_ATTR_CREATE_QP_USER_HANDLE)?,
        pd: attrs.object(UVERBS_ATTR_CREATE_QP_PD_HANDLE)?,
        send_cq: attrs.object(UVERBS_ATTR_CREATE_QP_SEND_CQ_HANDLE)?,
        recv_cq: attrs.object(UVERBS_ATTR_CREATE_QP_RECV_CQ_HANDLE)?,
        srq: attrs.optional_object(UVERBS_ATTR_CREATE_QP_SRQ_HANDLE)?,
        cap: attrs.required(UVERBS_ATTR_CREATE_QP_CAP)?,
        qp_type,
        flags: attrs.flags(UVERBS_ATTR_CREATE_QP_FLAGS)?,
        async_events: context.async_channel(attrs.descriptor(UVERBS_ATTR_CREATE_QP_EVENT_FD)?)?,
        driver: attrs.required(UVERBS_ATTR_UHW_IN)?,
        room: attrs.room(UVERBS_ATTR_UHW_OUT).len,
    };
    let made = make(context, create)?;
    attrs.put_number(UVERBS_ATTR_CREATE_QP_HANDLE, made.number);
    context.deliver(made.number, || {
        attrs.put(UVERBS_ATTR_CREATE_QP_RESP_CAP, &made.cap)?;
        attrs.put(UVERBS_ATTR_CREATE_QP_RESP_QP_NUM, &made.qp.qpn.0)?;
        attrs.put(UVERBS_ATTR_UHW_OUT, &made.driver())
    })
}

// ---- modify and query --------------------------------------------------------------------------

/// The address vector of a command, in the device's form. `alternate` paths are taken as they come.
fn ah_from(dest: &ib_uverbs_qp_dest, dmac: [u8; 6]) -> pvrdma_ah_attr {
    pvrdma_ah_attr {
        grh: pvrdma_global_route {
            dgid: dest.dgid,
            flow_label: dest.flow_label,
            sgid_index: dest.sgid_index,
            hop_limit: dest.hop_limit,
            traffic_class: dest.traffic_class,
            reserved: 0,
        },
        dlid: dest.dlid,
        vlan_id: 0,
        sl: dest.sl,
        src_path_bits: dest.src_path_bits,
        static_rate: dest.static_rate,
        ah_flags: if dest.is_global != 0 { PVRDMA_AH_GRH } else { 0 },
        port_num: dest.port_num,
        dmac,
        reserved: 0,
    }
}

fn ah_to(ah: &pvrdma_ah_attr) -> ib_uverbs_qp_dest {
    ib_uverbs_qp_dest {
        dgid: ah.grh.dgid,
        flow_label: ah.grh.flow_label,
        dlid: ah.dlid,
        reserved: 0,
        sgid_index: ah.grh.sgid_index,
        hop_limit: ah.grh.hop_limit,
        traffic_class: ah.grh.traffic_class,
        sl: ah.sl,
        src_path_bits: ah.src_path_bits,
        static_rate: ah.static_rate,
        is_global: u8::from(ah.ah_flags & PVRDMA_AH_GRH != 0),
        port_num: ah.port_num,
    }
}

/// A packet sequence number has 24 bits.
const PSN_MASK: u32 = 0x00ff_ffff;

/// What the kernel checks before the driver is asked; the device judges the transition itself.
fn check_modify(asked: &ib_uverbs_modify_qp, caps: &pvrdma_device_caps) -> Result<()> {
    let mask = asked.attr_mask;
    let sets = |bit: u32| mask & bit != 0;
    let port_ok = |port: u8| (1..=caps.phys_port_cnt).contains(&port);
    if mask & !PVRDMA_QP_ATTR_MASK != 0 {
        return Err(EOPNOTSUPP);
    }
    let bad = sets(PVRDMA_QP_PORT) && !port_ok(asked.port_num)
        || sets(PVRDMA_QP_STATE) && u32::from(asked.qp_state) > PVRDMA_QPS_ERR
        || sets(PVRDMA_QP_CUR_STATE) && u32::from(asked.cur_qp_state) > PVRDMA_QPS_ERR
        || sets(PVRDMA_QP_MIN_RNR_TIMER) && asked.min_rnr_timer > 31
        || sets(PVRDMA_QP_PKEY_INDEX) && asked.pkey_index >= caps.max_pkeys
        // RoCE has no addresses without a global route.
        || sets(PVRDMA_QP_AV) && (!port_ok(asked.dest.port_num) || asked.dest.is_global == 0)
        || sets(PVRDMA_QP_AV) && u32::from(asked.dest.sgid_index) >= caps.gid_tbl_len
        // RoCE has no alternate paths.
        || sets(PVRDMA_QP_ALT_PATH);
    if bad { Err(EINVAL) } else { Ok(()) }
}

/// A path MTU that the network does not carry is refused, and an errno does not say why. Once is enough.
fn say_of_mtu(context: &Context, asked: &ib_uverbs_modify_qp) {
    static SAID: AtomicBool = AtomicBool::new(false);
    let most = context.driver.device.port().active_mtu;
    let (is_given, wanted) = (asked.attr_mask & PVRDMA_QP_PATH_MTU != 0, u32::from(asked.path_mtu));
    if is_given && (most + 1..=PVRDMA_MTU_4096).contains(&wanted) && !SAID.swap(true, Ordering::Relaxed) {
        let bytes = |code: u32| 128 << code;
        say(format_args!(
            "a path MTU of {} is refused: the network of this port carries {}",
            bytes(wanted),
            bytes(most)
        ));
    }
}

pub fn modify(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_modify_qp = call.core()?;
    context.note(format_args!("qp=#{} mask={:#x} state={}", asked.qp_handle, asked.attr_mask, asked.qp_state));
    let qp = context.objects.qp(asked.qp_handle)?;
    check_modify(&asked, &context.driver.device.caps())?;
    if asked.attr_mask & PVRDMA_QP_AV != 0 {
        context.note(format_args!(" dest_qpn={:#x}", asked.dest_qp_num));
    }
    // The kernel resolves the neighbour of a connected QP. Guests are known, whatever their host; who is none gets no
    // MAC, and the device looks at the GID anyway.
    let dmac = guest::mac_of(&asked.dest.dgid).unwrap_or_default();
    let attrs = pvrdma_qp_attr {
        qp_state: asked.qp_state.into(),
        cur_qp_state: asked.cur_qp_state.into(),
        path_mtu: asked.path_mtu.into(),
        path_mig_state: asked.path_mig_state.into(),
        qkey: asked.qkey,
        // The kernel cuts them too.
        rq_psn: asked.rq_psn & PSN_MASK,
        sq_psn: asked.sq_psn & PSN_MASK,
        dest_qp_num: asked.dest_qp_num,
        qp_access_flags: asked.qp_access_flags,
        pkey_index: asked.pkey_index,
        alt_pkey_index: asked.alt_pkey_index,
        en_sqd_async_notify: asked.en_sqd_async_notify,
        max_rd_atomic: asked.max_rd_atomic,
        max_dest_rd_atomic: asked.max_dest_rd_atomic,
        min_rnr_timer: asked.min_rnr_timer,
        port_num: asked.port_num,
        timeout: asked.timeout,
        retry_cnt: asked.retry_cnt,
        rnr_retry: asked.rnr_retry,
        alt_port_num: asked.alt_port_num,
        alt_timeout: asked.alt_timeout,
        ah_attr: ah_from(&asked.dest, dmac),
        alt_ah_attr: ah_from(&asked.alt_dest, guest::mac_of(&asked.alt_dest.dgid).unwrap_or_default()),
        ..pvrdma_qp_attr::new_zeroed()
    };
    let modify = Command::ModifyQp { qp: qp.handle, attr_mask: asked.attr_mask, attrs: Box::new(attrs) };
    say_of_mtu(context, &asked);
    context.command(&modify)?;
    // Who goes to RTR with an address has a peer from then on.
    if asked.attr_mask & PVRDMA_QP_AV != 0 && u32::from(asked.qp_state) == PVRDMA_QPS_RTR && trace::enabled() {
        let path = context.driver.device.path(qp.handle);
        context.note(format_args!(" path={path}"));
    }
    Ok(())
}

pub fn query(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_query_qp = call.core()?;
    context.note(format_args!("qp=#{}", asked.qp_handle));
    let qp = context.objects.qp(asked.qp_handle)?;
    let attrs = match context.command(&Command::QueryQp { qp: qp.handle, attr_mask: asked.attr_mask })? {
        Response::QueryQp(attrs) => attrs,
        _ => return Err(EINVAL),
    };
    context.note(format_args!(" state={}", attrs.qp_state));
    // The kernel's driver knows no more of such a QP, and thinks that every QP signals all.
    if attrs.qp_state == PVRDMA_QPS_RESET {
        return call.answer(&ib_uverbs_query_qp_resp { sq_sig_all: 1, ..ib_uverbs_query_qp_resp::new_zeroed() });
    }
    call.answer(&ib_uverbs_query_qp_resp {
        dest: ah_to(&attrs.ah_attr),
        alt_dest: ah_to(&attrs.alt_ah_attr),
        max_send_wr: attrs.cap.max_send_wr,
        max_recv_wr: attrs.cap.max_recv_wr,
        max_send_sge: attrs.cap.max_send_sge,
        max_recv_sge: attrs.cap.max_recv_sge,
        max_inline_data: attrs.cap.max_inline_data,
        qkey: attrs.qkey,
        rq_psn: attrs.rq_psn,
        sq_psn: attrs.sq_psn,
        dest_qp_num: attrs.dest_qp_num,
        qp_access_flags: attrs.qp_access_flags,
        pkey_index: attrs.pkey_index,
        alt_pkey_index: attrs.alt_pkey_index,
        qp_state: attrs.qp_state as u8,
        // As the driver does: the device's idea of "current" is the state.
        cur_qp_state: attrs.qp_state as u8,
        path_mtu: attrs.path_mtu as u8,
        path_mig_state: attrs.path_mig_state as u8,
        sq_draining: attrs.sq_draining,
        max_rd_atomic: attrs.max_rd_atomic,
        max_dest_rd_atomic: attrs.max_dest_rd_atomic,
        min_rnr_timer: attrs.min_rnr_timer,
        port_num: attrs.port_num,
        timeout: attrs.timeout,
        retry_cnt: attrs.retry_cnt,
        rnr_retry: attrs.rnr_retry,
        alt_port_num: attrs.alt_port_num,
        alt_timeout: attrs.alt_timeout,
        sq_sig_all: 1,
        reserved: [0; 5],
    })
}

// ---- destroy -----------------------------------------------------------------------------------

pub fn end(context: &mut Context, number: u32) -> Result<ib_uverbs_destroy_qp_resp> {
    context.note(format_args!("qp=#{number}"));
    let qp = context.objects.qp(number)?;
    context.command(&Command::DestroyQp { qp: qp.handle })?;
    context.objects.remove(number);
    let events_reported = context.driver.events.remove_qp(qp.handle);
    context.note(format_args!(" events={events_reported}"));
    Ok(ib_uverbs_destroy_qp_resp { events_reported })
}

pub fn destroy(context: &mut Context, call: &Call) -> Result<()> {
    let asked: ib_uverbs_destroy_qp = call.core()?;
    let answer = end(context, asked.qp_handle)?;
    call.answer(&answer)
}

pub fn destroy_ioctl(context: &mut Context, attrs: &mut Attrs) -> Result<()> {
    attrs.only(&[UVERBS_ATTR_DESTROY_QP_HANDLE, UVERBS_ATTR_DESTROY_QP_RESP])?;
    let answer = end(context, attrs.object(UVERBS_ATTR_DESTROY_QP_HANDLE)?)?;
    attrs.put(UVERBS_ATTR_DESTROY_QP_RESP, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps() -> pvrdma_device_caps {
        pvrdma_device_caps { phys_port_cnt: 1, max_pkeys: 1, gid_tbl_len: 16, ..Default::default() }
    }

    #[test]
    fn modify_is_checked_only_where_the_mask_says() {
        let wrong =
            ib_uverbs_modify_qp { port_num: 9, qp_state: 99, min_rnr_timer: 32, pkey_index: 1, ..Default::default() };
        assert_eq!(check_modify(&wrong, &caps()), Ok(()));
        for bit in [PVRDMA_QP_PORT, PVRDMA_QP_STATE, PVRDMA_QP_MIN_RNR_TIMER, PVRDMA_QP_PKEY_INDEX, PVRDMA_QP_AV] {
            let asked = ib_uverbs_modify_qp { attr_mask: bit, ..wrong };
            assert_eq!(check_modify(&asked, &caps()), Err(EINVAL), "{bit:#x}");
        }
        let path = ib_uverbs_qp_dest { is_global: 1, port_num: 1, ..Default::default() };
        let right = ib_uverbs_modify_qp { dest: path, alt_dest: path, alt_port_num: 1, ..Default::default() };
        let with = |attr_mask| check_modify(&ib_uverbs_modify_qp { attr_mask, ..right }, &caps());
        assert_eq!((with(PVRDMA_QP_AV), with(PVRDMA_QP_ALT_PATH)), (Ok(()), Err(EINVAL)));
        let asked = ib_uverbs_modify_qp { attr_mask: 1 << 21, ..Default::default() };
        assert_eq!(check_modify(&asked, &caps()), Err(EOPNOTSUPP));
    }

    #[test]
    fn an_address_survives_the_way_to_the_device_and_back() {
        let dest = ib_uverbs_qp_dest {
            dgid: [7; 16],
            flow_label: 0x12345,
            sgid_index: 1,
            hop_limit: 64,
            traffic_class: 3,
            sl: 2,
            is_global: 1,
            port_num: 1,
            ..Default::default()
        };
        let back = ah_to(&ah_from(&dest, [1; 6]));
        assert_eq!((back.dgid, back.flow_label, back.sgid_index), (dest.dgid, dest.flow_label, dest.sgid_index));
        assert_eq!((back.hop_limit, back.traffic_class, back.sl), (64, 3, 2));
        assert_eq!((back.is_global, back.port_num), (1, 1));
    }
}
