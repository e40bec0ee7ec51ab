//! `cargo xtask hosts`: guests of several hosts, joined by `pvrdma link`, at length.
//!
//! Where unprivileged namespaces are allowed each host is a network namespace of its own, on a bridge; else the hosts
//! are addresses of the loopback device, as in the stories `hosts` and `broken_links`.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use pvrdma_tests::{
    Hosts, Job, Provider, Spaces, Stand, Trust, User, c_program, free_port, try_pair_at, wait_for_listener,
};

use crate::matrix::cell::{self, run_pair};
use crate::matrix::rows::{Kind, ROWS, Row};
use crate::{matrix, packages, shell};

const USAGE: &str = "\
usage: cargo xtask hosts [PART...]

Guests of several hosts, joined by `pvrdma link`; half an hour. Parts, all of them if none is named:

  rows      the pingpongs and perftest with the options of `cargo xtask matrix`, on both providers
  hca       the same rows, with payload by adapters: the devices of one more `pvrdma run`
  three     each of three hosts with each other one, all at once
  qps       a thousand QPs over one connection
  crowd     sixty programs a host at the same time
  trouble   the long forms of the stories `hosts` and `broken_links`
";

type Part = (&'static str, fn() -> Result<()>);

const PARTS: [Part; 6] =
    [("rows", rows), ("hca", hca), ("three", three), ("qps", qps), ("crowd", crowd), ("trouble", trouble)];

/// Entry of the subcommand.
pub fn main(arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--help") {
        print!("{USAGE}");
        return Ok(());
    }
    if let Some(unknown) = arguments.iter().find(|name| PARTS.iter().all(|(part, _)| part != name)) {
        bail!("no such part: {unknown}\n{USAGE}");
    }
    packages::install(packages::TEST)?;
    shell::build_release()?;
    for (name, part) in PARTS {
        if arguments.is_empty() || arguments.iter().any(|argument| argument == name) {
            let start = Instant::now();
            println!("# {name}");
            part()?;
            println!("# {name}: {} s", start.elapsed().as_secs());
        }
    }
    Ok(())
}

/// Hosts that run and are linked, in namespaces if there are any here.
fn linked(count: usize) -> Hosts {
    let spaces = Spaces::new(count)
        .inspect_err(|why| println!("NOT RUN: hosts in namespaces of their own, but on loopback: {why}"))
        .ok();
    let mut hosts = Hosts::apart(count, Trust::Certificates, spaces);
    hosts.start();
    hosts
}

/// Where programs of other hosts find those of this one by TCP, for what they tell each other beside RDMA.
fn beside(hosts: &Hosts, number: usize) -> String {
    hosts.spaces().map_or("127.0.0.1".into(), |spaces| spaces.address(number).ip().to_string())
}

fn rows() -> Result<()> {
    rows_of(linked(2))
}

/// Whoever carries requests is a guest of a network of its own.
fn hca() -> Result<()> {
    let network = Stand::new(User::Me);
    let mut hosts = Hosts::apart(2, Trust::Certificates, None);
    for number in [1, 2] {
        hosts.host_mut(number).start_on(&network, &[]);
    }
    for number in [1, 2] {
        hosts.wait_for_status(number, "\"over\": \"hca\"");
    }
    rows_of(hosts)
}

fn rows_of(hosts: Hosts) -> Result<()> {
    let address = beside(&hosts, 1);
    let vendor = hosts.copy(&cell::known_vendor());
    let mut bad = 0;
    for row in ROWS.iter().filter(|row| !row.new && !matches!(row.kind, Kind::Devinfo | Kind::Cases)) {
        if row.is_own() {
            hosts.copy(&c_program(&format!("tests/c/{}.c", row.program()), &[]));
        }
        for provider in Provider::BOTH {
            let start = Instant::now();
            let [server, client] = [1, 2].map(|number| job(&hosts, number, row, &provider, &vendor));
            let failure = run_pair(row, server, client, &address, false).err();
            let time = start.elapsed().as_secs_f64();
            let known = matrix::known(row, provider == Provider::Ours)?;
            let verdict = match (&failure, &known) {
                (None, None) => "ok",
                (Some(_), Some(_)) => "xfail",
                (Some(_), None) => "FAIL",
                (None, Some(_)) => "XPASS",
            };
            println!("{:<50} {:<6} {verdict:<5} {time:.1} s", row.line, format!("{provider:?}"));
            match (failure, known) {
                (None, None) => {}
                (Some(_), Some(reason)) => println!("    {reason}"),
                (failure, _) => {
                    bad += 1;
                    println!("{}", failure.unwrap_or("it is listed as failing, and passes".into()));
                }
            }
        }
    }
    ensure!(bad == 0, "{bad} rows failed\n{hosts}");
    hosts.end();
    Ok(())
}

