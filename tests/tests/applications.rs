//! UCX, Open MPI, MPICH and libfabric as they come from Debian, with their default settings: of ours is only the
//! device's name.
//!
//! All of them fall back to TCP or shared memory without a word. So what counts is the trace: how often the program
//! rang for a send. The first test is of that measure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pvrdma_tests::{Job, Provider, Stand, User, amount, free_port, machine, mpi_program, pair, wait_for_listener};

/// How UCX is told which network device to use. What leads to another guest it finds out by itself.
const DEVICE: (&str, &str) = ("UCX_NET_DEVICES", "vmw_pvrdma0:1");

/// Two guests, and a trace of each.
struct Guests {
    stand: Stand,
    traces: tempfile::TempDir,
}

impl Guests {
    fn new() -> Guests {
        Guests { stand: Stand::new(User::Me), traces: tempfile::tempdir().expect("a folder") }
    }

    fn trace(&self, guest: &str) -> PathBuf {
        self.traces.path().join(guest)
    }

    /// A program in a guest, traced.
    fn job(&self, provider: &Provider, guest: &str, program: impl AsRef<Path>) -> Job<'_> {
        let job = self.stand.job(program.as_ref()).provider(provider).guest(guest);
        job.option("--trace", self.trace(guest)).env(DEVICE.0, DEVICE.1)
    }

    /// How often each guest rang for sends since it was asked last.
    fn sends(&self) -> BTreeMap<String, usize> {
        let files = std::fs::read_dir(self.traces.path()).expect("own folder");
        files
            .map(|file| {
                let path = file.expect("an entry").path();
                let text = std::fs::read_to_string(&path).expect("own file");
                std::fs::remove_file(&path).expect("own file");
                let rings = text.lines().filter(|line| line.contains(" QP ") && line.ends_with(" SEND")).count();
                (path.file_name().expect("a file").to_string_lossy().into_owned(), rings)
            })
            .collect()
    }

    fn expect_sends(&self, at_least: usize, what: &str) {
        let sends = self.sends();
        assert_eq!(sends.len(), 2, "{what}: {sends:?}");
        assert!(sends.values().all(|count| *count >= at_least), "{what} did not go by RDMA: {sends:?}");
    }

    /// Ranks of an MPI program, half of them in each guest.
    fn mpi(&self, mpi: &Mpi, provider: &Provider, ranks: usize) -> Job<'_> {
        let program = self.stand.copy(&mpi_program(&format!("mpicc.{}", mpi.library), "tests/c/mpi.c"));
        let provider = match provider {
            Provider::Ours => "ours",
            _ => "system",
        };
        let mut job = self.stand.plain(format!("mpiexec.{}", mpi.library)).args(mpi.options);
        for (guest, between) in [("red", None), ("blue", Some(":"))] {
            job = job.args(between).args(["-n", &(ranks / 2).to_string()]);
            job = job.args([self.stand.path("pvrdma")]).args(["run", "--provider", provider, "--guest", guest]);
            job = job.args(["--trace".as_ref(), self.trace(guest).as_os_str()]);
            job = job.args(["--".as_ref(), program.as_os_str()]);
        }
        // The trace makes all this slow enough on two busy cores.
        job.env(DEVICE.0, DEVICE.1).time_out(Duration::from_secs(120))
    }

    /// Runs the program, and it must have gone by RDMA.
    fn expect_mpi(&self, mpi: &Mpi, provider: &Provider, ranks: usize) {
        assert_eq!(self.mpi(mpi, provider, ranks).ok(), format!("ok {ranks} ranks\n"));
        self.expect_sends(PINGS * ranks / 2, &format!("{ranks} ranks of {} on {provider:?}", mpi.library));
    }
}

/// An MPI library, and what its launcher needs to be told.
struct Mpi {
    library: &'static str,
    options: &'static [&'static str],
}

