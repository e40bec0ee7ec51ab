//! The doorbell page of a context, whichever way the program came to map it.
//!
//! By the C library's mmap it is ours from the start. Memory hooks (UCX, Open MPI, libfabric) replace that function in
//! memory and go on by a system call of their own; the program then gets what the kernel knows: a page of the command
//! fd's own file. Providers map it right after GET_CONTEXT and ring only for objects that commands have made. So the
//! next command finds it in time.

use super::{Context, EINVAL, Errno, File, PAGE, Result};
use crate::kernel::{site, uar};
use pvrdma_fabric::say::say;
use std::ffi::{c_int, c_void};
use std::fs;

impl File {
    /// mmap(2): the doorbell page, and nothing else.
    ///
    /// # Safety
    /// Arguments are the caller's of mmap; with MAP_FIXED it replaces what is mapped at `hint`.
    pub unsafe fn mmap(&self, hint: *mut c_void, len: usize, flags: c_int, offset: i64) -> Result<*mut c_void> {
        let mut guard = self.context();
        let context = guard.as_mut().ok_or(EINVAL)?;
        if len as u64 != PAGE || offset != 0 {
            return Err(EINVAL);
        }
        // Before a provider can ring: it has no address yet.
        site::take_all();
        // SAFETY: by the contract.
        let page = unsafe { uar::map(context.ctx, hint, flags) }.map_err(Errno)?;
        context.has_page = true;
        Ok(page)
    }
}

impl Context {
    /// Looks for a doorbell page that was mapped past us, unless there is one.
    pub fn find_page(&mut self, file: &File) {
        if self.has_page {
            return;
        }
        let Some(inode) = file.inode else { return };
        let maps = match fs::read("/proc/thread-self/maps") {
            Ok(maps) => maps,
            Err(error) => {
                say(format_args!("cannot look for the doorbell page: /proc/thread-self/maps: {error}"));
                return;
            }
        };
        for at in pages_of(&maps, inode) {
            site::take_all();
            // SAFETY: the inode is that of this file, a memory file of one page that nobody else can open.
            self.has_page |= unsafe { uar::adopt(self.ctx, at) }.is_ok();
        }
    }
}

/// Where the first page of a memory file is mapped for writing, by the text of /proc/PID/maps.
fn pages_of(maps: &[u8], inode: u64) -> impl Iterator<Item = usize> {
    maps.split(|byte| *byte == b'\n').filter_map(move |line| {
        let line = std::str::from_utf8(line).ok()?;
        let mut fields = line.split_ascii_whitespace();
        let (range, rights, offset, _device, number) =
            (fields.next()?, fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        // Inodes count for each file system: the name says that it is one of memory files.
        let ours = number.parse() == Ok(inode) && fields.next()?.starts_with("/memfd:") && rights.contains('w');
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (ours && offset.bytes().all(|digit| digit == b'0') && end - start == PAGE as usize).then_some(start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_files_own_page_is_found() {
        let maps = b"\
7f0000001000-7f0000002000 -w-s 00000000 00:01 77                         /memfd:uverbs (deleted)
7f0000002000-7f0000003000 -w-s 00000000 00:01 78                         /memfd:uverbs (deleted)
7f0000003000-7f0000004000 r--s 00000000 00:01 77                         /memfd:uverbs (deleted)
7f0000004000-7f0000006000 -w-s 00000000 00:01 77                         /memfd:uverbs (deleted)
7f0000006000-7f0000007000 rw-p 00000000 00:2a 77                         /home/a file
7f0000007000-7f0000008000 rw-p 00000000 00:00 0
7f0000008000-7f0000009000 rw-s 00000000 00:01 77                         /memfd:uverbs (deleted)
not a line\xff
";
        let found: Vec<_> = pages_of(maps, 77).collect();
        assert_eq!(found, [0x7f00_0000_1000, 0x7f00_0000_8000]);
    }
}
