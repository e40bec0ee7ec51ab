//! How many instructions do the hot verbs execute? Exact and repeatable, unlike nanoseconds on a
//! shared machine: a child runs each verb on the mock device and its parent single-steps it.
//!
//!     cargo bench -p vmw_pvrdma --features test-utils
//!
//! The count runs from the verb's first instruction to its `ret`.

use core::ptr;
use pvrdma_ffi::verbs::*;
use std::time::Instant;
use vmw_pvrdma::mock::{Mock, send_cqe};
use vmw_pvrdma::ops::OPS;

/// Requests or completions in the longer cases.
const LIST: usize = 16;

struct Case {
    name: &'static str,
    /// Brings the mock into the state before the call.
    prepare: fn(&Mock),
    call: fn(&mut Args) -> i32,
    expected: i32,
}

struct Args {
    mock: Mock,
    send: Vec<ibv_send_wr>,
    recv: Vec<ibv_recv_wr>,
    wc: Vec<ibv_wc>,
}

impl Args {
    fn new() -> Self {
        let sge: *mut ibv_sge = Box::leak(Box::new(ibv_sge { addr: 0x1000, length: 8, lkey: 1 }));
        // SAFETY: all-zero integers and pointers are valid.
        let mut send = vec![unsafe { core::mem::zeroed::<ibv_send_wr>() }; LIST];
        // SAFETY: as above.
        let mut recv = vec![unsafe { core::mem::zeroed::<ibv_recv_wr>() }; LIST];
        for i in 0..LIST {
            send[i].opcode = IBV_WR_RDMA_WRITE;
            send[i].send_flags = IBV_SEND_SIGNALED;
            (send[i].sg_list, send[i].num_sge) = (sge, 1);
            (recv[i].sg_list, recv[i].num_sge) = (sge, 1);
            if i > 0 {
                send[i - 1].next = &raw mut send[i];
                recv[i - 1].next = &raw mut recv[i];
            }
        }
        Self { mock: Mock::new(1024, 1, 1024), send, recv, wc: vec![ibv_wc::default(); LIST] }
    }

    fn send(&mut self, count: usize) -> i32 {
        let mut bad = ptr::null_mut();
        let first = &raw mut self.send[LIST - count];
        let qp = ptr::from_mut(&mut *self.mock.qp).cast();
        // SAFETY: a live QP and a valid list.
        unsafe { OPS.post_send.unwrap()(qp, first, &mut bad) }
    }

    fn recv(&mut self, count: usize) -> i32 {
        let mut bad = ptr::null_mut();
        let first = &raw mut self.recv[LIST - count];
        let qp = ptr::from_mut(&mut *self.mock.qp).cast();
        // SAFETY: a live QP and a valid list.
        unsafe { OPS.post_recv.unwrap()(qp, first, &mut bad) }
    }

    fn poll(&mut self, count: i32) -> i32 {
        let cq = ptr::from_mut(&mut *self.mock.cq).cast();
        // SAFETY: a live CQ and room for LIST completions.
        unsafe { OPS.poll_cq.unwrap()(cq, count, self.wc.as_mut_ptr()) }
    }

    fn arm(&mut self) -> i32 {
        let cq = ptr::from_mut(&mut *self.mock.cq).cast();
        // SAFETY: a live CQ.
        unsafe { OPS.req_notify_cq.unwrap()(cq, 0) }
    }
}

fn put(mock: &Mock, count: u64) {
    (0..count).for_each(|i| mock.put(send_cqe(i)));
}

