//! The command slot's bytes: decodes a request into the core's `Command`, encodes its `Response`.
//!
//! Called by `session.rs` with a private copy of the slot. Past the struct that belongs to the command number the
//! driver leaves stale bytes, so only that struct is looked at. Values are passed on as the guest wrote them; the
//! core judges them.

use pvrdma_device::command::{Command, CommandError, CreateQp, MrKind, Response};
use pvrdma_device::handle::{CqHandle, CtxHandle, MrHandle, PdHandle, QpHandle, SrqHandle};
use pvrdma_device::memory::{Buffer, DmaAddr};
use pvrdma_ffi::dev_api::*;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A request, copied out of guest memory.
pub type Request = [u8; PVRDMA_CMD_REQ_LEN];

/// The header every request begins with.
pub fn header(request: &Request) -> pvrdma_cmd_hdr {
    view(request)
}

/// Whether the driver waits for an answer to this command; it takes the others' success from ERR alone.
pub fn awaited(cmd: u32) -> bool {
    matches!(
        cmd,
        PVRDMA_CMD_QUERY_PORT
            | PVRDMA_CMD_QUERY_PKEY
            | PVRDMA_CMD_CREATE_PD
            | PVRDMA_CMD_CREATE_MR
            | PVRDMA_CMD_CREATE_CQ
            | PVRDMA_CMD_CREATE_QP
            | PVRDMA_CMD_MODIFY_QP
            | PVRDMA_CMD_QUERY_QP
            | PVRDMA_CMD_CREATE_UC
            | PVRDMA_CMD_CREATE_SRQ
            | PVRDMA_CMD_QUERY_SRQ
    )
}

