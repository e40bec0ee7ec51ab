//! What [`crate::frozen`] measured, as a picture: a bar for each operation and situation, as long as its ratio to the
//! base.
//!
//! SVG by hand: rectangles and text. It brings its own ground and both sets of colours, so that it can be read
//! wherever a README is shown.

use std::fmt::Write;

use pvrdma_tests::Provider;

use crate::frozen::{Plan, Row};
use crate::operations::{OPERATIONS, Situation};
use crate::report;

/// The picture's width, and where the bars begin and end in it.
const WIDTH: f64 = 760.0;
const LEFT: f64 = 236.0;
const RIGHT: f64 = 656.0;
/// What the full length of a bar stands for. A longer one is cut, and its number tells.
const FULL: f64 = 1.2;
const BAR: f64 = 12.0;
const GAP: f64 = 10.0;
/// The height of title, subtitle and legend.
const TOP: f64 = 92.0;

/// What is done where a provider does not have an operation ([`crate::Operation::instead`]).
const INSTEAD: &str = "beside post_send, one or a list of 16, or poll_cq of 16";

const STYLE: &str = "\
  .ground { fill: #ffffff }
  text { font: 12px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 16px; font-weight: 600 }
  .small { font-size: 11px; fill: #59636e }
  .line { stroke: #d1d9e0 }
  .base { stroke: #59636e; stroke-dasharray: 4 3 }
  .one { fill: #0969da }
  .two { fill: #9a6700 }
  .domain { fill: #1a7f37 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 }
    text { fill: #f0f6fc }
    .small { fill: #9198a1 }
    .line { stroke: #3d444d }
    .base { stroke: #9198a1 }
    .one { fill: #4493f8 }
    .two { fill: #d29922 }
    .domain { fill: #3fb950 }
  }
";

/// The picture of one of the providers, by its place in the plan.
pub fn svg(plan: &Plan, rows: &[Row], nth: usize, machine: &str, date: Option<&str>) -> String {
    let (own, base) = (long_name(&plan.providers[nth]), long_name(&plan.base));
    let title = format!("Time per request or completion: {own} beside {base} (= 1)");
    let mut svg = Svg(String::new());
    let mut y = TOP;
    for operation in &OPERATIONS {
        let rows = rows.iter().filter(|row| row.operation == operation);
        let bars: Vec<_> =
            rows.filter_map(|row| row.others[nth].map(|(ns, ratio)| (row.situation, ns, ratio.median))).collect();
        if bars.is_empty() {
            continue;
        }
        let middle = y + BAR * bars.len() as f64 / 2.0;
        let mark = if operation.instead.is_some() { " *" } else { "" };
        svg.text("", LEFT - 8.0, middle + 4.0, "end", &format!("{}{mark}", operation.title));
        for (situation, ns, ratio) in bars {
            let length = ratio.min(FULL) / FULL * (RIGHT - LEFT);
            svg.rectangle(situation.name(), LEFT, y, length, BAR - 1.0);
            svg.text("small", LEFT + length + 4.0, y + BAR - 2.5, "start", &format!("{ratio:.2} ({ns:.1} ns)"));
            y += BAR;
        }
        y += GAP;
    }
    let bottom = y;

    let mut head = Svg(String::new());
    head.text("title", 16.0, 26.0, "start", &title);
    let date = date.map(|date| format!(", {date}")).unwrap_or_default();
    let under = format!("Device frozen; median of {} runs, ratios within a run. {machine}{date}", plan.runs);
    head.text("small", 16.0, 44.0, "start", &under);
    for (nth, situation) in Situation::ALL.into_iter().enumerate() {
        let x = 16.0 + 190.0 * nth as f64;
        head.rectangle(situation.name(), x, 57.0, 10.0, 10.0);
        head.text("", x + 16.0, 66.0, "start", situation.title());
    }
    for tenth in [0, 2, 4, 6, 8, 10, 12] {
        let value = f64::from(tenth) / 10.0;
        let x = LEFT + value / FULL * (RIGHT - LEFT);
        head.line(if tenth == 10 { "base" } else { "line" }, x, TOP - 6.0, bottom);
        head.text("small", x, bottom + 14.0, "middle", &format!("{value:.1}"));
    }
    head.text("small", 16.0, bottom + 34.0, "start", &format!("* where {base} does not have it: {INSTEAD}"));
    let height = bottom + 46.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{}</title>\n<style>\n{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n{}{}</svg>\n",
        escaped(&title),
        head.0,
        svg.0
    )
}

fn long_name(provider: &Provider) -> String {
    match provider {
        Provider::Ours => "our provider".to_owned(),
        Provider::System => "the C provider".to_owned(),
        Provider::Path(_) => report::name(provider),
    }
}

struct Svg(String);

impl Svg {
    fn text(&mut self, class: &str, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escaped(text);
        self.add(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        ));
    }

    fn rectangle(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        self.add(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    fn line(&mut self, class: &str, x: f64, from: f64, to: f64) {
        self.add(format_args!("<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{from:.1}\" x2=\"{x:.1}\" y2=\"{to:.1}\"/>"));
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        writeln!(self.0, "{element}").expect("a string takes all");
    }
}

/// Text that XML does not take for something else.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{plan, rows};

    #[test]
    fn there_is_a_bar_for_each_figure() {
        let text = svg(&plan(), &rows(), 0, "A & B <1>", Some("2026-01-02"));
        // The ground, the legend and the two that the provider has.
        assert_eq!(text.matches("<rect ").count(), 1 + 3 + 2);
        assert!(text.contains("0.41 (4.5 ns)") && text.contains("0.90 (9.9 ns)"));
        assert!(text.contains("A &amp; B &lt;1&gt;, 2026-01-02"));
        assert!(!text.contains(OPERATIONS[1].title), "a row without a figure");
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        let mut rows = rows();
        if let Some((_, ratio)) = &mut rows[0].others[0] {
            ratio.median = 3.7;
        }
        let text = svg(&plan(), &rows, 0, "", None);
        assert!(text.contains(&format!("width=\"{:.1}\"", RIGHT - LEFT)) && text.contains("3.70 ("), "{text}");
    }
}
