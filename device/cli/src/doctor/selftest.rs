//! The proof: two RC QPs of the device, connected to each other, and 1 MiB each by SEND and by RDMA WRITE, every byte
//! compared.
//!
//! It runs in a process of its own (`pvrdma doctor --self-test DEVICE`), whose provider may crash or hang without the
//! doctor being lost. What it finds it prints, a word and a value on each line; [`check`] reads that.

use std::ffi::{CStr, c_int};
use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use pvrdma_ffi::verbs::*;

use super::machine::Machine;
use super::port;
use super::report::{Finding, Level};
use pvrdma_hca::verbs::{self, Verbs};

const CHECK: &str = "self-test";
const LEN: usize = 1 << 20;
/// For one completion; a device that answers needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// For all of it.
const TIME: Duration = Duration::from_secs(60);

pub fn check(machine: &Machine) -> Vec<Finding> {
    if machine.is_made_up() {
        return vec![Finding::note(CHECK, "not run: it would try this machine, not the one that was asked about")];
    }
    let devices = port::devices(machine);
    if devices.is_empty() {
        return vec![Finding::new(Level::Unknown, CHECK, "not run: there is no PVRDMA device to try")];
    }
    devices.iter().flat_map(|device| check_device(machine, device)).collect()
}

fn check_device(machine: &Machine, device: &str) -> Vec<Finding> {
    let gids = port::gids(machine, device);
    let Some(gid) = gids.iter().find(|gid| gid.is_ipv4()).or(gids.first()) else {
        return vec![Finding::new(Level::Unknown, CHECK, format!("{device}: not run, since it has no GID"))];
    };
    match run_apart(device, gid.index) {
        Ok(output) => read(device, &output),
        Err(why) => vec![Finding::fail(CHECK, format!("{device}: {why}"))],
    }
}

/// What the process printed, on both of its outputs.
fn run_apart(device: &str, gid: usize) -> Result<String, String> {
    let text = |error: std::io::Error| format!("the self-test cannot be started: {error}");
    // Both to one file: nobody has to read while it runs.
    let mut output = nix::unistd::mkstemp(&std::env::temp_dir().join("pvrdma-doctor-XXXXXX"))
        .map(|(file, path)| {
            let _ = std::fs::remove_file(path);
            std::fs::File::from(file)
        })
        .map_err(|error| text(error.into()))?;
    let share = || output.try_clone().map(Stdio::from).map_err(text);
    let mut child = Command::new("/proc/self/exe")
        .args(["doctor", "--self-test", device, &gid.to_string()])
        .stdin(Stdio::null())
        .stdout(share()?)
        .stderr(share()?)
        .spawn()
        .map_err(text)?;
    let start = Instant::now();
    let status = loop {
        match child.try_wait().map_err(text)? {
            Some(status) => break status,
            None if start.elapsed() > TIME => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("the self-test hung: nothing for {} seconds", TIME.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut output).and_then(|()| output.read_to_end(&mut bytes)).map_err(text)?;
    let mut printed = String::from_utf8_lossy(&bytes).into_owned();
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        printed += &format!("\nfail\tthe provider crashed: signal {signal}\n");
    }
    Ok(printed)
}

/// The findings that a self-test printed.
fn read(device: &str, output: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        match line.split_once('\t') {
            Some(("provider", path)) => findings.push(Finding::ok("provider-in-use", path)),
            Some(("port", what)) => findings.push(Finding::note("port", what)),
            Some(("srq", "0")) => findings.push(
                Finding::warn("srq", "the device has no SRQ, which UCX wants")
                    .cure("upgrade the VM to virtual hardware 14 or newer"),
            ),
            Some(("srq", count)) => findings.push(Finding::ok("srq", format!("{count} SRQs"))),
            Some(("ok", what)) => findings.push(Finding::ok(CHECK, format!("{device}: {what}"))),
            Some(("fail", what)) => {
                let finding = Finding::fail(CHECK, format!("{device}: {what}"));
                findings.push(match cure(what) {
                    Some(cure) => finding.cure(cure),
                    None => finding,
                });
            }
            // What libibverbs or the provider says.
            _ => findings.push(Finding::warn("libibverbs-says", line.trim())),
        }
    }
    if !findings.iter().any(|finding| finding.check == CHECK) {
        findings.push(Finding::fail(CHECK, format!("{device}: the self-test ended without a word")));
    }
    findings
}

