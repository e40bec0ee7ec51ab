//! `pvrdma serve` as whoever starts it sees it: the line that says it is ready, its socket files, how it ends, and what
//! it says when it cannot begin.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::Pid;

fn serve(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pvrdma"));
    command.arg("serve").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A server that runs; killed if a test fails.
struct Server(Option<Child>);

impl Server {
    /// Waits for the line that says it is ready, and gives it.
    fn start(mut command: Command) -> (Server, String) {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        (Server(Some(child)), line)
    }

    fn end(mut self, signal: Signal) -> Output {
        let child = self.0.take().unwrap();
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A message of the protocol.
fn message(command: u16, body: &[u8]) -> Vec<u8> {
    let size = 16 + body.len() as u32;
    [&[7, 0][..], &command.to_le_bytes(), &size.to_le_bytes(), &[0; 8], body].concat()
}

#[test]
fn says_when_it_is_ready_and_ends_on_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.sock", "b.sock"].map(|name| folder.path().join(name));
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let args = ["--socket", paths[0].to_str().unwrap(), "--socket", paths[1].to_str().unwrap()];
        let mut command = serve(&args);
        // SAFETY: umask(2) is all that runs between fork and exec.
        unsafe {
            command.pre_exec(|| {
                umask(Mode::empty());
                Ok(())
            })
        };
        let (server, line) = Server::start(command);
        assert_eq!(line, format!("pvrdma serve: ready on {}, {}\n", paths[0].display(), paths[1].display()));
        assert_eq!(paths.each_ref().map(|path| mode(path)), [0o600, 0o600], "whatever the umask");
        // One that is in the middle of something.
        let mut client = UnixStream::connect(&paths[0]).unwrap();
        client.write_all(&message(1, b"\0\0\0\0")).unwrap();
        client.read_exact(&mut [0; 16]).unwrap();
        let ended = server.end(signal);
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        assert!(paths.iter().all(|path| !path.exists()));
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(b"}}\0"), "the answer has arrived");
    }
}

#[test]
fn says_how_its_guests_fare_to_who_asks_and_to_its_owner_alone() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.sock", "b.sock"].map(|name| folder.path().join(name));
    let [a, b] = paths.each_ref().map(|path| path.to_str().unwrap());
    let status = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pvrdma")).arg("status").args(words).output().unwrap();
        (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    assert_eq!(status(&["--server", a]), (false, format!("pvrdma: no server has the socket {a}\n")));
    let (server, _) = Server::start(serve(&["--mode", "660", "--socket", a, "--socket", b]));
    let told = [a, b].map(|socket| format!("{socket}.status"));
    assert_eq!(told.each_ref().map(|path| mode(Path::new(path))), [0o600, 0o600]);
    // One that says nothing holds up nobody.
    let _silent = UnixStream::connect(&told[1]).unwrap();
    for socket in [a, b] {
        let text = format!("{a}: no driver\n{b}: no driver\nno links to other hosts\n");
        assert_eq!(status(&["--server", socket]), (true, text));
    }
    let (well, object) = status(&["--server", b, "--json"]);
    assert!(well && object.contains(&format!("{{\"socket\": \"{a}\", \"device\": null}}")), "{object}");
    assert!(object.contains("\"link\": null"), "{object}");
    let ended = server.end(Signal::SIGTERM);
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    assert!(told.iter().all(|path| !Path::new(path).exists()));
}

#[test]
fn a_server_is_a_host_of_a_fabric_if_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, host) = (folder.path().join("a.sock"), folder.path().join("host"));
    let (socket, host) = (socket.to_str().unwrap(), host.to_str().unwrap());
    let args = ["--socket", socket, "--link", "--folder", host, "--listen", "127.0.0.1:0"];
    let output = serve(&args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("pvrdma link init") && said.lines().count() == 1, "{said}");
    let init = ["link", "init", "--loopback", "--name", "red", "--folder", host];
    assert!(Command::new(env!("CARGO_BIN_EXE_pvrdma")).args(init).output().unwrap().status.success());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (server, line) = Server::start(serve(&args));
        let host = "host 1 (red) on 127.0.0.1:0, 0 other hosts, without certificates";
        assert_eq!(line, format!("pvrdma serve: ready on {socket}; {host}\n"));
        let links = Command::new(env!("CARGO_BIN_EXE_pvrdma")).args(["status", "--server", socket]).output().unwrap();
        let links = String::from_utf8(links.stdout).unwrap();
        assert!(links.contains("links of host 1, without certificates; 0 requests"), "{links}");
        let ended = server.end(signal);
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    }
}

#[test]
fn sockets_get_the_mode_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let group = nix::unistd::getgid().as_raw().to_string();
    let (server, _) = Server::start(serve(&["--socket", path.to_str().unwrap(), "--mode", "660", "--group", &group]));
    assert_eq!(mode(&path), 0o660);
    assert!(server.end(Signal::SIGTERM).status.success());
}

#[test]
fn what_another_put_in_the_place_of_a_socket_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sock");
    let (server, _) = Server::start(serve(&["--socket", path.to_str().unwrap()]));
    std::fs::rename(&path, folder.path().join("kept")).unwrap();
    std::fs::write(&path, "another's").unwrap();
    assert!(server.end(Signal::SIGTERM).status.success());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "another's");
}

#[test]
fn reasons_are_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing/a.sock");
    let output = serve(&["--socket", missing.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!((said.lines().count(), said.matches("No such file").count()), (1, 1), "{said}");
    assert!(output.stdout.is_empty(), "it was never ready");
    let output = serve(&["--socket", "a", "--trace", missing.to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("pvrdma: trace file "));
    assert_eq!(serve(&["--sokcet"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn qemus_line_is_printed_and_nothing_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("red.sock");
    let output = serve(&["--print-qemu", "--socket", socket.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && !socket.exists(), "{text}");
    assert!(text.contains("vfio-user-pci") && text.contains(socket.to_str().unwrap()), "{text}");
}

/// The help texts are the only description of options, so all of them have to be in its style.
#[test]
fn pages_and_completion_are_printed() {
    let print = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pvrdma")).args(args).output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), output.status.code())
    };
    let (page, status) = print(&["man", "serve"]);
    assert!(page.contains("print\\-qemu") && status == Some(0), "{page}");
    assert!(print(&["completion", "fish"]).0.contains("-l print-qemu"));
    for args in [&["man"][..], &["man", "none"], &["completion", "bash", "zsh"]] {
        assert_eq!(print(args).1, Some(2), "{args:?}");
    }
}
