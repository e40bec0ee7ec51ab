//! Layouts and constants against the C headers that are installed: the C compiler is given what the
//! Rust compiler says and must agree. Needs `cc`, the kernel's `rdma/*.h` and libibverbs's
//! `infiniband/verbs.h` (Debian: `gcc`, `linux-libc-dev`, `libibverbs-dev`).

mod support;

use pvrdma_ffi::uapi::{ib_user_ioctl::*, ib_user_verbs::*, rdma_user_cm::*, vmw_pvrdma::*};
use pvrdma_ffi::verbs::*;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use support::Layout;

/// Compile `source`; the compiler's complaints are the test's.
fn compile(source: &str) {
    let (accepted, complaints) = compiler(source, &["-std=c11", "-D_GNU_SOURCE", "-xc"]);
    assert!(accepted, "the C headers disagree:\n{complaints}");
}

/// Does it compile, and what does the compiler say?
fn compiler(source: &str, arguments: &[&str]) -> (bool, String) {
    let mut cc = Command::new("cc")
        .args(arguments)
        .args(["-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a C compiler named `cc`");
    let mut stdin = cc.stdin.take().expect("stdin is piped");
    stdin.write_all(source.as_bytes()).expect("cc reads its input");
    drop(stdin);
    let output = cc.wait_with_output().expect("cc ends");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn check(headers: &[&str], layouts: &[Layout]) {
    let mut source = String::from("#include <stddef.h>\n");
    for header in headers {
        writeln!(source, "#include <{header}>").unwrap();
    }
    for layout in layouts {
        let (name, size) = (layout.name, layout.size);
        writeln!(source, "_Static_assert(sizeof(struct {name}) == {size}, \"Rust: size of {name} is {size}\");")
            .unwrap();
        for field in &layout.fields {
            let (member, offset, size) = (field.name, field.offset, field.size);
            writeln!(
                source,
                "_Static_assert(offsetof(struct {name}, {member}) == {offset} && \
                 sizeof(((struct {name} *)0)->{member}) == {size}, \
                 \"Rust: {name}.{member} is {size} bytes at {offset}\");"
            )
            .unwrap();
        }
    }
    compile(&source);
}

/// Let the C compiler evaluate every `pub const NAME: u.. = EXPR;` of a Rust file and compare it
/// with the header's NAME. `ours` are names the headers do not have.
fn check_constants(headers: &[&str], rust: &str, ours: &[&str]) {
    let mut source = String::new();
    for header in headers {
        writeln!(source, "#include <{header}>").unwrap();
    }
    let mut checked = 0;
    for line in rust.lines() {
        let Some((name, rest)) = line.strip_prefix("pub const ").and_then(|l| l.split_once(": ")) else {
            continue;
        };
        if ours.contains(&name) {
            continue;
        }
        let (_, value) = rest.split_once(" = ").expect("a constant on one line");
        let value = strip_digit_separators(value.trim_end_matches(';'));
        writeln!(source, "_Static_assert((unsigned)({name}) == (unsigned)({value}), \"Rust: {name} is {value}\");")
            .unwrap();
        checked += 1;
    }
    assert!(checked > 10, "only {checked} constants found");
    compile(&source);
}

/// `0x00ff_ffff` is `0x00ffffff` in C; underscores in names stay.
fn strip_digit_separators(value: &str) -> String {
    value
        .split(' ')
        .map(
            |word| {
                if word.starts_with(|c: char| c.is_ascii_digit()) { word.replace('_', "") } else { word.to_owned() }
            },
        )
        .collect::<Vec<_>>()
        .join(" ")
}

/// The header that is made from here: in any C, without a warning, and with numbers that are what they are here.
#[test]
fn pvrdma_h() {
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/../include/pvrdma.h");
    let source = format!("#include \"{header}\"\n");
    for language in [["-xc", "-std=c89"], ["-xc", "-std=c99"], ["-xc", "-std=c17"], ["-xc++", "-std=c++17"]] {
        let warnings = ["-Wall", "-Wextra", "-pedantic", "-Wsign-conversion", "-Werror"];
        let (accepted, complaints) = compiler(&source, &[&language[..], &warnings].concat());
        assert!(accepted, "{language:?}: {complaints}");
    }
    let mut widths = source.clone();
    for (name, value) in [
        ("PVRDMA_UAR_QP_RECV", PVRDMA_UAR_QP_RECV),
        ("PVRDMA_UAR_CQ_POLL", PVRDMA_UAR_CQ_POLL),
        ("PVRDMA_CMD_FIRST_RESP", pvrdma_ffi::dev_api::PVRDMA_CMD_FIRST_RESP),
    ] {
        writeln!(widths, "_Static_assert(({name} | 5ull) == {:#x}ull, \"{name}\");", u64::from(value) | 5).unwrap();
    }
    compile(&widths);
    // Two headers for the same: beside each other in any order, and a program is the same with either.
    let kernels = "#include <rdma/vmw_pvrdma-abi.h>\n";
    let program = "
        enum pvrdma_wr_opcode opcode_of(struct pvrdma_sq_wqe_hdr *wqe)
        {
            wqe->wr.rdma.rkey = wqe->wr.atomic.rkey + wqe->wr.ud.av.reserved[0] + wqe->wr.fast_reg.rkey;
            wqe->wr.masked_atomics.wr_data.cmp_swap.swap_val = wqe->wr.masked_atomics.wr_data.fetch_add.add_val;
            wqe->ex.imm_data = wqe->ex.invalidate_rkey;
            return wqe->opcode == PVRDMA_WR_SEND ? PVRDMA_WR_SEND : PVRDMA_WR_ERROR;
        }
        int is_good(const struct pvrdma_cqe *cqe) { enum pvrdma_wc_flags flag = PVRDMA_WC_GRH;
            return cqe->status == PVRDMA_WC_SUCCESS && cqe->opcode != PVRDMA_WC_RECV && (cqe->wc_flags & flag); }
        unsigned int bell(void) { return PVRDMA_UAR_QP_SEND | PVRDMA_UAR_HANDLE_MASK; }
    ";
    let ours = "unsigned long len(void) { return sizeof(struct pvrdma_ring_state) + sizeof(struct pvrdma_wr_ud) + \
                PVRDMA_PAGE_SIZE + PVRDMA_SEND_SIGNALED + sizeof(struct pvrdma_eqe); }\n";
    let beside = [format!("{source}{kernels}{program}{ours}"), format!("{kernels}{source}{program}{ours}")];
    for text in beside.into_iter().chain([format!("{kernels}{program}"), format!("{source}{program}{ours}")]) {
        for language in [["-xc", "-std=c99"], ["-xc", "-std=c2x"], ["-xc++", "-std=c++20"]] {
            let (accepted, complaints) = compiler(&text, &[&language[..], &["-Wall", "-Wextra", "-Werror"]].concat());
            assert!(accepted, "{language:?}: {complaints}");
        }
    }
}

/// The form of the header for programs without the kernel's is that of the kernel's, which the other tests compare.
#[test]
fn pvrdma_h_is_laid_out_as_the_kernels_header() {
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/../include/pvrdma.h");
    check(&[header], &shared_layouts());
}

/// Direct verbs: in any C, without a warning, alone and beside the header of libibverbs in any order; and as long as
/// they are here.
#[test]
fn pvrdmadv_h() {
    let header = concat!(env!("CARGO_MANIFEST_DIR"), "/../include/infiniband/pvrdmadv.h");
    let (direct, verbs) = (format!("#include \"{header}\"\n"), "#include <infiniband/verbs.h>\n");
    let warnings = ["-Wall", "-Wextra", "-pedantic", "-Wsign-conversion", "-Werror"];
    for language in [["-xc", "-std=c89"], ["-xc", "-std=c99"], ["-xc", "-std=c2x"], ["-xc++", "-std=c++98"]] {
        // C++ of 1998 has no long long, of which stdint.h's types are made for some.
        let (accepted, complaints) = compiler(&direct, &[&language[..], &warnings].concat());
        assert!(accepted, "{language:?}: {complaints}");
    }
    for language in [["-xc", "-std=c99"], ["-xc++", "-std=c++11"], ["-xc++", "-std=c++20"]] {
        for source in [format!("{direct}{verbs}"), format!("{verbs}{direct}")] {
            let (accepted, complaints) = compiler(&source, &[&language[..], &["-Wall", "-Wextra", "-Werror"]].concat());
            assert!(accepted, "{language:?}: {complaints}");
        }
    }
    use pvrdma_ffi::pvrdmadv::*;
    let layouts = layouts![
        pvrdmadv_wq { buf, prod_tail, cons_head, doorbell, doorbell_value, num_entries, entry_size, max_sge }
        pvrdmadv_context { comp_mask, uar, uar_size, qp_offset, cq_offset, srq_offset }
        pvrdmadv_qp { comp_mask, sq, rq, qp_handle, flags }
        pvrdmadv_cq { comp_mask, buf, prod_tail, cons_head, doorbell, poll_value, arm_value, arm_solicited_value, num_entries, entry_size, cq_handle }
        pvrdmadv_srq { comp_mask, wq, srq_handle, reserved }
        pvrdmadv_ah { comp_mask, av }
    ];
    check(&[header], &layouts);
}

/// What both headers have.
fn shared_layouts() -> Vec<Layout> {
    layouts![
        pvrdma_alloc_ucontext_resp { qp_tab_size, reserved }
        pvrdma_alloc_pd_resp { pdn, reserved }
        pvrdma_create_cq { buf_addr, buf_size, reserved }
        pvrdma_create_cq_resp { cqn, reserved }
        pvrdma_resize_cq { buf_addr, buf_size, reserved }
        pvrdma_create_srq { buf_addr, buf_size, reserved }
        pvrdma_create_srq_resp { srqn, reserved }
        pvrdma_create_qp { rbuf_addr, sbuf_addr, rbuf_size, sbuf_size, qp_addr }
        pvrdma_create_qp_resp { qpn, qp_handle }
        pvrdma_ex_cmp_swap { swap_val, compare_val, swap_mask, compare_mask }
        pvrdma_ex_fetch_add { add_val, field_boundary }
        pvrdma_av { port_pd, sl_tclass_flowlabel, dgid, src_path_bits, gid_index, stat_rate, hop_limit, dmac, reserved }
        pvrdma_sge { addr, length, lkey }
        pvrdma_rq_wqe_hdr { wr_id, num_sge, total_len }
        pvrdma_sq_wqe_hdr { wr_id, num_sge, total_len, opcode, send_flags, ex, reserved, wr }
        pvrdma_cqe { wr_id, qp, opcode, status, byte_len, imm_data, src_qp, wc_flags, vendor_err, pkey_index, slid, sl, dlid_path_bits, port_num, smac, network_hdr_type, reserved2 }
    ]
}

#[test]
fn vmw_pvrdma_abi_h() {
    check(&["rdma/vmw_pvrdma-abi.h"], &shared_layouts());
}

/// The union members of a send WQE are anonymous structs in C.
#[test]
fn vmw_pvrdma_abi_h_work_request_forms() {
    macro_rules! form {
        ($ty:ident at $c:literal { $($field:ident $(= $fc:literal)?),* }) => {
            layouts![$ty { $($field $(= $fc)?),* }]
                .iter()
                .flat_map(|layout| &layout.fields)
                .map(|f| {
                    let member = format!("wr.{}.{}", $c, f.name);
                    let at = core::mem::offset_of!(pvrdma_sq_wqe_hdr, wr) + f.offset;
                    format!(
                        "_Static_assert(offsetof(struct pvrdma_sq_wqe_hdr, {member}) == {at} && \
                         sizeof(((struct pvrdma_sq_wqe_hdr *)0)->{member}) == {}, \"{member}\");\n",
                        f.size
                    )
                })
                .collect::<String>()
        };
    }
    let mut source = String::from("#include <stddef.h>\n#include <rdma/vmw_pvrdma-abi.h>\n");
    source += &form!(pvrdma_wr_rdma at "rdma" { remote_addr, rkey });
    source += &form!(pvrdma_wr_atomic at "atomic" { remote_addr, compare_add, swap, rkey });
    source += &form!(pvrdma_wr_masked_atomics at "masked_atomics" {
        remote_addr, log_arg_sz, rkey, wr_data
    });
    source += &form!(pvrdma_wr_fast_reg at "fast_reg" {
        iova_start, pl_pdir_dma, page_shift, page_list_len, length, access_flags, rkey
    });
    source += &form!(pvrdma_wr_ud at "ud" { remote_qpn, remote_qkey, av });
    compile(&source);
}

#[test]
fn ib_user_verbs_h() {
    let layouts = layouts![
        ib_uverbs_cmd_hdr { command, in_words, out_words }
        ib_uverbs_ex_cmd_hdr { response, provider_in_words, provider_out_words, cmd_hdr_reserved }
        ib_uverbs_async_event_desc { element, event_type, reserved }
        ib_uverbs_comp_event_desc { cq_handle }
        ib_uverbs_get_context { response }
        ib_uverbs_get_context_resp { async_fd, num_comp_vectors }
        ib_uverbs_query_device { response }
        ib_uverbs_query_device_resp { fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt, reserved }
        ib_uverbs_cq_moderation_caps { max_cq_moderation_count, max_cq_moderation_period, reserved }
        ib_uverbs_odp_caps { general_caps, rc_odp_caps = "per_transport_caps.rc_odp_caps", uc_odp_caps = "per_transport_caps.uc_odp_caps", ud_odp_caps = "per_transport_caps.ud_odp_caps", reserved }
        ib_uverbs_rss_caps { supported_qpts, max_rwq_indirection_tables, max_rwq_indirection_table_size, reserved }
        ib_uverbs_tm_caps { max_rndv_hdr_size, max_num_tags, flags, max_ops, max_sge, reserved }
        ib_uverbs_ex_query_device { comp_mask, reserved }
        ib_uverbs_ex_query_device_resp { base, comp_mask, response_length, odp_caps, timestamp_mask, hca_core_clock, device_cap_flags_ex, rss_caps, max_wq_type_rq, raw_packet_caps, tm_caps, cq_moderation_caps, max_dm_size, xrc_odp_caps, reserved }
        ib_uverbs_query_port { response, port_num, reserved }
        ib_uverbs_query_port_resp { port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr, gid_tbl_len, pkey_tbl_len, lid, sm_lid, state, max_mtu, active_mtu, lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed, phys_state, link_layer, flags, reserved }
        ib_uverbs_alloc_pd { response }
        ib_uverbs_alloc_pd_resp { pd_handle }
        ib_uverbs_dealloc_pd { pd_handle }
        ib_uverbs_reg_mr { response, start, length, hca_va, pd_handle, access_flags }
        ib_uverbs_reg_mr_resp { mr_handle, lkey, rkey }
        ib_uverbs_dereg_mr { mr_handle }
        ib_uverbs_create_comp_channel { response }
        ib_uverbs_create_comp_channel_resp { fd }
        ib_uverbs_create_cq { response, user_handle, cqe, comp_vector, comp_channel, reserved }
        ib_uverbs_create_cq_resp { cq_handle, cqe }
        ib_uverbs_destroy_cq { response, cq_handle, reserved }
        ib_uverbs_destroy_cq_resp { comp_events_reported, async_events_reported }
        ib_uverbs_create_qp { response, user_handle, pd_handle, send_cq_handle, recv_cq_handle, srq_handle, max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data, sq_sig_all, qp_type, is_srq, reserved }
        ib_uverbs_create_qp_resp { qp_handle, qpn, max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data, reserved }
        ib_uverbs_qp_dest { dgid, flow_label, dlid, reserved, sgid_index, hop_limit, traffic_class, sl, src_path_bits, static_rate, is_global, port_num }
        ib_uverbs_query_qp { response, qp_handle, attr_mask }
        ib_uverbs_query_qp_resp { dest, alt_dest, max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, pkey_index, alt_pkey_index, qp_state, cur_qp_state, path_mtu, path_mig_state, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, sq_sig_all, reserved }
        ib_uverbs_modify_qp { dest, alt_dest, qp_handle, attr_mask, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, pkey_index, alt_pkey_index, qp_state, cur_qp_state, path_mtu, path_mig_state, en_sqd_async_notify, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, reserved }
        ib_uverbs_destroy_qp { response, qp_handle, reserved }
        ib_uverbs_destroy_qp_resp { events_reported }
        ib_uverbs_create_srq { response, user_handle, pd_handle, max_wr, max_sge, srq_limit }
        ib_uverbs_create_srq_resp { srq_handle, max_wr, max_sge, srqn }
        ib_uverbs_modify_srq { srq_handle, attr_mask, max_wr, srq_limit }
        ib_uverbs_query_srq { response, srq_handle, reserved }
        ib_uverbs_query_srq_resp { max_wr, max_sge, srq_limit, reserved }
        ib_uverbs_destroy_srq { response, srq_handle, reserved }
        ib_uverbs_destroy_srq_resp { events_reported }
        ib_uverbs_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class, reserved }
        ib_uverbs_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num, reserved }
        ib_uverbs_qp_attr { qp_attr_mask, qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, ah_attr, alt_ah_attr, max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, reserved }
    ];
    check(&["rdma/ib_user_verbs.h"], &layouts);
}

