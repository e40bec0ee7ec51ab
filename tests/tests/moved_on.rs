//! A process whose program was replaced by exec, and one whose first thread has ended (tests/c/moved_on.c).

use pvrdma_tests::{Provider, Stand, User, c_program, free_port, machine, wait_for_listener};

#[test]
fn the_program_after_an_exec_is_not_written_to() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/moved_on.c", &[]));
    for provider in Provider::BOTH {
        let port = free_port();
        let job = |guest| stand.job(&program).provider(&provider).guest(guest).args(["exec", &port.to_string()]);
        let mut replaced = job("red").spawn();
        wait_for_listener(&mut replaced, port);
        job("blue").args(["127.0.0.1"]).ok();
        assert_eq!(replaced.wait().ok(), "the page is the new program's\n");
    }
}

#[test]
fn threads_go_on_without_the_first() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/moved_on.c", &[]));
    for provider in Provider::BOTH {
        assert_eq!(stand.job(&program).provider(&provider).args(["first_thread"]).ok(), "the others go on\n");
    }
}
