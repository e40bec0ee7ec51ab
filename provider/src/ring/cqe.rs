//! Read a completion queue entry into an `ibv_wc`. The translation between the device's numbers and
//! libibverbs's is here: opcodes and flags differ although many coincide.

use core::arch::x86_64::*;
use core::ptr::NonNull;
use pvrdma_ffi::uapi::vmw_pvrdma::*;
use pvrdma_ffi::verbs::*;

/// A QP handle as completions carry it. The kernel driver and every provider use 16 bits of the
/// field, so a device cannot use more.
pub type CqeHandle = u16;

/// An entry that the device has put and that we have not given back.
#[derive(Clone, Copy, Debug)]
pub struct Cqe(NonNull<pvrdma_cqe>);

/// Read one field of an entry, once, as `$ty`.
macro_rules! field {
    ($cqe:expr, $name:ident as $ty:ty) => {{
        let at = (&raw const (*$cqe.0.as_ptr()).$name).cast::<$ty>();
        // Volatile: the memory is shared, so a value is fetched once and not again behind our back.
        at.read_volatile()
    }};
}

/// Fields that are neighbours here and there are copied in one piece.
const _: () = {
    use core::mem::offset_of;
    assert!(offset_of!(pvrdma_cqe, imm_data) == offset_of!(pvrdma_cqe, byte_len) + 4);
    assert!(offset_of!(ibv_wc, imm_data) == offset_of!(ibv_wc, byte_len) + 4);
    assert!(offset_of!(pvrdma_cqe, slid) == offset_of!(pvrdma_cqe, pkey_index) + 2);
    assert!(offset_of!(ibv_wc, slid) == offset_of!(ibv_wc, pkey_index) + 2);
    assert!(offset_of!(pvrdma_cqe, dlid_path_bits) == offset_of!(pvrdma_cqe, sl) + 1);
    assert!(offset_of!(ibv_wc, dlid_path_bits) == offset_of!(ibv_wc, sl) + 1);
    // For the vectors of `copy_raw`.
    assert!(offset_of!(pvrdma_cqe, status) == offset_of!(pvrdma_cqe, opcode) + 4);
    assert!(offset_of!(ibv_wc, status) == 8 && offset_of!(ibv_wc, opcode) == 12);
    assert!(offset_of!(pvrdma_cqe, wc_flags) == offset_of!(pvrdma_cqe, src_qp) + 4);
    assert!(offset_of!(pvrdma_cqe, sl) == offset_of!(pvrdma_cqe, pkey_index) + 4);
    assert!(offset_of!(ibv_wc, wc_flags) == offset_of!(ibv_wc, src_qp) + 4);
    assert!(offset_of!(ibv_wc, pkey_index) == offset_of!(ibv_wc, src_qp) + 8);
    assert!(offset_of!(ibv_wc, sl) == offset_of!(ibv_wc, src_qp) + 12);
    assert!(offset_of!(ibv_wc, src_qp) + 16 == size_of::<ibv_wc>());
};

impl Cqe {
    /// # Safety
    /// `at` must be a ready slot of a completion ring, used before it is released.
    #[inline(always)]
    pub unsafe fn new(at: NonNull<pvrdma_cqe>) -> Self {
        Self(at)
    }

    /// Where it is.
    #[inline(always)]
    pub fn at(self) -> *const pvrdma_cqe {
        self.0.as_ptr()
    }

    /// The one behind it.
    ///
    /// # Safety
    /// There must be one, or it must not be used.
    #[inline(always)]
    pub unsafe fn next(self) -> Self {
        // SAFETY: promise of the caller: inside the memory, or its end.
        Self(unsafe { self.0.add(1) })
    }

    /// Move it to the place of another.
    ///
    /// # Safety
    /// `to` must be another entry that is not released.
    pub unsafe fn copy_to(self, to: Self) {
        // SAFETY: two entries of the ring, both ours (promises of `new` and of the caller). Volatile: a
        // device that breaks the rules may write meanwhile.
        unsafe { to.0.write_volatile(self.0.read_volatile()) };
    }

    /// Which QP it is for.
    #[inline(always)]
    pub fn handle(self) -> CqeHandle {
        // SAFETY: inside the ring and aligned (promise of `new`); the low bytes come first.
        unsafe { field!(self, qp as CqeHandle) }
    }

    /// The `wr_id` the device was given.
    #[inline(always)]
    pub fn wr_id(self) -> u64 {
        // SAFETY: as in `handle`.
        unsafe { field!(self, wr_id as u64) }
    }

