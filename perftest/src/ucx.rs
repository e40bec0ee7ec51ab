//! UCX's own benchmark between two guests, and between two processes without RDMA: what an MPI program feels.

use pvrdma_tests::{Job, Provider, Stand, pair};

/// One test of `ucx_perftest`.
pub struct Ucx {
    /// As `-t` takes it.
    pub test: &'static str,
    /// Bytes of a message.
    pub size: u64,
    /// Messages.
    pub count: u32,
    /// Which of its figures.
    pub figure: Figure,
}

/// What is read from the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Half of the round trips, or all operations, take at most this many microseconds.
    Latency,
    /// MiB/s over the whole run.
    Bandwidth,
}

/// How the messages go.
pub enum Way<'a> {
    /// By `rc_v` between two guests, with that provider.
    Rc(&'a Provider),
    /// By shared memory and copies between processes, in no guest.
    SharedMemory,
}

impl Ucx {
    /// Runs it. Panics if it fails.
    pub fn measure(&self, stand: &Stand, way: &Way<'_>) -> f64 {
        let end = |guest: &str| -> Job<'_> {
            let job = match way {
                Way::Rc(provider) => {
                    stand.job("ucx_perftest").guest(guest).provider(provider).env("UCX_TLS", "rc_v,self")
                }
                Way::SharedMemory => stand.plain("ucx_perftest").env("UCX_TLS", "posix,cma,self"),
            };
            job.args(["-t", self.test, "-s", &self.size.to_string(), "-n", &self.count.to_string()])
        };
        let (_, client) = pair(end("red"), end("blue"));
        let text = &client.stdout;
        figure(text, self.figure).unwrap_or_else(|| panic!("no result of {}:\n{text}", self.test))
    }

    /// For the head of a row.
    pub fn title(&self) -> String {
        let size = match self.size {
            size if size >= 1 << 20 => format!("{} MiB", size >> 20),
            size if size >= 1 << 10 => format!("{} KiB", size >> 10),
            size => format!("{size} B"),
        };
        let unit = if self.figure == Figure::Latency { "us" } else { "MiB/s" };
        format!("{} {size}, {unit}", self.test)
    }
}

/// The line `Final: COUNT, latency typical, average, overall, bandwidth average, overall, rate average, overall`.
fn figure(text: &str, figure: Figure) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Final:"))?;
    let column = match figure {
        Figure::Latency => 1,
        Figure::Bandwidth => 5,
    };
    line.split_whitespace().nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_read() {
        let text = "+---+\nFinal:                  1000      2.725     4.193     4.194        1.82       1.83      238489      238490\n";
        assert_eq!(figure(text, Figure::Latency), Some(2.725));
        assert_eq!(figure(text, Figure::Bandwidth), Some(1.83));
        assert_eq!(figure("nothing", Figure::Latency), None);
    }
}
