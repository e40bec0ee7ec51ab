//! `pvrdma link`: several hosts as one fabric. Who belongs to it, and by what a host is known.
//!
//! Called by `main.rs` with the arguments after the subcommand. What the files mean is said in `device/net/src`
//! (`device/net/src/folder.rs` has the list); here they are written.
//!
//! | file | |
//! |---|---|
//! | `options.rs` | the command line |
//! | `folder.rs` | the number of this host, for `run` |
//! | `place.rs` | where the settings are; folders and files that are there whole or not at all |
//! | `make.rs` | `init` and `join`: a host gets its settings |
//! | `hosts.rs` | `add`, `remove`, `join --update`: the fabric gets other hosts |
//! | `renew.rs` | `renew`, and `join` with what it has written: a host gets a new certificate |
//! | `term.rs` | what is said of certificates that end |
//! | `issued.rs` | the numbers that were given |
//! | `list.rs` | `list` |
//! | `run.rs` | `run`, `status` |

pub mod folder;
mod hosts;
mod issued;
mod list;
mod make;
mod options;
mod place;
mod renew;
mod run;
pub mod term;

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use pvrdma_link::links;

use options::Command;
pub use options::{COMMANDS, hca, listen};
pub use run::{SOCKET, object as shown};

/// Help text of the subcommand.
pub const HELP: &str = "\
Makes several hosts one fabric, and carries what their guests have for each other.

Usage: pvrdma link COMMAND [OPTIONS]

Options:
  --address IP:PORT  where the other hosts reach that host; port 7471 if it is left out
  --name NAME        init: what this host is called [default: the machine's name]
  --number NUMBER    init, add: the host's number, 1 to 254 [default: the lowest that no host has or had]
  --loopback         init: a fabric of this machine alone, for trials, without certificates
  --update           join: take the hosts anew from a fabric.toml
  --listen IP:PORT   run: wait here for other hosts [default: this host's address in fabric.toml]
  --roce-wire IP     run: speak RoCE v2 at that address of this host with whoever is no guest: adapters of other
                     machines, Linux's rdma_rxe. Guests that start later have it as GID 2. Needs no settings.
                     With a network device in the place of an address it is RoCE v1, for guests of --roce v1: at the
                     device's IPv4 address or its link-local one, and with the capability CAP_NET_RAW
  --hca NAME         run: payload goes by this host's RDMA adapter NAME to hosts that have one too, and is not encrypted
                     then; auto: the first one with an active port [default: none]
  --pcap FILE        run: append what this host's guests send to other hosts to FILE; as for pvrdma run
  --json             list, status: one JSON object
  --folder FOLDER    the host's settings [default: $PVRDMA_LINK, else pvrdma/link in $XDG_CONFIG_HOME or ~/.config]
  -h, --help         this text

Commands:
  init --address IP:PORT      makes a fabric; this host is its first, and others are added here
  add NAME --address IP:PORT  adds a host: all that it needs is written to NAME.join, in the current folder
  join FILE                   on the new host: takes it into the fabric, with that file
  renew NAME                  a new certificate for a host, in NAME.join; join takes it in there. This host's, at once
  join --update fabric.toml   on a host that joined before: takes the hosts from a copy of the first host's file
  remove NAME                 takes a host out
  list                        the hosts, which of them this is, and how long its certificate is good
  run                         carries requests between this user's guests and those of other hosts, until SIGTERM
  status                      which hosts there is a link to, and what has gone over it

The first host, then the new one:
  red$ pvrdma link init --address 192.0.2.1
  red$ pvrdma link add blue --address 192.0.2.2
  red$ scp blue.join 192.0.2.2: && rm blue.join
  blue$ pvrdma link join blue.join && rm blue.join
  red$ pvrdma link run &                 # and the same on blue
  red$ pvrdma run -- ib_write_bw &       # its guests are 127.1.82.N, blue's 127.2.82.N
  blue$ pvrdma run -- ib_write_bw 192.0.2.1

NAME.join holds the new host's private key. Whoever reads it can be that host, so carry it by a way that nobody else
reads, and delete it when the host has joined. A file or folder that others may read or change is refused.

Hosts that joined before do not know the new one until they have the new list: copy fabric.toml from the first host's
settings to each, and run `pvrdma link join --update` there. An address is changed by hand in that file.

Certificates are good for ten years. From 30 days before the end, list, status, run and pvrdma doctor say so, with the
cure; after it list and doctor fail. Links that are there go on, but no new one is made.

A host gets a new certificate, with its name and number, where the fabric was made:
  red$ pvrdma link renew blue
  red$ scp blue.join 192.0.2.2: && rm blue.join
  blue$ pvrdma link join blue.join && rm blue.join

The old one is good until its end. A run or pvrdma serve that runs takes the new one for its next connections. That of
the authority, ca.pem, has an end that nobody asks for: hosts know their fabric by its key.

The certificate of a host that was removed is good until it ends. Hosts that have the new list do not answer it. Its
number goes to no other host unless --number asks for it. Where a key was stolen, make a new fabric.

With --loopback all addresses are of this machine, 127.0.0.1 and port 7470 plus the host's number unless --address says
otherwise. Such hosts have no certificates: any user of the machine can be one of them. A fabric whose hosts have other
addresses always has certificates.
Exit status: 0 done, 2 a mistake on the command line, 1 anything else.
";

/// Entry point of the subcommand.
pub fn main(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let Some((command, folder)) = options::parse(args)? else {
        print!("{HELP}");
        return Ok(ExitCode::SUCCESS);
    };
    let folder = place::settings(folder)?;
    match command {
        Command::Init(init) => make::init(&folder, init),
        Command::Join(file) => make::join(&folder, &file),
        Command::Update(file) => hosts::update(&folder, &file),
        Command::Add(add) => hosts::add(&folder, add),
        Command::Renew(name) => renew::renew(&folder, &name),
        Command::Remove(name) => hosts::remove(&folder, &name),
        Command::List { json } => list::list(&folder, json),
        Command::Run(run) => run::run(&folder, &run),
        Command::Status { json } => run::status(json),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// What takes this host into its fabric, and a line that says how; for `pvrdma serve` too.
pub fn settings(folder: Option<PathBuf>, listen: Option<SocketAddr>) -> anyhow::Result<(links::Settings, String)> {
    run::settings(&place::settings(folder)?, listen)
}

/// A line for people. What it tells is done, whether anybody reads it or not.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
