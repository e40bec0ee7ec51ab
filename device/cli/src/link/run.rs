//! `pvrdma link run` and `status`: the process that carries requests between this host's guests and other hosts, and
//! how it fares.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use pvrdma_capture::file::CaptureFile;
use pvrdma_capture::recorder::Recorder;
use pvrdma_capture::writer;
use pvrdma_link::gateway::Port;
use pvrdma_link::links;
use pvrdma_link::socket::WireReport;
use pvrdma_link::udp::Stats;
use pvrdma_link::{Carrier, Choice, Report, gateway};
use pvrdma_net::folder::Settings;
use pvrdma_net::identity::{SOON, date};

use super::options::Run;
use super::say;
use super::term::notices;
use crate::json;
use crate::lock;
use crate::options;
use crate::rundir::RunDir;
use crate::status;

/// In the run directory: held by the gateway, and where it is asked how it fares.
const LOCK: &str = "link.lock";
pub const SOCKET: &str = "link.sock";
/// What takes this host into its fabric, and a line that says how.
pub fn settings(folder: &Path, listen: Option<SocketAddr>) -> anyhow::Result<(links::Settings, String)> {
    let fabric = Settings::load(folder)?;
    // One that has ended is no reason not to begin: a new one is taken while it runs, and a clock that is wrong at
    // boot is set right later.
    for notice in notices(folder, &fabric, SystemTime::now()) {
        let level = if notice.has_ended { "error" } else { "warning" };
        let _ = writeln!(std::io::stderr(), "pvrdma link: {level}: {}", notice.line());
    }
    let (this, others) = (fabric.this(), fabric.hosts.len() - 1);
    let plain = if fabric.identity.is_none() { ", without certificates" } else { "" };
    let at = listen.unwrap_or(this.address);
    let of = if others == 1 { "host" } else { "hosts" };
    let line = format!("host {} ({}) on {at}, {others} other {of}{plain}", this.number, this.name);
    Ok((links::Settings { fabric: Some(fabric), listen, folder: Some(folder.into()), hca: Choice::None }, line))
}

pub fn run(folder: &Path, options: &Run) -> anyhow::Result<()> {
    // For RoCE nobody has to be in a fabric.
    let alone = options.wire.is_some() && options.listen.is_none() && !folder.try_exists()?;
    if alone && options.hca != Choice::None {
        bail!("--hca is for links to other hosts, and {} is not there; `pvrdma link init` makes it", folder.display());
    }
    let nobody = || links::Settings { fabric: None, listen: None, folder: None, hca: Choice::None };
    let (mut settings, mut line) = match alone {
        true => (nobody(), "no other hosts".to_owned()),
        false => settings(folder, options.listen)?,
    };
    settings.hca = options.hca.clone();
    let _ = match &options.wire {
        Some(Port::Address(address)) => write!(line, ", RoCE v2 at {address}"),
        Some(Port::Device(name)) => write!(line, ", RoCE v1 at {name}, for guests of --roce v1"),
        None => Ok(()),
    };
    options::outlive_limits();
    let v1 = matches!(options.wire, Some(Port::Device(_)));
    let recorder = options.capture.as_deref().map(|path| recorder(path, v1)).transpose()?;
    let run_dir = RunDir::join(&RunDir::default_path()?)?;
    let how = How { settings, wire: options.wire.clone(), recorder };
    let ran = carry(&run_dir, how, &format!("pvrdma link: {line}"));
    run_dir.leave().context("cannot clean up the run directory")?;
    ran
}

/// Guests do not say here which version of RoCE they see, so frames are those of v2, or of what is spoken beside.
fn recorder(path: &Path, v1: bool) -> anyhow::Result<Recorder> {
    let file = CaptureFile::open(path).with_context(|| format!("capture {}", path.display()))?;
    Ok(Recorder::new(writer::Settings { sink: Box::new(file), v1 }))
}

/// What a gateway carries.
struct How {
    settings: links::Settings,
    wire: Option<Port>,
    recorder: Option<Recorder>,
}

fn carry(run_dir: &RunDir, how: How, line: &str) -> anyhow::Result<()> {
    let path = run_dir.path().join(LOCK);
    let lock = lock::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if !lock::try_exclusive(&lock)? {
        bail!("pvrdma link runs already for the guests of this user ({})", run_dir.path().display());
    }
    let (dir, socket) = (run_dir.path(), run_dir.path().join(SOCKET));
    gateway::run(dir, &socket, how.settings, how.wire, how.recorder, object, || say(line))
}

