//! Instructions per operation, counted by valgrind's callgrind: exact and the same on every run, unlike nanoseconds.
//!
//! `c/frozen.c` calls each verb from a function of its own. What counts is everything between the calls into the
//! provider and their returns, libc's part included. The device stands still and has no part in it.

use std::collections::HashMap;
use std::time::Duration;

use pvrdma_tests::{Provider, Stand};

use crate::frozen;
use crate::operations::{Figures, Situation, figures};

/// Counts for one provider.
pub fn instructions(stand: &Stand, provider: &Provider, situation: Situation) -> Figures {
    let program = frozen::program(stand);
    let result = stand.run_folder().join("callgrind.out");
    let text = frozen::job(stand, "valgrind", provider)
        // Names are bound at load, so that the loader's work is not counted with somebody's first call.
        .env("LD_BIND_NOW", "1")
        .time_out(Duration::from_secs(180))
        .args(["-q", "--tool=callgrind", "--compress-strings=no", "--compress-pos=no", "--trace-children=no"])
        .args([format!("--callgrind-out-file={}", result.display())])
        .args([program])
        .args(["count", situation.name()])
        .ok();
    let profile = std::fs::read_to_string(&result).expect("callgrind wrote its result");
    std::fs::remove_file(result).expect("own file");
    let costs = cost_of_calls_into(&profile, &object(provider));
    figures(&text)
        .into_iter()
        .map(|(name, times)| {
            let cost = costs.get(&name).unwrap_or_else(|| panic!("{name} does not call the provider"));
            let each = *cost as f64 / times;
            (name, each)
        })
        .collect()
}

/// What the provider's file is called in a profile.
fn object(provider: &Provider) -> String {
    let file = match provider {
        Provider::Path(path) => path.file_name().and_then(|name| name.to_str()),
        Provider::Ours | Provider::System => None,
    };
    file.unwrap_or("vmw_pvrdma").to_owned()
}

/// The functions of `c/frozen.c` that post and poll without a call of the provider.
const DIRECT: [&str; 2] = ["direct_write", "direct_poll"];

/// Sums the inclusive cost, by calling function, of all calls into objects whose name has `object`.
///
/// Calls of [`DIRECT`] count too: what they do stands in the place of a verb.
///
/// The format is described in valgrind's manual ("Callgrind Format Specification"): `fn=` opens a function, `cob=`
/// and `cfn=` say what is called, `calls=` how often, and the line after it ends with the inclusive cost.
fn cost_of_calls_into(text: &str, object: &str) -> HashMap<String, u64> {
    let mut sums: HashMap<String, u64> = HashMap::new();
    let (mut caller, mut callee_object, mut is_direct) = (String::new(), String::new(), false);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            name.clone_into(&mut caller);
        } else if let Some(name) = line.strip_prefix("cob=") {
            name.clone_into(&mut callee_object);
        } else if let Some(name) = line.strip_prefix("cfn=") {
            is_direct = DIRECT.contains(&name);
        } else if line.starts_with("calls=") {
            let cost = lines.next().and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
            if let (Some(cost), true) = (cost, callee_object.contains(object) || is_direct) {
                *sums.entry(caller.clone()).or_default() += cost;
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
        let text = "ob=/tmp/frozen\nfn=post_send_1\n10 5\ncob=/lib/libvmw_pvrdma-rdmav34.so\ncfn=0x1234\n\
                    calls=3 0\n10 420\ncfn=helper\ncalls=1 0\n11 7\ncob=/lib/libvmw_pvrdma-rdmav34.so\ncfn=0x2345\n\
                    calls=3 0\n12 30\n\nfn=main\n1 2\ncfn=post_send_1\ncalls=3 10\n20 435\n\
                    ob=/lib/libvmw_pvrdma-rdmav34.so\nfn=0x1234\n1 400\ncob=/lib/libc.so.6\ncfn=lock\n\
                    calls=3 0\n1 20\n\
                    fn=direct_1\n1 5\ncfn=direct_write\ncalls=2 0\n1 60\n";
        let expected = [("post_send_1".to_owned(), 450), ("direct_1".to_owned(), 60)];
        assert_eq!(cost_of_calls_into(text, "vmw_pvrdma"), HashMap::from(expected));
    }
}
