//! One tool of perftest at one size, between two guests.

use std::time::Duration;

use pvrdma_tests::{Doorbells, Host, Job, Provider, Stand, figures, pair};

/// What to run and which figure of it counts.
pub struct Line {
    /// The tool.
    pub tool: &'static str,
    /// Its options, but for size and count.
    pub options: &'static [&'static str],
    /// Bytes of a message. Those of atomics are always 8, and they have no option for it.
    pub size: u32,
    /// How many messages.
    pub iterations: u32,
    /// What is measured.
    pub figure: Figure,
}

/// A column of what perftest prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    /// Half a round trip, or a whole one where the other side has no part in it; the typical one, in us.
    Latency,
    /// The average, in MiB/s. perftest's MB are 2^20 bytes.
    Bandwidth,
    /// The best of two neighbouring completions, in MiB/s.
    Peak,
    /// Thousand messages a second.
    Rate,
}

/// Two programs that poll memory give each other a turn in each slice of a scheduler that has other work to do.
const TIME_OUT: Duration = Duration::from_secs(600);

impl Line {
    /// A latency at 8 bytes.
    pub const fn latency(tool: &'static str, options: &'static [&'static str]) -> Line {
        Line { tool, options, size: 8, iterations: 20_000, figure: Figure::Latency }
    }

    /// A rate at 8 bytes.
    pub const fn rate(tool: &'static str, options: &'static [&'static str]) -> Line {
        // Lists of 16 divide it, and so does perftest's CQ moderation (100).
        Line { tool, options, size: 8, iterations: 48_000, figure: Figure::Rate }
    }

    /// A bandwidth.
    pub const fn bandwidth(tool: &'static str, options: &'static [&'static str], size: u32, iterations: u32) -> Line {
        Line { tool, options, size, iterations, figure: Figure::Bandwidth }
    }

    /// Runs the tool and gives the figure. Panics when the tool fails.
    pub fn measure(&self, stand: &Stand, provider: &Provider, doorbells: Doorbells) -> f64 {
        self.measure_of(
            || ["red", "blue"].map(|guest| stand.job(self.tool).guest(guest).doorbells(doorbells)),
            provider,
        )
    }

    /// The same between guests of two hosts, with more options.
    pub fn measure_between(&self, hosts: [&Host; 2], provider: &Provider, options: &[&str]) -> f64 {
        self.measure_of(|| hosts.map(|host| host.job(self.tool).args(options)), provider)
    }

    fn measure_of<'a>(&self, jobs: impl Fn() -> [Job<'a>; 2], provider: &Provider) -> f64 {
        // On a busy machine perftest sometimes fails to measure the CPU's clock and prints 0.
        let mut tries = std::iter::repeat_with(|| self.run(jobs(), provider)).take(5);
        tries.find(|figure| *figure > 0.0).unwrap_or_else(|| panic!("{} prints 0 again and again", self.tool))
    }

    fn run(&self, jobs: [Job<'_>; 2], provider: &Provider) -> f64 {
        let [size, iterations] = [self.size, self.iterations].map(|number| number.to_string());
        let [server, client] = jobs.map(|job| {
            let job = job.provider(provider).args(["-F", "-n", &iterations]).time_out(TIME_OUT);
            let job = if self.tool.starts_with("ib_atomic") { job } else { job.args(["-s", &size]) };
            job.args(self.options)
        });
        let (_, client) = pair(server, client);
        let text = client.ok();
        let column = match self.figure {
            Figure::Latency => "t_typical",
            Figure::Bandwidth => "BW average",
            Figure::Peak => "BW peak",
            Figure::Rate => "MsgRate",
        };
        let figure = figures(&text).and_then(|figures| figures.get(column));
        figure.unwrap_or_else(|| panic!("{} printed no result:\n{text}", self.tool)) * self.scale()
    }

    /// perftest prints millions of messages.
    fn scale(&self) -> f64 {
        if self.figure == Figure::Rate { 1000.0 } else { 1.0 }
    }

    /// What the line measures, in words.
    pub fn title(&self) -> String {
        let unit = match self.figure {
            Figure::Latency => "typical, us",
            Figure::Bandwidth => "average, MiB/s",
            Figure::Peak => "peak, MiB/s",
            Figure::Rate => "thousand messages/s",
        };
        let tool = [&[self.tool], self.options].concat().join(" ");
        format!("{tool}, {} bytes, {unit}", self.size)
    }

    /// A figure with as many digits as mean something.
    pub fn show(&self, figure: f64) -> String {
        if self.figure == Figure::Latency { format!("{figure:.2}") } else { format!("{figure:.0}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn title_tells_tool_options_size_and_unit() {
        let line = Line::bandwidth("ib_write_bw", &["-l", "16"], 65536, 1600);
        assert_eq!(line.title(), "ib_write_bw -l 16, 65536 bytes, average, MiB/s");
        assert_eq!(Line::rate("ib_send_bw", &[]).title(), "ib_send_bw, 8 bytes, thousand messages/s");
    }

    #[test]
    fn latencies_have_fractions() {
        assert_eq!(Line::latency("ib_send_lat", &[]).show(4.321), "4.32");
        assert_eq!(Line::rate("ib_send_bw", &[]).show(432.1), "432");
    }
}
