//! The private provider ABI: what [`Layout::select`] decides from exported symbols, against recorded
//! facts of every rdma-core release v28..v65 (`data/pabi.txt`), and what [`Libibverbs::find`]
//! measures on the libibverbs that is installed.

mod support;

use core::ffi::CStr;
use pvrdma_ffi::pabi::cmd::{Cmd, ExCmd, Resp};
use pvrdma_ffi::pabi::context_ops::{OPS, verbs_context_ops};
use pvrdma_ffi::pabi::device_ops::*;
use pvrdma_ffi::pabi::*;
use pvrdma_ffi::uapi::{ib_user_verbs::*, vmw_pvrdma::*};
use pvrdma_ffi::verbs::*;
use std::collections::BTreeMap;

const DATA: &str = include_str!("data/pabi.txt");

fn rows(kind: &str) -> impl Iterator<Item = Vec<&'static str>> {
    DATA.lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(move |words| words[0] == kind)
        .map(|words| words[1..].to_vec())
}

/// `v44.0` -> 44.
fn release(name: &str) -> u32 {
    name.trim_start_matches('v').trim_end_matches(".0").parse().expect("a release")
}

/// What a release exports, as far as anybody asks.
fn exports(release_name: &str, pabi: &str, name: &CStr) -> bool {
    let name = name.to_str().expect("ASCII");
    if let Some(number) = name.strip_prefix("verbs_register_driver_") {
        return number == pabi;
    }
    let row = rows("symbol").find(|row| row[0] == name);
    let row = row.unwrap_or_else(|| panic!("no record of {name}"));
    (release(row[1])..=release(row[2])).contains(&release(release_name))
}

fn op_tables() -> BTreeMap<&'static str, Vec<&'static str>> {
    rows("ops").map(|row| (row[0], row[1..].to_vec())).collect()
}

#[test]
fn every_release_gets_its_own_layout() {
    let tables = op_tables();
    let mut count = 0;
    for row in rows("release") {
        let [name, pabi, table, context_size, _comp_mask, device_ops_size] = row[..] else {
            panic!("{row:?}");
        };
        let layout = Layout::select(|symbol| exports(name, pabi, symbol)).expect(name);
        assert_eq!(layout.pabi.to_string(), pabi, "{name}");
        let ops: Vec<&str> = layout.ops.iter().map(|op| op.name).collect();
        assert_eq!(ops, tables[table], "{name}");
        let size = layout.context_offset + IBV_CONTEXT_SIZE;
        assert_eq!(size.to_string(), context_size, "{name}");
        let size = match layout.device_ops {
            DeviceOpsForm::V28 => size_of::<verbs_device_ops_v28>(),
            DeviceOpsForm::V31 => size_of::<verbs_device_ops_v31>(),
        };
        assert_eq!(size.to_string(), device_ops_size, "{name}");
        count += 1;
    }
    assert_eq!(count, 38);
}

#[test]
fn releases_below_the_range_and_unknown_abis_are_refused() {
    let v27 = Layout::select(|symbol| symbol == c"verbs_register_driver_25");
    assert_eq!(v27.err(), Some(Unsupported::TooOld));
    let future = Layout::select(|symbol| symbol == c"verbs_register_driver_99");
    assert_eq!(future.err(), Some(Unsupported::UnknownPabi));
}

#[test]
fn ops_are_sorted_and_their_slots_are_the_recorded_ones() {
    assert!(OPS.windows(2).all(|pair| pair[0].name < pair[1].name));
    let recorded: Vec<(String, isize)> =
        rows("slot").map(|row| (row[0].to_owned(), row[1].parse().expect("an offset"))).collect();
    let ours: Vec<(String, isize)> = OPS.iter().filter_map(|op| Some((op.name.to_owned(), op.slot?))).collect();
    assert_eq!(ours, recorded);
}

#[test]
fn ops_are_laid_out_by_name_and_absent_ones_are_left_out() {
    unsafe extern "C" fn poll_cq(_: *mut ibv_cq, _: i32, _: *mut ibv_wc) -> i32 {
        0
    }
    unsafe extern "C" fn query_device(_: *mut ibv_context, _: *mut ibv_device_attr) -> i32 {
        1
    }
    let ops = verbs_context_ops { poll_cq: Some(poll_cq), query_device: Some(query_device), ..Default::default() };
    for row in rows("release") {
        let layout = Layout::select(|symbol| exports(row[0], row[1], symbol)).expect(row[0]);
        let table = layout.context_ops(&ops);
        for (op, entry) in layout.ops.iter().zip(&table) {
            let expected = match op.name {
                "poll_cq" => poll_cq as *const core::ffi::c_void,
                "query_device" => query_device as *const core::ffi::c_void,
                _ => core::ptr::null(),
            };
            assert_eq!(*entry, expected, "{}: {}", row[0], op.name);
        }
        let has_query_device = layout.ops.iter().any(|op| op.name == "query_device");
        assert_eq!(has_query_device, release(row[0]) < 33, "{}", row[0]);
    }
}

