//! Commands in the old form: a core struct, a driver part behind it, and room for the two answers.
//!
//! They come by write(2), with a header that counts words, or wrapped in the INVOKE_WRITE ioctl, where the parts are
//! attributes. All lengths are the program's and are judged here; a handler gets parts that are long enough.

use super::attrs::Attrs;
use super::room::Room;
use super::{EFAULT, EINVAL, ENOSPC, EOPNOTSUPP, Errno, Result};
use crate::support::raw;
use pvrdma_ffi::uapi::ib_user_ioctl::{
    UVERBS_ATTR_CORE_IN, UVERBS_ATTR_CORE_OUT, UVERBS_ATTR_UHW_IN, UVERBS_ATTR_UHW_OUT, UVERBS_ATTR_WRITE_CMD,
};
use pvrdma_ffi::uapi::ib_user_verbs::*;
use zerocopy::{FromBytes, IntoBytes};

/// Which of the two number spaces a command is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Plain,
    /// Bit 31 of the command word is set.
    Extended,
}

/// A command in the old form.
#[derive(Debug)]
pub struct Call {
    pub command: u32,
    core_in: Vec<u8>,
    driver_in: Vec<u8>,
    core_out: Room,
    driver_out: Room,
}

/// Name, and lengths of the core structs, of a plain command that is known.
struct Known {
    name: &'static str,
    core_in: usize,
    core_out: usize,
}

fn known(command: u32) -> Option<Known> {
    fn sizes<I, O>(name: &'static str) -> Option<Known> {
        Some(Known { name, core_in: size_of::<I>(), core_out: size_of::<O>() })
    }
    match command {
        IB_USER_VERBS_CMD_GET_CONTEXT => sizes::<ib_uverbs_get_context, ib_uverbs_get_context_resp>("get_context"),
        IB_USER_VERBS_CMD_QUERY_DEVICE => sizes::<ib_uverbs_query_device, ib_uverbs_query_device_resp>("query_device"),
        IB_USER_VERBS_CMD_QUERY_PORT => sizes::<ib_uverbs_query_port, ib_uverbs_query_port_resp>("query_port"),
        IB_USER_VERBS_CMD_ALLOC_PD => sizes::<ib_uverbs_alloc_pd, ib_uverbs_alloc_pd_resp>("alloc_pd"),
        IB_USER_VERBS_CMD_DEALLOC_PD => sizes::<ib_uverbs_dealloc_pd, ()>("dealloc_pd"),
        IB_USER_VERBS_CMD_REG_MR => sizes::<ib_uverbs_reg_mr, ib_uverbs_reg_mr_resp>("reg_mr"),
        IB_USER_VERBS_CMD_DEREG_MR => sizes::<ib_uverbs_dereg_mr, ()>("dereg_mr"),
        IB_USER_VERBS_CMD_CREATE_COMP_CHANNEL => {
            sizes::<ib_uverbs_create_comp_channel, ib_uverbs_create_comp_channel_resp>("create_comp_channel")
        }
        IB_USER_VERBS_CMD_CREATE_CQ => sizes::<ib_uverbs_create_cq, ib_uverbs_create_cq_resp>("create_cq"),
        IB_USER_VERBS_CMD_DESTROY_CQ => sizes::<ib_uverbs_destroy_cq, ib_uverbs_destroy_cq_resp>("destroy_cq"),
        IB_USER_VERBS_CMD_CREATE_QP => sizes::<ib_uverbs_create_qp, ib_uverbs_create_qp_resp>("create_qp"),
        IB_USER_VERBS_CMD_QUERY_QP => sizes::<ib_uverbs_query_qp, ib_uverbs_query_qp_resp>("query_qp"),
        IB_USER_VERBS_CMD_MODIFY_QP => sizes::<ib_uverbs_modify_qp, ()>("modify_qp"),
        IB_USER_VERBS_CMD_DESTROY_QP => sizes::<ib_uverbs_destroy_qp, ib_uverbs_destroy_qp_resp>("destroy_qp"),
        IB_USER_VERBS_CMD_CREATE_SRQ => sizes::<ib_uverbs_create_srq, ib_uverbs_create_srq_resp>("create_srq"),
        IB_USER_VERBS_CMD_MODIFY_SRQ => sizes::<ib_uverbs_modify_srq, ()>("modify_srq"),
        IB_USER_VERBS_CMD_QUERY_SRQ => sizes::<ib_uverbs_query_srq, ib_uverbs_query_srq_resp>("query_srq"),
        IB_USER_VERBS_CMD_DESTROY_SRQ => sizes::<ib_uverbs_destroy_srq, ib_uverbs_destroy_srq_resp>("destroy_srq"),
        _ => None,
    }
}

