//! The driver-to-device structs. Their C headers are private to the kernel driver and not
//! installed, so the offsets are written down here, counted from the start of the command or
//! response slot where the struct is a command.

use core::mem::offset_of;
use pvrdma_ffi::dev_api::*;

/// `at!(struct size { field offset, ... } ...)`.
macro_rules! at {
    ($($ty:ident $size:literal { $($($field:ident).+ $offset:literal),* $(,)? })*) => {
        $(
            assert_eq!(size_of::<$ty>(), $size, "size of {}", stringify!($ty));
            $(assert_eq!(
                offset_of!($ty, $($field).+), $offset,
                "{}.{}", stringify!($ty), stringify!($($field).+)
            );)*
        )*
    };
}

#[test]
fn device_shared_region() {
    at! {
        pvrdma_device_shared_region 280 {
            driver_version 0, gos_info 8, cmd_slot_dma 16, resp_slot_dma 24, async_ring_pages 32,
            cq_ring_pages 48, uar_pfn64 64, caps 72
        }
        pvrdma_ring_page_info 16 { num_pages 0, pdir_dma 8 }
        pvrdma_device_caps 208 {
            fw_ver 0, node_guid 8, sys_image_guid 16, max_mr_size 24, page_size_cap 32,
            atomic_arg_sizes 40, ex_comp_mask 48, device_cap_flags2 52, max_fa_bit_boundary 56,
            log_max_atomic_inline_arg 60, vendor_id 64, vendor_part_id 68, hw_ver 72, max_qp 76,
            max_qp_wr 80, device_cap_flags 84, max_sge 88, max_sge_rd 92, max_cq 96, max_cqe 100,
            max_mr 104, max_pd 108, max_qp_rd_atom 112, max_ee_rd_atom 116, max_res_rd_atom 120,
            max_qp_init_rd_atom 124, max_ee_init_rd_atom 128, max_mw 140, max_raw_ipv6_qp 144,
            max_total_mcast_qp_attach 160, max_ah 164, max_fmr 168, max_map_per_fmr 172,
            max_srq 176, max_srq_wr 180, max_srq_sge 184, max_uar 188, gid_tbl_len 192,
            max_pkeys 196, local_ca_ack_delay 198, phys_port_cnt 199, mode 200, atomic_ops 201,
            bmme_flags 202, gid_types 203, max_fast_reg_page_list_len 204
        }
        pvrdma_eqe 8 { type_ 0, info 4 }
        pvrdma_cqne 4 { info 0 }
    }
}

