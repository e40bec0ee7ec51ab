//! Finds the program to run and tells beforehand whether the preload library can reach it.
//!
//! A statically linked program, one for another machine, or one that gains privileges would start and silently see
//! no device; each gets a plain refusal instead.

use crate::CannotRun;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many `#!` lines lead to each other before the kernel gives up.
const MAX_INTERPRETERS: u32 = 5;

/// Path of `program`, looked up as a shell would, if it can be run with a preload library.
pub fn find(program: &OsStr) -> Result<PathBuf, CannotRun> {
    let path = look_up(program, std::env::var_os("PATH"))?;
    check(&path, 0)?;
    Ok(path)
}

fn missing(why: String) -> CannotRun {
    CannotRun { missing: true, why }
}

fn refused(path: &Path, why: &str) -> CannotRun {
    CannotRun { missing: false, why: format!("{}: {why}", path.display()) }
}

fn look_up(program: &OsStr, path: Option<OsString>) -> Result<PathBuf, CannotRun> {
    if program.is_empty() {
        return Err(missing("the program's name is empty".into()));
    }
    if program.as_bytes().contains(&b'/') {
        let path = PathBuf::from(program);
        return match fs::metadata(&path) {
            Ok(_) => is_executable(&path).map(|()| path),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(refused(&path, "permission denied"))
            }
            Err(_) => Err(missing(format!("{}: no such program", path.display()))),
        };
    }
    let mut first_refusal = None;
    for dir in std::env::split_paths(&path.unwrap_or_else(|| "/usr/bin:/bin".into())) {
        let candidate = dir.join(program);
        if !candidate.is_file() {
            continue;
        }
        match is_executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) => first_refusal = first_refusal.or(Some(error)),
        }
    }
    Err(first_refusal.unwrap_or_else(|| missing(format!("{}: no such program in PATH", program.display()))))
}

fn is_executable(path: &Path) -> Result<(), CannotRun> {
    if path.is_dir() {
        return Err(refused(path, "is a directory"));
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).map_err(|_| refused(path, "is not executable"))
}

/// Follows `#!` lines to the file that is loaded, and checks that one.
fn check(path: &Path, depth: u32) -> Result<(), CannotRun> {
    let file = match File::open(path) {
        Ok(file) => file,
        // Executable but not readable: the kernel can run it; so take its word.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(refused(path, &error.to_string())),
    };
    let mut head = Vec::new();
    (&file).take(256).read_to_end(&mut head).map_err(|error| refused(path, &error.to_string()))?;
    if let Some(line) = head.strip_prefix(b"#!") {
        if depth == MAX_INTERPRETERS {
            return Err(refused(path, "too many interpreters"));
        }
        let interpreter = interpreter(line).ok_or_else(|| refused(path, "names no interpreter after #!"))?;
        if !interpreter.exists() {
            return Err(missing(format!("{}: no such interpreter {}", path.display(), interpreter.display())));
        }
        return check(&interpreter, depth + 1);
    }
    let metadata = file.metadata().map_err(|error| refused(path, &error.to_string()))?;
    if metadata.mode() & 0o6000 != 0 && metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refused(path, "is set-user-ID or set-group-ID: the loader ignores preload libraries for it"));
    }
    if gains_capabilities(path, nix::unistd::getuid().as_raw()) {
        return Err(refused(path, "has file capabilities: the loader ignores preload libraries for it"));
    }
    if is_loader(path) {
        return Ok(());
    }
    match judge(&head, |offset, bytes| file.read_exact_at(bytes, offset).is_ok()) {
        Ok(()) => Ok(()),
        Err(why) => Err(refused(path, why)),
    }
}

/// Whether `user` gains privileges by running it (capabilities(7)). Root has them already, and whoever has given new
/// ones up gets none.
fn gains_capabilities(path: &Path, user: u32) -> bool {
    // SAFETY: plain numbers.
    let given_up = || unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1;
    user != 0 && has_capabilities(path) && !given_up()
}

fn has_capabilities(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: terminated strings; no value is asked for, only its length.
    unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// glibc's dynamic loader, run as a program (`ld-linux-x86-64.so.2 --library-path ... PROGRAM`): it looks like a static
/// program and preloads for the one that it starts.
fn is_loader(path: &Path) -> bool {
    let real = path.canonicalize().unwrap_or_default();
    real.file_name().is_some_and(|name| name == "ld-linux-x86-64.so.2")
}

fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|&b| b == b'\n').next()?;
    let word = line.split(|&b| b == b' ' || b == b'\t').find(|word| !word.is_empty())?;
    Some(PathBuf::from(OsString::from_vec(word.to_vec())))
}

const PT_INTERP: u32 = 3;
const PHDR_LEN: u64 = 56;