fn cure(what: &str) -> Option<&'static str> {
    let cures = [
        ("not listed", "a provider is missing or refused to register: see the lines above"),
        ("ibv_reg_mr", "the limit on locked memory is too low, or the VM's memory is not reserved: see memlock"),
        ("ibv_open_device", "see the device node"),
        ("no completion", "the device does not answer: dmesg | grep -i pvrdma, and the state of the port"),
        ("retry exceeded", "packets do not come back: MTU, switch, GID; see mtu and gids"),
    ];
    cures.iter().find(|(part, _)| what.contains(part)).map(|(_, cure)| *cure)
}

/// Entry point of the process.
pub fn main(device: &str, gid: u8) -> ExitCode {
    match run(device, gid) {
        Ok(()) => {
            println!("ok\tRC, 1 MiB by SEND and by RDMA WRITE over GID {gid}, every byte compared");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("fail\t{why}");
            ExitCode::FAILURE
        }
    }
}

/// A pointer that a verb gave, or why it gave none.
fn got<T>(pointer: *mut T, verb: &str) -> Result<*mut T, String> {
    match pointer.is_null() {
        true => Err(format!("{verb}: {}", std::io::Error::last_os_error())),
        false => Ok(pointer),
    }
}

/// What a verb that returns an errno says.
fn done(code: c_int, verb: &str) -> Result<(), String> {
    match code {
        0 => Ok(()),
        -1 => Err(format!("{verb}: {}", std::io::Error::last_os_error())),
        code => Err(format!("{verb}: {}", std::io::Error::from_raw_os_error(code))),
    }
}

