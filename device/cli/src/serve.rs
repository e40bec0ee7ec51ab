//! `pvrdma serve`: PVRDMA devices for virtual machines, over vfio-user.
//!
//! Called by `main.rs` with the arguments after the subcommand. The work is done by the crate pvrdma-vfio-user, and
//! what guests have for those of other hosts is carried by pvrdma-link.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lexopt::{Arg, ValueExt};
use nix::sys::signal::{SigSet, Signal};
use pvrdma_capture::file::CaptureFile;
use pvrdma_device::transport::fabric::Fabric;
use pvrdma_device::transport::path::Paths;
use pvrdma_link::tell::tell_all;
use pvrdma_link::uplink::Reporter;
use pvrdma_link::{Choice, Uplink};
use pvrdma_vfio_user::{Access, Listener, Settings, TraceFile, Watch};

use crate::{Usage, link, options, qemu, status};

/// How long whoever has the links may take to say how they fare.
const LINKS_SAY: Duration = Duration::from_millis(500);

/// Help text of the subcommand.
pub const HELP: &str = "\
Gives virtual machines a PVRDMA device each, over vfio-user.

Usage: pvrdma serve [OPTIONS] --socket PATH [--socket PATH]...

Options:
  --socket PATH      wait here for a QEMU; guests of one server reach each other
  --mode MODE        permission bits of the socket files [default: 600]
  --group GROUP      their group, a name or a number; use it with --mode 660
  --roce v1|v2       RoCE version of the devices [default: v2]
  --trace FILE       append a line to FILE for every command the devices get
  --pcap FILE        append what guests send to FILE as RoCE frames; as for pvrdma run
  --fault LIST       have the network lose, delay or refuse what guests send; as for pvrdma run
  --paths LIST       the ways to other guests that may be used: memory (those of this server), tcp (those of other
                     hosts, with --link); behind another nobody answers [default: memory,tcp]
  --link             guests also reach those of other hosts; `pvrdma link` makes hosts one fabric
  --folder FOLDER    with --link, this host's settings [default: as for pvrdma link]
  --hca NAME         with --link, the RDMA adapter for payload; as for pvrdma link run
  --listen IP:PORT   with --link, wait here for other hosts [default: this host's address in fabric.toml]
  --print-qemu       print how QEMU and libvirt are told of the sockets, and serve nothing
  -h, --help         this text

QEMU (10.1 or newer) connects by its vfio-user-pci; --print-qemu has the whole line. The guest's memory must be shared,
and a vmxnet3 must be function 0 of the device's PCI slot. A socket has one guest at a time.

With --link the server is a host of a fabric, as pvrdma link run is for the guests of pvrdma run. Each of the two needs
a number of its own, so on a machine that runs both, they are two hosts of the fabric. No two guests of any host may
have the same address; of those that do, the first keeps it.

`pvrdma status --server PATH` shows the guests of the server with that socket, their QPs and links. It asks at
PATH.status, which is for the server's owner alone.

One line is printed when QEMU may connect. The server has to live as long as its guests: QEMU cannot go on without it,
nor connect again. It ends on SIGTERM and SIGINT: what guests have asked for is answered, then their connections are
closed and the socket files removed.
";

#[derive(Debug, Default, PartialEq, Eq)]
struct Sockets {
    sockets: Vec<PathBuf>,
    trace: Option<PathBuf>,
    capture: Option<PathBuf>,
    group: Option<String>,
    link: Option<Link>,
    paths: Paths,
    print_qemu: bool,
}

/// How the server takes part in a fabric of hosts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Link {
    folder: Option<PathBuf>,
    listen: Option<SocketAddr>,
    hca: Choice,
}

impl Link {
    /// The way to other hosts, and what is to be said of it.
    fn start(&self, paths: Paths) -> anyhow::Result<(Uplink, String)> {
        // They are for the thread that waits for them, and for no other one.
        SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]).thread_block()?;
        let (mut settings, line) = link::settings(self.folder.clone(), self.listen)?;
        settings.hca = self.hca.clone();
        Ok((Uplink::start(settings, paths)?, line))
    }
}

