//! Instructions per verb, counted by valgrind's callgrind: exact and the same on every run, unlike nanoseconds.
//!
//! `c/count.c` calls each verb from a function of its own. What counts is everything between the call into the
//! provider and its return, libc's part included; the device's work behind a trapped doorbell is not the provider's.

use std::collections::HashMap;
use std::time::Duration;

use pvrdma_tests::{Provider, Stand, c_program};

/// Instructions per call, by the name of the calling function in `c/count.c`.
pub type Counts = Vec<(String, f64)>;

/// The functions of `c/count.c` whose calls are counted, in the order they are shown.
const CALLERS: [&str; 6] = ["post_send_1", "post_send_16", "post_recv_1", "poll_cq_1", "poll_cq_16", "poll_cq_empty"];

/// Counts for one provider.
pub fn instructions(stand: &Stand, provider: &Provider) -> Counts {
    let program = stand.copy(&c_program("perftest/c/count.c", &[]));
    let result = stand.run_folder().join("callgrind.out");
    stand
        .job("valgrind")
        .provider(provider)
        // Names are bound at load, so that the loader's work is not counted with somebody's first call.
        .env("LD_BIND_NOW", "1")
        .time_out(Duration::from_secs(180))
        .args(["-q", "--tool=callgrind", "--compress-strings=no", "--compress-pos=no", "--trace-children=no"])
        // The doorbell trap reads registers at the store, so they must all be up to date there, in code of files too.
        .args(["--px-default=allregs-at-mem-access", "--px-file-backed=allregs-at-mem-access"])
        .args([format!("--callgrind-out-file={}", result.display())])
        .args([program])
        .ok();
    let text = std::fs::read_to_string(&result).expect("callgrind wrote its result");
    std::fs::remove_file(result).expect("own file");
    let counts = calls_into(&text, "vmw_pvrdma");
    CALLERS
        .iter()
        .map(|caller| {
            let count = counts.get(*caller).unwrap_or_else(|| panic!("{caller} does not call the provider"));
            ((*caller).to_owned(), count.cost as f64 / count.calls as f64)
        })
        .collect()
}

#[derive(Debug, Default, PartialEq)]
struct Sum {
    calls: u64,
    cost: u64,
}

/// Sums calls and their inclusive cost, by calling function, of all calls into objects whose name has `object`.
///
/// The format is described in valgrind's manual ("Callgrind Format Specification"): `fn=` opens a function, `cob=`
/// and `cfn=` say what is called, `calls=` how often, and the line after it ends with the inclusive cost.
fn calls_into(text: &str, object: &str) -> HashMap<String, Sum> {
    let mut sums: HashMap<String, Sum> = HashMap::new();
    let (mut caller, mut callee_object) = (String::new(), String::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            name.clone_into(&mut caller);
        } else if let Some(name) = line.strip_prefix("cob=") {
            name.clone_into(&mut callee_object);
        } else if let Some(calls) = line.strip_prefix("calls=") {
            let calls = calls.split(' ').next().and_then(|count| count.parse::<u64>().ok());
            let cost = lines.next().and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            if let (Some(calls), Some(cost), true) = (calls, cost, callee_object.contains(object)) {
                let sum = sums.entry(caller.clone()).or_default();
                sum.calls += calls;
                sum.cost += cost;
            }
            // The next call is into the caller's own object unless it says otherwise.
            callee_object.clear();
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_into_an_object_are_summed_by_caller() {
        let text = "ob=/tmp/count\nfn=post_send_1\n10 5\ncob=/lib/libvmw_pvrdma-rdmav34.so\ncfn=0x1234\n\
                    calls=3 0\n10 420\ncfn=helper\ncalls=1 0\n11 7\n\nfn=main\n1 2\ncfn=post_send_1\ncalls=3 10\n20 435\n\
                    ob=/lib/libvmw_pvrdma-rdmav34.so\nfn=0x1234\n1 400\ncob=/lib/libc.so.6\ncfn=lock\ncalls=3 0\n1 20\n";
        let sums = calls_into(text, "vmw_pvrdma");
        assert_eq!(sums.len(), 1);
        assert_eq!(sums["post_send_1"], Sum { calls: 3, cost: 420 });
    }
}