/// Turns a request into a command. `driver_version` is what the driver wrote into the shared region.
pub fn decode(request: &Request, driver_version: u32) -> Result<Command, CommandError> {
    Ok(match header(request).cmd {
        PVRDMA_CMD_QUERY_PORT => {
            let cmd: pvrdma_cmd_query_port = view(request);
            Command::QueryPort { port_num: cmd.port_num }
        }
        PVRDMA_CMD_QUERY_PKEY => {
            let cmd: pvrdma_cmd_query_pkey = view(request);
            Command::QueryPkey { port_num: cmd.port_num, index: cmd.index }
        }
        PVRDMA_CMD_CREATE_PD => {
            let cmd: pvrdma_cmd_create_pd = view(request);
            Command::CreatePd { ctx: CtxHandle(cmd.ctx_handle) }
        }
        PVRDMA_CMD_DESTROY_PD => {
            let cmd: pvrdma_cmd_destroy_pd = view(request);
            Command::DestroyPd { pd: PdHandle(cmd.pd_handle) }
        }
        PVRDMA_CMD_CREATE_MR => create_mr(&view(request))?,
        PVRDMA_CMD_DESTROY_MR => {
            let cmd: pvrdma_cmd_destroy_mr = view(request);
            Command::DestroyMr { mr: MrHandle(cmd.mr_handle) }
        }
        PVRDMA_CMD_CREATE_CQ => {
            let cmd: pvrdma_cmd_create_cq = view(request);
            Command::CreateCq {
                ctx: CtxHandle(cmd.ctx_handle),
                cqe: cmd.cqe,
                buffer: pages(cmd.pdir_dma, cmd.nchunks)?,
            }
        }
        PVRDMA_CMD_DESTROY_CQ => {
            let cmd: pvrdma_cmd_destroy_cq = view(request);
            Command::DestroyCq { cq: CqHandle(cmd.cq_handle) }
        }
        PVRDMA_CMD_CREATE_QP => create_qp(&view(request))?,
        PVRDMA_CMD_MODIFY_QP => {
            let cmd: pvrdma_cmd_modify_qp = view(request);
            Command::ModifyQp { qp: QpHandle(cmd.qp_handle), attr_mask: cmd.attr_mask, attrs: Box::new(cmd.attrs) }
        }
        PVRDMA_CMD_QUERY_QP => {
            let cmd: pvrdma_cmd_query_qp = view(request);
            Command::QueryQp { qp: QpHandle(cmd.qp_handle), attr_mask: cmd.attr_mask }
        }
        PVRDMA_CMD_DESTROY_QP => {
            let cmd: pvrdma_cmd_destroy_qp = view(request);
            Command::DestroyQp { qp: QpHandle(cmd.qp_handle) }
        }
        PVRDMA_CMD_CREATE_UC => {
            let cmd: pvrdma_cmd_create_uc = view(request);
            let pfn = if driver_version < PVRDMA_PPN64_VERSION { cmd.pfn64 & 0xffff_ffff } else { cmd.pfn64 };
            Command::CreateUc { pfn }
        }
        PVRDMA_CMD_DESTROY_UC => {
            let cmd: pvrdma_cmd_destroy_uc = view(request);
            Command::DestroyUc { ctx: CtxHandle(cmd.ctx_handle) }
        }
        PVRDMA_CMD_CREATE_BIND => {
            let cmd: pvrdma_cmd_create_bind = view(request);
            Command::CreateBind {
                index: cmd.index,
                gid: cmd.new_gid,
                gid_type: cmd.gid_type,
                vlan: cmd.vlan,
                mtu: cmd.mtu,
            }
        }
        PVRDMA_CMD_DESTROY_BIND => {
            let cmd: pvrdma_cmd_destroy_bind = view(request);
            Command::DestroyBind { index: cmd.index, gid: cmd.dest_gid }
        }
        PVRDMA_CMD_CREATE_SRQ => {
            let cmd: pvrdma_cmd_create_srq = view(request);
            Command::CreateSrq {
                pd: PdHandle(cmd.pd_handle),
                max_wr: cmd.attrs.max_wr,
                max_sge: cmd.attrs.max_sge,
                srq_limit: cmd.attrs.srq_limit,
                srq_type: cmd.srq_type,
                buffer: pages(cmd.pdir_dma, cmd.nchunks)?,
            }
        }
        PVRDMA_CMD_MODIFY_SRQ => {
            let cmd: pvrdma_cmd_modify_srq = view(request);
            Command::ModifySrq {
                srq: SrqHandle(cmd.srq_handle),
                attr_mask: cmd.attr_mask,
                srq_limit: cmd.attrs.srq_limit,
            }
        }
        PVRDMA_CMD_QUERY_SRQ => {
            let cmd: pvrdma_cmd_query_srq = view(request);
            Command::QuerySrq { srq: SrqHandle(cmd.srq_handle) }
        }
        PVRDMA_CMD_DESTROY_SRQ => {
            let cmd: pvrdma_cmd_destroy_srq = view(request);
            Command::DestroySrq { srq: SrqHandle(cmd.srq_handle) }
        }
        PVRDMA_CMD_RESIZE_CQ => return Err(CommandError::NotSupported("RESIZE_CQ")),
        _ => return Err(CommandError::NotSupported("unknown command")),
    })
}

fn create_mr(cmd: &pvrdma_cmd_create_mr) -> Result<Command, CommandError> {
    let kind = match cmd.flags {
        0 => MrKind::User(pages(cmd.pdir_dma, cmd.nchunks)?),
        PVRDMA_MR_FLAG_DMA => MrKind::Dma,
        PVRDMA_MR_FLAG_FRMR => MrKind::FastReg { max_pages: cmd.nchunks },
        _ => return Err(CommandError::Invalid("MR flags")),
    };
    Ok(Command::CreateMr {
        pd: PdHandle(cmd.pd_handle),
        start: cmd.start,
        length: cmd.length,
        access_flags: cmd.access_flags,
        kind,
    })
}

