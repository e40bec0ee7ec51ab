//! What later checks build, and a whole one, done while earlier ones run their programs: those mostly wait, and CI has
//! two cores.
//!
//! Each is a process of its own, with the lowest claim on the cores that still gets some: the tests that run at the
//! same time hardly notice, and a lock of cargo's that it holds is soon free. What goes wrong is not told here: the
//! check is done again in its turn and says so itself.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::shell;

/// Builds on their way.
pub struct Ahead {
    /// Names of those that have ended, in the order in which they were asked for, and whether they ended well.
    ended: Mutex<Receiver<(&'static str, bool)>>,
    names: Vec<&'static str>,
}

impl Ahead {
    /// Has `cargo xtask test --ahead NAME` done for each of the checks, one after the other.
    pub fn start(names: Vec<&'static str>) -> Ahead {
        let (end, ended) = channel();
        let queue = names.clone();
        thread::spawn(move || {
            for name in queue {
                let is_well = build(name).is_ok_and(|status| status.success());
                if end.send((name, is_well)).is_err() {
                    return;
                }
            }
        });
        Ahead { ended: Mutex::new(ended), names }
    }

    /// Waits for what is done ahead of a check, if anything is, so that it is not done twice at a time. Whether it
    /// ended well.
    pub fn wait(&self, name: &str) -> bool {
        if !self.names.contains(&name) {
            return false;
        }
        let ended = self.ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while let Ok((other, is_well)) = ended.recv() {
            if other == name {
                return is_well;
            }
        }
        false
    }
}

/// What it printed.
pub fn log(name: &str) -> PathBuf {
    shell::target().join(format!("ahead-{name}.log"))
}

fn build(name: &str) -> std::io::Result<ExitStatus> {
    let log = File::create(log(name))?;
    let mut command = Command::new("nice");
    command.args(["-n", "15"]).arg(std::env::current_exe()?).args(["test", "--ahead", name]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).status()
}
