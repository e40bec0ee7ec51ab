//! Runs the cases of a C program (`tests/c/*_loop.c`), each in a process of its own, and names all that fail.
//!
//! Used by the stories `ud_loop`, `srq_loop` and so on, one such file for each program.

use pvrdma_tests::{Provider, Stand, User, Uverbs, c_program, machine, workspace};

/// The one list of what is known to fail: here the lines whose row is `PROGRAM CASE` matter.
const EXPECTED: &str = "tests/matrix/expected.txt";

/// The program.
pub struct Program {
    /// Its file below `tests/c`.
    pub source: &'static str,
    /// At least so many cases, so that none gets lost.
    pub cases: usize,
}

/// A case on which the C provider of rdma-core is known to do something else, and what it does.
struct OursOnly {
    case: String,
    reason: String,
}

impl Program {
    /// All cases on one provider, by one way into the kernel.
    pub fn run(&self, user: User, provider: &Provider, uverbs: Uverbs) {
        let _machine = machine();
        let stand = Stand::new(user);
        let program = stand.copy(&c_program(self.source, &[]));
        let mut failed = Vec::new();
        for case in self.names(&stand, &program, provider) {
            let output = stand.job(&program).provider(provider).uverbs(uverbs).args([&case]).output();
            if !output.status.success() || output.stdout != format!("ok {case}\n") {
                failed.push(format!("{case}: {output}"));
            }
        }
        assert!(failed.is_empty(), "{} cases failed\n{}", failed.len(), failed.join("\n"));
    }

    /// All cases one after the other in one process, under AddressSanitizer, which looks at our provider's use of the
    /// heap as well.
    #[allow(dead_code, reason = "not every program can run under it")]
    pub fn run_sanitized(&self) {
        let _machine = machine();
        let stand = Stand::new(User::Me);
        // Its runtime inside the program: as a library it insists on being loaded before every preloaded one.
        let program = stand.copy(&c_program(self.source, &["-fsanitize=address", "-static-libasan"]));
        let names = self.names(&stand, &program, &Provider::Ours);
        stand.job(&program).args(&names).ok();
    }

    /// What the C provider is said to fail on it does fail on: the list does not outlive its reasons.
    #[allow(dead_code, reason = "not every story has such a list")]
    pub fn c_provider_still_fails(&self) {
        let _machine = machine();
        let stand = Stand::new(User::Me);
        let program = stand.copy(&c_program(self.source, &[]));
        let ours_only = self.ours_only();
        assert!(!ours_only.is_empty(), "{EXPECTED} has no line for {}", self.source);
        for OursOnly { case, reason } in ours_only {
            let output = stand.job(&program).provider(&Provider::System).args([&case]).output();
            assert!(!output.status.success(), "{case} works on the C provider: {reason}?");
        }
    }

    fn names(&self, stand: &Stand, program: &std::path::Path, provider: &Provider) -> Vec<String> {
        let all: Vec<String> = stand.job(program).ok().lines().map(str::to_owned).collect();
        assert!(all.len() >= self.cases, "the program lists its cases: {all:?}");
        let ours_only = self.ours_only();
        for OursOnly { case, .. } in &ours_only {
            assert!(all.contains(case), "{EXPECTED}: {case} is no case of {}", self.source);
        }
        let skip = |name: &String| *provider == Provider::System && ours_only.iter().any(|only| only.case == *name);
        all.into_iter().filter(|name| !skip(name)).collect()
    }

    fn ours_only(&self) -> Vec<OursOnly> {
        let program = std::path::Path::new(self.source).file_stem().and_then(|stem| stem.to_str()).expect("a C file");
        let list = std::fs::read_to_string(workspace().join(EXPECTED)).expect("the list is there");
        let lines = list.lines().filter_map(|line| line.strip_prefix("c | "));
        lines
            .filter_map(|line| {
                let (row, reason) = line.split_once(" | ").expect("COLUMN WORDS | ROW | REASON");
                let (of, case) = row.split_once(' ')?;
                (of == program).then(|| OursOnly { case: case.to_owned(), reason: reason.to_owned() })
            })
            .collect()
    }
}
