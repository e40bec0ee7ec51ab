//! `pvrdma status`: the guests of this user, their programs, QPs and paths, and the links to other hosts; or the same
//! of a server.
//!
//! What guests of `pvrdma run` have done stands in the run directory's shared file, so nobody is asked and a program
//! that is stopped is shown like all others (`device/fabric/src/segment/view.rs`). A server and whoever carries
//! requests to other hosts are asked over sockets, and not waited for: what one does not say is said to be unread.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write as _};
use std::net::Ipv6Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use lexopt::prelude::*;
use pvrdma_device::guest::Guest;
use pvrdma_device::handle::Gid;
use pvrdma_device::rings::wqe::QpKind;
use pvrdma_device::transport::Path as Way;
use pvrdma_device::transport::figures::{Counted, QpReport};
use pvrdma_device::transport::path::Paths;
use pvrdma_fabric::segment::view::{self, Seen};
use pvrdma_link::Report;
use pvrdma_vfio_user::SocketReport;

use crate::json::quoted;
use crate::link;
use crate::rundir::RunDir;

/// Help text of the subcommand.
pub const HELP: &str = "\
Shows guests, their programs and QPs, which way each QP goes, and what went over it.

Usage: pvrdma status [OPTIONS]

Options:
  --json         one JSON object
  --server PATH  of the server that has this socket (pvrdma serve --socket) [default: the guests of pvrdma run]
  -h, --help     this text

A line for each QP: number, type, state, the path to its peer and who that is, what it has sent and received, and how
often it had to send again. Sent are the requests of the QP that were done, whichever way their bytes went; received
are those of its peer. Sent again: by its timer (tries), or because its peer had no receive posted (rnr). QPs in RESET
are not shown.

Paths are memory (the peer is a guest of this host), tcp with the number of the other host, hca where adapters carry
that link, roce (the peer is no guest, or not known as one: pvrdma link run --roce-wire), and none: nobody is there, no link is up, or --paths leaves it out. A QP of type UD has no path of its own;
--trace shows those of its datagrams.

No program is waited for: one that is stopped is shown as all others. Whoever carries requests to other hosts, or a
server, that does not answer within two seconds is said to be unread.
Exit status: 0 shown, 2 a mistake on the command line, 1 anything else.
";

/// How long a server, or whoever carries requests to other hosts, may take to say how it fares.
const PATIENCE: Duration = Duration::from_secs(2);

/// Entry point of the subcommand.
pub fn main(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let (mut json, mut server) = (false, None);
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Long("json") => json = true,
            Long("server") => server = Some(PathBuf::from(args.value()?)),
            Short('h') | Long("help") => {
                print!("{HELP}");
                return Ok(ExitCode::SUCCESS);
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let text = match server {
        Some(socket) => of_server(&socket, json)?,
        None => of_guests(&RunDir::default_path()?, json)?,
    };
    // Whoever asked may not listen any more.
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}

/// Asks over a socket, and waits so long and no longer. `None`: nobody is there.
pub fn ask(socket: &Path, json: bool) -> anyhow::Result<Option<String>> {
    let (tell, told) = mpsc::channel();
    let socket = socket.to_owned();
    // One that is stopped holds up even who connects, once enough others wait: a thread that goes with this process.
    thread::Builder::new().spawn(move || tell.send(asked(&socket, json)))?;
    told.recv_timeout(PATIENCE).unwrap_or_else(|_| bail!("no answer within {} seconds", PATIENCE.as_secs()))
}

fn asked(socket: &Path, json: bool) -> anyhow::Result<Option<String>> {
    let mut stream = match UnixStream::connect(socket) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(None),
        stream => stream.with_context(|| socket.display().to_string())?,
    };
    stream.write_all(if json { b"json\n" } else { b"text\n" })?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(Some(text))
}

// ---- a server ----------------------------------------------------------------------------------------------------

/// Where a server is asked how its guests fare, by one of its sockets.
pub fn beside(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".status");
    path.into()
}

fn of_server(socket: &Path, json: bool) -> anyhow::Result<String> {
    let told =
        ask(&beside(socket), json).with_context(|| format!("the server of {} does not say", socket.display()))?;
    told.with_context(|| format!("no server has the socket {}", socket.display()))
}

