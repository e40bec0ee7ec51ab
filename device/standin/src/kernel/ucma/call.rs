//! A command as a program writes it: header, body, and room for the answer.

use crate::support::raw;
use pvrdma_ffi::uapi::rdma_user_cm::*;
use zerocopy::FromBytes;

/// An errno is the error.
pub type Result<T> = std::result::Result<T, i32>;

/// Longest body: the header counts its bytes in 16 bits.
const MAX_BODY: usize = u16::MAX as usize;

/// A command as it was written.
pub struct Call {
    pub command: u32,
    pub body: Vec<u8>,
    /// Room for the answer.
    pub room: usize,
}

impl Call {
    /// Reads a command of `len` bytes at `from`.
    pub fn read(from: u64, len: usize) -> Result<Call> {
        let mut header = [0u8; size_of::<rdma_ucm_cmd_hdr>()];
        if len < header.len() {
            return Err(libc::EINVAL);
        }
        raw::copy_in(from, &mut header)?;
        let hdr = rdma_ucm_cmd_hdr::read_from_bytes(&header).map_err(|_| libc::EINVAL)?;
        if hdr.cmd > RDMA_USER_CM_CMD_WRITE_CM_EVENT || usize::from(hdr.len_in) + header.len() > len {
            return Err(libc::EINVAL);
        }
        let mut body = vec![0; usize::from(hdr.len_in).min(MAX_BODY)];
        raw::copy_in(from + header.len() as u64, &mut body)?;
        Ok(Call { command: hdr.cmd, body, room: hdr.len_out.into() })
    }

    /// The body, all of it.
    pub fn body<T: FromBytes>(&self) -> Result<T> {
        T::read_from_prefix(&self.body).map(|(body, _)| body).map_err(|_| libc::EINVAL)
    }

    /// The body of a struct that has grown: `least` bytes of it must be there, the rest is 0.
    pub fn grown_body<T: FromBytes>(&self, least: usize) -> Result<T> {
        if self.body.len() < least {
            return Err(libc::EINVAL);
        }
        let mut bytes = self.body.clone();
        bytes.resize(bytes.len().max(size_of::<T>()), 0);
        T::read_from_prefix(&bytes).map(|(body, _)| body).map_err(|_| libc::EINVAL)
    }

    /// There must be room for an answer of `len` bytes.
    pub fn wants(&self, len: usize) -> Result<()> {
        if self.room < len { Err(libc::ENOSPC) } else { Ok(()) }
    }

    /// Writes an answer, cut to its room.
    pub fn answer_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        raw::copy_out(at, &bytes[..bytes.len().min(self.room)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    fn written(bytes: &[u8], len: usize) -> Result<Call> {
        Call::read(bytes.as_ptr() as u64, len)
    }

    #[test]
    fn a_command_is_as_long_as_it_says_or_refused() {
        let header = |cmd: u32, len_in: u16| rdma_ucm_cmd_hdr { cmd, len_in, len_out: 4 }.as_bytes().to_vec();
        let listen = [header(RDMA_USER_CM_CMD_LISTEN, 8), vec![1, 0, 0, 0, 9, 0, 0, 0]].concat();
        let call = written(&listen, listen.len()).expect("a command");
        let body: rdma_ucm_listen = call.body().expect("a body");
        assert_eq!((call.command, call.room, body.id, body.backlog), (RDMA_USER_CM_CMD_LISTEN, 4, 1, 9));
        assert_eq!(call.body::<rdma_ucm_query>().err(), Some(libc::EINVAL), "a longer body");
        assert_eq!((call.wants(4), call.wants(5)), (Ok(()), Err(libc::ENOSPC)));
        for (what, bytes, len) in [
            ("no header", listen.clone(), 7),
            ("less than it says", listen.clone(), 15),
            ("no such command", header(RDMA_USER_CM_CMD_WRITE_CM_EVENT + 1, 0), 8),
        ] {
            assert_eq!(written(&bytes, len).err(), Some(libc::EINVAL), "{what}");
        }
        assert_eq!(Call::read(8, 64).err(), Some(libc::EFAULT));
    }

    #[test]
    fn what_has_grown_may_be_short() {
        let mut param = rdma_ucm_connect::new_zeroed();
        param.id = 7;
        let least = core::mem::offset_of!(rdma_ucm_connect, ece);
        let call = |len: usize| Call { command: 0, body: param.as_bytes()[..len].to_vec(), room: 0 };
        assert_eq!(call(least).grown_body::<rdma_ucm_connect>(least).map(|body| body.id), Ok(7));
        assert!(call(size_of_val(&param)).grown_body::<rdma_ucm_connect>(least).is_ok());
        assert_eq!(call(least - 1).grown_body::<rdma_ucm_connect>(least).err(), Some(libc::EINVAL));
    }
}