    /// Is it for a receive? True is certain; a failed receive need not say so.
    #[inline(always)]
    pub fn is_receive(self) -> bool {
        // SAFETY: as in `handle`.
        unsafe { field!(self, opcode as u8) & PVRDMA_WC_RECV as u8 != 0 }
    }

    /// Did it succeed?
    #[inline(always)]
    pub fn is_success(self) -> bool {
        self.status() == PVRDMA_WC_SUCCESS
    }

    /// Opcode and flags as they are. Not volatile: so each is an operand of an instruction. A device that changes
    /// them between this look and [`Cqe::copy_raw`] breaks the rules; then the application gets an opcode that was
    /// not translated, which is a wrong number and nothing worse.
    #[inline(always)]
    pub fn raw(self) -> Raw {
        // SAFETY: as in `handle`.
        unsafe { Raw { opcode: (*self.0.as_ptr()).opcode, flags: (*self.0.as_ptr()).wc_flags } }
    }

    /// Copy into `wc`, with the number of the QP it is for, opcode and flags untranslated: [`Cqe::raw`] tells
    /// whether that is right. The hot path: two vectors and four words in the place of ten fields.
    ///
    /// # Safety
    /// `wc` must be valid for a write.
    #[inline(always)]
    pub unsafe fn copy_raw(self, wc: *mut ibv_wc, qp_num: u32) {
        // SAFETY: the entry is inside the ring and aligned (promise of `new`), `wc` is the caller's
        // promise; its last word has padding in it.
        unsafe {
            // {wr_id, status, opcode}: the last two change places.
            let first = pair(field!(self, wr_id as f64), field!(self, opcode as f64));
            _mm_storeu_si128(wc.cast(), _mm_shuffle_epi32::<0b10_11_01_00>(first));
            (*wc).qp_num = qp_num;
            (*wc).vendor_err = field!(self, vendor_err as u32);
            (&raw mut (*wc).byte_len).cast::<u64>().write_unaligned(field!(self, byte_len as u64));
            // {src_qp, flags, pkey_index and slid, sl and path bits}
            let last = pair(field!(self, src_qp as f64), field!(self, pkey_index as Half).0);
            let kept = _mm_and_si128(last, _mm_set_epi32(0xffff, -1, SAME_FLAGS as i32, -1));
            _mm_storeu_si128((&raw mut (*wc).src_qp).cast(), kept);
        }
    }

    /// Translate into `wc`, with the number of the QP it is for.
    ///
    /// # Safety
    /// `wc` must be valid for a write.
    #[inline(always)]
    pub unsafe fn write_to(self, wc: *mut ibv_wc, qp_num: u32) {
        // SAFETY: the entry is inside the ring and aligned (promise of `new`), `wc` is the
        // caller's promise. One field after the other: collecting them first spills registers.
        unsafe {
            (*wc).wr_id = field!(self, wr_id as u64);
            (*wc).status = field!(self, status as u32);
            (*wc).opcode = opcode(field!(self, opcode as u8));
            (*wc).vendor_err = field!(self, vendor_err as u32);
            (&raw mut (*wc).byte_len).cast::<u64>().write_unaligned(field!(self, byte_len as u64));
            (*wc).qp_num = qp_num;
            (*wc).src_qp = field!(self, src_qp as u32);
            (*wc).wc_flags = flags(field!(self, wc_flags as u32));
            (&raw mut (*wc).pkey_index).cast::<u32>().write(field!(self, pkey_index as u32));
            (*wc).sl = self.sl();
            (*wc).dlid_path_bits = field!(self, dlid_path_bits as u8);
        }
    }

    /// `ibv_wc.sl`. No RoCE packet carries a service level. Of a datagram the low three bits say instead what kind of
    /// packet it came in, as those of mlx5, bnxt_re and hns do (IBA annex A17.4.5.1 asks for such a flag): UCX up to
    /// 1.18 tells by them where in the 40 bytes the addresses are. The device says it in a field that `ibv_wc` does
    /// not have; where it does not, and above the three bits, all stays as the device has it.
    #[inline(always)]
    pub fn sl(self) -> u8 {
        /// GRH and packet type are there: a datagram's.
        const TYPED: u32 = PVRDMA_WC_GRH | PVRDMA_WC_WITH_NETWORK_HDR_TYPE;
        // SAFETY: as in `handle`.
        let (sl, flags, kind) =
            unsafe { (field!(self, sl as u8), field!(self, wc_flags as u32), field!(self, network_hdr_type as u8)) };
        let packet_type = match kind {
            _ if flags & TYPED != TYPED => return sl,
            PVRDMA_NETWORK_ROCE_V1 => 0,
            PVRDMA_NETWORK_IPV6 => 1,
            PVRDMA_NETWORK_IPV4 => 2,
            _ => return sl,
        };
        sl & !7 | packet_type
    }
}

