//! One tool of perftest at one size, between two guests.

use pvrdma_tests::{Provider, Stand, figures, pair};

/// What to run.
pub struct Line {
    /// The tool: its name ends in `_bw` or `_lat`.
    pub tool: &'static str,
    /// Bytes of a message.
    pub size: u32,
    /// How many messages.
    pub iterations: u32,
    /// Work requests for each doorbell. More than 1 is for bandwidth only.
    pub list: u32,
}

impl Line {
    /// Runs the tool and gives the average MiB/s or the typical microseconds. Panics when the tool fails.
    pub fn measure(&self, stand: &Stand, provider: &Provider) -> f64 {
        // On a busy machine perftest sometimes fails to measure the CPU's clock and prints 0.
        let mut tries = std::iter::repeat_with(|| self.run(stand, provider)).take(5);
        tries.find(|figure| *figure > 0.0).unwrap_or_else(|| panic!("{} prints 0 again and again", self.tool))
    }

    fn run(&self, stand: &Stand, provider: &Provider) -> f64 {
        let numbers = [self.size, self.iterations, self.list].map(|number| number.to_string());
        let [size, iterations, list] = &numbers;
        let job = |guest| {
            let job = stand.job(self.tool).guest(guest).provider(provider).args(["-F", "-s", size, "-n", iterations]);
            if self.list > 1 { job.args(["-l", list]) } else { job }
        };
        let (_, client) = pair(job("red"), job("blue"));
        let text = client.ok();
        figures(&text)
            .and_then(|figures| figures.get(if self.is_bandwidth() { "BW average" } else { "t_typical" }))
            .unwrap_or_else(|| panic!("{} printed no result:\n{text}", self.tool))
    }

    fn is_bandwidth(&self) -> bool {
        self.tool.ends_with("_bw")
    }

    /// What the line measures, in words. perftest's MB are 2^20 bytes.
    pub fn title(&self) -> String {
        let unit = if self.is_bandwidth() { "average, MiB/s" } else { "typical, us" };
        let list = if self.list > 1 { format!(" in lists of {}", self.list) } else { String::new() };
        format!("{}, {} bytes{list}, {unit}", self.tool, self.size)
    }

    /// A figure with as many digits as mean something.
    pub fn show(&self, figure: f64) -> String {
        if self.is_bandwidth() { format!("{figure:.0}") } else { format!("{figure:.2}") }
    }
}
