//! A child process that never outlives us: a time limit, an end on drop, an end when this process is killed.
//!
//! Called by `qemu.rs` and `case.rs` for QEMU and for the vfio-user server.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a running child is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// A running child.
pub struct Child {
    inner: std::process::Child,
    deadline: Instant,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It ended by itself with this code.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It was still running at its time limit and has been killed.
    TimedOut,
}

impl Child {
    /// Starts a command that may run for `limit`.
    ///
    /// Call it from a thread that lives as long as the child shall: the kernel ends the child with its starter.
    pub fn start(mut command: Command, limit: Duration) -> Result<Child> {
        // SAFETY: the closure runs between fork and exec and makes one system call, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let inner = command.spawn().with_context(|| format!("cannot run {name}"))?;
        Ok(Child { inner, deadline: Instant::now() + limit })
    }

    /// Whether it has ended by now.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.inner.try_wait()?.is_some())
    }

    /// Waits for the end, at most until the time limit.
    pub fn wait(&mut self) -> Result<End> {
        let deadline = self.deadline;
        self.wait_until(deadline)
    }

    /// Asks for a clean end and gives it `grace` to follow.
    pub fn terminate(&mut self, grace: Duration) -> Result<End> {
        if let Ok(pid) = libc::pid_t::try_from(self.inner.id()) {
            // SAFETY: no memory is involved. The child has not been waited for, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        self.wait_until(Instant::now() + grace)
    }

    fn wait_until(&mut self, deadline: Instant) -> Result<End> {
        loop {
            if let Some(status) = self.inner.try_wait()? {
                return Ok(end_of(status));
            }
            if Instant::now() >= deadline {
                self.inner.kill()?;
                self.inner.wait()?;
                return Ok(End::TimedOut);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail only when the child is gone already, which is what is wanted.
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }
}

fn end_of(status: ExitStatus) -> End {
    match status.code() {
        Some(code) => End::Code(code),
        None => End::Signal(status.signal().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::start(command, limit).expect("sh runs")
    }

    #[test]
    fn exit_code_is_reported() {
        assert_eq!(sh("exit 3", Duration::from_secs(5)).wait().unwrap(), End::Code(3));
    }

    #[test]
    fn time_limit_ends_the_child() {
        assert_eq!(sh("exec sleep 60", Duration::from_millis(50)).wait().unwrap(), End::TimedOut);
    }

    #[test]
    fn terminate_is_a_signal_the_child_can_answer() {
        let mut child = sh("trap 'exit 7' TERM; echo; while :; do sleep 0.01; done", Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(child.terminate(Duration::from_secs(5)).unwrap(), End::Code(7));
    }
}