/// Name of a command, for the trace.
pub fn name(command: u32, form: Form) -> &'static str {
    match form {
        Form::Plain => known(command).map_or("unknown", |known| known.name),
        Form::Extended if command == IB_USER_VERBS_EX_CMD_QUERY_DEVICE => "query_device_ex",
        Form::Extended => "unknown_ex",
    }
}

fn split(command: u32) -> Result<(u32, Form)> {
    let number = command & IB_USER_VERBS_CMD_COMMAND_MASK;
    match command & !IB_USER_VERBS_CMD_COMMAND_MASK {
        0 => Ok((number, Form::Plain)),
        IB_USER_VERBS_CMD_FLAG_EXTENDED => Ok((number, Form::Extended)),
        _ => Err(EINVAL),
    }
}

/// Longest command: its length is counted in 16 bits of 8-byte words, three times.
const MAX_LEN: usize = 3 * 8 * (u16::MAX as usize + 1);

impl Call {
    /// A command written by write(2): `len` bytes at `from`.
    pub fn from_write(from: u64, len: usize) -> Result<(Call, Form)> {
        if len > MAX_LEN {
            return Err(EINVAL);
        }
        let mut bytes = vec![0; len];
        raw::copy_in(from, &mut bytes).map_err(Errno)?;
        Call::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<(Call, Form)> {
        let (hdr, body) = ib_uverbs_cmd_hdr::read_from_prefix(bytes).map_err(|_| EINVAL)?;
        let (command, form) = split(hdr.command)?;
        let call = match form {
            Form::Plain => Call::plain(command, &hdr, bytes.len(), body)?,
            Form::Extended => Call::extended(command, &hdr, body)?,
        };
        Ok((call, form))
    }

    /// The border between core and driver part is not in the buffer: it is the length of the command's struct.
    fn plain(command: u32, hdr: &ib_uverbs_cmd_hdr, len: usize, body: &[u8]) -> Result<Call> {
        if usize::from(hdr.in_words) * 4 != len {
            return Err(EINVAL);
        }
        let known = known(command).ok_or(EOPNOTSUPP)?;
        let out_len = usize::from(hdr.out_words) * 4;
        if body.len() < known.core_in || out_len < known.core_out {
            return Err(ENOSPC);
        }
        let (core_in, driver_in) = body.split_at(known.core_in);
        let mut room = (Room::default(), Room::default());
        if known.core_out > 0 {
            // Commands with an answer begin with its address.
            let (at, _) = u64::read_from_prefix(core_in).map_err(|_| EINVAL)?;
            let end = at.checked_add(known.core_out as u64).ok_or(EFAULT)?;
            room = (Room { at, len: known.core_out }, Room { at: end, len: out_len - known.core_out });
        }
        let (core_out, driver_out) = room;
        Ok(Call { command, core_in: core_in.into(), driver_in: driver_in.into(), core_out, driver_out })
    }

    fn extended(command: u32, hdr: &ib_uverbs_cmd_hdr, body: &[u8]) -> Result<Call> {
        let (ex, body) = ib_uverbs_ex_cmd_hdr::read_from_prefix(body).map_err(|_| EINVAL)?;
        let [core_in, driver_in] = [hdr.in_words, ex.provider_in_words].map(|words| usize::from(words) * 8);
        let [core_out, driver_out] = [hdr.out_words, ex.provider_out_words].map(|words| usize::from(words) * 8);
        if body.len() != core_in + driver_in || ex.cmd_hdr_reserved != 0 {
            return Err(EINVAL);
        }
        // An address goes with room, and only with room.
        if (ex.response == 0) != (core_out + driver_out == 0) {
            return Err(EINVAL);
        }
        let end = ex.response.checked_add(core_out as u64).ok_or(EFAULT)?;
        Ok(Call {
            command,
            core_in: body[..core_in].into(),
            driver_in: body[core_in..].into(),
            core_out: Room { at: ex.response, len: core_out },
            driver_out: Room { at: end, len: driver_out },
        })
    }

    /// A command wrapped in INVOKE_WRITE.
    pub fn from_ioctl(attrs: &Attrs) -> Result<(Call, Form)> {
        attrs.only(&[
            UVERBS_ATTR_CORE_IN,
            UVERBS_ATTR_CORE_OUT,
            UVERBS_ATTR_WRITE_CMD,
            UVERBS_ATTR_UHW_IN,
            UVERBS_ATTR_UHW_OUT,
        ])?;
        let (command, form) = split(attrs.u32(UVERBS_ATTR_WRITE_CMD)?)?;
        let call = Call {
            command,
            core_in: attrs.bytes(UVERBS_ATTR_CORE_IN)?.unwrap_or_default(),
            driver_in: attrs.bytes(UVERBS_ATTR_UHW_IN)?.unwrap_or_default(),
            core_out: attrs.room(UVERBS_ATTR_CORE_OUT),
            driver_out: attrs.room(UVERBS_ATTR_UHW_OUT),
        };
        if form == Form::Plain {
            // ENOSPC is also what libibverbs's probe expects: QUERY_DEVICE without its parts.
            let known = known(command).ok_or(EOPNOTSUPP)?;
            if call.core_in.len() < known.core_in || call.core_out.len < known.core_out {
                return Err(ENOSPC);
            }
        }
        Ok((call, form))
    }

    /// The core struct.
    pub fn core<T: FromBytes>(&self) -> Result<T> {
        T::read_from_prefix(&self.core_in).map(|(core, _)| core).map_err(|_| EINVAL)
    }

    /// The driver part.
    pub fn driver<T: FromBytes>(&self) -> Result<T> {
        T::read_from_prefix(&self.driver_in).map(|(driver, _)| driver).map_err(|_| EINVAL)
    }

    /// Room for the core answer.
    pub fn core_room(&self) -> usize {
        self.core_out.len
    }

    /// Room for the driver's answer.
    pub fn driver_room(&self) -> usize {
        self.driver_out.len
    }

    /// Writes the core answer.
    pub fn answer(&self, core: &(impl IntoBytes + zerocopy::Immutable)) -> Result<()> {
        self.core_out.put(core.as_bytes())
    }

    /// Writes the driver's answer.
    pub fn answer_driver(&self, driver: &(impl IntoBytes + zerocopy::Immutable)) -> Result<()> {
        self.driver_out.put(driver.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(header: ib_uverbs_cmd_hdr, body: &[u8]) -> Vec<u8> {
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn a_plain_command_is_cut_at_its_struct() {
        let core = ib_uverbs_create_cq { response: 0x1000, cqe: 5, ..Default::default() };
        let body = [core.as_bytes(), &[7; 16]].concat();
        let header = ib_uverbs_cmd_hdr { command: IB_USER_VERBS_CMD_CREATE_CQ, in_words: 14, out_words: 4 };
        let (call, form) = Call::parse(&words(header, &body)).unwrap();
        assert_eq!(form, Form::Plain);
        assert_eq!(call.core::<ib_uverbs_create_cq>().unwrap().cqe, 5);
        assert_eq!(call.driver_in, [7; 16]);
        assert_eq!(call.core_out, Room { at: 0x1000, len: 8 });
        assert_eq!(call.driver_out, Room { at: 0x1008, len: 8 });
    }

    #[test]
    fn an_extended_command_counts_double_words() {
        let ex = ib_uverbs_ex_cmd_hdr { response: 0x2000, provider_out_words: 1, ..Default::default() };
        let command = IB_USER_VERBS_EX_CMD_QUERY_DEVICE | IB_USER_VERBS_CMD_FLAG_EXTENDED;
        let header = ib_uverbs_cmd_hdr { command, in_words: 1, out_words: 38 };
        let body = [ex.as_bytes(), &[0; 8]].concat();
        let (call, form) = Call::parse(&words(header, &body)).unwrap();
        assert_eq!((form, call.core_room(), call.driver_room()), (Form::Extended, 304, 8));
        assert_eq!(call.driver_out.at, 0x2000 + 304);
    }

    #[test]
    fn short_and_twisted_commands_are_refused() {
        let core = ib_uverbs_query_port { response: 0x1000, port_num: 1, ..Default::default() };
        let header = ib_uverbs_cmd_hdr { command: IB_USER_VERBS_CMD_QUERY_PORT, in_words: 6, out_words: 10 };
        let good = words(header, core.as_bytes());
        assert!(Call::parse(&good).is_ok());
        for len in 0..good.len() {
            assert!(Call::parse(&good[..len]).is_err(), "{len}");
        }
        let mut wrong = header;
        wrong.out_words = 9;
        assert_eq!(Call::parse(&words(wrong, core.as_bytes())).unwrap_err(), ENOSPC);
        wrong = header;
        wrong.command = 99;
        assert_eq!(Call::parse(&words(wrong, core.as_bytes())).unwrap_err(), EOPNOTSUPP);
        wrong.command = 0x4000_0002;
        assert_eq!(Call::parse(&words(wrong, core.as_bytes())).unwrap_err(), EINVAL);
        let last = ib_uverbs_query_port { response: u64::MAX, ..core };
        assert_eq!(Call::parse(&words(header, last.as_bytes())).unwrap_err(), EFAULT);
        assert_eq!(Call::from_write(0x1000, usize::MAX).unwrap_err(), EINVAL);
        assert_eq!(Call::from_write(8, 8).unwrap_err(), EFAULT);
    }
}