/// Half a vector that lies across eight bytes.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Half(f64);

/// Two halves as a vector. Floats, since the compiler loads those into a half of one.
#[inline(always)]
fn pair(low: f64, high: f64) -> __m128i {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_castpd_si128(_mm_set_pd(high, low)) }
}

/// Flags that have the same number on both sides, and so have those the device has beyond the first four, which
/// are dropped.
const SAME_FLAGS: u32 = IBV_WC_GRH | IBV_WC_WITH_IMM;

/// Opcode and flags of an entry, or those of several by OR.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw {
    opcode: u32,
    flags: u32,
}

impl Raw {
    /// The bits of these and of those.
    #[inline(always)]
    pub fn with(self, other: Self) -> Self {
        Self { opcode: self.opcode | other.opcode, flags: self.flags | other.flags }
    }

    /// Do all of these opcodes have the same number on both sides?
    #[inline(always)]
    pub fn has_same_opcodes(self) -> bool {
        self.opcode & !SAME_OPCODES == 0
    }

    /// And the flags, and is `sl` as the device has it?
    #[inline(always)]
    pub fn has_same_flags(self) -> bool {
        self.flags & OTHER_FLAGS == 0
    }
}

/// The opcodes with no other bits are the same on both sides: 0 to 3, of receives 0x80 and 0x81. With 0x82 and
/// 0x83, which there are not, nothing is done.
const SAME_OPCODES: u32 = 0x83;

/// The first two have other numbers, with the third `sl` is made up ([`Cqe::sl`]).
const OTHER_FLAGS: u32 = PVRDMA_WC_WITH_INVALIDATE | PVRDMA_WC_IP_CSUM_OK | PVRDMA_WC_WITH_NETWORK_HDR_TYPE;

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const _: () = {
    let same = [
        (PVRDMA_WC_SEND, IBV_WC_SEND, 0),
        (PVRDMA_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE, 1),
        (PVRDMA_WC_RDMA_READ, IBV_WC_RDMA_READ, 2),
        (PVRDMA_WC_COMP_SWAP, IBV_WC_COMP_SWAP, 3),
        (PVRDMA_WC_RECV, IBV_WC_RECV, 0x80),
        (PVRDMA_WC_RECV_RDMA_WITH_IMM, IBV_WC_RECV_RDMA_WITH_IMM, 0x81),
    ];
    let mut i = 0;
    while i < same.len() {
        let (device, verbs, number) = same[i];
        assert!(device == number && verbs == number);
        i += 1;
    }
    assert!(PVRDMA_WC_GRH == IBV_WC_GRH && PVRDMA_WC_WITH_IMM == IBV_WC_WITH_IMM);
    assert!(SAME_FLAGS | OTHER_FLAGS == 15 | PVRDMA_WC_WITH_NETWORK_HDR_TYPE);
};

/// One field after the other, for extended CQs: translated like [`Cqe::write_to`] does it.
macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident: $ty:ty = $field:ident as $raw:ty $(=> $translate:path)?;)*) => {
        impl Cqe {
            $(
                $(#[$doc])*
                #[inline(always)]
                pub fn $name(self) -> $ty {
                    // SAFETY: as in `handle`.
                    let raw = unsafe { field!(self, $field as $raw) };
                    $(let raw = $translate(raw);)?
                    raw.into()
                }
            )*
        }
    };
}

fields! {
    /// `ibv_wc.status`.
    status: u32 = status as u32;
    /// `ibv_wc.opcode`.
    opcode: u32 = opcode as u8 => opcode;
    /// `ibv_wc.vendor_err`.
    vendor_err: u32 = vendor_err as u32;
    /// `ibv_wc.byte_len`.
    byte_len: u32 = byte_len as u32;
    /// `ibv_wc.imm_data` or `invalidated_rkey`.
    imm_data: u32 = imm_data as u32;
    /// `ibv_wc.src_qp`.
    src_qp: u32 = src_qp as u32;
    /// `ibv_wc.wc_flags`.
    wc_flags: u32 = wc_flags as u32 => flags;
    /// `ibv_wc.slid`.
    slid: u32 = slid as u16;
    /// `ibv_wc.dlid_path_bits`.
    dlid_path_bits: u8 = dlid_path_bits as u8;
}