fn job<'a>(hosts: &'a Hosts, number: usize, row: &Row, provider: &Provider, vendor: &str) -> Job<'a> {
    let host = hosts.host(number);
    let job = host.job(row.program()).provider(provider).time_out(Duration::from_secs(180));
    if row.is_known() { job.env("LD_PRELOAD", host.stand().path(vendor)) } else { job }
}

fn three() -> Result<()> {
    let hosts = linked(3);
    std::thread::scope(|scope| {
        let ways = [[1, 2], [2, 1], [1, 3], [3, 1], [2, 3], [3, 2]];
        let runs = ways.map(|[there, here]| {
            let hosts = &hosts;
            scope.spawn(move || {
                let job = |number| {
                    let job = hosts.host(number).job("ibv_rc_pingpong").guest(&format!("g{there}{here}"));
                    job.args(["-c", "-g", "1", "-n", "2000", "-s", "300000"]).time_out(Duration::from_secs(300))
                };
                try_pair_at(&beside(hosts, there), job(there), job(here)).map(|(server, client)| {
                    server.ok();
                    client.ok();
                })
            })
        });
        for run in runs {
            if let Err(failure) = run.join().expect("no panic") {
                bail!("{failure}\n{hosts}");
            }
        }
        Ok(())
    })?;
    hosts.end();
    Ok(())
}

fn qps() -> Result<()> {
    let hosts = linked(2);
    for provider in Provider::BOTH {
        for line in ["ib_write_bw -F -q 1000 -t 8 -n 40 -s 4096", "ib_send_bw -F -q 1000 -t 8 -r 8 -n 40 -s 4096"] {
            let words: Vec<&str> = line.split(' ').collect();
            let start = Instant::now();
            let [server, client] = hosts.both(&provider, &words).map(|job| job.time_out(Duration::from_secs(300)));
            match try_pair_at(&beside(&hosts, 1), server, client) {
                Ok((server, _)) => drop(server.ok()),
                Err(failure) => bail!("{line}, {provider:?}: {failure}\n{hosts}"),
            }
            println!("{line:<50} {:<6} {:.1} s", format!("{provider:?}"), start.elapsed().as_secs_f64());
        }
    }
    hosts.end();
    Ok(())
}

fn crowd() -> Result<()> {
    let hosts = linked(2);
    let (begin, address) = (Instant::now(), beside(&hosts, 1));
    let mut running = Vec::new();
    for pair in 0..60 {
        let port = free_port();
        let number = port.to_string();
        let provider = &Provider::BOTH[pair % 2];
        let guest = format!("g{}", pair % 8);
        let line = ["ibv_rc_pingpong", "-c", "-g", "1", "-n", "500", "-s", "20000", "-e", "-p", &number];
        let [server, client] =
            hosts.both(provider, &line).map(|job| job.guest(&guest).time_out(Duration::from_secs(600)));
        let mut server = server.spawn();
        wait_for_listener(&mut server, port);
        running.push(client.args([&address]).spawn());
        running.push(server);
    }
    for program in running {
        let output = program.wait();
        ensure!(output.status.success(), "{output}\n{hosts}");
    }
    println!("sixty programs on each host: {:.1} s", begin.elapsed().as_secs_f64());
    hosts.end();
    Ok(())
}

fn trouble() -> Result<()> {
    let built = shell::build_release()?;
    for story in ["hosts", "broken_links"] {
        shell::run(
            shell::cargo(&["test", "-p", "pvrdma-tests", "--test", story, "--", "--nocapture"])
                .env("PVRDMA_STRESS", "1")
                .env("PVRDMA_BUILT", &built),
        )?;
    }
    Ok(())
}
