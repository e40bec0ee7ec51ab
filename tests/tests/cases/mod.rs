//! Runs the cases of a C program (`tests/c/*_loop.c`), each in a process of its own, and names all that fail.
//!
//! Used by the stories `ud_loop`, `srq_loop` and so on, one such file for each program.

use pvrdma_tests::{Provider, Stand, User, Uverbs, c_program, machine};

/// A case on which the C provider of rdma-core is known to do something else, and what it does.
pub type OursOnly = &'static [(&'static str, &'static str)];

/// The program and what it is known for.
pub struct Program {
    /// Its file below `tests/c`.
    pub source: &'static str,
    /// At least so many cases, so that none gets lost.
    pub cases: usize,
    /// Where the C provider fails.
    pub ours_only: OursOnly,
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
        for (case, reason) in self.ours_only {
            let output = stand.job(&program).provider(&Provider::System).args([case]).output();
            assert!(!output.status.success(), "{case} works on the C provider: {reason}?");
        }
    }

    fn names(&self, stand: &Stand, program: &std::path::Path, provider: &Provider) -> Vec<String> {
        let all: Vec<String> = stand.job(program).ok().lines().map(str::to_owned).collect();
        assert!(all.len() >= self.cases, "the program lists its cases: {all:?}");
        for (case, _) in self.ours_only {
            assert!(all.iter().any(|name| name == case), "{case} is no case of {}", self.source);
        }
        let skip = |case: &String| *provider == Provider::System && self.ours_only.iter().any(|(name, _)| name == case);
        all.into_iter().filter(|case| !skip(case)).collect()
    }
}