/// Runs the subcommand until a signal ends it.
pub fn main(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let Some((sockets, mut settings)) = parse(args)? else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    if sockets.print_qemu {
        print!("{}", qemu::text(&sockets.sockets)?);
        return Ok(ExitCode::SUCCESS);
    }
    options::outlive_limits();
    settings.access.group = sockets.group.as_deref().map(group_number).transpose()?;
    if let Some(path) = &sockets.trace {
        let path = options::trace_file(path)?;
        settings.trace = Some(TraceFile::open(&path).with_context(|| format!("trace file {}", path.display()))?);
    }
    if let Some(path) = &sockets.capture {
        let open = CaptureFile::open(path).with_context(|| format!("capture {}", path.display()));
        settings.capture = Some(open?);
    }
    let (uplink, linked) = sockets.link.as_ref().map(|link| link.start(sockets.paths)).transpose()?.unzip();
    let fabric = uplink.as_ref().map_or_else(|| Fabric::of(sockets.paths, None), |uplink| uplink.fabric().clone());
    let links = uplink.as_ref().map(Uplink::reporter);
    let mut asked = Vec::new();
    let linked = linked.map_or(String::new(), |line| format!("; {line}"));
    let served = pvrdma_vfio_user::serve(&sockets.sockets, &settings, &fabric, |watch| {
        asked = tell_of(&sockets.sockets, watch, links);
        let names: Vec<_> = sockets.sockets.iter().map(|path| path.display().to_string()).collect();
        // Whoever started it may not listen.
        let _ = writeln!(std::io::stdout(), "pvrdma serve: ready on {}{linked}", names.join(", "));
        let _ = std::io::stdout().flush();
    });
    asked.iter().for_each(|listener| listener.close());
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Waits beside each socket for who wants to know how the server's guests fare. A server for which that is not possible
/// serves all the same.
fn tell_of(sockets: &[PathBuf], watch: Watch, links: Option<Reporter>) -> Vec<Arc<Listener>> {
    let show = Arc::new(move |json| {
        let links = links.as_ref().map(|links| links.report(LINKS_SAY));
        status::server(&watch.look(), links, json)
    });
    let wait = |socket: &PathBuf| -> anyhow::Result<Arc<Listener>> {
        let listener = Arc::new(Listener::bind(&status::beside(socket), Access::default())?);
        let (own, show) = (listener.clone(), show.clone());
        // It ends with the process.
        let wait = move || -> () { tell_all(|| own.accept(), &*show) };
        std::thread::Builder::new().name("pvrdma-status".into()).spawn(wait)?;
        Ok(listener)
    };
    let waited = sockets.iter().map(wait);
    let say = |error: &anyhow::Error| drop(writeln!(std::io::stderr(), "pvrdma serve: no status: {error:#}"));
    waited.filter_map(|listener| listener.inspect_err(say).ok()).collect()
}

/// The options, or nothing if help was asked for.
fn parse(args: Vec<OsString>) -> anyhow::Result<Option<(Sockets, Settings)>> {
    let (mut sockets, mut settings) = (Sockets::default(), Settings::default());
    let (mut linked, mut link) = (false, Link::default());
    let mut args = lexopt::Parser::from_args(args);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("socket") => {
                let path: PathBuf = args.value()?.parse_with(|path| match path {
                    "" => Err("a socket needs a name"),
                    path => Ok(path.into()),
                })?;
                if sockets.sockets.contains(&path) {
                    return Err(Usage(format!("--socket {} is given twice", path.display())).into());
                }
                sockets.sockets.push(path);
            }
            Arg::Long("mode") => settings.access.mode = args.value()?.parse_with(mode)?,
            Arg::Long("group") => sockets.group = Some(args.value()?.string()?),
            Arg::Long("roce") => settings.roce = options::roce(&mut args)?,
            Arg::Long("trace") => sockets.trace = Some(options::file(&mut args, "--trace")?),
            Arg::Long("pcap") => sockets.capture = Some(options::file(&mut args, "--pcap")?),
            Arg::Long("fault") => settings.faults = Some(options::faults(&mut args)?.1),
            Arg::Long("paths") => sockets.paths = options::paths(&mut args)?.1,
            Arg::Long("link") => linked = true,
            Arg::Long("folder") => link.folder = Some(args.value()?.into()),
            Arg::Long("hca") => link.hca = link::hca(&args.value()?.string()?)?,
            Arg::Long("listen") => link.listen = Some(link::listen(&args.value()?.string()?)?),
            Arg::Long("print-qemu") => sockets.print_qemu = true,
            Arg::Long("help") | Arg::Short('h') => return Ok(None),
            other => return Err(other.unexpected().into()),
        }
    }
    if sockets.sockets.is_empty() {
        return Err(Usage("serve needs a --socket; try pvrdma serve --help".into()).into());
    }
    if !linked && link != Link::default() {
        return Err(Usage("--folder, --listen and --hca go with --link".into()).into());
    }
    if linked && !sockets.paths.tcp() {
        return Err(Usage("--link is the path tcp, which --paths leaves out".into()).into());
    }
    if !linked && !sockets.paths.memory() {
        return Err(Usage("--paths leaves memory out, and without --link there is no other path".into()).into());
    }
    sockets.link = linked.then_some(link);
    Ok(Some((sockets, settings)))
}

/// Permission bits, in octal as for chmod(1).
fn mode(text: &str) -> Result<u32, &'static str> {
    let digits = text.bytes().all(|digit| digit.is_ascii_digit());
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| digits && *mode <= 0o777);
    mode.ok_or("not octal digits, such as 660")
}