const CASES: [Case; 9] = [
    Case { name: "post_send, 1 WR", prepare: Mock::drain, call: |a| a.send(1), expected: 0 },
    Case { name: "post_send, list of 16", prepare: Mock::drain, call: |a| a.send(LIST), expected: 0 },
    Case { name: "post_recv, 1 WR", prepare: Mock::drain, call: |a| a.recv(1), expected: 0 },
    Case { name: "post_recv, list of 16", prepare: Mock::drain, call: |a| a.recv(LIST), expected: 0 },
    Case { name: "poll_cq(1), 1 present", prepare: |m| put(m, 1), call: |a| a.poll(1), expected: 1 },
    Case { name: "poll_cq(16), 16 present", prepare: |m| put(m, 16), call: |a| a.poll(16), expected: 16 },
    Case { name: "poll_cq(16), 1 present", prepare: |m| put(m, 1), call: |a| a.poll(16), expected: 1 },
    Case { name: "poll_cq, empty", prepare: |_| (), call: |a| a.poll(1), expected: 0 },
    Case { name: "req_notify_cq", prepare: |_| (), call: Args::arm, expected: 0 },
];

/// The verb of a case, as the address its instructions start at.
fn entry(name: &str) -> u64 {
    match name.split([',', '(']).next() {
        Some("post_send") => OPS.post_send.unwrap() as usize as u64,
        Some("post_recv") => OPS.post_recv.unwrap() as usize as u64,
        Some("poll_cq") => OPS.poll_cq.unwrap() as usize as u64,
        _ => OPS.req_notify_cq.unwrap() as usize as u64,
    }
}

/// Instructions between the entry of the verb and its return, second call (the first one may have
/// had to look at the ring).
fn count_instructions(case: &Case) -> u64 {
    // SAFETY: the child only runs the case and exits; this process has one thread.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork");
    if child == 0 {
        let mut args = Args::new();
        for _ in 0..2 {
            (case.prepare)(&args.mock);
            (case.call)(&mut args);
        }
        (case.prepare)(&args.mock);
        // SAFETY: asks the parent to step us from here; `raise` stops until it does.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        let ret = (case.call)(&mut args);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(ret != case.expected)) };
    }
    let (start, mut count, mut return_to) = (entry(case.name), 0u64, None);
    loop {
        let mut status = 0;
        // SAFETY: our child.
        unsafe { libc::waitpid(child, &mut status, 0) };
        if libc::WIFEXITED(status) {
            assert_eq!(libc::WEXITSTATUS(status), 0, "{}: wrong result", case.name);
            return count;
        }
        // SAFETY: the child is stopped; the struct is plain integers.
        let regs = unsafe {
            let mut regs: libc::user_regs_struct = core::mem::zeroed();
            libc::ptrace(libc::PTRACE_GETREGS, child, 0, &mut regs);
            regs
        };
        if regs.rip == start && return_to.is_none() {
            // SAFETY: the return address is on top of the stopped child's stack.
            let at = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, child, regs.rsp, 0) };
            return_to = Some(at as u64);
        }
        let request = match return_to {
            Some(at) if regs.rip == at => libc::PTRACE_CONT,
            Some(_) => {
                count += 1;
                libc::PTRACE_SINGLESTEP
            }
            None => libc::PTRACE_SINGLESTEP,
        };
        if request == libc::PTRACE_CONT {
            return_to = Some(0);
        }
        // SAFETY: the child is stopped.
        unsafe { libc::ptrace(request, child, 0, 0) };
    }
}

/// Median time of a call, preparation included and measured apart.
fn nanoseconds(case: &Case) -> f64 {
    let mut args = Args::new();
    let mut run = |with_call: bool| {
        let mut samples: Vec<f64> = (0..301)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..64 {
                    (case.prepare)(&args.mock);
                    if with_call {
                        assert_eq!((case.call)(&mut args), case.expected, "{}", case.name);
                    } else {
                        args.mock.forget_completions();
                    }
                }
                start.elapsed().as_nanos() as f64 / 64.0
            })
            .collect();
        samples.sort_by(f64::total_cmp);
        samples[150]
    };
    run(true);
    run(true) - run(false)
}

fn main() {
    println!("{:<26}{:>14}{:>10}", "verb", "instructions", "ns");
    for case in &CASES {
        let (count, ns) = (count_instructions(case), nanoseconds(case));
        println!("{:<26}{count:>14}{ns:>10.1}", case.name);
    }
}
