//! Memory hooks, as UCX and MPI libraries put them into a process, leave the device usable (tests/c/hooked.c).

mod cases;

use cases::Program;
use pvrdma_tests::{Provider, User, Uverbs};

const HOOKED: Program = Program { source: "tests/c/hooked.c", cases: 7 };

#[test]
fn our_provider() {
    for uverbs in Uverbs::ALL {
        HOOKED.run(User::Me, &Provider::Ours, uverbs);
    }
}

#[test]
fn systems_provider() {
    HOOKED.run(User::Me, &Provider::System, Uverbs::Ioctl);
}
