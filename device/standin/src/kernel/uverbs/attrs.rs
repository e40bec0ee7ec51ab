//! Commands in the native ioctl form: a header and attributes in any order.
//!
//! Input of up to 8 bytes stands in the attribute itself, longer input and all output behind an address; objects and
//! descriptors travel in the attribute both ways. The attributes are copied once, and what a command answers in them
//! is written back at the end.

use super::room::Room;
use super::{EFAULT, EINVAL, EOPNOTSUPP, EPROTONOSUPPORT, Errno, Result};
use crate::support::raw;
use pvrdma_ffi::uapi::ib_user_ioctl::*;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// The attributes of one ioctl.
#[derive(Debug)]
pub struct Attrs {
    pub object: u16,
    pub method: u16,
    attrs: Vec<ib_uverbs_attr>,
    /// Where the first attribute is in the program's memory.
    at: u64,
}

/// Names of methods, for the trace.
pub fn name(object: u16, method: u16) -> &'static str {
    match (object, method) {
        (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_GET_CONTEXT) => "get_context",
        (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_PORT) => "query_port",
        (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_GID_ENTRY) => "query_gid_entry",
        (UVERBS_OBJECT_DEVICE, UVERBS_METHOD_QUERY_GID_TABLE) => "query_gid_table",
        (UVERBS_OBJECT_ASYNC_EVENT, UVERBS_METHOD_ASYNC_EVENT_ALLOC) => "alloc_async_fd",
        (UVERBS_OBJECT_PD, UVERBS_METHOD_PD_DESTROY) => "dealloc_pd",
        (UVERBS_OBJECT_MR, UVERBS_METHOD_MR_DESTROY) => "dereg_mr",
        (UVERBS_OBJECT_CQ, UVERBS_METHOD_CQ_CREATE) => "create_cq",
        (UVERBS_OBJECT_CQ, UVERBS_METHOD_CQ_DESTROY) => "destroy_cq",
        (UVERBS_OBJECT_QP, UVERBS_METHOD_QP_CREATE) => "create_qp",
        (UVERBS_OBJECT_QP, UVERBS_METHOD_QP_DESTROY) => "destroy_qp",
        (UVERBS_OBJECT_SRQ, UVERBS_METHOD_SRQ_CREATE) => "create_srq",
        (UVERBS_OBJECT_SRQ, UVERBS_METHOD_SRQ_DESTROY) => "destroy_srq",
        _ => "unknown_method",
    }
}

const HDR_LEN: usize = size_of::<ib_uverbs_ioctl_hdr>();
const ATTR_LEN: usize = size_of::<ib_uverbs_attr>();
/// The kernel takes at most a page.
const MAX_LEN: usize = 4096;

impl Attrs {
    /// Copies the ioctl's argument at `at`.
    pub fn read(at: u64) -> Result<Attrs> {
        let mut hdr = [0; HDR_LEN];
        raw::copy_in(at, &mut hdr).map_err(Errno)?;
        let (hdr, _) = ib_uverbs_ioctl_hdr::read_from_prefix(&hdr).map_err(|_| EINVAL)?;
        let len = HDR_LEN + usize::from(hdr.num_attrs) * ATTR_LEN;
        if usize::from(hdr.length) != len || len > MAX_LEN {
            return Err(EINVAL);
        }
        if hdr.reserved1 != 0 || hdr.reserved2 != 0 {
            return Err(EPROTONOSUPPORT);
        }
        if hdr.driver_id != RDMA_DRIVER_VMW_PVRDMA {
            return Err(EINVAL);
        }
        let at = at.checked_add(HDR_LEN as u64).ok_or(EFAULT)?;
        let mut attrs = vec![ib_uverbs_attr::new_zeroed(); usize::from(hdr.num_attrs)];
        raw::copy_in(at, attrs.as_mut_bytes()).map_err(Errno)?;
        if attrs.iter().any(|attr| attr.flags & !UVERBS_ATTR_F_MANDATORY != 0) {
            return Err(EINVAL);
        }
        let repeated = |(n, attr): (usize, &ib_uverbs_attr)| attrs[..n].iter().any(|a| a.attr_id == attr.attr_id);
        if attrs.iter().enumerate().any(repeated) {
            return Err(EINVAL);
        }
        Ok(Attrs { object: hdr.object_id, method: hdr.method_id, attrs, at })
    }

    /// Refuses mandatory attributes that the method does not know; optional ones are passed over.
    pub fn only(&self, known: &[u16]) -> Result<()> {
        let unknown = |attr: &&ib_uverbs_attr| !known.contains(&attr.attr_id);
        let mandatory = |attr: &ib_uverbs_attr| attr.flags & UVERBS_ATTR_F_MANDATORY != 0;
        if self.attrs.iter().filter(unknown).any(mandatory) { Err(EPROTONOSUPPORT) } else { Ok(()) }
    }