#[test]
fn commands() {
    at! {
        pvrdma_cmd_hdr 16 { response 0, cmd 8, reserved 12 }
        pvrdma_cmd_resp_hdr 16 { response 0, ack 8, err 12, reserved 13 }
        pvrdma_cmd_query_port 24 { port_num 16 }
        pvrdma_cmd_query_port_resp 64 { attrs 16 }
        pvrdma_cmd_query_pkey 24 { port_num 16, index 17 }
        pvrdma_cmd_query_pkey_resp 24 { pkey 16 }
        pvrdma_cmd_create_uc 24 { pfn64 16 }
        pvrdma_cmd_create_uc_resp 24 { ctx_handle 16 }
        pvrdma_cmd_destroy_uc 24 { ctx_handle 16 }
        pvrdma_cmd_create_pd 24 { ctx_handle 16 }
        pvrdma_cmd_create_pd_resp 24 { pd_handle 16 }
        pvrdma_cmd_destroy_pd 24 { pd_handle 16 }
        pvrdma_cmd_create_mr 56 {
            start 16, length 24, pdir_dma 32, pd_handle 40, access_flags 44, flags 48, nchunks 52
        }
        pvrdma_cmd_create_mr_resp 32 { mr_handle 16, lkey 20, rkey 24 }
        pvrdma_cmd_destroy_mr 24 { mr_handle 16 }
        pvrdma_cmd_create_cq 40 { pdir_dma 16, ctx_handle 24, cqe 28, nchunks 32 }
        pvrdma_cmd_create_cq_resp 24 { cq_handle 16, cqe 20 }
        pvrdma_cmd_resize_cq 24 { cq_handle 16, cqe 20 }
        pvrdma_cmd_resize_cq_resp 24 { cqe 16 }
        pvrdma_cmd_destroy_cq 24 { cq_handle 16 }
        pvrdma_cmd_create_srq 56 { pdir_dma 16, pd_handle 24, nchunks 28, attrs 32, srq_type 48 }
        pvrdma_cmd_create_srq_resp 24 { srqn 16 }
        pvrdma_cmd_modify_srq 40 { srq_handle 16, attr_mask 20, attrs 24 }
        pvrdma_cmd_query_srq 24 { srq_handle 16 }
        pvrdma_cmd_query_srq_resp 32 { attrs 16 }
        pvrdma_cmd_destroy_srq 24 { srq_handle 16 }
        pvrdma_cmd_create_qp 80 {
            pdir_dma 16, pd_handle 24, send_cq_handle 28, recv_cq_handle 32, srq_handle 36,
            max_send_wr 40, max_recv_wr 44, max_send_sge 48, max_recv_sge 52, max_inline_data 56,
            lkey 60, access_flags 64, total_chunks 68, send_chunks 70, max_atomic_arg 72,
            sq_sig_all 74, qp_type 75, is_srq 76, reserved 77
        }
        pvrdma_cmd_create_qp_resp 40 {
            qpn 16, max_send_wr 20, max_recv_wr 24, max_send_sge 28, max_recv_sge 32,
            max_inline_data 36
        }
        pvrdma_cmd_create_qp_resp_v2 48 {
            qpn 16, qp_handle 20, max_send_wr 24, max_recv_wr 28, max_send_sge 32,
            max_recv_sge 36, max_inline_data 40
        }
        pvrdma_cmd_modify_qp 184 { qp_handle 16, attr_mask 20, attrs 24 }
        pvrdma_cmd_query_qp 24 { qp_handle 16, attr_mask 20 }
        pvrdma_cmd_query_qp_resp 176 { attrs 16 }
        pvrdma_cmd_destroy_qp 24 { qp_handle 16 }
        pvrdma_cmd_destroy_qp_resp 24 { events_reported 16 }
        pvrdma_cmd_create_bind 48 { mtu 16, vlan 20, index 24, new_gid 28, gid_type 44 }
        pvrdma_cmd_destroy_bind 40 { index 16, dest_gid 20 }
    }
    // The slots hold the longest of each.
    assert_eq!(PVRDMA_CMD_REQ_LEN, size_of::<pvrdma_cmd_modify_qp>());
    assert_eq!(PVRDMA_CMD_RESP_LEN, size_of::<pvrdma_cmd_query_qp_resp>());
    assert_eq!(PVRDMA_CMD_MAX, PVRDMA_CMD_DESTROY_SRQ + 1);
}

#[test]
fn attributes() {
    at! {
        pvrdma_port_attr 48 {
            state 0, max_mtu 4, active_mtu 8, gid_tbl_len 12, port_cap_flags 16, max_msg_sz 20,
            bad_pkey_cntr 24, qkey_viol_cntr 28, pkey_tbl_len 32, lid 34, sm_lid 36, lmc 38,
            max_vl_num 39, sm_sl 40, subnet_timeout 41, init_type_reply 42, active_width 43,
            active_speed 44, phys_state 45, reserved 46
        }
        pvrdma_qp_attr 160 {
            qp_state 0, cur_qp_state 4, path_mtu 8, path_mig_state 12, qkey 16, rq_psn 20,
            sq_psn 24, dest_qp_num 28, qp_access_flags 32, pkey_index 36, alt_pkey_index 38,
            en_sqd_async_notify 40, sq_draining 41, max_rd_atomic 42, max_dest_rd_atomic 43,
            min_rnr_timer 44, port_num 45, timeout 46, retry_cnt 47, rnr_retry 48,
            alt_port_num 49, alt_timeout 50, reserved 51, cap 56, ah_attr 80, alt_ah_attr 120
        }
        pvrdma_qp_cap 24 {
            max_send_wr 0, max_recv_wr 4, max_send_sge 8, max_recv_sge 12, max_inline_data 16
        }
        pvrdma_ah_attr 40 {
            grh.dgid 0, grh.flow_label 16, grh.sgid_index 20, grh.hop_limit 21,
            grh.traffic_class 22, dlid 24, vlan_id 26, sl 28, src_path_bits 29, static_rate 30,
            ah_flags 31, port_num 32, dmac 33, reserved 39
        }
        pvrdma_srq_attr 16 { max_wr 0, max_sge 4, srq_limit 8 }
    }
}

#[test]
fn rings() {
    use pvrdma_ffi::uapi::vmw_pvrdma::{pvrdma_ring, pvrdma_ring_state};
    at! {
        pvrdma_ring 8 { prod_tail 0, cons_head 4 }
        pvrdma_ring_state 16 { tx.prod_tail 0, tx.cons_head 4, rx.prod_tail 8, rx.cons_head 12 }
    }
}
