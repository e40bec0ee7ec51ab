//! Writes the initramfs: a cpio archive in the kernel's "newc" format.
//!
//! Called by `guest.rs`. Written here because the format is forty lines and the host's `cpio` is one more
//! package (kernel documentation: driver-api/early-userspace/buffer-format).

use std::io::{self, Write};

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

/// An archive being written.
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Archive { out, inode: 0 }
    }

    /// Adds a folder. Its parents must have been added.
    pub fn folder(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, S_IFDIR | 0o755, &[])
    }

    /// Adds a file that everybody may read and run.
    pub fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | 0o755, content)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, S_IFLNK | 0o777, target.as_bytes())
    }

    /// Ends the archive and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let too_big = |_| io::Error::new(io::ErrorKind::InvalidInput, "too big for a cpio archive");
        let size = u32::try_from(content.len()).map_err(too_big)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_big)?;
        // Fields: inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), name size, checksum.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(path.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + path.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Name and content each end on a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut archive = Archive::new(Vec::new());
        archive.folder("bin").unwrap();
        archive.file("bin/a", b"hello").unwrap();
        archive.link("init", "bin/a").unwrap();
        let bytes = archive.finish().unwrap();

        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<usize> = (0..bytes.len()).filter(|&i| bytes[i..].starts_with(b"070701")).collect();
        assert_eq!(starts.len(), 4, "three entries and the trailer");
        assert!(starts.iter().all(|start| start % 4 == 0));
    }

    #[test]
    fn header_holds_mode_size_and_name_size() {
        let mut archive = Archive::new(Vec::new());
        archive.file("ab", b"xyz").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[54..62], b"00000003");
        assert_eq!(&bytes[94..102], b"00000003");
        assert_eq!(&bytes[110..113], b"ab\0");
    }
}
