//! Which private layout does the loaded libibverbs have? [`Layout::select`] decides by exported
//! symbols, [`Layout::verify`] compares the decision with what [`super::measure`] found. A
//! disagreement means an unknown build (a vendor's fork, a newer release): the provider then does
//! not register, because a wrong guess would have libibverbs call the wrong functions.

use super::context_ops::{OPS, Op, Present, verbs_context_ops};
use super::device_ops::DeviceOpsForm;
use super::measure::Measured;
use core::ffi::{CStr, c_void};
use core::fmt;

/// A known PABI: the number in `IBVERBS_PRIVATE_<n>`, in the file suffix `-rdmav<n>.so` and in the
/// name of the register function.
#[derive(Debug)]
struct Pabi {
    number: u32,
    register: &'static CStr,
}

const fn pabi(number: u32, register: &'static CStr) -> Pabi {
    Pabi { number, register }
}

/// Exactly one register function is exported by a library. A new PABI is one row here.
static PABIS: [Pabi; 7] = [
    pabi(65, c"verbs_register_driver_65"),
    pabi(64, c"verbs_register_driver_64"),
    pabi(59, c"verbs_register_driver_59"),
    pabi(57, c"verbs_register_driver_57"),
    pabi(34, c"verbs_register_driver_34"),
    pabi(33, c"verbs_register_driver_33"),
    pabi(25, c"verbs_register_driver_25"),
];

/// PABI 25 also covers v25..v27, whose tables differ; they lack this symbol.
const FIRST_KNOWN_RELEASE: &CStr = c"ibv_reg_mr_iova2";

/// Offset of the `ibv_context` inside `verbs_context` in v28, and by how much it moved since.
/// New members are put at the front of `verbs_context`, hence the movement.
const CONTEXT_OFFSET_V28: usize = 320;
static CONTEXT_GREW: [(&CStr, usize); 3] =
    [(c"ibv_reg_mr_ex", 24), (c"ibv_dm_export_dmabuf_fd", 8), (c"ibv_alloc_buf", 16)];

/// `verbs_device_ops.import_context` came with this symbol.
const IMPORT_CONTEXT: &CStr = c"ibv_import_device";

/// Bytes a QP object keeps for `verbs_qp`, whose size differs between releases that share a PABI
/// and symbols. The largest known is 376.
pub const VERBS_QP_ROOM: usize = 512;
/// Bytes a CQ object keeps for `verbs_cq`: 288 in all releases.
pub const VERBS_CQ_ROOM: usize = 288;
/// Bytes an SRQ object keeps for `verbs_srq`: 160 in all releases.
pub const VERBS_SRQ_ROOM: usize = 160;
/// Size of `ibv_context`, the last member of `verbs_context`, in all releases.
pub const IBV_CONTEXT_SIZE: usize = 328;

/// The layout of one libibverbs.
#[derive(Debug)]
pub struct Layout {
    /// PABI number.
    pub pabi: u32,
    /// Name of the register function.
    pub register: &'static CStr,
    /// Members of `verbs_context_ops`, in order.
    pub ops: Vec<&'static Op>,
    /// Bytes from the `verbs_context` to the `ibv_context` inside it.
    pub context_offset: usize,
    /// Form of the struct that is registered.
    pub device_ops: DeviceOpsForm,
}

/// Why a libibverbs cannot be served.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// No known register function: older than v28 or newer than this build knows.
    UnknownPabi,
    /// v25..v27.
    TooOld,
    /// A function this release should export is missing.
    Missing(&'static CStr),
    /// Measurement and table disagree.
    Differs {
        /// What was compared.
        what: &'static str,
        /// Value of the table.
        expected: usize,
        /// Value found.
        found: usize,
    },
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPabi => f.write_str("its private ABI number is not one this build knows"),
            Self::TooOld => f.write_str("it is older than rdma-core v28"),
            Self::Missing(name) => write!(f, "it does not export {}", name.to_string_lossy()),
            Self::Differs { what, expected, found } => {
                write!(f, "its {what} measures {found} where {expected} was expected")
            }
        }
    }
}

impl Layout {
    /// Decide by exported symbols. `exports` says whether libibverbs exports a name.
    pub fn select(exports: impl Fn(&CStr) -> bool) -> Result<Self, Unsupported> {
        let pabi = PABIS.iter().find(|p| exports(p.register)).ok_or(Unsupported::UnknownPabi)?;
        if !exports(FIRST_KNOWN_RELEASE) {
            return Err(Unsupported::TooOld);
        }
        let ops = OPS
            .iter()
            .filter(|op| match op.present {
                Present::Always => true,
                Present::With(symbol) => exports(symbol),
                Present::Without(symbol) => !exports(symbol),
            })
            .collect();
        let grew: usize = CONTEXT_GREW.iter().filter(|(symbol, _)| exports(symbol)).map(|(_, bytes)| bytes).sum();
        let device_ops = if exports(IMPORT_CONTEXT) { DeviceOpsForm::V31 } else { DeviceOpsForm::V28 };
        Ok(Self {
            pabi: pabi.number,
            register: pabi.register,
            ops,
            context_offset: CONTEXT_OFFSET_V28 + grew,
            device_ops,
        })
    }

    /// Compare with what was measured on the running library.
    pub fn verify(&self, measured: &Measured) -> Result<(), Unsupported> {
        let same = |what, expected, found| {
            if expected == found { Ok(()) } else { Err(Unsupported::Differs { what, expected, found }) }
        };
        same("number of context ops", self.ops.len(), measured.op_count)?;
        same("offset of ibv_context", self.context_offset, measured.context_offset)?;
        for (index, op) in self.ops.iter().enumerate() {
            if let Some(slot) = op.slot {
                let found = measured.op_in_slot(slot).unwrap_or(usize::MAX);
                same(op.name, index, found)?;
            }
        }
        // The value may be any of the known ones; what counts is that the object has room for it.
        match measured.qp_comp_mask {
            Some(offset) if offset + 16 <= VERBS_QP_ROOM => Ok(()),
            found => same("verbs_qp", 360, found.unwrap_or(usize::MAX)),
        }
    }

    /// Lay `ops` out for this libibverbs. An op this release does not have is left out.
    pub fn context_ops(&self, ops: &verbs_context_ops) -> Box<[*const c_void]> {
        let mut table = vec![core::ptr::null(); self.ops.len()].into_boxed_slice();
        for (name, function) in ops.entries() {
            if let Ok(index) = self.ops.binary_search_by(|op| op.name.cmp(name)) {
                table[index] = function;
            }
        }
        table
    }
}