    fn find(&self, id: u16) -> Option<&ib_uverbs_attr> {
        self.attrs.iter().find(|attr| attr.attr_id == id)
    }

    /// Input bytes of an attribute, if it is there.
    pub fn bytes(&self, id: u16) -> Result<Option<Vec<u8>>> {
        let Some(attr) = self.find(id) else { return Ok(None) };
        let mut bytes = vec![0; usize::from(attr.len)];
        match attr.data.as_bytes().get(..bytes.len()) {
            Some(inline) => bytes.copy_from_slice(inline),
            None => raw::copy_in(attr.data, &mut bytes).map_err(Errno)?,
        }
        Ok(Some(bytes))
    }

    /// A struct or number, if it is there. Bytes past its end must be zero: they would mean something to a newer
    /// kernel.
    pub fn optional<T: FromBytes>(&self, id: u16) -> Result<Option<T>> {
        let Some(bytes) = self.bytes(id)? else { return Ok(None) };
        let (value, rest) = T::read_from_prefix(&bytes).map_err(|_| EINVAL)?;
        if rest.iter().any(|&byte| byte != 0) { Err(EOPNOTSUPP) } else { Ok(Some(value)) }
    }

    /// A struct or number that must be there.
    pub fn required<T: FromBytes>(&self, id: u16) -> Result<T> {
        self.optional(id)?.ok_or(EINVAL)
    }

    /// A 32-bit number that must be there.
    pub fn u32(&self, id: u16) -> Result<u32> {
        self.required(id)
    }

    /// Flags: 4 or 8 bytes; none if absent.
    pub fn flags(&self, id: u16) -> Result<u64> {
        match self.find(id).map(|attr| (attr.len, attr.data)) {
            None => Ok(0),
            Some((4, data)) => Ok(data & u64::from(u32::MAX)),
            Some((8, data)) => Ok(data),
            Some(_) => Err(EINVAL),
        }
    }

    /// The number of an object, if it is there.
    pub fn optional_object(&self, id: u16) -> Result<Option<u32>> {
        match self.find(id).map(|attr| (attr.len, attr.data)) {
            None => Ok(None),
            Some((0, number)) => Ok(Some(u32::try_from(number).map_err(|_| EINVAL)?)),
            Some(_) => Err(EINVAL),
        }
    }

    /// The number of an object that must be there.
    pub fn object(&self, id: u16) -> Result<u32> {
        self.optional_object(id)?.ok_or(EINVAL)
    }

    /// A descriptor, if it is there.
    pub fn descriptor(&self, id: u16) -> Result<Option<i64>> {
        match self.find(id).map(|attr| (attr.len, attr.data)) {
            None => Ok(None),
            Some((0, descriptor)) => Ok(Some(descriptor as i64)),
            Some(_) => Err(EINVAL),
        }
    }

    /// Room for an answer; none if the attribute is absent.
    pub fn room(&self, id: u16) -> Room {
        self.find(id).map_or(Room::default(), |attr| Room { at: attr.data, len: attr.len.into() })
    }

    /// Answers with a struct or number. If the room is longer, the rest is zeroed.
    pub fn put(&mut self, id: u16, value: &(impl IntoBytes + Immutable)) -> Result<()> {
        self.put_bytes(id, value.as_bytes())
    }

    /// Answers with bytes; see `put`. An absent attribute is an answer that nobody wants.
    pub fn put_bytes(&mut self, id: u16, value: &[u8]) -> Result<()> {
        let Some(attr) = self.attrs.iter_mut().find(|attr| attr.attr_id == id) else { return Ok(()) };
        let mut bytes = vec![0; usize::from(attr.len)];
        let len = bytes.len().min(value.len());
        bytes[..len].copy_from_slice(&value[..len]);
        raw::copy_out(attr.data, &bytes).map_err(Errno)?;
        attr.flags |= UVERBS_ATTR_F_VALID_OUTPUT;
        Ok(())
    }

    /// Answers with the number of a new object or descriptor, in the attribute itself.
    pub fn put_number(&mut self, id: u16, number: u32) {
        if let Some(attr) = self.attrs.iter_mut().find(|attr| attr.attr_id == id) {
            attr.data = number.into();
            attr.flags |= UVERBS_ATTR_F_VALID_OUTPUT;
        }
    }

