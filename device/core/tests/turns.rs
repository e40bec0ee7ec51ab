//! Whoever rings waits for his doorbell, a virtual CPU among them. So a doorbell does one turn of work and leaves the
//! rest to whoever polls, and it waits for no thread that is at work.

use pvrdma_device::handle::{Gid, QpHandle};
use pvrdma_device::memory::{Memory, Span};
use pvrdma_device::testing::driver::{Driver, Layout};
use pvrdma_device::testing::end::{End, Path, connect, pump};
use pvrdma_device::testing::queue::{QpSize, SendWr, sge};
use pvrdma_device::transport::fabric::{Fabric, Port};
use pvrdma_device::transport::{Request, Submitted, Token, Transport};
use pvrdma_ffi::uapi::vmw_pvrdma::PVRDMA_UAR_CQ_POLL;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

fn two(driver: &Arc<Driver>, other: &Arc<Driver>) -> [End; 2] {
    let size = QpSize::wr(32);
    let ends = [End::new(driver, size), End::new(other, size)];
    connect(&ends[0], &ends[1], &Path::default());
    ends
}

#[test]
fn doorbell_for_a_list_of_long_messages_does_one() {
    let fabric = Fabric::new();
    let driver = Arc::new(Driver::new(&fabric, 1, Layout::Ranges));
    let [a, b] = two(&driver, &driver);
    let (from, to) = (a.region(MIB), b.region(MIB));
    driver.bell.take_wake();
    for wr_id in 0..8 {
        let wr = SendWr::write(wr_id, &[sge(&from, 0, MIB as u32)], &to, 0);
        assert!(a.qp.post_send(&wr));
    }
    a.qp.ring_send();
    assert_eq!(a.send_cq.drain().len(), 1);
    assert!(driver.bell.take_wake(), "somebody else is to do the others");
    // Nor does another doorbell do more than one.
    a.qp.ring_send();
    assert_eq!(a.send_cq.drain().len(), 1);
    pump(&[&driver]);
    assert_eq!(a.send_cq.drain().len(), 6);
}

/// A wire on which requests wait while it is shut.
struct Gate {
    port: Arc<Port>,
    shut: AtomicBool,
    /// Told when a request waits, and asked for leave to go on.
    waiting: mpsc::Sender<()>,
    leave: Mutex<mpsc::Receiver<()>>,
}

impl Transport for Gate {
    fn submit(&self, request: &Request, memory: &dyn Memory, local: &[Span]) -> Submitted {
        if self.shut.swap(false, Ordering::SeqCst) {
            self.waiting.send(()).unwrap();
            self.leave.lock().unwrap().recv_timeout(2 * LONG).expect("nobody opens the gate");
        }
        self.port.submit(request, memory, local)
    }

    fn cancel(&self, token: Token) {
        self.port.cancel(token);
    }

    fn lost(&self, token: Token) -> bool {
        self.port.lost(token)
    }

    fn gid_bound(&self, gid: Gid, bound: bool) {
        self.port.gid_bound(gid, bound);
    }

    fn expected_psn(&self, qp: QpHandle) -> Option<&'static std::sync::atomic::AtomicU32> {
        self.port.expected_psn(qp)
    }
}

#[test]
fn doorbell_does_not_wait_for_a_thread_that_runs_its_qp() {
    let fabric = Fabric::new();
    let port = Port::new(&fabric);
    let (waiting, waits) = mpsc::channel();
    let (open, leave) = mpsc::channel();
    let gate = Arc::new(Gate { port: port.clone(), shut: AtomicBool::new(false), waiting, leave: Mutex::new(leave) });
    let driver = Arc::new(Driver::on(1, Layout::Ranges, 64 << 20, gate.clone()));
    driver.plug(&port);
    let [a, b] = two(&driver, &driver);
    let (from, to) = (a.region(64), b.region(64));
    let wr = |wr_id| SendWr::write(wr_id, &[sge(&from, 0, 64)], &to, 0);

    gate.shut.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        assert!(a.qp.post_send(&wr(1)));
        let at_work = scope.spawn(|| a.qp.ring_send());
        waits.recv_timeout(LONG).expect("the first request gets to the gate");
        driver.bell.take_wake();
        let (rung, returned) = mpsc::channel();
        assert!(a.qp.post_send(&wr(2)));
        let (end, rung) = (&a, rung);
        let rings = scope.spawn(move || {
            end.qp.ring_send();
            end.send_cq.ring(PVRDMA_UAR_CQ_POLL);
            rung.send(()).unwrap();
        });
        let in_time = returned.recv_timeout(LONG).is_ok();
        open.send(()).unwrap();
        at_work.join().unwrap();
        rings.join().unwrap();
        assert!(in_time, "the doorbell waited");
        assert!(driver.bell.take_wake(), "somebody is told of what it left");
    });
    pump(&[&driver]);
    assert_eq!(a.send_cq.drain().len(), 2, "and nothing is forgotten");
}
