//! Decodes the one kind of instruction that the doorbell trap has to stand in for: a 32-bit store.
//!
//! Providers write doorbells with plain MOV; other compilers may choose MOVNTI, XCHG or a store from a vector
//! register. The address is known from the fault, so only the length and the source are of interest.
//! (Intel SDM vol. 2: chapter 2 for the encoding, MOV, MOVNTI, XCHG, MOVD for the forms.)

/// Where the stored value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Low half of general register n (0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP, 5 RBP, 6 RSI, 7 RDI, 8..15 R8..R15).
    Register(u8),
    /// As `Register`; afterwards the register holds what was in memory (XCHG), which reads as 0.
    Exchange(u8),
    /// Constant in the instruction.
    Immediate(u32),
    /// Low 32 bits of XMM register n.
    Vector(u8),
}

/// A decoded store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Where the value comes from.
    pub source: Source,
    /// Bytes of the instruction.
    pub len: usize,
}

/// Longest x86 instruction.
pub const MAX_LEN: usize = 15;

/// Decodes the instruction at the start of `code`; `None` if it is no 32-bit store to memory.
pub fn decode(code: &[u8]) -> Option<Store> {
    let mut at = 0;
    let mut next = || {
        let byte = code.get(at).copied();
        at += 1;
        byte
    };
    let mut operand_size = false;
    let mut byte = next()?;
    // Legacy prefixes: segment overrides, operand size, address size, LOCK.
    while matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67 | 0xf0) {
        operand_size |= byte == 0x66;
        byte = next()?;
    }
    // VEX.128.66.0F.W0 7E /r: vmovd, two-byte prefix form (three-byte only adds what memory operands rarely need).
    if byte == 0xc5 {
        let vex = next()?;
        if vex & 0x07 != 0x01 || next()? != 0x7e {
            return None;
        }
        let modrm = next()?;
        let vector = modrm >> 3 & 7 | if vex & 0x80 == 0 { 8 } else { 0 };
        return Some(Store { source: Source::Vector(vector), len: operand_len(&code[at..], modrm)? + at });
    }
    let mut rex = 0;
    if byte & 0xf0 == 0x40 {
        rex = byte;
        byte = next()?;
    }
    // REX.W makes it 64 bits wide, 0x66 makes it 16: neither is a doorbell.
    if rex & 0x08 != 0 {
        return None;
    }
    let escaped = byte == 0x0f;
    if escaped {
        byte = next()?;
    }
    let modrm = next()?;
    let register = modrm >> 3 & 7 | (rex & 0x04) << 1;
    let len = at + operand_len(&code[at..], modrm)?;
    let source = match (escaped, byte, operand_size) {
        (false, 0x89, false) | (true, 0xc3, false) => Source::Register(register),
        (false, 0x87, false) => Source::Exchange(register),
        (true, 0x7e, true) => Source::Vector(register),
        (false, 0xc7, false) if register & 7 == 0 => {
            let immediate = code.get(len..len + 4)?.first_chunk::<4>()?;
            return Some(Store { source: Source::Immediate(u32::from_le_bytes(*immediate)), len: len + 4 });
        }
        _ => return None,
    };
    Some(Store { source, len })
}

/// Bytes of SIB and displacement behind a ModRM byte that names memory.
fn operand_len(rest: &[u8], modrm: u8) -> Option<usize> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let sib = usize::from(rm == 4);
    let displacement = match mode {
        0 if rm == 5 => 4,
        0 if rm == 4 && rest.first()? & 7 == 5 => 4,
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    Some(sib + displacement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(source: Source, len: usize) -> Option<Store> {
        Some(Store { source, len })
    }

    #[test]
    fn every_form_a_compiler_may_choose() {
        use Source::*;
        for (code, expected) in [
            (&[0x89, 0x01][..], store(Register(0), 2)),          // mov %eax,(%rcx)
            (&[0x89, 0x42, 0x08], store(Register(0), 3)),        // mov %eax,8(%rdx)
            (&[0x44, 0x89, 0x3c, 0x24], store(Register(15), 4)), // mov %r15d,(%rsp)
            (&[0x41, 0x89, 0x45, 0x00], store(Register(0), 4)),  // mov %eax,0(%r13)
            (&[0x89, 0xb4, 0xd1, 0x00, 0x10, 0, 0], store(Register(6), 7)), // mov %esi,0x1000(%rcx,%rdx,8)
            (&[0x89, 0x0d, 1, 2, 3, 4], store(Register(1), 6)),  // mov %ecx,d32(%rip)
            (&[0x89, 0x0c, 0x25, 1, 2, 3, 4], store(Register(1), 7)), // mov %ecx,d32
            (&[0xc7, 0x00, 0x78, 0x56, 0x34, 0x12], store(Immediate(0x1234_5678), 6)), // movl $0x12345678,(%rax)
            (&[0xc7, 0x40, 0x04, 1, 0, 0, 0x80], store(Immediate(0x8000_0001), 7)), // movl $...,4(%rax)
            (&[0x41, 0xc7, 0x44, 0x24, 0x08, 5, 0, 0, 0], store(Immediate(5), 9)), // movl $5,8(%r12)
            (&[0x87, 0x07], store(Exchange(0), 2)),              // xchg %eax,(%rdi)
            (&[0x0f, 0xc3, 0x37], store(Register(6), 3)),        // movnti %esi,(%rdi)
            (&[0x66, 0x0f, 0x7e, 0x07], store(Vector(0), 4)),    // movd %xmm0,(%rdi)
            (&[0x66, 0x44, 0x0f, 0x7e, 0x4f, 0x04], store(Vector(9), 6)), // movd %xmm9,4(%rdi)
            (&[0xc5, 0xf9, 0x7e, 0x07], store(Vector(0), 4)),    // vmovd %xmm0,(%rdi)
            (&[0xc5, 0x79, 0x7e, 0x47, 0x08], store(Vector(8), 5)), // vmovd %xmm8,8(%rdi)
        ] {
            assert_eq!(decode(code), expected, "{code:02x?}");
        }
    }

    #[test]
    fn what_is_no_doorbell_is_refused() {
        for code in [
            &[0x8b, 0x01][..],            // a load
            &[0x48, 0x89, 0x01],          // 64 bits
            &[0x66, 0x89, 0x01],          // 16 bits
            &[0x88, 0x01],                // 8 bits
            &[0x89, 0xc1],                // register to register
            &[0xc7, 0x48, 0, 0, 0, 0, 0], // reserved /1
            &[0x89],                      // cut off
            &[0xc7, 0x00, 1, 2],          // cut off
            &[0x89, 0x04],                // cut off in front of the SIB
            &[0xc5, 0xf8, 0x11, 0x07],    // vmovups
            &[],
        ] {
            assert_eq!(decode(code), None, "{code:02x?}");
        }
    }

    #[test]
    fn nothing_reads_past_the_end() {
        for first in 0..=255u8 {
            for second in 0..=255u8 {
                for len in 0..=4 {
                    let code = [first, second, 0x84, 0x25];
                    if let Some(store) = decode(&code[..len]) {
                        assert!(store.len <= MAX_LEN);
                    }
                }
            }
        }
    }
}
