//! Children of a program that has the device open (tests/c/fork.c): they can open it themselves, and what they do with
//! what they inherit is not felt by their parent.

use std::path::Path;
use std::time::{Duration, Instant};

use pvrdma_tests::{Doorbells, Provider, Stand, User, Uverbs, c_program, machine};

fn cases(names: &[&str]) {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/fork.c", &[]));
    for (provider, doorbells) in Doorbells::EACH {
        for name in names {
            let text = stand.job(&program).provider(&provider).doorbells(doorbells).args([name]).ok();
            assert_eq!(text, format!("ok {name}\n"), "{provider:?} {doorbells:?}");
        }
    }
    assert_eq!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_child_opens_the_device() {
    cases(&["child_opens", "grandchild_opens", "many_children", "fork_before_open", "bare_fork"]);
}

#[test]
fn parent_and_child_reach_each_other() {
    cases(&["parent_and_child_talk"]);
}

#[test]
fn among_threads() {
    cases(&["fork_among_threads"]);
}

#[test]
fn what_is_inherited_is_of_no_use_and_does_no_harm() {
    cases(&["inherited_commands", "inherited_doorbell", "closed_by_child", "vforked"]);
}

/// An old kernel's write(2) must not succeed on an inherited descriptor either.
#[test]
fn inherited_commands_fail_in_every_form() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/fork.c", &[]));
    for provider in Provider::BOTH {
        for uverbs in Uverbs::ALL {
            stand.job(&program).provider(&provider).uverbs(uverbs).args(["inherited_commands"]).ok();
        }
    }
}

#[test]
fn other_programs() {
    cases(&["programs", "exec_in_child"]);
}

/// All cases are run by some test above.
#[test]
fn no_case_is_forgotten() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let listed = stand.job(c_program("tests/c/fork.c", &[])).ok();
    let source = include_str!("fork.rs");
    for name in listed.lines() {
        assert!(source.contains(&format!("\"{name}\"")), "nobody runs {name}");
    }
}

fn wait_for(path: &Path) {
    let end = Instant::now() + Duration::from_secs(30);
    while !path.exists() {
        assert!(Instant::now() < end, "{} was not made", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The program that was started has ended, and so has `pvrdma run`; its child has the device open.
#[test]
fn a_daemon_keeps_what_it_needs() {
    let _machine = machine();
    let stand = Stand::new(User::Me);
    let program = stand.copy(&c_program("tests/c/fork.c", &[]));
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    stand.job(&program).guest("a").args(["daemon".as_ref(), folder.path().as_os_str()]).ok();
    // Others come and go before and after it opens the device.
    stand.job("ibv_devinfo").guest("b").ok();
    std::fs::write(file("start"), "").expect("own folder");
    wait_for(&file("open"));
    stand.job("ibv_devinfo").guest("a").ok();
    stand.job("ibv_devinfo").guest("b").ok();
    assert_ne!(stand.leftovers(), Vec::<std::path::PathBuf>::new());
    std::fs::write(file("go"), "").expect("own folder");
    wait_for(&file("moved"));
    // Once it has ended the next one cleans up.
    let end = Instant::now() + Duration::from_secs(30);
    while !stand.leftovers().is_empty() {
        assert!(Instant::now() < end, "{:?}", stand.leftovers());
        stand.job("true").ok();
    }
}