/// Nothing is given back: the process ends with it, and the kernel does it all.
fn run(device: &str, gid_index: u8) -> Result<(), String> {
    let verbs = Verbs::load()?;
    let context = open(&verbs, device)?;
    // SAFETY: `context` is open, and stays so; so it is for all that follows.
    let provider = unsafe { verbs::provider(context) };
    println!("provider\t{}", provider.unwrap_or_default().display());

    let mut attr = std::mem::MaybeUninit::<ibv_device_attr>::zeroed();
    // SAFETY: the struct is all numbers, so zero is a value; the verb fills it.
    let attr = unsafe {
        done((verbs.ibv_query_device)(context, attr.as_mut_ptr()), "ibv_query_device")?;
        attr.assume_init()
    };
    println!("srq\t{}", attr.max_srq);
    let mut port = ibv_port_attr_room::default();
    // SAFETY: there is room for the port of any release.
    done(unsafe { (verbs.ibv_query_port)(context, 1, &raw mut port) }, "ibv_query_port")?;
    let port = port.attr;
    let mtu = 128u32.checked_shl(port.active_mtu).filter(|mtu| (256..=4096).contains(mtu)).unwrap_or(1024);
    println!("port\tactive MTU {mtu}, messages of up to {} MiB", port.max_msg_sz >> 20);
    let mut gid = [0; 2];
    // SAFETY: there is room for a GID.
    done(unsafe { (verbs.ibv_query_gid)(context, 1, gid_index.into(), &raw mut gid) }, "ibv_query_gid")?;

    let (mut from, mut to) = (pattern(), vec![0u8; 2 * LEN]);
    // SAFETY: the PD is of this context, the memory lives until the end of this function and is only the device's
    // while requests are under way; the process ends before it is reused should one fail.
    let (from_mr, to_mr, qps, cq) = unsafe {
        let pd = got((verbs.ibv_alloc_pd)(context), "ibv_alloc_pd")?;
        let access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
        let register = |memory: &mut Vec<u8>| {
            got((verbs.ibv_reg_mr)(pd, memory.as_mut_ptr().cast(), memory.len(), access as c_int), "ibv_reg_mr")
        };
        let mrs = (register(&mut from)?, register(&mut to)?);
        let cq = got((verbs.ibv_create_cq)(context, 16, null_mut(), null_mut(), 0), "ibv_create_cq")?;
        let create = || {
            let cap =
                ibv_qp_cap { max_send_wr: 4, max_recv_wr: 4, max_send_sge: 1, max_recv_sge: 1, max_inline_data: 0 };
            let mut attr = ibv_qp_init_attr {
                qp_context: null_mut(),
                send_cq: cq,
                recv_cq: cq,
                srq: null_mut(),
                cap,
                qp_type: IBV_QPT_RC,
                sq_sig_all: 1,
                padding: 0,
            };
            got((verbs.ibv_create_qp)(pd, &raw mut attr), "ibv_create_qp")
        };
        (mrs.0, mrs.1, [create()?, create()?], cq)
    };
    for (qp, peer) in [(qps[0], qps[1]), (qps[1], qps[0])] {
        // SAFETY: both QPs are there.
        unsafe { connect(&verbs, qp, (*peer).qp_num, gid, gid_index, port.active_mtu)? };
    }

    let sge = |address: &[u8], lkey| ibv_sge { addr: address.as_ptr().addr() as u64, length: LEN as u32, lkey };
    // SAFETY: both MRs are there.
    let (lkey, to_lkey, rkey) = unsafe { ((*from_mr).lkey, (*to_mr).lkey, (*to_mr).rkey) };
    let (mut source, mut target) = (sge(&from, lkey), sge(&to, to_lkey));
    let mut recv = ibv_recv_wr { wr_id: 1, next: null_mut(), sg_list: &raw mut target, num_sge: 1 };
    // SAFETY: the QP is there, the list has one request with one SGE, of memory that is registered.
    done(unsafe { verbs::post_recv(qps[1], &mut recv) }, "ibv_post_recv")?;
    let write = ibv_send_wr_rdma { remote_addr: to[LEN..].as_ptr().addr() as u64, rkey };
    for (wr_id, opcode) in [(2, IBV_WR_SEND), (3, IBV_WR_RDMA_WRITE)] {
        let mut send = ibv_send_wr {
            wr_id,
            next: null_mut(),
            sg_list: &raw mut source,
            num_sge: 1,
            opcode,
            send_flags: IBV_SEND_SIGNALED,
            imm_data: 0,
            wr: ibv_send_wr_union { atomic: ibv_send_wr_atomic::default() },
            remote_srqn: 0,
            bind_mw_or_tso: [0; 6],
        };
        send.wr.rdma = write;
        // SAFETY: as above.
        done(unsafe { verbs::post_send(qps[0], &mut send) }, "ibv_post_send")?;
    }
    wait(&verbs, cq, 3)?;
    // The device wrote behind the compiler's back.
    let arrived = std::hint::black_box(&mut to);
    for (half, verb) in arrived.chunks(LEN).zip(["SEND", "RDMA WRITE"]) {
        if let Some(at) = half.iter().zip(&from).position(|(arrived, sent)| arrived != sent) {
            return Err(format!("{verb} brought wrong data, from byte {at} on"));
        }
    }
    Ok(())
}

/// Bytes none of which is where another could be taken for it.
fn pattern() -> Vec<u8> {
    (0..LEN as u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8 | 1).collect()
}