/// The whole way on the library of this machine: find, select, measure, compare.
#[test]
fn the_installed_libibverbs_measures_as_its_symbols_say() {
    // SAFETY: loading a library that every RDMA program loads.
    let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null(), "libibverbs.so.1 is not installed (Debian: libibverbs1)");
    let found = Libibverbs::find().expect("it is loaded");
    let found = found.expect("its layout is known and measures as expected");
    assert!(!found.layout.ops.is_empty());
}

/// A fork that added one op, or moved the context, must not be registered with.
#[test]
fn a_library_that_differs_from_its_symbols_is_refused() {
    // SAFETY: as above.
    let handle = unsafe { libc::dlopen(c"libibverbs.so.1".as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null(), "libibverbs.so.1 is not installed (Debian: libibverbs1)");
    let found = Libibverbs::find().expect("it is loaded").expect("it is known");
    let lib = pvrdma_ffi::pabi::library::Handle::of_loaded_libibverbs().expect("it is loaded");
    let qp_to_qp_ex = lib.symbol(c"ibv_qp_to_qp_ex").expect("exported");
    // SAFETY: the type of that function; both come from the loaded libibverbs.
    let measured = unsafe {
        pvrdma_ffi::pabi::measure::Measured::take(
            found.functions.set_ops,
            core::mem::transmute::<core::ptr::NonNull<core::ffi::c_void>, pvrdma_ffi::pabi::measure::QpToQpEx>(
                qp_to_qp_ex,
            ),
        )
    };
    found.layout.verify(&measured).expect("the right layout is accepted");

    let mut one_op_less = Libibverbs::find().expect("loaded").expect("known").layout;
    one_op_less.ops.remove(3);
    let refused = one_op_less.verify(&measured);
    assert!(matches!(refused, Err(Unsupported::Differs { what: "number of context ops", .. })));

    let mut two_swapped = Libibverbs::find().expect("loaded").expect("known").layout;
    let (a, b) = (position(&two_swapped, "post_recv"), position(&two_swapped, "post_send"));
    two_swapped.ops.swap(a, b);
    let refused = two_swapped.verify(&measured);
    assert!(matches!(refused, Err(Unsupported::Differs { what: "post_send" | "post_recv", .. })));

    let mut moved = Libibverbs::find().expect("loaded").expect("known").layout;
    moved.context_offset += 8;
    let refused = moved.verify(&measured);
    assert!(matches!(refused, Err(Unsupported::Differs { what: "offset of ibv_context", .. })));
}

fn position(layout: &Layout, op: &str) -> usize {
    layout.ops.iter().position(|o| o.name == op).expect(op)
}

// ---- structs -----------------------------------------------------------------------------------

/// Every recorded variant of struct `name` must have these fields; `growth` lists fields that only
/// some variants have.
fn check_variants(ours: Vec<support::Layout>, growth: &[&str]) {
    for layout in ours {
        let mut variants = 0;
        for row in rows("struct") {
            let (name, variant) = row[0].split_once('@').expect("name@release");
            if name != layout.name {
                continue;
            }
            variants += 1;
            assert_eq!(row[1], layout.size.to_string(), "size of {name} since {variant}");
            for field in &layout.fields {
                let recorded = row[2..].iter().find_map(|f| {
                    let mut parts = f.split(':');
                    (parts.next() == Some(field.name))
                        .then(|| parts.map(|n| n.parse().expect("a number")).collect::<Vec<usize>>())
                });
                match recorded {
                    Some(at) => assert_eq!(at, [field.offset, field.size], "{name}.{}", field.name),
                    None => assert!(growth.contains(&field.name), "{name}.{}", field.name),
                }
            }
        }
        assert!(variants > 0, "no record of {}", layout.name);
    }
}

#[test]
fn private_structs() {
    check_variants(
        layouts![
            verbs_match_ent { driver_data, driver_id = "u", vendor, device, kind }
            verbs_device { device }
            verbs_mr { ibv_mr, mr_type, access }
        ],
        &["access"],
    );
    let [v28, v31] = &layouts![
        verbs_device_ops_v28 as "verbs_device_ops@v28" {
            name, match_min_abi_version, match_max_abi_version, match_table, static_providers,
            match_device, alloc_context, alloc_device, uninit_device
        }
        verbs_device_ops_v31 as "verbs_device_ops@v31" {
            name, match_min_abi_version, match_max_abi_version, match_table, static_providers,
            match_device, alloc_context, import_context, alloc_device, uninit_device
        }
    ][..] else {
        unreachable!()
    };
    for ours in [v28, v31] {
        let row = rows("struct").find(|row| row[0] == ours.name).expect(ours.name);
        let fields: Vec<String> = ours.fields.iter().map(|f| format!("{}:{}:{}", f.name, f.offset, f.size)).collect();
        assert_eq!(row[1], ours.size.to_string(), "{}", ours.name);
        assert_eq!(row[2..], fields[..], "{}", ours.name);
    }
}

#[test]
fn objects_have_room_for_every_release() {
    for (name, room) in [("verbs_qp", VERBS_QP_ROOM), ("ibv_cq_ex", VERBS_CQ_ROOM), ("verbs_srq", VERBS_SRQ_ROOM)] {
        for row in rows("struct").filter(|row| row[0].split_once('@').is_some_and(|n| n.0 == name)) {
            assert!(row[1].parse::<usize>().expect("a size") <= room, "{}", row[0]);
        }
    }
}

/// The public structs once more, since the installed header is only one release.
#[test]
fn public_structs_in_every_release() {
    check_variants(
        layouts![
            ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors, mutex, abi_compat }
            ibv_pd { context, handle }
            ibv_mr { context, pd, addr, length, handle, lkey, rkey }
            ibv_cq { context, channel, cq_context, handle, cqe, mutex, cond,
                     comp_events_completed, async_events_completed }
            ibv_qp { context, qp_context, pd, send_cq, recv_cq, srq, handle, qp_num, state, qp_type,
                     mutex, cond, events_completed }
            ibv_comp_channel { context, fd, refcnt }
            ibv_sge { addr, length, lkey }
            ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, imm_data, wr }
            ibv_recv_wr { wr_id, next, sg_list, num_sge }
            ibv_wc { wr_id, status, opcode, vendor_err, byte_len, imm_data, qp_num, src_qp,
                     wc_flags, pkey_index, slid, sl, dlid_path_bits }
            ibv_global_route { dgid, flow_label, sgid_index, hop_limit, traffic_class }
            ibv_ah_attr { grh, dlid, sl, src_path_bits, static_rate, is_global, port_num }
            ibv_qp_cap { max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data }
            ibv_qp_init_attr { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
            ibv_qp_attr { qp_state, cur_qp_state, path_mtu, path_mig_state, qkey, rq_psn, sq_psn,
                          dest_qp_num, qp_access_flags, cap, ah_attr, alt_ah_attr, rate_limit }
            ibv_device_attr { fw_ver, node_guid, max_qp, max_qp_wr, max_sge, max_cqe, max_srq_sge,
                              max_pkeys, local_ca_ack_delay, phys_port_cnt }
            ibv_device_attr_ex { orig_attr, comp_mask, odp_caps, device_cap_flags_ex }
            ibv_srq { context, srq_context, pd, handle, mutex, cond, events_completed }
            ibv_ah { context, pd, handle }
            ibv_srq_attr { max_wr, max_sge, srq_limit }
            ibv_srq_init_attr { srq_context, attr }
            ibv_qp_init_attr_ex { qp_context, send_cq, recv_cq, srq, cap, qp_type, sq_sig_all, comp_mask, pd, xrcd,
                                  create_flags, max_tso_header, rwq_ind_tbl, rx_hash_conf, source_qpn, send_ops_flags }
            ibv_parent_domain_init_attr { pd, td, comp_mask, alloc, free, pd_context }
            ibv_poll_cq_attr { comp_mask }
            ibv_data_buf { addr, length }
            ibv_cq_ex { comp_mask, status, wr_id, start_poll, next_poll, end_poll, read_opcode, read_vendor_err,
                        read_byte_len, read_imm_data, read_qp_num, read_src_qp, read_wc_flags, read_slid, read_sl,
                        read_dlid_path_bits }
        ],
        &[],
    );
    // These grew at the end: what is here is there in every release.
    for row in rows("struct").filter(|row| row[0].starts_with("ibv_port_attr@")) {
        let size = row[1].parse::<usize>().expect("a size");
        assert!((size_of::<ibv_port_attr>()..=size_of::<ibv_port_attr_room>()).contains(&size));
    }
    let grown = layouts![
        ibv_port_attr { state, gid_tbl_len, port_cap_flags, link_layer, port_cap_flags2 }
        ibv_qp_ex { qp_base, comp_mask, wr_id, wr_flags, wr_atomic_cmp_swp, wr_send_tso, wr_set_ud_addr, wr_set_sge_list,
                    wr_start, wr_complete, wr_abort }
        ibv_cq_init_attr_ex { cqe, cq_context, channel, comp_vector, wc_flags, comp_mask, flags }
    ];
    for layout in grown {
        let prefix = format!("{}@", layout.name);
        for row in rows("struct").filter(|row| row[0].starts_with(&prefix)) {
            for field in &layout.fields {
                let expected = format!("{}:{}:{}", field.name, field.offset, field.size);
                assert!(row[2..].contains(&expected.as_str()), "{}: no {expected}", row[0]);
            }
        }
    }
}