/// A group by name or number.
fn group_number(group: &str) -> anyhow::Result<u32> {
    if group.bytes().all(|digit| digit.is_ascii_digit()) && !group.is_empty() {
        // The highest number is chown(2)'s "leave it as it is".
        let number = group.parse().ok().filter(|number| *number != u32::MAX);
        return number.with_context(|| format!("there is no group {group}"));
    }
    let found = nix::unistd::Group::from_name(group).with_context(|| format!("cannot look up group {group}"))?;
    found.map(|found| found.gid.as_raw()).with_context(|| format!("there is no group {group}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvrdma_device::guest::Roce;

    fn parsed(args: &[&str]) -> anyhow::Result<Option<(Sockets, Settings)>> {
        parse(args.iter().map(OsString::from).collect())
    }

    #[test]
    fn sockets_are_collected_in_order() {
        let (sockets, settings) = parsed(&["--socket", "a", "--socket", "b"]).unwrap().unwrap();
        assert_eq!(sockets.sockets, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!((settings.access.mode, settings.roce), (0o600, Roce::V2));
        assert!(settings.faults.is_none() && sockets.trace.is_none() && sockets.group.is_none());
        assert!(sockets.link.is_none());
    }

    #[test]
    fn a_server_is_a_host_if_it_is_asked_to() {
        let link = |words: &[&str]| parsed(&[words, &["--socket", "a"]].concat()).unwrap().unwrap().0.link;
        assert_eq!(link(&["--link"]), Some(Link::default()));
        let listen = Some("192.0.2.1:7000".parse().unwrap());
        let both = Link { folder: Some("f".into()), listen, ..Link::default() };
        assert_eq!(link(&["--listen", "192.0.2.1:7000", "--folder", "f", "--link"]), Some(both));
        assert_eq!(link(&["--link", "--hca", "auto"]).map(|link| link.hca), Some(Choice::Auto));
    }

    #[test]
    fn options_are_taken() {
        let words =
            ["--mode", "660", "--group=kvm", "--roce", "v1", "--fault", "drop=0.5", "--trace", "t", "--socket", "a"];
        let (sockets, settings) = parsed(&words).unwrap().unwrap();
        assert_eq!((settings.access.mode, settings.roce), (0o660, Roce::V1));
        assert_eq!(settings.faults.unwrap().drop, 0.5);
        assert_eq!((sockets.trace, sockets.group.as_deref()), (Some("t".into()), Some("kvm")));
    }

    #[test]
    fn mistakes_are_named() {
        let mistake = |args: &[&str]| parsed(args).unwrap_err().to_string();
        assert!(mistake(&[]).contains("--socket"));
        assert!(mistake(&["--socket"]).contains("--socket"));
        assert!(mistake(&["--socket", ""]).contains("name"));
        assert!(mistake(&["--socket", "a", "--socket", "a"]).contains("twice"));
        assert!(mistake(&["--sokcet", "a"]).contains("--sokcet"));
        assert!(mistake(&["a"]).contains('a'));
        for mode in ["", "8", "1777", "rw", "-1", "+660", "0o660"] {
            assert!(mistake(&["--socket", "a", "--mode", mode]).contains("octal"), "{mode}");
        }
        assert!(mistake(&["--socket", "a", "--roce", "v3"]).contains("v3"));
        for (option, name) in [("--pcap", ""), ("--pcap", "-"), ("--trace", "")] {
            assert!(mistake(&["--socket", "a", option, name]).contains("name of a file"), "{option} {name}");
        }
        for words in [["--folder", "f"], ["--listen", "192.0.2.1:1"], ["--hca", "auto"]] {
            assert!(mistake(&[&words[..], &["--socket", "a"]].concat()).contains("--link"), "{words:?}");
        }
        assert!(mistake(&["--socket", "a", "--link", "--listen", "here"]).contains("here"));
        assert!(mistake(&["--socket", "a", "--fault", "drop=2"]).contains("drop=2"));
        assert!(mistake(&["--socket", "a", "--paths", "hca"]).contains("memory, tcp and roce"));
        assert!(mistake(&["--socket", "a", "--paths", "tcp"]).contains("no other path"));
        assert!(mistake(&["--socket", "a", "--paths", "memory", "--link"]).contains("leaves out"));
    }

    #[test]
    fn groups_have_names_and_numbers() {
        assert_eq!(group_number("0").unwrap(), 0);
        assert_eq!(group_number("root").unwrap(), 0);
        for nobody in ["no such group", "4294967295", "99999999999", "+5", ""] {
            assert!(group_number(nobody).unwrap_err().to_string().contains(&format!("no group {nobody}")), "{nobody}");
        }
    }

    #[test]
    fn help_wins() {
        assert!(parsed(&["--socket", "a", "--help"]).unwrap().is_none());
    }
}