pub fn status(json: bool) -> anyhow::Result<()> {
    let path = RunDir::default_path()?.join(SOCKET);
    let told = status::ask(&path, json).context("pvrdma link does not say how it fares")?;
    match told {
        None => bail!("no pvrdma link runs for the guests of this user; start one with `pvrdma link run`"),
        Some(text) => say(text.trim_end()),
    }
    Ok(())
}

/// What it says to who asks for `json`, or for anything else.
pub fn object(report: &Report, json: bool) -> String {
    object_at(report, json, SystemTime::now())
}

fn object_at(report: &Report, json: bool, now: SystemTime) -> String {
    if !json {
        return text(report, now);
    }
    let or_null = |text: Option<String>| text.as_deref().map_or("null".to_owned(), json::quoted);
    let hosts: Vec<String> = report
        .hosts
        .iter()
        .map(|host| {
            let link = host.link.as_ref().map_or("null".to_owned(), |link| {
                let round_trip = link.round_trip.map_or("null".to_owned(), |time| time.as_micros().to_string());
                format!(
                    "{{\"bytes_out\": {}, \"bytes_in\": {}, \"requests\": {}, \"silences\": {}, \
                     \"round_trip_us\": {round_trip}, {}}}",
                    link.bytes_out,
                    link.bytes_in,
                    link.requests,
                    link.silences,
                    carrier(&host.carrier)
                )
            });
            format!("    {{{}, \"link\": {link}}}", json::host(host.number, &host.name, host.address))
        })
        .collect();
    format!(
        "{{\n  \"number\": {},\n  \"encrypted\": {},\n  \"certificate_ends\": {},\n  \
         \"problem\": {},\n  \"asked\": {},\n  \"serving\": {},\n  \"roce\": {},\n  \"hosts\": [\n{}\n  ]\n}}",
        report.number,
        report.encrypted,
        or_null(report.certificate_ends.map(date)),
        or_null(problem(report, now).filter(|(has_ended, _)| *has_ended).map(|(_, what)| what)),
        report.asked,
        report.serving,
        report.wire.as_ref().map_or("null".to_owned(), wire_object),
        hosts.join(",\n")
    )
}

fn wire_object(wire: &WireReport) -> String {
    let WireReport { roce, address, mtu, packets: Stats { sent, unsent, received, damaged } } = wire;
    format!(
        "{{\"version\": \"{}\", \"address\": \"{address}\", \"mtu\": {mtu}, \"packets_out\": {sent}, \"packets_unsent\": {unsent}, \
         \"packets_in\": {received}, \"packets_damaged\": {damaged}}}",
        roce.name()
    )
}

/// What carries the frames of a link, as fields of JSON.
fn carrier(carrier: &Carrier) -> String {
    match carrier {
        Carrier::Tcp { why } => {
            format!("\"over\": \"tcp\", \"no_hca\": {}", why.as_deref().map_or("null".to_owned(), json::quoted))
        }
        Carrier::Hca { device } => format!("\"over\": \"hca\", \"hca\": {}", json::quoted(device)),
    }
}

/// What is to be said of its certificate, if anything is, and whether that has ended.
fn problem(report: &Report, now: SystemTime) -> Option<(bool, String)> {
    let ends = report.certificate_ends.filter(|ends| *ends <= now + SOON)?;
    let has_ended = ends < now;
    let (how, links) = if has_ended { ("ended", ", and no new link is made") } else { ("ends", "") };
    let what =
        format!("the certificate of this host {how} on {}{links}; `pvrdma link list` says what to do", date(ends));
    Some((has_ended, what))
}

