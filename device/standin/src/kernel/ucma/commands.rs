//! What each command does: its body taken apart, the kernel's rules for states, the answer.

use super::address::Address;
use super::id::{Phase, QPT_RC, QPT_UD, connected_attributes};
use super::lookup::{IP_HEADER, ip_header, port_space};
use super::state::{Param, State, event, parameters, qp_type_of};
use super::{Call, Result};
use crate::kernel::fd;
use crate::support::raw;
use crate::support::trace::{self, Note};
use pvrdma_cm::connection::CallError;
use pvrdma_cm::message::{private_len, reason, sidr_status};
use pvrdma_ffi::dev_api::{PVRDMA_QP_TIMEOUT, PVRDMA_QPS_ERR, PVRDMA_QPS_INIT};
use pvrdma_ffi::uapi::rdma_user_cm::*;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// Requests that may wait if a program does not say, and the most.
const MAX_BACKLOG: u32 = 1024;
/// `IB_EVENT_COMM_EST`.
const EVENT_COMM_EST: u32 = 4;
/// Reason of a REJ: vendor option not supported.
const REJ_VENDOR_OPTION: u8 = 35;
/// Longest option.
const MAX_OPTION: u32 = 4096;

/// For the trace.
pub fn name(command: u32) -> &'static str {
    const NAMES: [&str; 25] = [
        "create_id",
        "destroy_id",
        "bind_ip",
        "resolve_ip",
        "resolve_route",
        "query_route",
        "connect",
        "listen",
        "accept",
        "reject",
        "disconnect",
        "init_qp_attr",
        "get_event",
        "get_option",
        "set_option",
        "notify",
        "join_ip_mcast",
        "leave_mcast",
        "migrate_id",
        "query",
        "bind",
        "resolve_addr",
        "join_mcast",
        "resolve_ib_service",
        "write_cm_event",
    ];
    NAMES.get(command as usize).copied().unwrap_or("unknown")
}

fn remark(note: &mut Note, text: fmt::Arguments<'_>) {
    if trace::enabled() {
        let _ = note.write_fmt(text);
    }
}

fn of_call(error: CallError) -> i32 {
    match error {
        CallError::State => libc::EINVAL,
        CallError::Established => libc::EISCONN,
    }
}

/// Private data of a command, if there is no more than `most` of it.
fn private_data<const N: usize>(given: &[u8], len: u8, at: usize) -> Result<[u8; N]> {
    let given = given.get(..usize::from(len)).ok_or(libc::EINVAL)?;
    let mut bytes = [0; N];
    bytes.get_mut(at..at + given.len()).ok_or(libc::EINVAL)?.copy_from_slice(given);
    Ok(bytes)
}

/// One command of the opened device `file`.
pub fn run(state: &mut State, file: u64, call: &Call, note: &mut Note) -> Result<()> {
    let mut run = Run { state, file, call, note, now: Instant::now() };
    match call.command {
        RDMA_USER_CM_CMD_CREATE_ID => run.create_id(),
        RDMA_USER_CM_CMD_DESTROY_ID => run.destroy_id(),
        RDMA_USER_CM_CMD_BIND_IP => run.bind_ip(),
        RDMA_USER_CM_CMD_BIND => run.bind(),
        RDMA_USER_CM_CMD_RESOLVE_IP => run.resolve_ip(),
        RDMA_USER_CM_CMD_RESOLVE_ADDR => run.resolve_addr(),
        RDMA_USER_CM_CMD_RESOLVE_ROUTE => run.resolve_route(),
        RDMA_USER_CM_CMD_QUERY_ROUTE => run.query_route(),
        RDMA_USER_CM_CMD_QUERY => run.query(),
        RDMA_USER_CM_CMD_LISTEN => run.listen(),
        RDMA_USER_CM_CMD_CONNECT => run.connect(),
        RDMA_USER_CM_CMD_ACCEPT => run.accept(),
        RDMA_USER_CM_CMD_REJECT => run.reject(),
        RDMA_USER_CM_CMD_DISCONNECT => run.disconnect(),
        RDMA_USER_CM_CMD_INIT_QP_ATTR => run.init_qp_attr(),
        RDMA_USER_CM_CMD_SET_OPTION => run.set_option(),
        RDMA_USER_CM_CMD_NOTIFY => run.notify(),
        RDMA_USER_CM_CMD_MIGRATE_ID => run.migrate_id(),
        RDMA_USER_CM_CMD_RESOLVE_IB_SERVICE => run.resolve_ib_service(),
        RDMA_USER_CM_CMD_WRITE_CM_EVENT => run.write_cm_event(),
        RDMA_USER_CM_CMD_LEAVE_MCAST => Err(libc::ENOENT),
        // Options can be set and not read; the device has no multicast.
        _ => Err(libc::ENOSYS),
    }
}

