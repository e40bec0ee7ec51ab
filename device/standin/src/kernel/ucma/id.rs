//! An id (`rdma_cm_id`): its state, what it is bound to, and what a program may ask about it.

use super::Result;
use super::address::{Address, service_id};
use pvrdma_cm::connection::{Attributes, CommId, Path};
use pvrdma_ffi::dev_api::*;
use pvrdma_ffi::uapi::ib_user_verbs::{ib_uverbs_ah_attr, ib_uverbs_global_route, ib_uverbs_qp_attr};
use pvrdma_ffi::uapi::rdma_user_cm::*;
use pvrdma_ffi::uapi::vmw_pvrdma::{
    PVRDMA_ACCESS_REMOTE_ATOMIC, PVRDMA_ACCESS_REMOTE_READ, PVRDMA_ACCESS_REMOTE_WRITE,
};
use std::time::Instant;
use zerocopy::{FromZeros, IntoBytes};

/// `IBV_QPT_RC` and `IBV_QPT_UD`.
pub const QPT_RC: u8 = 2;
pub const QPT_UD: u8 = 4;
/// Q_Key of datagram QPs (rdma_cm.h: RDMA_UDP_QKEY).
pub const UDP_QKEY: u32 = 0x0123_4567;

/// Linux's names: `rdma_cm_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Idle,
    AddrQuery,
    AddrResolved,
    RouteResolved,
    Connect,
    Disconnect,
    AddrBound,
    Listen,
}

/// See the module text.
pub struct Id {
    /// The opened device that it belongs to.
    pub file: u64,
    /// The program's name for it; 0 until it has one.
    pub uid: u64,
    pub ps: u16,
    pub qp_type: u8,
    pub phase: Phase,
    pub src: Option<Address>,
    pub dst: Option<Address>,
    /// With a device: bound to one of its addresses.
    pub path: Option<Path>,
    pub has_route: bool,
    pub comm: Option<CommId>,
    /// Requests that may wait before it.
    pub backlog: u32,
    /// Its events that wait to be read, and how many were.
    pub queued: u32,
    pub events_reported: u32,
    pub reuse: bool,
    pub v6_only: bool,
    pub tos: u8,
    pub ack_timeout: Option<u8>,
    pub psn: u32,
    /// Address resolution goes on until then.
    pub resolving: Option<Instant>,
}

impl Id {
    pub fn new(file: u64, uid: u64, ps: u16, qp_type: u8, psn: u32) -> Id {
        Id {
            file,
            uid,
            ps,
            qp_type,
            phase: Phase::Idle,
            src: None,
            dst: None,
            path: None,
            has_route: false,
            comm: None,
            backlog: 0,
            queued: 0,
            events_reported: 0,
            reuse: false,
            v6_only: false,
            tos: 0,
            ack_timeout: None,
            psn: psn & 0x00ff_ffff,
            resolving: None,
        }
    }

    pub fn is_datagram(&self) -> bool {
        self.qp_type == QPT_UD
    }

    /// The service id of an address in its port space.
    pub fn service(&self, address: &Address) -> u64 {
        match *address {
            Address::Ib { sid, .. } => sid,
            _ => service_id(self.ps, address.port()),
        }
    }

    /// The Q_Key of its datagrams.
    pub fn qkey(&self) -> u32 {
        if matches!(self.ps, RDMA_PS_UDP | RDMA_PS_IPOIB) || self.is_datagram() { UDP_QKEY } else { 0 }
    }

    // ---- what a program asks -------------------------------------------------------------------

    /// QUERY_ROUTE.
    pub fn route(&self, node_guid: [u8; 8]) -> rdma_ucm_query_route_resp {
        let mut answer = rdma_ucm_query_route_resp::new_zeroed();
        if let Some(address) = self.src {
            address.write(&mut answer.src_addr);
        }
        if let Some(address) = self.dst {
            address.write(&mut answer.dst_addr);
        }
        if let Some(path) = &self.path {
            answer.node_guid = u64::from_ne_bytes(node_guid);
            answer.port_num = 1;
            answer.ib_route[0] = path_record(path);
            answer.num_paths = u32::from(self.has_route);
        }
        answer
    }

