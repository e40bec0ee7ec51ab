//! rdma-core's own test suite in the guest: the step, and what its results are held against.
//!
//! Called by `steps.rs` and, for `--pyverbs`, by `mod.rs`. The same suite runs on the stand-in
//! (`tests/tests/pyverbs.rs`); what ends otherwise here is in `tests/pyverbs/vm.txt`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pvrdma_tests::pyverbs::{self, Found, List};

use super::Provider;
use super::case::Step;

/// What `run.py` printed, in the folder shared with the guest.
const RESULTS: &str = "pyverbs.txt";

/// The tests of rdma_cm, which need a network device beside the RDMA device.
pub fn rdma_cm() -> Step {
    Step {
        name: "rdma-core's own tests of rdma_cm".to_owned(),
        script: script("test_rdmacm"),
        limit: Duration::from_secs(120),
        judge: Some(|provider, job| judge(List::of_vm().only("test_rdmacm"), provider, job)),
    }
}

/// All there are. Some minutes on a busy machine.
pub fn whole() -> Step {
    Step {
        name: "rdma-core's own tests, all".to_owned(),
        script: script(""),
        limit: Duration::from_secs(600),
        judge: Some(|provider, job| judge(List::of_vm(), provider, job)),
    }
}

fn script(file: &str) -> String {
    format!(
        "wait_gid
         # The suite wants some huge pages; the guest ends soon.
         echo 8 >/proc/sys/vm/nr_hugepages
         mkdir -p /tmp/suite && cp -r {suite} /tmp/suite/tests && gunzip -rf /tmp/suite/tests || fail 'no suite'
         /usr/bin/python3 /run/job/run.py /tmp/suite $device 1 eth0 {file} >/run/job/{RESULTS} || fail \"exit code $?\"
         rm -r /tmp/suite
         dmesg | grep -E 'WARNING:|BUG:|Oops:|Call Trace:' && fail 'the kernel is hurt'
         echo 0 >/proc/sys/vm/nr_hugepages",
        suite = pyverbs::SUITE
    )
}

fn judge(list: List, provider: &Provider, job: &Path) -> Result<String> {
    if let Some(why) = pyverbs::missing() {
        bail!("the list is for another release: {why}");
    }
    let column = match provider {
        Provider::Ours(_) => 0,
        Provider::System => 1,
    };
    let found = results(job)?;
    let wrong = list.wrong(column, &found);
    ensure!(wrong.is_empty(), "{} tests:\n      {}", wrong.len(), wrong.join("\n      "));
    Ok(pyverbs::totals(&found))
}

fn results(job: &Path) -> Result<Found> {
    let file = job.join(RESULTS);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(pyverbs::found(&text))
}

/// How each test ended with our provider and with the C provider, from the folders of the two guests.
pub fn table(ours: &Path, system: &Path) -> Result<String> {
    Ok(List::of_vm().table(&results(ours)?, &results(system)?))
}