fn open(verbs: &Verbs, name: &str) -> Result<*mut ibv_context, String> {
    let mut count = 0;
    // SAFETY: there is room for the count. The list stays until the process ends.
    let list = got(unsafe { (verbs.ibv_get_device_list)(&raw mut count) }, "ibv_get_device_list")?;
    for at in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` devices, and a name of each ends with a 0.
        let (device, its_name) = unsafe {
            let device = *list.add(at);
            (device, CStr::from_ptr((verbs.ibv_get_device_name)(device)))
        };
        if its_name.to_bytes() == name.as_bytes() {
            // SAFETY: a device of the list.
            return got(unsafe { (verbs.ibv_open_device)(device) }, "ibv_open_device");
        }
    }
    Err("the device is not listed by libibverbs".to_owned())
}

/// Brings `qp` to RTS, its peer being `peer` of the same port.
///
/// # Safety
/// `qp` must be valid.
unsafe fn connect(
    verbs: &Verbs,
    qp: *mut ibv_qp,
    peer: u32,
    gid: [u64; 2],
    sgid_index: u8,
    path_mtu: u32,
) -> Result<(), String> {
    const PKEY_INDEX_PORT_ACCESS: u32 = 1 << 4 | 1 << 5 | 1 << 3;
    const AV_MTU_DEST_RQ_PSN_DEST_RD_ATOMIC_RNR_TIMER: u32 = 1 << 7 | 1 << 8 | 1 << 20 | 1 << 12 | 1 << 17 | 1 << 15;
    const TIMEOUT_RETRIES_SQ_PSN_RD_ATOMIC: u32 = 1 << 9 | 1 << 10 | 1 << 11 | 1 << 16 | 1 << 13;
    let mut attr = ibv_qp_attr {
        path_mtu,
        dest_qp_num: peer,
        qp_access_flags: IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE,
        port_num: 1,
        min_rnr_timer: 12,
        timeout: 14,
        retry_cnt: 7,
        rnr_retry: 7,
        max_rd_atomic: 1,
        max_dest_rd_atomic: 1,
        ..Default::default()
    };
    attr.ah_attr.grh.dgid = gid;
    attr.ah_attr.grh.sgid_index = sgid_index;
    attr.ah_attr.grh.hop_limit = 64;
    attr.ah_attr.is_global = 1;
    attr.ah_attr.port_num = 1;
    for (state, mask, name) in [
        (IBV_QPS_INIT, PKEY_INDEX_PORT_ACCESS, "INIT"),
        (IBV_QPS_RTR, AV_MTU_DEST_RQ_PSN_DEST_RD_ATOMIC_RNR_TIMER, "RTR"),
        (IBV_QPS_RTS, TIMEOUT_RETRIES_SQ_PSN_RD_ATOMIC, "RTS"),
    ] {
        attr.qp_state = state;
        // SAFETY: promise of the caller; `attr` has all that the mask names.
        let code = unsafe { (verbs.ibv_modify_qp)(qp, &raw mut attr, (mask | IBV_QP_STATE) as c_int) };
        done(code, &format!("ibv_modify_qp to {name}"))?;
    }
    Ok(())
}

/// Waits for `count` completions, all of which have to be good.
fn wait(verbs: &Verbs, cq: *mut ibv_cq, count: usize) -> Result<(), String> {
    let start = Instant::now();
    for _ in 0..count {
        let mut wc = ibv_wc::default();
        loop {
            // SAFETY: the CQ is there.
            match unsafe { verbs::poll_cq(cq, &mut wc) } {
                1 => break,
                0 if start.elapsed() > PATIENCE => {
                    return Err(format!("no completion for {} seconds", PATIENCE.as_secs()));
                }
                0 => std::thread::yield_now(),
                code => return Err(format!("ibv_poll_cq: {code}")),
            }
        }
        if wc.status != IBV_WC_SUCCESS {
            // SAFETY: the function takes any number and gives a text that lives for ever.
            let status = unsafe { CStr::from_ptr((verbs.ibv_wc_status_str)(wc.status)) };
            let verb = ["", "receive", "SEND", "RDMA WRITE"].get(wc.wr_id as usize).unwrap_or(&"");
            return Err(format!("{verb}: {}, vendor_err {:#x}", status.to_string_lossy(), wc.vendor_err));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_prints_becomes_findings() {
        let findings = read("d", "provider\t/x.so\nsrq\t0\nlibibverbs: Warning: y\nfail\tibv_reg_mr: no memory\n");
        let levels: Vec<Level> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Ok, Level::Warn, Level::Warn, Level::Fail]);
        assert!(findings[3].cure.as_ref().unwrap().contains("memlock"));
    }

    #[test]
    fn silence_is_a_failure() {
        assert!(read("d", "").iter().any(|finding| finding.check == CHECK && finding.level == Level::Fail));
    }
}
