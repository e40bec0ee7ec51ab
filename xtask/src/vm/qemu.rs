//! QEMU with `vfio-user-pci`: fetched from Debian's next release, run out of a folder.
//!
//! Called by `mod.rs` (fetch) and `case.rs` (boot). The newer libc comes along and its own loader runs it, so the
//! host's libraries do not matter and nothing is installed.

use std::arch::x86_64::_rdtsc;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::apt::{Apt, Mirror, Suite};
use super::child::Child;

/// Fetches QEMU into `dir`, which must not exist yet.
pub fn fetch(mirror: &Mirror, work: &Path, dir: &Path) -> Result<()> {
    let apt = Apt::new(work.join("apt-forky"), mirror, Suite::Forky)?;
    let version = apt.field("qemu-system-x86", "Version")?;
    eprintln!("vm: QEMU {version}: downloading about 45 MB");
    let part = dir.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    apt.unpack_with_depends(&["qemu-system-x86"], &part)?;
    ensure!(part.join("usr/bin/qemu-system-x86_64").exists(), "qemu-system-x86 has no qemu-system-x86_64");
    fs::write(part.join("version"), format!("{version}\n"))?;
    fs::rename(&part, dir)?;
    Ok(())
}

/// One guest to boot.
pub struct Guest<'a> {
    /// Where `fetch` put QEMU.
    pub qemu: &'a Path,
    /// The kernel image.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initrd: &'a Path,
    /// Socket of the vfio-user server, relative to `run`; without it the guest has no PVRDMA.
    pub socket: Option<&'a str>,
    /// The guest's number, from 1: its MAC and, by its script, its address.
    pub number: u8,
    /// Socket of the Ethernet between two guests, relative to `run`; the guest with number 1 listens.
    pub wire: Option<&'a str>,
    /// Folder the guest reads its job from and writes its results to, below that of all guests of the run.
    pub job: &'a Path,
    /// Where sockets live: QEMU runs here, so their names stay short.
    pub run: &'a Path,
    /// Virtual processors.
    pub cpus: u32,
    /// How long the guest may live.
    pub limit: Duration,
}

impl Guest<'_> {
    /// Starts QEMU; its console goes to `console.log` in the job folder.
    pub fn start(&self) -> Result<Child> {
        let root = self.qemu.join("usr");
        let lib = root.join("lib/x86_64-linux-gnu");
        let jobs = self.job.parent().context("the job lies in the folder of all jobs")?;
        let console = File::create(self.job.join("console.log"))?;
        let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&lib).arg(root.join("bin/qemu-system-x86_64"));
        command.env("QEMU_MODULE_DIR", lib.join("qemu"));
        for firmware in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(root.join(firmware));
        }
        command
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .args(["-M", "pc,hpet=off,memory-backend=ram0", "-accel", "tcg,thread=multi", "-cpu", "max"])
            .args(["-smp", &self.cpus.to_string(), "-m", "512"])
            .args(["-object", "memory-backend-memfd,id=ram0,size=512M,share=on"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .args(["-append", &self.command_line()])
            .args(["-serial", "stdio"])
            // The host's files, for the programs and libraries the guest runs; never written.
            .args(["-fsdev", "local,id=r,path=/,security_model=none,readonly=on,multidevs=remap"])
            .args(["-device", "virtio-9p-pci,fsdev=r,mount_tag=root"])
            .args(["-fsdev", &format!("local,id=j,path={},security_model=none", comma_safe(jobs)?)])
            .args(["-device", "virtio-9p-pci,fsdev=j,mount_tag=jobs"])
            // The driver wants a vmxnet3 as function 0 of its own slot.
            .args(["-netdev", &self.netdev()])
            .args([
                "-device",
                &format!(
                    "vmxnet3,netdev=n0,addr=0x10.0,multifunction=on,romfile=,mac=00:50:56:00:00:{:02x}",
                    self.number
                ),
            ])
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .current_dir(self.run);
        if let Some(socket) = self.socket {
            // The driver reads capabilities right after the write that asks for them, so writes must not be posted.
            command.arg("-device").arg(format!(
                "{{\"driver\":\"vfio-user-pci\",\"addr\":\"10.1\",\"x-no-posted-writes\":true,\
                 \"socket\":{{\"type\":\"unix\",\"path\":\"{socket}\"}}}}"
            ));
        }
        Child::start(command, self.limit).context("cannot start QEMU")
    }

    fn netdev(&self) -> String {
        match (self.wire, self.number) {
            (None, _) => "user,id=n0,restrict=on".to_owned(),
            (Some(wire), 1) => format!("stream,id=n0,server=on,addr.type=unix,addr.path={wire}"),
            (Some(wire), _) => format!("stream,id=n0,server=off,addr.type=unix,addr.path={wire},reconnect-ms=50"),
        }
    }

    fn command_line(&self) -> String {
        format!(
            "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check random.trust_cpu=on nokaslr \
             mitigations=off cryptomgr.notests tsc_early_khz={} pvrdma.guest={}",
            tsc_khz(),
            self.number
        )
    }
}

/// Frequency of this machine's time stamp counter, which is the guest's too.
///
/// The kernel would measure it while it boots, against a timer that QEMU serves when it gets a processor: on a busy
/// machine it comes out wrong by a factor, and then every time limit in the guest does as well.
fn tsc_khz() -> u64 {
    fn now() -> (u64, Instant) {
        // Of several pairs the one whose halves are nearest to each other.
        let pair = || {
            // SAFETY: the instruction reads a counter; every x86-64 processor has it, and `prepare` refuses others.
            let (before, time, after) = unsafe { (_rdtsc(), Instant::now(), _rdtsc()) };
            (after - before, (after, time))
        };
        (0..20).map(|_| pair()).min_by_key(|(gap, _)| *gap).expect("twenty pairs").1
    }
    let (first_ticks, first) = now();
    std::thread::sleep(Duration::from_millis(50));
    let (ticks, time) = now();
    (u128::from(ticks - first_ticks) * 1_000_000 / time.duration_since(first).as_nanos()) as u64
}

/// QEMU's option syntax doubles a comma inside a value.
fn comma_safe(path: &Path) -> Result<String> {
    Ok(path.to_str().context("the path of this checkout is not UTF-8")?.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_frequency_is_plausible_and_the_same_twice() {
        let [one, two] = [tsc_khz(), tsc_khz()];
        assert!((500_000..10_000_000).contains(&one), "{one} kHz");
        assert!(one.abs_diff(two) < one / 100, "{one} and {two} kHz");
    }
}