    /// Gives the attributes back to the program.
    pub fn write_back(&self) -> Result<()> {
        raw::copy_out(self.at, self.attrs.as_bytes()).map_err(Errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(id: u16, len: u16, flags: u16, data: u64) -> ib_uverbs_attr {
        ib_uverbs_attr { attr_id: id, len, flags, attr_data: 0, data }
    }

    fn ioctl(hdr: impl FnOnce(&mut ib_uverbs_ioctl_hdr), attrs: &[ib_uverbs_attr]) -> Vec<u8> {
        let mut header = ib_uverbs_ioctl_hdr {
            length: (HDR_LEN + attrs.len() * ATTR_LEN) as u16,
            object_id: UVERBS_OBJECT_CQ,
            method_id: UVERBS_METHOD_CQ_CREATE,
            num_attrs: attrs.len() as u16,
            driver_id: RDMA_DRIVER_VMW_PVRDMA,
            ..Default::default()
        };
        hdr(&mut header);
        [header.as_bytes(), attrs.as_bytes()].concat()
    }

    fn read(bytes: &[u8]) -> Result<Attrs> {
        Attrs::read(bytes.as_ptr() as u64)
    }

    #[test]
    fn values_come_from_the_attribute_or_from_behind_it() {
        let long = [1u64, 2];
        let bytes = ioctl(|_| {}, &[attr(5, 16, 1, long.as_ptr() as u64), attr(1, 4, 1, 77), attr(3, 0, 1, u64::MAX)]);
        let attrs = read(&bytes).unwrap();
        assert_eq!(attrs.u32(1), Ok(77));
        assert_eq!(attrs.required::<[u64; 2]>(5), Ok(long));
        assert_eq!(attrs.descriptor(3), Ok(Some(-1)));
        assert_eq!(attrs.optional_object(3), Err(EINVAL));
        assert_eq!(attrs.object(9), Err(EINVAL));
        assert_eq!(attrs.optional_object(9), Ok(None));
        assert_eq!(attrs.flags(9), Ok(0));
        // Two of the 16 bytes would be cut off, and they are not zero.
        assert_eq!(attrs.required::<u64>(5), Err(EOPNOTSUPP));
        assert_eq!(attrs.required::<[u64; 3]>(5), Err(EINVAL));
    }

    #[test]
    fn answers_are_written_and_marked() {
        let mut answer = [0xffu8; 8];
        let bytes = ioctl(|_| {}, &[attr(0, 0, 1, 0), attr(6, 8, 1, answer.as_mut_ptr() as u64)]);
        let mut attrs = read(&bytes).unwrap();
        attrs.put(6, &5u32).unwrap();
        attrs.put(7, &5u32).unwrap();
        attrs.put_number(0, 42);
        attrs.write_back().unwrap();
        assert_eq!(answer, [5, 0, 0, 0, 0, 0, 0, 0]);
        let (_, back) = ib_uverbs_ioctl_hdr::read_from_prefix(&bytes).unwrap();
        let (first, rest) = ib_uverbs_attr::read_from_prefix(back).unwrap();
        assert_eq!((first.data, first.flags), (42, 3));
        assert_eq!(ib_uverbs_attr::read_from_prefix(rest).unwrap().0.flags, 3);
    }

    #[test]
    fn unknown_attributes_matter_only_if_mandatory() {
        let attrs = read(&ioctl(|_| {}, &[attr(1, 4, 1, 0), attr(99, 4, 0, 0)])).unwrap();
        assert_eq!(attrs.only(&[1]), Ok(()));
        let attrs = read(&ioctl(|_| {}, &[attr(1, 4, 1, 0), attr(99, 4, 1, 0)])).unwrap();
        assert_eq!(attrs.only(&[1]), Err(EPROTONOSUPPORT));
    }

    #[test]
    fn hostile_headers_are_refused() {
        let one = [attr(1, 4, 1, 0)];
        assert!(read(&ioctl(|_| {}, &one)).is_ok());
        let refused = |change: fn(&mut ib_uverbs_ioctl_hdr)| read(&ioctl(change, &one)).unwrap_err();
        assert_eq!(refused(|hdr| hdr.length += 1), EINVAL);
        assert_eq!(refused(|hdr| hdr.num_attrs = 0), EINVAL);
        assert_eq!(refused(|hdr| hdr.num_attrs = u16::MAX), EINVAL);
        assert_eq!(refused(|hdr| hdr.driver_id = 1), EINVAL);
        assert_eq!(refused(|hdr| hdr.reserved1 = 1), EPROTONOSUPPORT);
        assert_eq!(read(&ioctl(|_| {}, &[attr(1, 4, 2, 0)])).unwrap_err(), EINVAL);
        assert_eq!(read(&ioctl(|_| {}, &[attr(1, 4, 1, 0), attr(1, 4, 1, 0)])).unwrap_err(), EINVAL);
        assert_eq!(Attrs::read(8).unwrap_err(), EFAULT);
        let attrs = read(&ioctl(|_| {}, &[attr(1, u16::MAX, 1, 16)])).unwrap();
        assert_eq!(attrs.bytes(1), Err(EFAULT));
    }
}
