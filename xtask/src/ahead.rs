//! What later checks build, built while earlier ones run their programs: those mostly wait, and CI has two cores.
//!
//! Each build is a process of its own, with the lowest claim on the cores that still gets some: the tests that run at
//! the same time hardly notice, and a lock of cargo's that it holds is soon free. What goes wrong is not told here: the
//! check builds again and says so itself.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::shell;

/// Builds on their way.
pub struct Ahead {
    /// Names of those that have ended, in the order in which they were asked for.
    ended: Mutex<Receiver<&'static str>>,
    names: Vec<&'static str>,
}

impl Ahead {
    /// Has `cargo xtask test --ahead NAME` done for each of the checks, one after the other.
    pub fn start(names: Vec<&'static str>) -> Ahead {
        let (end, ended) = channel();
        let queue = names.clone();
        thread::spawn(move || {
            for name in queue {
                let _ = build(name);
                if end.send(name).is_err() {
                    return;
                }
            }
        });
        Ahead { ended: Mutex::new(ended), names }
    }

    /// Waits for the build of a check, if there is one, so that it is not done twice at a time.
    pub fn wait(&self, name: &str) {
        if !self.names.contains(&name) {
            return;
        }
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while ended.recv().is_ok_and(|other| other != name) {}
    }
}

fn build(name: &str) -> std::io::Result<()> {
    let log = shell::target().join(format!("ahead-{name}.log"));
    let log = File::create(log)?;
    let mut command = Command::new("nice");
    command.args(["-n", "15"]).arg(std::env::current_exe()?).args(["test", "--ahead", name]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status().map(drop)
}
