//! Programs with ideas of their own about SIGSEGV, stacks and processes (tests/c/trap.c), and a JVM.

use std::process::Command;
use std::time::Duration;

use pvrdma_tests::{Doorbells, Provider, Stand, User, c_program, cannot_run, debug_provider, machine};

fn case(name: &str) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/trap.c", &[]));
    for (provider, doorbells) in Doorbells::EACH {
        let text = stand.job(&program).provider(&provider).doorbells(doorbells).args([name]).ok();
        assert_eq!(text, format!("ok {name}\n"), "{provider:?} {doorbells:?}");
    }
}

#[test]
fn small_signal_stack() {
    case("small_signal_stack");
}

#[test]
fn small_thread_stack() {
    case("small_thread_stack");
}

#[test]
fn sigsegv_blocked() {
    case("blocked");
    case("blocked_in_thread");
    case("blocked_before");
    case("blocked_by_number");
    case("blocked_by_attribute");
}

#[test]
fn handlers_of_the_program() {
    case("handler_before");
    case("handler_after");
    case("handler_with_info");
    case("signal_function");
    case("action_by_number");
    case("sent_signal");
}

#[test]
fn fork_and_system() {
    case("forked");
}

#[test]
fn many_threads() {
    case("threads");
}

/// All cases are run by some test above or below.
#[test]
fn no_case_is_forgotten() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let listed = stand.job(c_program("tests/c/trap.c", &[])).ok();
    let source = include_str!("trap.rs");
    for name in listed.lines() {
        assert!(source.contains(&format!("\"{name}\"")), "nobody runs {name}");
    }
}

#[test]
fn a_real_fault_kills_as_ever() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/trap.c", &[]));
    for (provider, doorbells) in Doorbells::EACH {
        let output = stand.job(&program).provider(&provider).doorbells(doorbells).args(["fault_kills"]).output();
        assert_eq!(output.signal(), Some(libc::SIGSEGV), "{output}");
    }
}

#[test]
fn under_address_sanitizer() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/trap.c", &["-fsanitize=address", "-static-libasan"]));
    // Its own stacks are larger than the small ones, and a real fault it reports in its own way.
    let cases = ["blocked", "blocked_in_thread", "handler_after", "handler_before", "threads", "forked"];
    for (provider, doorbells) in Doorbells::EACH {
        for case in cases {
            stand.job(&program).provider(&provider).doorbells(doorbells).args([case]).ok();
        }
    }
}

/// The trap understands the store instructions of a provider that another compiler run has made.
#[test]
fn a_provider_built_otherwise() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let provider = Provider::Path(debug_provider());
    let program = stand.copy(&c_program("tests/c/trap.c", &[]));
    let other = stand.copy(&c_program("tests/c/rc_loop.c", &[]));
    let cases = stand.job(&other).ok();
    for doorbells in [Doorbells::Usual, Doorbells::Trapped] {
        for case in ["blocked", "handler_after", "threads"] {
            stand.job(&program).provider(&provider).doorbells(doorbells).args([case]).ok();
        }
        stand.job(&other).provider(&provider).doorbells(doorbells).args(cases.lines()).ok();
    }
}

/// A JVM takes SIGSEGV for its own checks. Here it does so between doorbells, in one process.
#[test]
fn a_jvm_in_the_room() {
    let _machine = machine();
    if Command::new("javac").arg("-version").output().is_err() {
        return cannot_run("RDMA inside a JVM", "no JDK is installed (Debian: default-jdk-headless)");
    }
    let stand = Stand::new(User::Me);
    let library = stand.copy(&c_program("tests/c/trap.c", &["-shared", "-fPIC"]));
    let source = stand.run_folder().join("Room.java");
    std::fs::write(&source, ROOM).expect("the run folder can be written");
    for (provider, doorbells) in Doorbells::EACH {
        let job = stand.job("java").provider(&provider).doorbells(doorbells).time_out(Duration::from_secs(120));
        let text = job.args([source.as_os_str(), library.as_os_str()]).ok();
        assert_eq!(text.trim_end(), "moved 2000, caught 200000 null pointers", "{provider:?} {doorbells:?}");
    }
}

/// The JVM finds out by SIGSEGV that `text` is null once the loop is compiled, and throws for it.
const ROOM: &str = r#"
public class Room {
    static native int move();

    static int length(String text) {
        return text.length();
    }

    public static void main(String[] arguments) {
        System.load(arguments[0]);
        int caught = 0, moved = 0;
        for (int round = 0; round < 20; round++) {
            for (int i = 0; i < 10000; i++) {
                length("x");
                try {
                    length(null);
                } catch (NullPointerException expected) {
                    caught++;
                }
            }
            moved = move();
        }
        System.out.println("moved " + moved * 2 + ", caught " + caught + " null pointers");
    }
}
"#;