#[test]
fn rdma_user_cm_h() {
    let layouts = layouts![
        rdma_ucm_cmd_hdr { cmd, len_in = "in", len_out = "out" }
        rdma_ucm_create_id { uid, response, ps, qp_type, reserved }
        rdma_ucm_create_id_resp { id }
        rdma_ucm_destroy_id { response, id, reserved }
        rdma_ucm_destroy_id_resp { events_reported }
        rdma_ucm_bind_ip { response, addr, id }
        rdma_ucm_bind { id, addr_size, reserved, addr }
        rdma_ucm_resolve_ip { src_addr, dst_addr, id, timeout_ms }
        rdma_ucm_resolve_addr { id, timeout_ms, src_size, dst_size, reserved, src_addr, dst_addr }
        rdma_ucm_resolve_route { id, timeout_ms }
        rdma_ucm_query { response, id, option }
        ib_user_path_rec { dgid, sgid, dlid, slid, raw_traffic, flow_label, reversible, mtu, pkey, hop_limit, traffic_class, numb_path, sl, mtu_selector, rate_selector, rate, packet_life_time_selector, packet_life_time, preference }
        ib_path_rec_data { flags, reserved, path_rec }
        rdma_ucm_query_route_resp { node_guid, ib_route, src_addr, dst_addr, num_paths, port_num, reserved, ibdev_index, reserved1 }
        rdma_ucm_query_addr_resp { node_guid, port_num, reserved, pkey, src_size, dst_size, src_addr, dst_addr, ibdev_index, reserved1 }
        rdma_ucm_query_path_resp { num_paths, reserved }
        rdma_ucm_conn_param { qp_num, qkey, private_data, private_data_len, srq, responder_resources, initiator_depth, flow_control, retry_count, rnr_retry_count, valid }
        rdma_ucm_ud_param { qp_num, qkey, ah_attr, private_data, private_data_len, reserved }
        rdma_ucm_ece { vendor_id, attr_mod }
        rdma_ucm_connect { conn_param, id, reserved, ece }
        rdma_ucm_listen { id, backlog }
        rdma_ucm_accept { uid, conn_param, id, reserved, ece }
        rdma_ucm_reject { id, private_data_len, reason, reserved, private_data }
        rdma_ucm_disconnect { id }
        rdma_ucm_init_qp_attr { response, id, qp_state }
        rdma_ucm_notify { id, event }
        rdma_ucm_get_event { response }
        rdma_ucm_event_resp { uid, id, event, status, param, reserved, ece }
        rdma_ucm_set_option { optval, id, level, optname, optlen }
        rdma_ucm_migrate_id { response, id, fd }
        rdma_ucm_migrate_resp { events_reported }
    ];
    check(&["rdma/rdma_user_cm.h"], &layouts);
}