fn create_qp(cmd: &pvrdma_cmd_create_qp) -> Result<Command, CommandError> {
    Ok(Command::CreateQp(Box::new(CreateQp {
        pd: PdHandle(cmd.pd_handle),
        send_cq: CqHandle(cmd.send_cq_handle),
        recv_cq: CqHandle(cmd.recv_cq_handle),
        srq: (cmd.is_srq != 0).then_some(SrqHandle(cmd.srq_handle)),
        max_send_wr: cmd.max_send_wr,
        max_recv_wr: cmd.max_recv_wr,
        max_send_sge: cmd.max_send_sge,
        max_recv_sge: cmd.max_recv_sge,
        sq_sig_all: cmd.sq_sig_all != 0,
        qp_type: cmd.qp_type,
        buffer: pages(cmd.pdir_dma, u32::from(cmd.total_chunks))?,
        send_chunks: u32::from(cmd.send_chunks),
    })))
}

/// A page directory. Its count is checked here, before anything is allocated for it.
fn pages(pdir: u64, nchunks: u32) -> Result<Buffer, CommandError> {
    if !(1..=PVRDMA_PAGE_DIR_MAX_PAGES).contains(&nchunks) {
        return Err(CommandError::Invalid("page count"));
    }
    Ok(Buffer::Pdir { pdir: DmaAddr(pdir), nchunks })
}

/// The bytes of a response.
pub struct Answer {
    bytes: [u8; PVRDMA_CMD_RESP_LEN],
    len: usize,
}

impl Answer {
    /// The header, which goes into the slot last.
    pub fn header(&self) -> &[u8] {
        &self.bytes[..size_of::<pvrdma_cmd_resp_hdr>()]
    }

    /// All after the header.
    pub fn body(&self) -> &[u8] {
        &self.bytes[size_of::<pvrdma_cmd_resp_hdr>()..self.len]
    }

    fn new(answer: &(impl IntoBytes + Immutable)) -> Answer {
        let mut bytes = [0; PVRDMA_CMD_RESP_LEN];
        let source = answer.as_bytes();
        bytes[..source.len()].copy_from_slice(source);
        Answer { bytes, len: source.len() }
    }
}

/// Encodes the response to `request`. `driver_version` decides what a driver understands of CREATE_QP.
pub fn encode(request: &Request, response: &Response, driver_version: u32) -> Answer {
    let hdr = answer_header(request, 0);
    match response {
        Response::Done => Answer::new(&hdr),
        Response::QueryPort(attrs) => Answer::new(&pvrdma_cmd_query_port_resp { hdr, attrs: **attrs }),
        Response::QueryPkey { pkey } => {
            Answer::new(&pvrdma_cmd_query_pkey_resp { hdr, pkey: *pkey, ..Default::default() })
        }
        Response::CreatePd { pd } => {
            Answer::new(&pvrdma_cmd_create_pd_resp { hdr, pd_handle: pd.0, ..Default::default() })
        }
        Response::CreateMr { mr, lkey, rkey } => Answer::new(&pvrdma_cmd_create_mr_resp {
            hdr,
            mr_handle: mr.0,
            lkey: lkey.0,
            rkey: rkey.0,
            ..Default::default()
        }),
        Response::CreateCq { cq, cqe } => Answer::new(&pvrdma_cmd_create_cq_resp { hdr, cq_handle: cq.0, cqe: *cqe }),
        Response::CreateQp { qpn, qp } => {
            let cmd: pvrdma_cmd_create_qp = view(request);
            if driver_version < PVRDMA_QPHANDLE_VERSION {
                // Such a driver takes the number for the handle.
                Answer::new(&pvrdma_cmd_create_qp_resp {
                    hdr,
                    qpn: qp.0,
                    max_send_wr: cmd.max_send_wr,
                    max_recv_wr: cmd.max_recv_wr,
                    max_send_sge: cmd.max_send_sge,
                    max_recv_sge: cmd.max_recv_sge,
                    max_inline_data: 0,
                })
            } else {
                Answer::new(&pvrdma_cmd_create_qp_resp_v2 {
                    hdr,
                    qpn: qpn.0,
                    qp_handle: qp.0,
                    max_send_wr: cmd.max_send_wr,
                    max_recv_wr: cmd.max_recv_wr,
                    max_send_sge: cmd.max_send_sge,
                    max_recv_sge: cmd.max_recv_sge,
                    max_inline_data: 0,
                    ..Default::default()
                })
            }
        }
        Response::QueryQp(attrs) => Answer::new(&pvrdma_cmd_query_qp_resp { hdr, attrs: **attrs }),
        Response::CreateUc { ctx } => {
            Answer::new(&pvrdma_cmd_create_uc_resp { hdr, ctx_handle: ctx.0, ..Default::default() })
        }
        Response::CreateSrq { srq } => {
            Answer::new(&pvrdma_cmd_create_srq_resp { hdr, srqn: srq.0, ..Default::default() })
        }
        Response::QuerySrq { max_wr, max_sge, srq_limit } => Answer::new(&pvrdma_cmd_query_srq_resp {
            hdr,
            attrs: pvrdma_srq_attr { max_wr: *max_wr, max_sge: *max_sge, srq_limit: *srq_limit, ..Default::default() },
        }),
    }
}