/// What a server says to who asks: the devices it has, and its links if it has some.
pub fn server(sockets: &[SocketReport], links: Option<Option<Report>>, json: bool) -> String {
    let link = links.map(|links| links.map(|report| link::shown(&report, json)).ok_or("it does not say in time"));
    match json {
        true => server_json(sockets, link),
        false => server_text(sockets, link),
    }
}

/// What was said of links, or why nothing was. `None`: there are none.
type Links = Option<Result<String, &'static str>>;

fn server_text(sockets: &[SocketReport], link: Links) -> String {
    let mut text = String::new();
    for SocketReport { socket, device } in sockets {
        let _ = match device {
            None => writeln!(text, "{}: no driver", socket.display()),
            Some((gids, _)) => writeln!(text, "{}: {}", socket.display(), spelled(gids).join(", ")),
        };
        for qp in device.iter().flat_map(|(_, qps)| qps) {
            let _ = writeln!(text, "  {}", qp_text(qp));
        }
    }
    text.push_str(&links_text(link));
    text
}

fn server_json(sockets: &[SocketReport], link: Links) -> String {
    let socket = |SocketReport { socket, device }: &SocketReport| {
        let name = quoted(&socket.to_string_lossy());
        let device = device.as_ref().map_or("null".to_owned(), |(gids, qps)| {
            let gids: Vec<String> = spelled(gids).iter().map(|gid| quoted(gid)).collect();
            format!("{{\"gids\": [{}], \"qps\": {}}}", gids.join(", "), list(qps.iter().map(qp_json), 6))
        });
        format!("{{\"socket\": {name}, \"device\": {device}}}")
    };
    format!("{{\n  \"sockets\": {},\n{}\n}}", list(sockets.iter().map(socket), 4), links_json(link))
}

fn spelled(gids: &[Gid]) -> Vec<String> {
    gids.iter().map(|gid| Ipv6Addr::from(*gid).to_string()).collect()
}

// ---- guests of `pvrdma run` --------------------------------------------------------------------------------------

fn of_guests(dir: &Path, json: bool) -> anyhow::Result<String> {
    let view = view::look(dir).with_context(|| dir.join("fabric").display().to_string())?;
    let (host, mut seen) = view.map_or((None, Vec::new()), |view| (view.host, view.processes));
    seen.sort_by_key(|process| (process.guest.index(), process.pid));
    let name = |guest: Guest| {
        let file = dir.join(format!("guests/{}/name", guest.index()));
        fs::read_to_string(file).unwrap_or_else(|_| guest.index().to_string())
    };
    let guests: Vec<(String, Guest, &[Seen])> = seen
        .chunk_by(|one, other| one.guest.index() == other.guest.index())
        .filter_map(|processes| Some((name(processes.first()?.guest), processes.first()?.guest, processes)))
        .collect();
    let link = match ask(&dir.join(link::SOCKET), json) {
        Ok(told) => told.map(Ok),
        Err(_) => Some(Err("pvrdma link does not say how it fares")),
    };
    Ok(match json {
        true => guests_json(host, &guests, link),
        false => guests_text(host, &guests, link),
    })
}

fn guests_text(host: Option<u8>, guests: &[(String, Guest, &[Seen])], link: Links) -> String {
    let mut text = String::new();
    let _ = match (host, guests.len()) {
        (None, _) => writeln!(text, "no guest of this user runs"),
        (Some(host), count) => writeln!(text, "host {host}, {count} guest{}", if count == 1 { "" } else { "s" }),
    };
    for (name, guest, processes) in guests {
        let _ = writeln!(text, "{name} ({})", address(*guest));
        for Seen { pid, paths, qps, .. } in *processes {
            // Without an address for RoCE nobody has left it out.
            let all = Paths::default();
            let only = match *paths == all || *paths == all.without_roce() {
                true => String::new(),
                false => format!(", only {}", names(*paths)),
            };
            let _ = match qps {
                Err(error) => writeln!(text, "  {pid} {}{only}: unread ({error})", program(*pid)),
                Ok(_) => writeln!(text, "  {pid} {}{only}", program(*pid)),
            };
            for qp in qps.iter().flatten() {
                let _ = writeln!(text, "    {}", qp_text(qp));
            }
        }
    }
    text.push_str(&links_text(link));
    text
}