#[test]
fn ib_user_ioctl_h() {
    let layouts = layouts![
        ib_uverbs_attr { attr_id, len, flags, attr_data, data }
        ib_uverbs_ioctl_hdr { length, object_id, method_id, num_attrs, reserved1, driver_id, reserved2 }
        ib_uverbs_query_port_resp_ex { legacy_resp, port_cap_flags2, reserved }
        ib_uverbs_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ib_uverbs_gid_entry { gid, gid_index, port_num, gid_type, netdev_ifindex }
    ];
    check(&["rdma/rdma_user_ioctl_cmds.h", "rdma/ib_user_ioctl_verbs.h"], &layouts);
}

#[test]
fn verbs_h() {
    let layouts = layouts![
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat }
        ibv_pd { context, handle }
        ibv_mr { context, pd, addr, length, handle, lkey, rkey }
        ibv_comp_channel { context, fd, refcnt }
        ibv_cq { context, channel, cq_context, handle, cqe, mutex, cond, comp_events_completed, async_events_completed }
        ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type, mutex, cond, events_completed }
        ibv_srq { context, srq_context, pd, handle, mutex, cond, events_completed }
        ibv_ah { context, pd, handle }
        ibv_srq_attr { max_wr, max_sge, srq_limit }
        ibv_td { context }
        ibv_td_init_attr { comp_mask }
        ibv_parent_domain_init_attr { pd, td, comp_mask, alloc, free, pd_context }
        ibv_data_buf { addr, length }
        ibv_poll_cq_attr { comp_mask }
        ibv_cq_init_attr_ex { cqe, cq_context, channel, comp_vector, wc_flags, comp_mask, flags, parent_domain }
        ibv_cq_ex { comp_mask, status, wr_id, start_poll, next_poll, end_poll, read_opcode, read_vendor_err, read_byte_len, read_imm_data, read_qp_num, read_src_qp, read_wc_flags, read_slid, read_sl, read_dlid_path_bits }
        ibv_qp_init_attr_ex { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all, comp_mask, pd, xrcd, create_flags, max_tso_header, rwq_ind_tbl, rx_hash_conf, source_qpn, send_ops_flags }
        ibv_srq_init_attr { srq_context, attr }
        ibv_sge { addr, length, lkey }
        ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data, wr, remote_srqn = "qp_type.xrc.remote_srqn", bind_mw_or_tso = "bind_mw" }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_wc { wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp, wc_flags, pkey_index, slid, sl, dlid_path_bits }
        ibv_query_device_ex_input { comp_mask }
        ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
        ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_qp_attr { qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap, ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout, rate_limit }
        ibv_device { node_type, transport_type, name, dev_name, dev_path, ibdev_path }
        ibv_device_attr { fw_ver, node_guid, sys_image_guid, max_mr_size, page_size_cap, vendor_id, vendor_part_id, hw_ver, max_qp, max_qp_wr, device_cap_flags, max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom, max_res_rd_atom, max_qp_init_rd_atom, max_ee_init_rd_atom, atomic_cap, max_ee, max_rdd, max_mw, max_raw_ipv6_qp, max_raw_ethy_qp, max_mcast_grp, max_mcast_qp_attach, max_total_mcast_qp_attach, max_ah, max_fmr, max_map_per_fmr, max_srq, max_srq_wr, max_srq_sge, max_pkeys, local_ca_ack_delay, phys_port_cnt }
        ibv_device_attr_ex { orig_attr, comp_mask, odp_caps, completion_timestamp_mask, hca_core_clock, device_cap_flags_ex }
    ];
    check(&["infiniband/verbs.h"], &layouts);
    // Opaque here, sized for their users.
    let source = format!(
        "#include <infiniband/verbs.h>
         _Static_assert(sizeof(((struct ibv_send_wr *)0)->wr) == {}, \"ibv_send_wr.wr\");",
        size_of::<ibv_send_wr_union>(),
    );
    compile(&source);
}