    /// QUERY, addresses.
    pub fn addresses(&self, node_guid: [u8; 8]) -> rdma_ucm_query_addr_resp {
        let mut answer = rdma_ucm_query_addr_resp::new_zeroed();
        if let Some(address) = self.src {
            address.write(&mut answer.src_addr);
            answer.src_size = address.len() as u16;
        }
        if let Some(address) = self.dst {
            address.write(&mut answer.dst_addr);
            answer.dst_size = address.len() as u16;
        }
        self.name_device(&mut answer, node_guid);
        answer
    }

    /// QUERY, GIDs.
    pub fn gids(&self, node_guid: [u8; 8]) -> rdma_ucm_query_addr_resp {
        let mut answer = rdma_ucm_query_addr_resp::new_zeroed();
        self.name_device(&mut answer, node_guid);
        let path = self.path.unwrap_or_default();
        let address = |gid, ip: Option<Address>| {
            let sid = ip.map_or(0, |ip| self.service(&ip));
            Address::Ib { gid, sid, mask: 0 }
        };
        let (src, dst) = (address(path.local_gid, self.src), address(path.remote_gid, self.dst));
        src.write(&mut answer.src_addr);
        dst.write(&mut answer.dst_addr);
        (answer.src_size, answer.dst_size) = (src.len() as u16, dst.len() as u16);
        answer
    }

    fn name_device(&self, answer: &mut rdma_ucm_query_addr_resp, node_guid: [u8; 8]) {
        if self.path.is_some() {
            answer.node_guid = u64::from_ne_bytes(node_guid);
            answer.port_num = 1;
            answer.pkey = 0xffff;
        }
    }

    /// QUERY, path: as many records as there is room for, the header in front.
    pub fn paths(&self, room: usize) -> Vec<u8> {
        let known = self.path.filter(|_| self.has_route);
        let head = rdma_ucm_query_path_resp { num_paths: u32::from(known.is_some()), reserved: 0 };
        let mut bytes = head.as_bytes().to_vec();
        if let Some(path) = known.filter(|_| room >= bytes.len() + size_of::<ib_path_rec_data>()) {
            let flags = IB_PATH_GMP | IB_PATH_PRIMARY | IB_PATH_BIDIRECTIONAL;
            let record = ib_path_rec_data { flags, reserved: 0, path_rec: wire_record(&path) };
            bytes.extend(record.as_bytes());
        }
        bytes
    }

    /// INIT_QP_ATTR for a QP that has no connection yet, or never will: what any QP of this id begins with.
    pub fn first_attributes(&self, state: u32) -> ib_uverbs_qp_attr {
        let mut attr = ib_uverbs_qp_attr { qp_state: state, port_num: 1, ..Default::default() };
        attr.qp_attr_mask = PVRDMA_QP_STATE | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT;
        if self.is_datagram() {
            attr.qkey = self.qkey();
            attr.qp_attr_mask |= PVRDMA_QP_QKEY;
        } else {
            attr.qp_attr_mask |= PVRDMA_QP_ACCESS_FLAGS;
        }
        attr
    }
}