/// The device's numbers translated; one object, so that the hot loop needs one address.
struct Tables {
    opcodes: [u8; 256],
    flags: [u8; 16],
}

static TABLES: Tables = Tables { opcodes: OPCODES, flags: FLAGS };

/// Device opcodes. Those of send completions above 5 are in another order; fast registration has no
/// counterpart and no user-space source; RECV and RECV_RDMA_WITH_IMM are the same.
#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const OPCODES: [u8; 256] = {
    let pairs = [
        (PVRDMA_WC_SEND, IBV_WC_SEND),
        (PVRDMA_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE),
        (PVRDMA_WC_RDMA_READ, IBV_WC_RDMA_READ),
        (PVRDMA_WC_COMP_SWAP, IBV_WC_COMP_SWAP),
        (PVRDMA_WC_FETCH_ADD, IBV_WC_FETCH_ADD),
        (PVRDMA_WC_BIND_MW, IBV_WC_BIND_MW),
        (PVRDMA_WC_LSO, IBV_WC_TSO),
        (PVRDMA_WC_LOCAL_INV, IBV_WC_LOCAL_INV),
        (PVRDMA_WC_MASKED_COMP_SWAP, IBV_WC_COMP_SWAP),
        (PVRDMA_WC_MASKED_FETCH_ADD, IBV_WC_FETCH_ADD),
        (PVRDMA_WC_RECV, IBV_WC_RECV),
        (PVRDMA_WC_RECV_RDMA_WITH_IMM, IBV_WC_RECV_RDMA_WITH_IMM),
    ];
    let mut table = [IBV_WC_DRIVER1 as u8; 256];
    // As `SAME_OPCODES` has it.
    table[0x82] = 0x82;
    table[0x83] = 0x83;
    let mut i = 0;
    while i < pairs.len() {
        table[pairs[i].0 as usize] = pairs[i].1 as u8;
        i += 1;
    }
    table
};

/// The device's opcodes fit a byte.
#[inline(always)]
#[allow(clippy::indexing_slicing, reason = "a byte is below 256")]
fn opcode(device: u8) -> u32 {
    TABLES.opcodes[device as usize].into()
}

/// Device flags. GRH and WITH_IMM coincide; "invalidated" and "checksum is good" are swapped; the
/// device's further bits (source MAC, VLAN, header type) would read as tag matching flags and are
/// dropped.
#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const FLAGS: [u8; 16] = {
    let mut table = [0; 16];
    let mut device = 0;
    while device < 16 {
        let mut flags = device & (IBV_WC_GRH | IBV_WC_WITH_IMM);
        if device & PVRDMA_WC_WITH_INVALIDATE != 0 {
            flags |= IBV_WC_WITH_INV;
        }
        if device & PVRDMA_WC_IP_CSUM_OK != 0 {
            flags |= IBV_WC_IP_CSUM_OK;
        }
        table[device as usize] = flags as u8;
        device += 1;
    }
    table
};