/// Sum of all fields, so that a struct without padding can be told. A pattern without `..` shows that none is missing.
macro_rules! no_padding {
    ($($ty:ident { $($field:ident),* $(,)? })*) => {
        $(
            let $ty { $($field: _),* }: $ty;
            let sum = 0 $(+ support::field_size(|s: &$ty| &s.$field))*;
            assert_eq!(sum, size_of::<$ty>(), stringify!($ty));
        )*
    };
}

/// C copies structs by their size: what a provider makes on its stack and hands to libibverbs, or copies out to an
/// application, must not have bytes that nobody wrote.
#[test]
fn structs_that_a_provider_makes_have_no_padding() {
    no_padding! {
        ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
        ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all, padding }
        ibv_srq_attr { max_wr, max_sge, srq_limit }
        ibv_srq_init_attr { srq_context, attr, padding }
        ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class, padding }
        ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num, padding }
        ibv_qp_attr {
            qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn, dest_qp_num, qp_access_flags, cap,
            ah_attr, alt_ah_attr, pkey_index, alt_pkey_index, en_sqd_async_notify, sq_draining, max_rd_atomic,
            max_dest_rd_atomic, min_rnr_timer, port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout,
            padding, rate_limit, padding_behind,
        }
    }
}

/// Later releases have more behind the part that is here.
#[test]
fn verbs_h_extended_qp() {
    let layouts = layouts![ibv_qp_ex {
        qp_base,
        comp_mask,
        wr_id,
        wr_flags,
        wr_atomic_cmp_swp,
        wr_atomic_fetch_add,
        wr_bind_mw,
        wr_local_inv,
        wr_rdma_read,
        wr_rdma_write,
        wr_rdma_write_imm,
        wr_send,
        wr_send_imm,
        wr_send_inv,
        wr_send_tso,
        wr_set_ud_addr,
        wr_set_xrc_srqn,
        wr_set_inline_data,
        wr_set_inline_data_list,
        wr_set_sge,
        wr_set_sge_list,
        wr_start,
        wr_complete,
        wr_abort
    }];
    let mut source = String::from("#include <stddef.h>\n#include <infiniband/verbs.h>\n");
    for field in layouts.iter().flat_map(|layout| &layout.fields) {
        let (member, offset) = (field.name, field.offset);
        writeln!(source, "_Static_assert(offsetof(struct ibv_qp_ex, {member}) == {offset}, \"{member}\");").unwrap();
    }
    compile(&source);
}