/// INIT_QP_ATTR for a connected QP.
pub fn connected_attributes(state: u32, of: &Attributes, sgid_index: u8) -> Result<ib_uverbs_qp_attr> {
    let mut attr = ib_uverbs_qp_attr { qp_state: state, ..Default::default() };
    match state {
        PVRDMA_QPS_INIT => {
            attr.qp_attr_mask = PVRDMA_QP_STATE | PVRDMA_QP_ACCESS_FLAGS | PVRDMA_QP_PKEY_INDEX | PVRDMA_QP_PORT;
            attr.qp_access_flags = PVRDMA_ACCESS_REMOTE_WRITE;
            if of.responder_resources > 0 {
                attr.qp_access_flags |= PVRDMA_ACCESS_REMOTE_READ | PVRDMA_ACCESS_REMOTE_ATOMIC;
            }
            attr.port_num = 1;
        }
        PVRDMA_QPS_RTR => {
            attr.qp_attr_mask = PVRDMA_QP_STATE
                | PVRDMA_QP_AV
                | PVRDMA_QP_PATH_MTU
                | PVRDMA_QP_DEST_QPN
                | PVRDMA_QP_RQ_PSN
                | PVRDMA_QP_MAX_DEST_RD_ATOMIC
                | PVRDMA_QP_MIN_RNR_TIMER;
            attr.ah_attr = address_handle(&of.path, sgid_index);
            attr.path_mtu = of.path.mtu.into();
            attr.dest_qp_num = of.dest_qp_num;
            attr.rq_psn = of.rq_psn;
            attr.max_dest_rd_atomic = of.responder_resources;
            attr.min_rnr_timer = 0;
        }
        PVRDMA_QPS_RTS => {
            attr.qp_attr_mask = PVRDMA_QP_STATE
                | PVRDMA_QP_SQ_PSN
                | PVRDMA_QP_TIMEOUT
                | PVRDMA_QP_RETRY_CNT
                | PVRDMA_QP_RNR_RETRY
                | PVRDMA_QP_MAX_QP_RD_ATOMIC;
            attr.sq_psn = of.sq_psn;
            attr.timeout = of.path.ack_timeout;
            attr.retry_cnt = of.retry_count;
            attr.rnr_retry = of.rnr_retry_count;
            attr.max_rd_atomic = of.initiator_depth;
        }
        _ => return Err(libc::EINVAL),
    }
    Ok(attr)
}

/// The address vector of a path.
pub fn address_handle(path: &Path, sgid_index: u8) -> ib_uverbs_ah_attr {
    ib_uverbs_ah_attr {
        grh: ib_uverbs_global_route {
            dgid: path.remote_gid,
            flow_label: path.flow_label,
            sgid_index,
            hop_limit: path.hop_limit,
            traffic_class: path.traffic_class,
            reserved: 0,
        },
        sl: path.sl,
        is_global: 1,
        port_num: 1,
        ..Default::default()
    }
}

fn path_record(path: &Path) -> ib_user_path_rec {
    ib_user_path_rec {
        dgid: path.remote_gid,
        sgid: path.local_gid,
        dlid: 0,
        slid: 0,
        raw_traffic: 0,
        flow_label: path.flow_label.to_be(),
        reversible: 1,
        mtu: path.mtu.into(),
        pkey: 0xffff,
        hop_limit: path.hop_limit,
        traffic_class: path.traffic_class,
        numb_path: 1,
        sl: path.sl,
        mtu_selector: 2,
        rate_selector: 2,
        rate: path.rate,
        packet_life_time_selector: 2,
        packet_life_time: path.ack_timeout.saturating_sub(1),
        preference: 0,
    }
}

/// A path record as it is on the wire (IBA vol. 1, table 205).
fn wire_record(path: &Path) -> [u32; 16] {
    let mut bytes = [0u8; 64];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(8, &path.remote_gid);
    put(24, &path.local_gid);
    put(44, &((path.flow_label & 0xf_ffff) << 8 | u32::from(path.hop_limit)).to_be_bytes());
    put(48, &[path.traffic_class, 1 << 7 | 1]);
    put(50, &0xffffu16.to_be_bytes());
    put(52, &u16::from(path.sl).to_be_bytes());
    // Selector 2: exactly.
    put(54, &[2 << 6 | path.mtu, 2 << 6 | path.rate, 2 << 6 | path.ack_timeout.saturating_sub(1)]);
    std::array::from_fn(|n| u32::from_ne_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]]))
}