struct Run<'a> {
    state: &'a mut State,
    file: u64,
    call: &'a Call,
    note: &'a mut Note,
    now: Instant,
}

impl Run<'_> {
    fn answer(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.call.answer_at(at, bytes)
    }

    /// An id that is bound to a device, and its connection.
    fn with_device(&mut self, number: u32) -> Result<&mut super::id::Id> {
        remark(self.note, format_args!("id={number}"));
        let id = self.state.id(self.file, number)?;
        if id.path.is_none() { Err(libc::EINVAL) } else { Ok(id) }
    }

    // ---- ids -----------------------------------------------------------------------------------

    fn create_id(&mut self) -> Result<()> {
        let body: rdma_ucm_create_id = self.call.body()?;
        self.call.wants(size_of::<rdma_ucm_create_id_resp>())?;
        let qp_type = qp_type_of(body.ps, body.qp_type).ok_or(libc::EINVAL)?;
        let id = self.state.create(self.file, body.uid, body.ps, qp_type);
        remark(self.note, format_args!("ps={:#x} qp_type={qp_type} id={id}", body.ps));
        self.answer(body.response, rdma_ucm_create_id_resp { id }.as_bytes()).inspect_err(|_| {
            // Nobody could end it.
            self.state.destroy(id);
        })
    }

    fn destroy_id(&mut self) -> Result<()> {
        let body: rdma_ucm_destroy_id = self.call.body()?;
        self.call.wants(size_of::<rdma_ucm_destroy_id_resp>())?;
        remark(self.note, format_args!("id={}", body.id));
        self.state.id(self.file, body.id)?;
        let events_reported = self.state.destroy(body.id);
        self.answer(body.response, rdma_ucm_destroy_id_resp { events_reported }.as_bytes())
    }

    fn migrate_id(&mut self) -> Result<()> {
        let body: rdma_ucm_migrate_id = self.call.body()?;
        self.call.wants(size_of::<rdma_ucm_migrate_resp>())?;
        let from = match fd::get(body.fd as i32) {
            Some(fd::Object::Ucma(file)) => file.number(),
            // Open, but no such device; or not open.
            _ if raw::fstat(body.fd as i32).is_some() => return Err(libc::EINVAL),
            _ => return Err(libc::ENOENT),
        };
        remark(self.note, format_args!("id={}", body.id));
        let events_reported = self.state.id(from, body.id)?.events_reported;
        if from != self.file {
            self.state.migrate(body.id, self.file);
        }
        self.answer(body.response, rdma_ucm_migrate_resp { events_reported }.as_bytes())
    }

    fn set_option(&mut self) -> Result<()> {
        let body: rdma_ucm_set_option = self.call.body()?;
        remark(self.note, format_args!("id={} {}.{}", body.id, body.level, body.optname));
        if body.optlen > MAX_OPTION {
            return Err(libc::EINVAL);
        }
        let mut value = vec![0; body.optlen as usize];
        let id = self.state.id(self.file, body.id)?;
        raw::copy_in(body.optval, &mut value)?;
        let byte = || <[u8; 1]>::try_from(&value[..]).map(|[byte]| byte).map_err(|_| libc::EINVAL);
        let flag = || i32::read_from_bytes(&value).map(|value| value != 0).map_err(|_| libc::EINVAL);
        match (body.level, body.optname) {
            (RDMA_OPTION_ID, RDMA_OPTION_ID_TOS) => id.tos = byte()?,
            (RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR) => {
                let reuse = flag()?;
                if id.phase != Phase::Idle && (!reuse || id.phase == Phase::Listen) {
                    return Err(libc::EINVAL);
                }
                id.reuse = reuse;
            }
            (RDMA_OPTION_ID, RDMA_OPTION_ID_AFONLY) => {
                let only = flag()?;
                if !matches!(id.phase, Phase::Idle | Phase::AddrBound) {
                    return Err(libc::EINVAL);
                }
                id.v6_only = only;
            }
            (RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT) => {
                let timeout = byte()?;
                if id.qp_type != QPT_RC {
                    return Err(libc::EINVAL);
                }
                id.ack_timeout = Some(timeout & 31);
            }
            (RDMA_OPTION_IB, RDMA_OPTION_IB_PATH) => return self.set_path(body.id, &value),
            _ => return Err(libc::ENOSYS),
        }
        Ok(())
    }

    /// A path record by hand, as rsockets have it for local addresses. All paths are alike here.
    fn set_path(&mut self, number: u32, value: &[u8]) -> Result<()> {
        let wanted = IB_PATH_GMP | IB_PATH_PRIMARY | IB_PATH_BIDIRECTIONAL;
        let mut records = value.chunks(size_of::<ib_path_rec_data>());
        let found =
            records.any(|bytes| ib_path_rec_data::read_from_bytes(bytes).is_ok_and(|record| record.flags == wanted));
        if !found || !value.len().is_multiple_of(size_of::<ib_path_rec_data>()) {
            return Err(libc::EINVAL);
        }
        self.route_found(number)
    }

    // ---- addresses -----------------------------------------------------------------------------

    fn bind_ip(&mut self) -> Result<()> {
        let body: rdma_ucm_bind_ip = self.call.body()?;
        self.bind_to(body.id, Address::parse(&body.addr)?)
    }

    fn bind(&mut self) -> Result<()> {
        let body: rdma_ucm_bind = self.call.body()?;
        let address = Address::parse(&body.addr)?;
        if body.reserved != 0 || address.is_none_or(|address| address.len() != usize::from(body.addr_size)) {
            return Err(libc::EINVAL);
        }
        self.bind_to(body.id, address)
    }

    fn bind_to(&mut self, number: u32, address: Option<Address>) -> Result<()> {
        remark(self.note, format_args!("id={number} {address:?}"));
        let id = self.state.id(self.file, number)?;
        let address = address.ok_or(libc::EAFNOSUPPORT)?;
        if id.phase != Phase::Idle {
            return Err(libc::EINVAL);
        }
        self.take_address(number, address).map(|()| self.state.expect_listener(self.now, number))
    }

    /// Binds an idle id.
    fn take_address(&mut self, number: u32, address: Address) -> Result<()> {
        let path = self.state.bound_path(&address)?;
        let id = self.state.id(self.file, number)?;
        let (v6_only, reuse) = (id.v6_only, id.reuse);
        let ps = match address {
            // The port space is in the service id.
            Address::Ib { sid, .. } => port_space(sid).unwrap_or(id.ps),
            _ => id.ps,
        };
        let address = self.state.ports.take(number, ps, address, v6_only, reuse)?;
        let id = self.state.id(self.file, number)?;
        id.src = Some(address);
        id.path = path;
        id.phase = Phase::AddrBound;
        Ok(())
    }

    fn resolve_ip(&mut self) -> Result<()> {
        let body: rdma_ucm_resolve_ip = self.call.body()?;
        self.resolve(body.id, Address::parse(&body.src_addr)?, Address::parse(&body.dst_addr)?, body.timeout_ms)
    }

    fn resolve_addr(&mut self) -> Result<()> {
        let body: rdma_ucm_resolve_addr = self.call.body()?;
        let src = if body.src_size == 0 { None } else { Address::parse(&body.src_addr)? };
        let dst = Address::parse(&body.dst_addr)?;
        let wrong = |address: Option<Address>, len: u16| address.is_none_or(|one| one.len() != usize::from(len));
        if body.reserved != 0 || body.src_size != 0 && wrong(src, body.src_size) || wrong(dst, body.dst_size) {
            return Err(libc::EINVAL);
        }
        self.resolve(body.id, src, dst, body.timeout_ms)
    }

    fn resolve(&mut self, number: u32, src: Option<Address>, dst: Option<Address>, timeout_ms: u32) -> Result<()> {
        remark(self.note, format_args!("id={number} {dst:?}"));
        let id = self.state.id(self.file, number)?;
        let dst = dst.ok_or(libc::EAFNOSUPPORT)?;
        match id.phase {
            Phase::Idle => self.take_address(number, src.unwrap_or_else(|| dst.any()))?,
            Phase::AddrBound => {}
            _ => return Err(libc::EINVAL),
        }
        let until = self.now + Duration::from_millis(timeout_ms.into());
        let id = self.state.id(self.file, number)?;
        let family = std::mem::discriminant::<Address>;
        if id.src.is_some_and(|src| family(&src) != family(&dst)) {
            return Err(libc::EINVAL);
        }
        self.state.begin_to_resolve(self.now, number, dst, until);
        Ok(())
    }

    fn resolve_route(&mut self) -> Result<()> {
        let body: rdma_ucm_resolve_route = self.call.body()?;
        remark(self.note, format_args!("id={}", body.id));
        self.route_found(body.id)
    }

    /// Between guests there is one path, and nobody who would have to be asked for it.
    fn route_found(&mut self, number: u32) -> Result<()> {
        let id = self.state.id(self.file, number)?;
        if id.phase != Phase::AddrResolved {
            return Err(libc::EINVAL);
        }
        if let Some(path) = &mut id.path {
            path.traffic_class = id.tos;
            path.ack_timeout = id.ack_timeout.unwrap_or(path.ack_timeout);
        }
        id.has_route = true;
        id.phase = Phase::RouteResolved;
        self.state.tell(number, event::ROUTE_RESOLVED, 0, Param::None);
        Ok(())
    }

    fn query_route(&mut self) -> Result<()> {
        let body: rdma_ucm_query = self.call.body()?;
        remark(self.note, format_args!("id={}", body.id));
        let len = core::mem::offset_of!(rdma_ucm_query_route_resp, ibdev_index);
        self.call.wants(len)?;
        let guid = self.state.node_guid;
        let answer = self.state.id(self.file, body.id)?.route(guid);
        // The index is left out, as by kernels that do not tell it: libibverbs finds the device by its GUID.
        self.answer(body.response, &answer.as_bytes()[..len])
    }

    fn query(&mut self) -> Result<()> {
        let body: rdma_ucm_query = self.call.body()?;
        remark(self.note, format_args!("id={} option={}", body.id, body.option));
        let guid = self.state.node_guid;
        let room = self.call.room;
        let id = self.state.id(self.file, body.id)?;
        let len = core::mem::offset_of!(rdma_ucm_query_addr_resp, ibdev_index);
        let bytes = match body.option {
            RDMA_USER_CM_QUERY_ADDR => id.addresses(guid).as_bytes()[..len].to_vec(),
            RDMA_USER_CM_QUERY_GID => id.gids(guid).as_bytes()[..len].to_vec(),
            RDMA_USER_CM_QUERY_PATH => id.paths(room),
            _ => return Err(libc::ENOSYS),
        };
        self.call.wants(bytes.len())?;
        self.answer(body.response, &bytes)
    }

    // ---- connections ---------------------------------------------------------------------------

    fn listen(&mut self) -> Result<()> {
        let body: rdma_ucm_listen = self.call.body()?;
        remark(self.note, format_args!("id={} backlog={}", body.id, body.backlog));
        match self.state.id(self.file, body.id)?.phase {
            Phase::Idle => self.take_address(body.id, Address::V4 { addr: [0; 4], port: 0 })?,
            Phase::AddrBound => self.state.ports.take_alone(body.id)?,
            _ => return Err(libc::EINVAL),
        }
        let backlog = if (1..MAX_BACKLOG).contains(&body.backlog) { body.backlog } else { MAX_BACKLOG };
        self.state.listen(body.id, backlog);
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        // `ece` is younger.
        let body: rdma_ucm_connect = self.call.grown_body(core::mem::offset_of!(rdma_ucm_connect, ece))?;
        let param = &body.conn_param;
        if param.valid == 0 {
            return Err(libc::EINVAL);
        }
        let id = self.with_device(body.id)?;
        let (Phase::RouteResolved, Some(path), Some(src), Some(dst)) = (id.phase, id.path, id.src, id.dst) else {
            return Err(libc::EINVAL);
        };
        let service = id.service(&dst);
        let (datagram, psn, by_ib) = (id.is_datagram(), id.psn, src.is_ib());
        let offset = if by_ib { 0 } else { IP_HEADER };
        let header = ip_header(&src, &dst);
        let comm = if datagram {
            let mut data: [u8; private_len::SIDR_REQ] =
                private_data(&param.private_data, param.private_data_len, offset)?;
            data[..offset].copy_from_slice(&header[..offset]);
            self.state.cm.resolve(self.now, service, &path, &data)
        } else {
            let mut data: [u8; private_len::REQ] = private_data(&param.private_data, param.private_data_len, offset)?;
            data[..offset].copy_from_slice(&header[..offset]);
            let parameters = parameters(param, psn, 0);
            self.state.cm.connect(self.now, service, &path, &parameters, &data)
        };
        self.state.connect(body.id, comm.ok_or(libc::ENOMEM)?);
        self.state.id(self.file, body.id)?.phase = Phase::Connect;
        Ok(())
    }

    fn accept(&mut self) -> Result<()> {
        let body: rdma_ucm_accept = self.call.grown_body(core::mem::offset_of!(rdma_ucm_accept, ece))?;
        let id = self.with_device(body.id)?;
        let (Phase::Connect, Some(comm)) = (id.phase, id.comm) else { return Err(libc::EINVAL) };
        let (datagram, psn, qkey, uid) = (id.is_datagram(), id.psn, id.qkey(), id.uid);
        let param = &body.conn_param;
        if param.valid == 0 {
            return self.state.cm.ready(comm).map_err(of_call);
        }
        let now = self.now;
        // Events of the connection find the program's name for it from here on.
        self.state.id(self.file, body.id)?.uid = body.uid;
        let accepted = if datagram {
            private_data(&param.private_data, param.private_data_len, 0).and_then(|data| {
                let (status, qpn) = (sidr_status::VALID, param.qp_num & 0x00ff_ffff);
                self.state.cm.answer(now, comm, status, qpn, qkey, &data).map_err(of_call)
            })
        } else {
            private_data(&param.private_data, param.private_data_len, 0)
                .and_then(|data| self.state.cm.accept(now, comm, &parameters(param, psn, qkey), &data).map_err(of_call))
        };
        accepted.inspect_err(|_| {
            let _ = self.state.id(self.file, body.id).map(|id| id.uid = uid);
            let _ = self.state.cm.reject(now, comm, reason::CONSUMER, &[0; private_len::REJ]);
        })
    }

    fn reject(&mut self) -> Result<()> {
        let body: rdma_ucm_reject = self.call.body()?;
        let reason = match body.reason {
            0 | 28 => reason::CONSUMER,
            REJ_VENDOR_OPTION => REJ_VENDOR_OPTION.into(),
            _ => return Err(libc::EINVAL),
        };
        let id = self.with_device(body.id)?;
        let (datagram, comm) = (id.is_datagram(), id.comm.ok_or(libc::EINVAL)?);
        if datagram {
            let data = private_data(&body.private_data, body.private_data_len, 0)?;
            return self.state.cm.answer(self.now, comm, sidr_status::REJECTED, 0, 0, &data).map_err(of_call);
        }
        let data = private_data(&body.private_data, body.private_data_len, 0)?;
        self.state.cm.reject(self.now, comm, reason, &data).map_err(of_call)
    }

    fn disconnect(&mut self) -> Result<()> {
        let body: rdma_ucm_disconnect = self.call.body()?;
        let comm = self.with_device(body.id)?.comm.ok_or(libc::EINVAL)?;
        // Whatever state it is in, it is no error.
        let _ = self.state.cm.disconnect(self.now, comm);
        Ok(())
    }

    fn notify(&mut self) -> Result<()> {
        let body: rdma_ucm_notify = self.call.body()?;
        let comm = self.with_device(body.id)?.comm.ok_or(libc::EINVAL)?;
        match body.event {
            EVENT_COMM_EST => self.state.cm.established(comm).map_err(of_call),
            _ => Err(libc::EINVAL),
        }
    }

    /// Asks the subnet administrator for a service. No RoCE device has one.
    fn resolve_ib_service(&mut self) -> Result<()> {
        let body: rdma_ucm_resolve_ib_service = self.call.body()?;
        remark(self.note, format_args!("id={}", body.id));
        let id = self.with_device(body.id)?;
        Err(if id.phase == Phase::AddrBound { libc::EOPNOTSUPP } else { libc::EINVAL })
    }

    /// A program, or librdmacm, puts an event of its own into the queue.
    fn write_cm_event(&mut self) -> Result<()> {
        let body: rdma_ucm_write_cm_event = self.call.body()?;
        remark(self.note, format_args!("id={} {}", body.id, body.event));
        if !matches!(body.event, event::USER | event::INTERNAL) {
            return Err(libc::EINVAL);
        }
        self.state.id(self.file, body.id)?;
        let [a, b, c, d, e, f, g, h, ..] = body.param;
        self.state.put(body.id, body.event, body.status as i32, Param::Own([a, b, c, d, e, f, g, h]));
        Ok(())
    }

    fn init_qp_attr(&mut self) -> Result<()> {
        let body: rdma_ucm_init_qp_attr = self.call.body()?;
        self.call.wants(size_of::<pvrdma_ffi::uapi::ib_user_verbs::ib_uverbs_qp_attr>())?;
        if body.qp_state > PVRDMA_QPS_ERR {
            return Err(libc::EINVAL);
        }
        let id = self.with_device(body.id)?;
        let (comm, ack_timeout) = (id.comm.filter(|_| id.qp_type != QPT_UD), id.ack_timeout);
        let attr = match comm {
            None => id.first_attributes(body.qp_state),
            Some(comm) => {
                let attributes = self.state.cm.attributes(comm, body.qp_state != PVRDMA_QPS_INIT).map_err(of_call)?;
                let index = self.state.gid_index(&attributes.path.local_gid);
                let mut attr = connected_attributes(body.qp_state, &attributes, index)?;
                if let Some(timeout) = ack_timeout.filter(|_| attr.qp_attr_mask & PVRDMA_QP_TIMEOUT != 0) {
                    attr.timeout = timeout;
                }
                attr
            }
        };
        self.answer(body.response, attr.as_bytes())
    }
}