#[inline(always)]
#[allow(clippy::indexing_slicing, reason = "four bits are below 16")]
fn flags(device: u32) -> u32 {
    TABLES.flags[(device & 15) as usize].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_is_translated() {
        let expected = [
            (PVRDMA_WC_SEND, IBV_WC_SEND),
            (PVRDMA_WC_RDMA_WRITE, IBV_WC_RDMA_WRITE),
            (PVRDMA_WC_RDMA_READ, IBV_WC_RDMA_READ),
            (PVRDMA_WC_COMP_SWAP, IBV_WC_COMP_SWAP),
            (PVRDMA_WC_FETCH_ADD, IBV_WC_FETCH_ADD),
            (PVRDMA_WC_BIND_MW, IBV_WC_BIND_MW),
            (PVRDMA_WC_LSO, IBV_WC_TSO),
            (PVRDMA_WC_LOCAL_INV, IBV_WC_LOCAL_INV),
            (PVRDMA_WC_FAST_REG_MR, IBV_WC_DRIVER1),
            (PVRDMA_WC_MASKED_COMP_SWAP, IBV_WC_COMP_SWAP),
            (PVRDMA_WC_MASKED_FETCH_ADD, IBV_WC_FETCH_ADD),
            (PVRDMA_WC_RECV, IBV_WC_RECV),
            (PVRDMA_WC_RECV_RDMA_WITH_IMM, IBV_WC_RECV_RDMA_WITH_IMM),
        ];
        for (device, verbs) in expected {
            assert_eq!(opcode(device as u8), verbs, "device opcode {device}");
        }
    }

    #[test]
    fn every_flag_is_translated_or_dropped() {
        assert_eq!(flags(PVRDMA_WC_GRH), IBV_WC_GRH);
        assert_eq!(flags(PVRDMA_WC_WITH_IMM), IBV_WC_WITH_IMM);
        assert_eq!(flags(PVRDMA_WC_WITH_INVALIDATE), IBV_WC_WITH_INV);
        assert_eq!(flags(PVRDMA_WC_IP_CSUM_OK), IBV_WC_IP_CSUM_OK);
        assert_eq!(flags(PVRDMA_WC_WITH_SMAC), 0);
        assert_eq!(flags(PVRDMA_WC_WITH_VLAN), 0);
        assert_eq!(flags(PVRDMA_WC_WITH_NETWORK_HDR_TYPE), 0);
        assert_eq!(flags(u32::MAX), 0xf);
    }

    #[test]
    fn the_low_bits_of_sl_are_the_packet_type_of_a_datagram() {
        const TYPED: u32 = PVRDMA_WC_GRH | PVRDMA_WC_WITH_NETWORK_HDR_TYPE;
        let cases = [
            (TYPED, PVRDMA_NETWORK_ROCE_V1, 8),
            (TYPED, PVRDMA_NETWORK_IPV6, 9),
            (TYPED | PVRDMA_WC_WITH_IMM, PVRDMA_NETWORK_IPV4, 10),
            // What nobody knows, or did not say, changes nothing.
            (TYPED, 3, 15),
            (TYPED, 255, 15),
            (PVRDMA_WC_GRH, PVRDMA_NETWORK_IPV4, 15),
            (PVRDMA_WC_WITH_NETWORK_HDR_TYPE, PVRDMA_NETWORK_IPV4, 15),
            (0, PVRDMA_NETWORK_IPV4, 15),
        ];
        for (wc_flags, network_hdr_type, expected) in cases {
            let mut cqe = pvrdma_cqe { wc_flags, network_hdr_type, sl: 15, dlid_path_bits: 7, ..Default::default() };
            // SAFETY: a valid entry.
            let entry = unsafe { Cqe::new(NonNull::from(&mut cqe)) };
            let mut wc = ibv_wc::default();
            // SAFETY: valid for a write.
            unsafe { entry.write_to(&mut wc, 0) };
            assert_eq!((wc.sl, wc.dlid_path_bits), (expected, 7), "{wc_flags:#x}, {network_hdr_type}");
            assert_eq!(entry.sl(), expected);
            // The quick copy is for those that it is right for.
            // SAFETY: as above.
            unsafe { entry.copy_raw(&mut wc, 0) };
            assert!(!entry.raw().has_same_flags() || wc.sl == expected, "{wc_flags:#x}, {network_hdr_type}");
        }
    }

    #[test]
    fn every_field_arrives() {
        let mut cqe = pvrdma_cqe {
            wr_id: 1,
            // Bits above 16 are not part of the handle.
            qp: 0xffff_ffff_0001_0002,
            opcode: PVRDMA_WC_RECV,
            status: PVRDMA_WC_GENERAL_ERR,
            byte_len: 3,
            imm_data: 4,
            src_qp: 5,
            wc_flags: PVRDMA_WC_GRH,
            vendor_err: 6,
            pkey_index: 7,
            slid: 8,
            sl: 9,
            dlid_path_bits: 10,
            ..Default::default()
        };
        let mut wc = ibv_wc::default();
        // SAFETY: the entry and `wc` are local variables.
        let handle = unsafe {
            let cqe = Cqe::new(NonNull::from(&mut cqe));
            cqe.write_to(&mut wc, 11);
            cqe.handle()
        };
        assert_eq!(handle, 2);
        let expected = ibv_wc {
            wr_id: 1,
            status: IBV_WC_GENERAL_ERR,
            opcode: IBV_WC_RECV,
            vendor_err: 6,
            byte_len: 3,
            imm_data: 4,
            qp_num: 11,
            src_qp: 5,
            wc_flags: IBV_WC_GRH,
            pkey_index: 7,
            slid: 8,
            sl: 9,
            dlid_path_bits: 10,
        };
        assert_eq!(wc, expected);
    }
}