fn guests_json(host: Option<u8>, guests: &[(String, Guest, &[Seen])], link: Links) -> String {
    let process = |Seen { pid, paths, qps, .. }: &Seen| {
        let qps = qps.as_ref().map_or("null".to_owned(), |qps| list(qps.iter().map(qp_json), 8));
        let (program, paths) = (quoted(&program(*pid)), quoted(&names(*paths)));
        format!("{{\"pid\": {pid}, \"program\": {program}, \"paths\": {paths}, \"qps\": {qps}}}")
    };
    let guest = |(name, guest, processes): &(String, Guest, &[Seen])| {
        let (name, address) = (quoted(name), quoted(&address(*guest)));
        let processes = list(processes.iter().map(process), 6);
        format!("{{\"name\": {name}, \"address\": {address}, \"processes\": {processes}}}")
    };
    let host = host.map_or("null".to_owned(), |host| host.to_string());
    format!("{{\n  \"host\": {host},\n  \"guests\": {},\n{}\n}}", list(guests.iter().map(guest), 4), links_json(link))
}

/// The IPv4 address that is in its second GID.
fn address(guest: Guest) -> String {
    format!("127.{}.82.{}", guest.host(), guest.index() + 1)
}

fn program(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |name| name.trim_end().to_owned())
}

fn names(paths: Paths) -> String {
    let all = [("memory", paths.memory()), ("tcp", paths.tcp()), ("roce", paths.roce())];
    let names: Vec<&str> = all.into_iter().filter(|(_, may)| *may).map(|(name, _)| name).collect();
    names.join(",")
}

// ---- what both have ----------------------------------------------------------------------------------------------

fn links_text(link: Links) -> String {
    match link {
        None => "no links to other hosts\n".to_owned(),
        Some(Ok(text)) => format!("links of {text}"),
        Some(Err(why)) => format!("links are unread: {why}\n"),
    }
}

fn links_json(link: Links) -> String {
    let (link, unread) = match link {
        None => ("null".to_owned(), "null".to_owned()),
        Some(Ok(object)) => (object.trim_end().replace('\n', "\n  "), "null".to_owned()),
        Some(Err(why)) => ("null".to_owned(), quoted(why)),
    };
    format!("  \"link\": {link},\n  \"link_unread\": {unread}")
}

/// A list of JSON, an entry a line, set in so far.
fn list(entries: impl Iterator<Item = String>, indent: usize) -> String {
    let entries: Vec<String> = entries.collect();
    match entries.is_empty() {
        true => "[]".to_owned(),
        false => {
            let (inner, outer) = (" ".repeat(indent), " ".repeat(indent - 2));
            format!("[\n{inner}{}\n{outer}]", entries.join(&format!(",\n{inner}")))
        }
    }
}

fn kind(kind: QpKind) -> &'static str {
    match kind {
        QpKind::Rc => "RC",
        QpKind::Ud => "UD",
        QpKind::Gsi => "GSI",
    }
}

fn state(state: u32) -> &'static str {
    const NAMES: [&str; 7] = ["RESET", "INIT", "RTR", "RTS", "SQD", "SQE", "ERR"];
    NAMES.get(state as usize).copied().unwrap_or("?")
}