/// Requests are header + core part + driver part, answers core part + driver part.
#[test]
fn command_structs() {
    let recorded = |name: &str| -> usize {
        let row = rows("struct").find(|row| row[0].split_once('@').is_some_and(|n| n.0 == name));
        row.expect(name)[1].parse().expect("a size")
    };
    macro_rules! same {
        ($($name:literal = $ty:ty),* $(,)?) => {
            $(assert_eq!(recorded($name), size_of::<$ty>(), $name);)*
        };
    }
    same! {
        "ibv_get_context" = Cmd<ib_uverbs_get_context>,
        "ibv_alloc_pd" = Cmd<ib_uverbs_alloc_pd>,
        "ibv_reg_mr" = Cmd<ib_uverbs_reg_mr>,
        "ibv_query_port" = Cmd<ib_uverbs_query_port>,
        "ibv_query_device" = Cmd<ib_uverbs_query_device>,
        "ibv_query_device_ex" = ExCmd<ib_uverbs_ex_query_device>,
        "ibv_create_cq" = Cmd<ib_uverbs_create_cq>,
        "ibv_create_qp" = Cmd<ib_uverbs_create_qp>,
        "ibv_query_qp" = Cmd<ib_uverbs_query_qp>,
        "ibv_modify_qp" = Cmd<ib_uverbs_modify_qp>,
        "ibv_create_srq" = Cmd<ib_uverbs_create_srq>,
        "ibv_modify_srq" = Cmd<ib_uverbs_modify_srq>,
        "ibv_query_srq" = Cmd<ib_uverbs_query_srq>,
        "ib_uverbs_get_context_resp" = ib_uverbs_get_context_resp,
        "ib_uverbs_alloc_pd_resp" = ib_uverbs_alloc_pd_resp,
        "ib_uverbs_reg_mr_resp" = ib_uverbs_reg_mr_resp,
        "ib_uverbs_create_cq_resp" = ib_uverbs_create_cq_resp,
        "ib_uverbs_create_qp_resp" = ib_uverbs_create_qp_resp,
        "ib_uverbs_create_srq_resp" = ib_uverbs_create_srq_resp,
        "ib_uverbs_ex_query_device_resp" = ib_uverbs_ex_query_device_resp,
    }
    // The driver part begins right after the core part.
    assert_eq!(size_of::<Cmd<ib_uverbs_create_cq, pvrdma_create_cq>>(), 40 + 16);
    assert_eq!(size_of::<Cmd<ib_uverbs_create_qp, pvrdma_create_qp>>(), 64 + 32);
    assert_eq!(size_of::<Resp<ib_uverbs_alloc_pd_resp, pvrdma_alloc_pd_resp>>(), 4 + 8);
    assert_eq!(size_of::<Resp<ib_uverbs_create_cq_resp, pvrdma_create_cq_resp>>(), 8 + 8);
    assert_eq!(size_of::<Resp<ib_uverbs_create_qp_resp, pvrdma_create_qp_resp>>(), 32 + 8);
    assert_eq!(size_of::<Resp<ib_uverbs_get_context_resp, pvrdma_alloc_ucontext_resp>>(), 8 + 8);
}
