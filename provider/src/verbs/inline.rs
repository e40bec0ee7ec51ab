//! Inline data in software. The device has none: it reads payload from registered memory only. So a
//! QP that asks for inline data gets some of its own, registered with the QP, and the payload of an
//! inline send is copied there. When a place may be used again is the business of
//! [`crate::support::send_log`].

use crate::support::buf::{Buf, Resource, Source};
use crate::support::error::Errno;
use crate::support::send_log::{Position, SendLog};
use crate::support::sync::own_slot;
use crate::verbs::mr;
use core::ptr::NonNull;
use pvrdma_ffi::pabi::verbs_mr;
use pvrdma_ffi::verbs::*;
use std::sync::Arc;

/// Most inline data a QP can have. Copying more costs more than registering saves.
pub const MAX_INLINE: u32 = 1024;

/// Inline memory of one send queue: one place for each request that can be on its way.
#[derive(Debug)]
pub struct Inline {
    /// Which places are in use.
    pub log: Arc<SendLog>,
    /// Bytes of a place.
    max: u32,
    /// Of these, what [`Inline::put_one`] takes.
    one_line: u32,
    lkey: u32,
    /// NULL with the mock.
    mr: *mut verbs_mr,
    buf: Buf,
}

/// Bytes of a place where `asked` are asked for: whole cache lines.
pub fn place_len(asked: u32) -> Result<u32, Errno> {
    if asked > MAX_INLINE {
        return Err(Errno::EINVAL);
    }
    Ok(asked.next_multiple_of(64))
}

impl Inline {
    /// For a queue of `slots` requests, places of `max` bytes, as [`place_len`] has it.
    ///
    /// # Safety
    /// `pd` must be a live PD of ours that outlives this.
    pub unsafe fn new(pd: *mut ibv_pd, slots: u32, max: u32, source: Source) -> Result<Self, Errno> {
        let buf = Buf::new(slots as usize * max as usize, source, Resource::Inline)?;
        // The device only reads it.
        //
        // SAFETY: promise of the caller; the memory is ours and outlives the region, see `drop`.
        let mr =
            unsafe { mr::register(pd, buf.start().as_ptr().cast(), buf.len_bytes(), buf.start().as_ptr() as u64, 0) }?;
        // SAFETY: a live region.
        let lkey = unsafe { (*mr).ibv_mr.lkey };
        let mut inline = Self::of_parts(buf, slots, max, lkey);
        inline.mr = mr;
        Ok(inline)
    }

    /// With memory that is registered, or need not be.
    pub fn of_parts(buf: Buf, slots: u32, max: u32, lkey: u32) -> Self {
        Self {
            log: Arc::new(SendLog::new(slots)),
            max,
            one_line: max.min(ONE_LINE),
            lkey,
            mr: core::ptr::null_mut(),
            buf,
        }
    }

    /// Copy pieces to the place of the request at `position`, one after the other. Returns the
    /// entry that describes all; EINVAL: they are too long.
    ///
    /// # Safety
    /// `position` must come from [`SendLog::next`] of this log; every piece must be readable.
    pub unsafe fn gather(
        &self,
        position: Position,
        pieces: impl Iterator<Item = (*const u8, usize)>,
    ) -> Result<ibv_sge, Errno> {
        let place = self.place(position);
        own_slot(place.as_ptr());
        let mut length = 0;
        for (piece, piece_len) in pieces {
            if piece_len > self.max as usize - length {
                return Err(Errno::EINVAL);
            }
            // SAFETY: what is left of the place has room, as just seen; the rest is the caller's
            // promise. The device is not reading here (`SendLog::next`).
            unsafe { core::ptr::copy_nonoverlapping(piece, place.as_ptr().add(length), piece_len) };
            length += piece_len;
        }
        Ok(ibv_sge { addr: place.as_ptr() as u64, length: length as u32, lkey: self.lkey })
    }

    /// Does [`Inline::put_one`] take a piece of this length? It is a cache line at most, as nearly all are.
    #[inline(always)]
    pub fn takes_one(&self, length: u32) -> bool {
        length <= self.one_line
    }

    /// As [`Inline::gather`] of one piece; `empty` is done if it is empty.
    ///
    /// # Safety
    /// As [`Inline::gather`]; [`Inline::takes_one`] must have said so of its length.
    #[inline(always)]
    pub unsafe fn put_one(&self, position: Position, piece: *const u8, length: u32, empty: impl FnOnce()) -> ibv_sge {
        let place = self.place(position);
        own_slot(place.as_ptr());
        // SAFETY: the place has room; the rest as in `gather`.
        unsafe { copy_one_line(place.as_ptr(), piece, length as usize, empty) };
        ibv_sge { addr: place.as_ptr() as u64, length, lkey: self.lkey }
    }

    #[inline(always)]
    fn place(&self, position: Position) -> NonNull<u8> {
        self.buf.at(self.log.place(position) * self.max as usize)
    }
}