/// A refusal that stands in the response slot.
pub fn encode_error(request: &Request, errno: i32) -> Answer {
    Answer::new(&answer_header(request, u8::try_from(errno).unwrap_or(u8::MAX)))
}

fn answer_header(request: &Request, err: u8) -> pvrdma_cmd_resp_hdr {
    let header = header(request);
    pvrdma_cmd_resp_hdr {
        response: header.response,
        ack: PVRDMA_CMD_FIRST_RESP.wrapping_add(header.cmd),
        err,
        ..Default::default()
    }
}

/// The struct a request begins with. All of them fit the slot, which `requests_fit_the_slot` checks.
fn view<T: FromBytes + IntoBytes + KnownLayout + Immutable>(request: &Request) -> T {
    let mut value = T::new_zeroed();
    let target = value.as_mut_bytes();
    target.copy_from_slice(&request[..target.len()]);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(cmd: &(impl IntoBytes + Immutable)) -> Request {
        // Stale bytes behind the struct, as a driver leaves them.
        let mut request = [0xa5; PVRDMA_CMD_REQ_LEN];
        let bytes = cmd.as_bytes();
        request[..bytes.len()].copy_from_slice(bytes);
        request
    }

    fn hdr(cmd: u32) -> pvrdma_cmd_hdr {
        pvrdma_cmd_hdr { response: 0x1122_3344_5566_7788, cmd, reserved: 0 }
    }

    #[test]
    fn requests_fit_the_slot() {
        assert_eq!(size_of::<pvrdma_cmd_modify_qp>(), PVRDMA_CMD_REQ_LEN);
        assert_eq!(size_of::<pvrdma_cmd_query_qp_resp>(), PVRDMA_CMD_RESP_LEN);
        for cmd in 0..PVRDMA_CMD_MAX {
            let mut request = [0; PVRDMA_CMD_REQ_LEN];
            request[8..12].copy_from_slice(&cmd.to_le_bytes());
            // Zeroes name no pages, which is refused; nothing else may be, and nothing may panic.
            match decode(&request, PVRDMA_VERSION) {
                Ok(_) | Err(CommandError::Invalid("page count") | CommandError::NotSupported("RESIZE_CQ")) => {}
                Err(error) => panic!("command {cmd}: {error}"),
            }
        }
    }

    #[test]
    fn fields_arrive() {
        let cmd = pvrdma_cmd_create_mr {
            hdr: hdr(PVRDMA_CMD_CREATE_MR),
            start: 0x7f00_0000_1234,
            length: 5000,
            pdir_dma: 0x9000,
            pd_handle: 3,
            access_flags: 7,
            flags: 0,
            nchunks: 2,
        };
        let Ok(Command::CreateMr { pd, start, length, access_flags, kind }) = decode(&request(&cmd), PVRDMA_VERSION)
        else {
            panic!("not taken for CREATE_MR");
        };
        assert_eq!((pd, start, length, access_flags), (PdHandle(3), 0x7f00_0000_1234, 5000, 7));
        assert_eq!(kind, MrKind::User(Buffer::Pdir { pdir: DmaAddr(0x9000), nchunks: 2 }));
    }

    #[test]
    fn page_counts_are_bounded_before_anything_is_allocated() {
        for nchunks in [0, PVRDMA_PAGE_DIR_MAX_PAGES + 1, u32::MAX] {
            let cmd = pvrdma_cmd_create_cq { hdr: hdr(PVRDMA_CMD_CREATE_CQ), nchunks, ..Default::default() };
            let refused = decode(&request(&cmd), PVRDMA_VERSION);
            assert!(matches!(refused, Err(CommandError::Invalid("page count"))), "{nchunks}");
        }
    }

    #[test]
    fn contradicting_mr_flags_are_refused() {
        for flags in [3, 4, u32::MAX] {
            let cmd = pvrdma_cmd_create_mr { hdr: hdr(PVRDMA_CMD_CREATE_MR), flags, ..Default::default() };
            assert!(decode(&request(&cmd), PVRDMA_VERSION).is_err());
        }
    }

    #[test]
    fn unknown_commands_are_refused() {
        for cmd in [PVRDMA_CMD_MAX, 1000, u32::MAX] {
            assert!(decode(&request(&hdr(cmd)), PVRDMA_VERSION).is_err());
            assert!(!awaited(cmd));
        }
    }

    #[test]
    fn old_drivers_give_32_bit_frame_numbers() {
        let cmd = pvrdma_cmd_create_uc { hdr: hdr(PVRDMA_CMD_CREATE_UC), pfn64: 0xdead_beef_000f_d001 };
        let old = decode(&request(&cmd), PVRDMA_PPN64_VERSION - 1);
        assert!(matches!(old, Ok(Command::CreateUc { pfn: 0x000f_d001 })));
        let new = decode(&request(&cmd), PVRDMA_VERSION);
        assert!(matches!(new, Ok(Command::CreateUc { pfn: 0xdead_beef_000f_d001 })));
    }

    #[test]
    fn answer_echoes_key_and_command() {
        let request = request(&hdr(PVRDMA_CMD_CREATE_PD));
        let answer = encode(&request, &Response::CreatePd { pd: PdHandle(9) }, PVRDMA_VERSION);
        let header = pvrdma_cmd_resp_hdr::read_from_bytes(answer.header()).unwrap();
        assert_eq!(header.response, 0x1122_3344_5566_7788);
        assert_eq!(header.ack, 0x8000_0002);
        assert_eq!(answer.body(), [9, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn qp_answers_follow_the_driver() {
        let cmd = pvrdma_cmd_create_qp {
            hdr: hdr(PVRDMA_CMD_CREATE_QP),
            max_send_wr: 64,
            total_chunks: 1,
            ..Default::default()
        };
        let response = Response::CreateQp { qpn: pvrdma_device::handle::Qpn(0x1234), qp: QpHandle(2) };
        let new = encode(&request(&cmd), &response, PVRDMA_VERSION);
        assert_eq!(new.body()[..12], [0x34, 0x12, 0, 0, 2, 0, 0, 0, 64, 0, 0, 0]);
        let old = encode(&request(&cmd), &response, PVRDMA_ROCEV2_VERSION);
        assert_eq!(old.body()[..8], [2, 0, 0, 0, 64, 0, 0, 0]);
        assert_eq!(old.body().len() + 16, 40);
    }

    #[test]
    fn refusals_carry_their_errno() {
        let answer = encode_error(&request(&hdr(PVRDMA_CMD_MODIFY_QP)), 22);
        assert_eq!(answer.header()[12], 22);
        assert!(answer.body().is_empty());
    }
}