/// Open MPI takes UCX by itself for devices that it knows by name; the first two options are for root, and for more
/// ranks than cores.
const OPEN_MPI: Mpi = Mpi {
    library: "openmpi",
    options: &["--allow-run-as-root", "--oversubscribe", "--mca", "pml", "ucx", "--mca", "osc", "ucx"],
};
const OPEN_MPI_BY_TCP: Mpi = Mpi {
    library: "openmpi",
    options: &["--allow-run-as-root", "--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "osc", "^ucx"],
};
/// By reliable datagrams over connected endpoints.
const OPEN_MPI_BY_LIBFABRIC: Mpi = Mpi {
    library: "openmpi",
    options: &[
        "--allow-run-as-root",
        "--oversubscribe",
        "--mca",
        "pml",
        "cm",
        "--mca",
        "mtl",
        "ofi",
        "--mca",
        "mtl_ofi_provider_include",
        "verbs;ofi_rxm",
        "--mca",
        "osc",
        "^ucx",
    ],
};
const MPICH: Mpi = Mpi { library: "mpich", options: &[] };

/// Messages that the first half of the ranks sends in the ping-pong of mpi.c.
const PINGS: usize = 220;

#[test]
fn a_program_that_falls_back_is_seen() {
    let _machine = machine();
    let guests = Guests::new();
    guests.mpi(&OPEN_MPI_BY_TCP, &Provider::Ours, 2).ok();
    let sends = guests.sends();
    assert!(sends.values().all(|count| *count < PINGS), "{sends:?}");
}

#[test]
fn open_mpi_between_two_guests() {
    let _machine = machine();
    let guests = Guests::new();
    for provider in Provider::BOTH {
        guests.expect_mpi(&OPEN_MPI, &provider, 2);
        guests.expect_mpi(&OPEN_MPI, &provider, 4);
    }
}

#[test]
fn open_mpi_over_libfabric() {
    let _machine = machine();
    let guests = Guests::new();
    for provider in Provider::BOTH {
        guests.expect_mpi(&OPEN_MPI_BY_LIBFABRIC, &provider, amount(2, 4));
    }
}

#[test]
fn mpich_between_two_guests() {
    let _machine = machine();
    let guests = Guests::new();
    guests.expect_mpi(&MPICH, &Provider::Ours, 2);
    guests.expect_mpi(&MPICH, &Provider::Ours, 4);
}

#[test]
fn ucx_finds_the_device() {
    let _machine = machine();
    let guests = Guests::new();
    for provider in Provider::BOTH {
        let text = guests.stand.job("ucx_info").provider(&provider).args(["-d"]).ok();
        let domain = text.split("# Memory domain: ").find(|domain| domain.starts_with("vmw_pvrdma0"));
        let domain = domain.unwrap_or_else(|| panic!("no memory domain of ours:\n{text}"));
        for transport in ["rc_verbs", "ud_verbs"] {
            assert!(domain.contains(&format!("Transport: {transport}")), "no {transport}:\n{domain}");
        }
    }
}

#[test]
fn ucx_perftest() {
    let _machine = machine();
    let guests = Guests::new();
    let rows = [
        ("tag_lat", "8"),
        ("tag_bw", "65536"),
        ("stream_bw", "4096"),
        ("ucp_am_lat", "64"),
        ("ucp_put_lat", "4096"),
        ("ucp_put_bw", "1048576"),
        ("ucp_get", "4096"),
        ("ucp_fadd", "8"),
        ("ucp_cswap", "8"),
    ];
    let count = 200;
    for provider in Provider::BOTH {
        for transport in ["rc_v", "ud_v"] {
            for (test, size) in rows {
                let end = |guest| {
                    let job = guests.job(&provider, guest, "ucx_perftest").env("UCX_TLS", transport);
                    job.args(["-t", test, "-s", size, "-n", &count.to_string(), "-w", "10"])
                };
                pair(end("red"), end("blue"));
                let sends = guests.sends();
                assert!(sends["blue"] >= count, "{test} by {transport} on {provider:?}: {sends:?}");
            }
        }
    }
}

/// Reliable datagrams over UD; connected endpoints need rdma_cm. Not with the C provider: libfabric takes GID 0, a
/// link-local address, and libibverbs, which the C provider asks, finds no way to one on the loopback interface.
#[test]
fn libfabric_datagrams() {
    let _machine = machine();
    let guests = Guests::new();
    let port = free_port();
    let end = |guest, option| {
        let job = guests.job(&Provider::Ours, guest, "fi_pingpong");
        job.args(["-p", "verbs;ofi_rxd", "-e", "rdm", "-c", "-I", "50", option, &port.to_string()])
    };
    let mut server = end("red", "-B").spawn();
    wait_for_listener(&mut server, port);
    end("blue", "-P").args(["127.0.0.1"]).ok();
    server.wait().ok();
    guests.expect_sends(6 * 50, "fi_pingpong");
}