/// Bytes of a cache line.
const ONE_LINE: u32 = 64;

/// Copy up to [`ONE_LINE`] bytes; do `empty` if there are none, where no other length pays for asking. memcpy would
/// be right too; but a call costs the hot verb that it is in a frame and its registers, which is more than the copy.
///
/// # Safety
/// As memcpy: both must hold `len` bytes, and be apart.
#[inline(always)]
unsafe fn copy_one_line(to: *mut u8, from: *const u8, len: usize, empty: impl FnOnce()) {
    /// One unaligned piece at `at`.
    macro_rules! copy {
        ($ty:ty, $at:expr) => {
            to.add($at).cast::<$ty>().write_unaligned(from.add($at).cast::<$ty>().read_unaligned())
        };
    }
    // Pieces from both ends, which meet or overlap in the middle.
    //
    // SAFETY: promise of the caller; each piece ends at `len` or before it.
    unsafe {
        if len >= 16 {
            copy!(u128, 0);
            copy!(u128, len - 16);
            if len > 32 {
                copy!(u128, 16);
                copy!(u128, len - 32);
            }
        } else if len >= 8 {
            copy!(u64, 0);
            copy!(u64, len - 8);
        } else if len >= 4 {
            copy!(u32, 0);
            copy!(u32, len - 4);
        } else if len > 0 {
            copy!(u8, 0);
            copy!(u8, len - 1);
            copy!(u8, len / 2);
        } else {
            empty();
        }
    }
}

impl Drop for Inline {
    fn drop(&mut self) {
        if let Some(mr) = NonNull::new(self.mr) {
            // SAFETY: registered in `new`; the QP, the only one to use it, is gone. If the kernel
            // keeps it, it keeps the pages too: nothing that could be done here.
            let _ = unsafe { mr::dereg_mr(mr.as_ptr()) };
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn inline(slots: u32, max: u32) -> Inline {
        Inline::of_parts(Buf::map(slots as usize * max as usize).unwrap(), slots, max, 0x77)
    }

    fn gather(inline: &Inline, position: Position, pieces: &[&[u8]]) -> Result<ibv_sge, Errno> {
        // SAFETY: slices are readable.
        unsafe { inline.gather(position, pieces.iter().map(|piece| (piece.as_ptr(), piece.len()))) }
    }

    #[test]
    fn places_are_whole_cache_lines_up_to_the_limit() {
        assert_eq!(place_len(0), Ok(0));
        assert_eq!(place_len(1), Ok(64));
        assert_eq!(place_len(256), Ok(256));
        assert_eq!(place_len(1000), Ok(1024));
        assert_eq!(place_len(1024), Ok(1024));
        for asked in [1025, u32::MAX] {
            assert_eq!(place_len(asked), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn pieces_are_joined_in_the_place_of_the_request() {
        let inline = inline(2, 64);
        let first = inline.log.next().unwrap();
        let sge = gather(&inline, first, &[b"abc", b"", b"defg"]).unwrap();
        assert_eq!((sge.length, sge.lkey), (7, 0x77));
        // SAFETY: written above.
        assert_eq!(unsafe { core::slice::from_raw_parts(sge.addr as *const u8, 7) }, b"abcdefg");
        inline.log.note(first, 0, IBV_SEND_SIGNALED);
        let second = gather(&inline, inline.log.next().unwrap(), &[b"x"]).unwrap();
        assert_eq!(second.addr, sge.addr + 64);
    }

    #[test]
    fn one_piece_of_any_length_arrives_whole_and_nothing_beside_it() {
        let inline = inline(1, 128);
        let position = inline.log.next().unwrap();
        let data: Vec<u8> = (1..=200).collect();
        for len in 0..=64 {
            let place = inline.place(position).as_ptr();
            // SAFETY: the place has 128 bytes; the piece is readable.
            unsafe {
                place.write_bytes(0xee, 128);
                assert!(inline.takes_one(len as u32));
                let mut empty = false;
                let sge = inline.put_one(position, data.as_ptr(), len as u32, || empty = true);
                assert_eq!(empty, len == 0);
                assert_eq!((sge.addr, sge.length, sge.lkey), (place as u64, len as u32, 0x77));
                let copied = core::slice::from_raw_parts(place, 128);
                assert_eq!(&copied[..len], &data[..len]);
                assert!(copied[len..].iter().all(|byte| *byte == 0xee), "{len} bytes");
            }
        }
        assert!(!inline.takes_one(65));
    }

    #[test]
    fn as_much_as_fits_and_no_more() {
        let inline = inline(1, 64);
        let position = inline.log.next().unwrap();
        assert_eq!(gather(&inline, position, &[&[1; 60], &[2; 4]]).unwrap().length, 64);
        assert_eq!(gather(&inline, position, &[&[1; 60], &[2; 5]]).err(), Some(Errno::EINVAL));
        assert_eq!(gather(&inline, position, &[&[1; 65]]).err(), Some(Errno::EINVAL));
    }
}