#[test]
fn constants_of_vmw_pvrdma_abi_h() {
    check_constants(
        &["rdma/vmw_pvrdma-abi.h"],
        include_str!("../src/uapi/vmw_pvrdma.rs"),
        &[
            // PCI identity and page size: not in this header.
            "PCI_VENDOR_ID_VMWARE",
            "PCI_DEVICE_ID_VMWARE_PVRDMA",
            "PVRDMA_PAGE_SIZE",
            "PVRDMA_SQ_WQE_WR_LEN",
            // The driver's private headers.
            "PVRDMA_SEND_FENCE",
            "PVRDMA_SEND_SIGNALED",
            "PVRDMA_SEND_SOLICITED",
            "PVRDMA_SEND_INLINE",
            "PVRDMA_SEND_IP_CSUM",
            "PVRDMA_SEND_FLAGS_MASK",
            "PVRDMA_ACCESS_LOCAL_WRITE",
            "PVRDMA_ACCESS_REMOTE_WRITE",
            "PVRDMA_ACCESS_REMOTE_READ",
            "PVRDMA_ACCESS_REMOTE_ATOMIC",
            "PVRDMA_ACCESS_MW_BIND",
            "PVRDMA_ZERO_BASED",
            "PVRDMA_ACCESS_ON_DEMAND",
        ],
    );
}