fn text(report: &Report, now: SystemTime) -> String {
    let mut text = String::new();
    let (number, asked, serving) = (report.number, report.asked, report.serving);
    let _ = match number {
        0 => write!(text, "no other hosts; "),
        _ => write!(text, "host {number}, {}; ", if report.encrypted { "TLS 1.3" } else { "without certificates" }),
    };
    let _ = writeln!(text, "{asked} requests of this host on their way, {serving} of others");
    if let Some((has_ended, what)) = problem(report, now) {
        let _ = writeln!(text, "{}: {what}", if has_ended { "error" } else { "warning" });
    }
    if let Some(WireReport { roce, address, mtu, packets }) = &report.wire {
        let Stats { sent, unsent, received, damaged } = packets;
        let _ = write!(text, "RoCE {} at {address}, path MTU {mtu}: ", roce.name());
        let _ = write!(text, "{sent} packets out, {received} in");
        let rest = [(unsent, "could not be sent"), (damaged, "were damaged")];
        for (count, what) in rest.into_iter().filter(|(count, _)| **count > 0) {
            let _ = write!(text, ", {count} {what}");
        }
        text.push('\n');
    }
    let width = report.hosts.iter().map(|host| host.name.len()).max().unwrap_or_default();
    for host in &report.hosts {
        let _ = write!(text, "{:>3}  {:<width$}  {:<21}  ", host.number, host.name, host.address.to_string());
        let _ = match &host.link {
            None => writeln!(text, "no link"),
            Some(link) => {
                let trip = link.round_trip.map_or(String::new(), |time| format!(", {} us", time.as_micros()));
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let (out, into) = (mib(link.bytes_out), mib(link.bytes_in));
                let over = match &host.carrier {
                    Carrier::Tcp { .. } => String::new(),
                    Carrier::Hca { device } if report.encrypted => format!(" by {device}, not encrypted"),
                    Carrier::Hca { device } => format!(" by {device}"),
                };
                let why = match &host.carrier {
                    Carrier::Tcp { why: Some(why) } => format!("; not by adapters: {why}"),
                    Carrier::Tcp { why: None } | Carrier::Hca { .. } => String::new(),
                };
                let requests = link.requests;
                writeln!(text, "linked{over}{trip}; {out:.1} MiB out, {into:.1} in, {requests} requests{why}")
            }
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::Roce;
    use pvrdma_link::links::HostReport;
    use pvrdma_net::connection;
    use std::time::Duration;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_report_is_text_or_json() {
        let link = connection::Stats { bytes_out: 1 << 20, requests: 3, ..Default::default() };
        let host = |number, link| HostReport {
            carrier: if number == 4 {
                Carrier::Hca { device: "mlx5_0".into() }
            } else {
                Carrier::Tcp { why: Some("the other host has none".into()) }
            },
            number,
            name: format!("h{number}"),
            address: "192.0.2.1:7471".parse().unwrap(),
            link,
        };
        let report = Report {
            number: 1,
            encrypted: true,
            certificate_ends: Some(SystemTime::UNIX_EPOCH + 100 * DAY),
            asked: 0,
            serving: 2,
            hosts: vec![host(2, Some(link)), host(3, None), host(4, Some(link))],
            wire: None,
        };
        let at = |days: u32, json| object_at(&report, json, SystemTime::UNIX_EPOCH + days * DAY);
        let shown = at(0, false);
        assert!(!shown.contains("certificate"), "{shown}");
        assert!(shown.contains("TLS 1.3") && shown.contains("  3  h3") && shown.contains("no link"), "{shown}");
        let why = "; not by adapters: the other host has none";
        assert!(shown.contains(&format!("linked; 1.0 MiB out, 0.0 in, 3 requests{why}\n")), "{shown}");
        assert!(shown.contains("linked by mlx5_0, not encrypted; 1.0 MiB out, 0.0 in, 3 requests\n"), "{shown}");
        let shown = at(0, true);
        assert!(shown.contains("\"round_trip_us\": null") && shown.contains("\"link\": null"), "{shown}");
        assert!(shown.contains("\"over\": \"tcp\", \"no_hca\": \"the other host has none\"}"), "{shown}");
        assert!(shown.contains("\"over\": \"hca\", \"hca\": \"mlx5_0\"}"), "{shown}");
        assert!(shown.contains("\"certificate_ends\": \"1970-04-11\",\n  \"problem\": null"), "{shown}");
        // Soon, and over.
        let shown = at(71, false);
        assert!(shown.contains("\nwarning: the certificate of this host ends on 1970-04-11; `pvrdma"), "{shown}");
        assert!(at(71, true).contains("\"problem\": null"));
        let shown = at(101, false);
        assert!(shown.contains("\nerror: the certificate of this host ended on 1970-04-11, and no new"), "{shown}");
        assert!(at(101, true).contains("\"problem\": \"the certificate"));
        let packets = Stats { sent: 7, damaged: 1, ..Stats::default() };
        let wire = Some(WireReport { roce: Roce::V2, address: "192.0.2.1".parse().unwrap(), mtu: 1024, packets });
        let report = Report { wire, hosts: Vec::new(), encrypted: false, ..report };
        let shown = object_at(&report, false, SystemTime::UNIX_EPOCH);
        assert!(
            shown.contains("RoCE v2 at 192.0.2.1, path MTU 1024: 7 packets out, 0 in, 1 were damaged\n"),
            "{shown}"
        );
        assert!(object_at(&report, true, SystemTime::UNIX_EPOCH).contains("\"packets_out\": 7"));
    }
}
