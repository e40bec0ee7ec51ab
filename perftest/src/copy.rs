//! The yardstick for bandwidth: one copy between two processes and nothing else.

use std::io::Error;
use std::ptr;
use std::time::Instant;

/// Copies `size` bytes from a buffer of this process to one of another, `count` times by `process_vm_writev`, and
/// gives MiB/s. The same two buffers each time, as `ib_write_bw` does.
pub fn bare_copy(size: usize, count: u32) -> f64 {
    let source = Buffer::new(size);
    // The other process is a child, and its buffer lies at the same address: pages are its own from the first copy on.
    let target = Buffer::new(size);
    let child = Child::start();
    for _ in 0..16 {
        copy(&source, child.pid, &target);
    }
    let start = Instant::now();
    for _ in 0..count {
        copy(&source, child.pid, &target);
    }
    f64::from(count) * size as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64()
}

fn copy(source: &Buffer, pid: libc::pid_t, target: &Buffer) {
    let local = libc::iovec { iov_base: source.address, iov_len: source.size };
    let remote = libc::iovec { iov_base: target.address, iov_len: target.size };
    // SAFETY: `source` is a live mapping of its size in this process. The kernel checks the range in the other one.
    let copied = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
    assert_eq!(copied, source.size.cast_signed(), "process_vm_writev: {}", Error::last_os_error());
}

/// Touched anonymous memory.
struct Buffer {
    address: *mut libc::c_void,
    size: usize,
}

impl Buffer {
    fn new(size: usize) -> Buffer {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED, "mmap: {}", Error::last_os_error());
        Buffer { address, size }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and nobody else knows it.
        unsafe { libc::munmap(self.address, self.size) };
    }
}

/// A copy of this process that does nothing. Ends with its parent.
struct Child {
    pid: libc::pid_t,
}

impl Child {
    fn start() -> Child {
        // SAFETY: the child calls only functions that are safe after a fork in a program with threads.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", Error::last_os_error());
        if pid == 0 {
            // SAFETY: both take plain numbers; pause returns only for signals, which this process has no use for.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        Child { pid }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the process is our own child and has not been waited for, so the number is still its.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_copy_takes_time() {
        let rate = super::bare_copy(65536, 100);
        assert!(rate > 1.0 && rate.is_finite(), "{rate} MiB/s");
    }
}