#[test]
fn constants_of_ib_user_verbs_h() {
    check_constants(&["rdma/ib_user_verbs.h"], include_str!("../src/uapi/ib_user_verbs.rs"), &[]);
}

#[test]
fn constants_of_rdma_user_cm_h() {
    check_constants(
        &["rdma/rdma_user_cm.h"],
        include_str!("../src/uapi/rdma_user_cm.rs"),
        // Younger than the oldest headers this is built with.
        &["RDMA_USER_CM_CMD_RESOLVE_IB_SERVICE", "RDMA_USER_CM_CMD_WRITE_CM_EVENT"],
    );
}

#[test]
fn constants_of_ib_user_ioctl_h() {
    check_constants(
        &["rdma/rdma_user_ioctl_cmds.h", "rdma/ib_user_ioctl_cmds.h", "rdma/ib_user_ioctl_verbs.h"],
        include_str!("../src/uapi/ib_user_ioctl.rs"),
        // Younger than the oldest headers this is built with.
        &["UVERBS_METHOD_QUERY_PORT_SPEED", "UVERBS_METHOD_REG_MR"],
    );
}

#[test]
fn constants_of_verbs_h() {
    check_constants(
        &["infiniband/verbs.h"],
        include_str!("../src/verbs.rs"),
        // Younger than the oldest headers this is built with.
        &[
            "IBV_WR_FLUSH",
            "IBV_WR_ATOMIC_WRITE",
            "IBV_PARENT_DOMAIN_INIT_ATTR_ALLOW_CC_UNPROTECTED_ALLOC",
            "IBV_DEVICE_CC_DMA_BOUNCE",
        ],
    );
}