fn qp_text(qp: &QpReport) -> String {
    let QpReport { qpn, sent, received, resent, rnr, .. } = *qp;
    let mut text = format!("QP {:#x} {} {}", qpn.0, kind(qp.kind), state(qp.state));
    if let Some(peer) = qp.peer {
        let _ = write!(text, ", path {} to {} QP {:#x}", qp.path, Ipv6Addr::from(peer.gid), peer.qpn.0);
    }
    let amount = |Counted { messages, bytes }: Counted| {
        let messages = format!("{messages} message{}", if messages == 1 { "" } else { "s" });
        match bytes {
            0..0x10_0000 => format!("{messages}, {bytes} bytes"),
            _ => format!("{messages}, {:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        }
    };
    let _ = write!(text, "; sent {}; received {}", amount(sent), amount(received));
    if resent > 0 || rnr > 0 {
        let _ = write!(text, "; sent again: {resent} tries, {rnr} rnr");
    }
    text
}

fn qp_json(qp: &QpReport) -> String {
    let peer = qp.peer.map_or("null".to_owned(), |peer| {
        format!("{{\"gid\": {}, \"qpn\": {}}}", quoted(&Ipv6Addr::from(peer.gid).to_string()), peer.qpn.0)
    });
    let path = qp.peer.map_or("null".to_owned(), |_| quoted(qp.path.name()));
    let host = match qp.path {
        Way::Tcp { host } | Way::Hca { host } => host.to_string(),
        Way::None | Way::Memory | Way::Roce => "null".to_owned(),
    };
    let tally = |Counted { messages, bytes }: Counted| format!("{{\"messages\": {messages}, \"bytes\": {bytes}}}");
    format!(
        "{{\"qpn\": {}, \"type\": \"{}\", \"state\": \"{}\", \"peer\": {peer}, \"path\": {path}, \"path_host\": {host}, \
         \"sent\": {}, \"received\": {}, \"tries\": {}, \"rnr\": {}}}",
        qp.qpn.0,
        kind(qp.kind),
        state(qp.state),
        tally(qp.sent),
        tally(qp.received),
        qp.resent,
        qp.rnr
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::Roce;
    use pvrdma_device::handle::Qpn;
    use pvrdma_device::transport::Endpoint;

    fn qp() -> QpReport {
        let gid = Guest::new(2, 0, Roce::V2).unwrap().gid(1).unwrap();
        QpReport {
            qpn: Qpn(0x8002),
            kind: QpKind::Rc,
            state: 3,
            peer: Some(Endpoint { gid, qpn: Qpn(0x10003) }),
            path: Way::Tcp { host: 2 },
            sent: Counted { messages: 1, bytes: 8 },
            received: Counted { messages: 2, bytes: 3 << 20 },
            resent: 4,
            rnr: 0,
        }
    }

    #[test]
    fn a_qp_is_a_line_or_an_object() {
        assert_eq!(
            qp_text(&qp()),
            "QP 0x8002 RC RTS, path tcp host=2 to ::ffff:127.2.82.1 QP 0x10003; sent 1 message, 8 bytes; \
             received 2 messages, 3.0 MiB; sent again: 4 tries, 0 rnr"
        );
        let datagrams = QpReport { kind: QpKind::Ud, peer: None, path: Way::None, resent: 0, ..qp() };
        assert!(qp_text(&datagrams).starts_with("QP 0x8002 UD RTS; sent 1"), "{}", qp_text(&datagrams));
        assert!(qp_json(&qp()).contains("\"path\": \"tcp\", \"path_host\": 2"), "{}", qp_json(&qp()));
        assert!(qp_json(&datagrams).contains("\"peer\": null, \"path\": null"), "{}", qp_json(&datagrams));
    }

    #[test]
    fn who_does_not_answer_is_unread() {
        let dir = tempfile::tempdir().unwrap();
        let text = of_guests(dir.path(), false).unwrap();
        assert!(text.contains("no guest") && text.contains("no links"), "{text}");
        // Nobody accepts.
        let socket = dir.path().join(link::SOCKET);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for json in [false, true] {
            let text = of_guests(dir.path(), json).unwrap();
            assert!(text.contains("unread") && text.contains("pvrdma link does not say"), "{text}");
        }
        let error = format!("{:#}", of_server(&dir.path().join("x.sock"), true).unwrap_err());
        assert!(error.contains("no server has the socket"), "{error}");
    }

    #[test]
    fn a_server_tells_of_each_socket() {
        let gid = Guest::new(2, 0, Roce::V2).unwrap().gid(1).unwrap();
        let sockets = [
            SocketReport { socket: "/a".into(), device: None },
            SocketReport { socket: "/b".into(), device: Some((vec![gid], vec![qp()])) },
        ];
        let text = server(&sockets, None, false);
        assert!(text.contains("/a: no driver\n/b: ::ffff:127.2.82.1\n  QP 0x8002 RC"), "{text}");
        let text = server(&sockets, Some(None), true);
        assert!(text.contains("\"device\": null") && text.contains("\"link_unread\": \"it does not"), "{text}");
    }
}
