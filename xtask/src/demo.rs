//! `cargo xtask demo`: stock RDMA programs between two guests, on our provider and on the system's.

use anyhow::Result;
use pvrdma_perftest::Line;
use pvrdma_tests::{Doorbells, Provider, Stand, User};

use crate::{no_arguments, package, packages, shell};

const LINES: &[Line] =
    &[Line::bandwidth("ib_write_bw", &[], 65536, 5000), Line { iterations: 5000, ..Line::latency("ib_send_lat", &[]) }];

/// Installs what is missing, builds, runs, prints a table. `--in SUITE` does so in a bare Debian, to see that it works.
pub fn main(arguments: &[String]) -> Result<()> {
    if let [option, suite] = arguments
        && option == "--in"
    {
        return package::demo_in(suite);
    }
    no_arguments(arguments)?;
    packages::install(packages::DEMO)?;
    let built = shell::build_release()?;
    let stand = Stand::new(User::Me);

    println!("$ pvrdma run --guest red -- ibv_devinfo\n");
    print!("{}", stand.job("ibv_devinfo").guest("red").ok());

    println!(
        "Two guests of this machine, red and blue, with stock perftest. Doorbells trap (--trap), as the C provider's do:\n"
    );
    println!("{:<58}{:>14}{:>14}", "", "our provider", "system's (C)");
    for line in LINES {
        let [ours, system] =
            Provider::BOTH.map(|provider| line.show(line.measure(&stand, &provider, Doorbells::Trapped)));
        println!("{:<58}{ours:>14}{system:>14}", line.title());
    }
    println!("\nYour own program: {} run -- PROGRAM ARGUMENTS...", built.join("pvrdma").display());
    Ok(())
}