/// Judges an ELF file by its first bytes; `read(offset, bytes)` gives more of it.
fn judge(head: &[u8], read: impl Fn(u64, &mut [u8]) -> bool) -> Result<(), &'static str> {
    const NOT_RUNNABLE: &str = "is neither an ELF program nor a script with a #! line";
    const DAMAGED: &str = "is a damaged ELF file";
    if !head.starts_with(b"\x7fELF") {
        return Err(NOT_RUNNABLE);
    }
    let u16_at = |at: usize| head.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let (class, data) = (head.get(4).copied(), head.get(5).copied());
    if class != Some(2) || data != Some(1) || u16_at(18) != Some(libc::EM_X86_64) {
        return Err("is not a program for x86-64");
    }
    let phoff = head.get(32..40).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes).ok_or(DAMAGED)?;
    let (Some(phentsize), Some(phnum)) = (u16_at(54), u16_at(56)) else { return Err(DAMAGED) };
    if u64::from(phentsize) < PHDR_LEN {
        return Err(DAMAGED);
    }
    for n in 0..u64::from(phnum) {
        let mut kind = [0; 4];
        let at = phoff.checked_add(n * u64::from(phentsize)).ok_or(DAMAGED)?;
        if !read(at, &mut kind) {
            return Err(DAMAGED);
        }
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(());
        }
    }
    Err("is statically linked: the stand-in for the kernel is a preload library and cannot reach it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// An ELF header with the given program header types.
    fn elf(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&(PHDR_LEN as u16).to_le_bytes());
        file[56..58].copy_from_slice(&(kinds.len() as u16).to_le_bytes());
        for kind in kinds {
            file.extend_from_slice(&kind.to_le_bytes());
            file.extend_from_slice(&[0; PHDR_LEN as usize - 4]);
        }
        file
    }

    fn judge_bytes(file: &[u8]) -> Result<(), &'static str> {
        judge(&file[..file.len().min(256)], |offset, bytes| {
            let from = usize::try_from(offset).unwrap_or(usize::MAX);
            match from.checked_add(bytes.len()).and_then(|to| file.get(from..to)) {
                Some(found) => {
                    bytes.copy_from_slice(found);
                    true
                }
                None => false,
            }
        })
    }

    #[test]
    fn only_a_dynamic_x86_64_program_passes() {
        assert_eq!(judge_bytes(&elf(62, &[6, PT_INTERP, 1])), Ok(()));
        assert!(judge_bytes(&elf(62, &[1, 1])).unwrap_err().contains("statically linked"));
        assert!(judge_bytes(&elf(183, &[PT_INTERP])).unwrap_err().contains("x86-64"));
        assert!(judge_bytes(b"hello").unwrap_err().contains("neither"));
    }

    #[test]
    fn cut_and_twisted_headers_are_refused_without_a_crash() {
        let whole = elf(62, &[6, PT_INTERP]);
        for len in 0..64 + PHDR_LEN as usize {
            assert!(judge_bytes(&whole[..len]).is_err(), "{len}");
        }
        let mut far = whole.clone();
        far[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(judge_bytes(&far).is_err());
        let mut narrow = whole.clone();
        narrow[54..56].copy_from_slice(&0u16.to_le_bytes());
        assert!(judge_bytes(&narrow).is_err());
    }

    #[test]
    fn look_up_tells_missing_from_not_executable() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("plain"), b"x").unwrap();
        fs::write(dir.path().join("tool"), b"x").unwrap();
        fs::set_permissions(dir.path().join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let look = |name: &str| look_up(OsStr::new(name), Some(dir.path().into()));
        assert_eq!(look("tool").unwrap(), dir.path().join("tool"));
        assert!(!look("plain").unwrap_err().missing);
        assert!(look("nothing").unwrap_err().missing);
        assert!(look_up(OsStr::new("./no/such"), None).unwrap_err().missing);
    }

    #[test]
    fn file_capabilities_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("tool");
        fs::write(&tool, elf(62, &[PT_INTERP])).unwrap();
        assert!(!has_capabilities(&tool) && !gains_capabilities(&tool, 1000));
        let name = std::ffi::CString::new(tool.as_os_str().as_bytes()).unwrap();
        // linux/capability.h: revision 2, effective; CAP_NET_RAW is bit 13.
        let value: [u32; 5] = [0x0200_0001, 1 << 13, 0, 0, 0];
        // SAFETY: a terminated path and name, and as many bytes as are said.
        let set = unsafe {
            libc::setxattr(name.as_ptr(), c"security.capability".as_ptr(), value.as_ptr().cast(), 20, 0) == 0
        };
        if !set {
            println!("NOT RUN: only root may give a file capabilities");
            assert!(std::env::var_os("CI").is_none());
            return;
        }
        assert!(has_capabilities(&tool) && !gains_capabilities(&tool, 0));
        // SAFETY: plain numbers.
        let given_up = unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1;
        assert_eq!(gains_capabilities(&tool, 1000), !given_up);
    }

    #[test]
    fn the_loader_itself_passes() {
        let dir = tempfile::tempdir().unwrap();
        for (name, passes) in [("ld-linux-x86-64.so.2", true), ("busybox", false)] {
            let path = dir.path().join(name);
            fs::write(&path, elf(62, &[1, 2])).unwrap();
            assert_eq!(check(&path, 0).is_ok(), passes, "{name}");
        }
    }

    #[test]
    fn a_script_is_judged_by_its_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, format!("#! {}/static -x\n", dir.path().display())).unwrap();
        assert!(check(&script, 0).unwrap_err().missing);
        fs::write(dir.path().join("static"), elf(62, &[1])).unwrap();
        assert!(check(&script, 0).unwrap_err().why.contains("statically linked"));
        fs::write(dir.path().join("static"), elf(62, &[PT_INTERP])).unwrap();
        check(&script, 0).unwrap();
        fs::write(&script, format!("#!{}\n", script.display())).unwrap();
        assert!(check(&script, 0).unwrap_err().why.contains("too many"));
    }
}
