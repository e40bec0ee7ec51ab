//! What the compiler made of a function: does it keep anything on the stack, and where does it go?
//!
//! Read from what objdump (binutils) says of a library; names are those of Rust, without the hash.

use std::path::Path;
use std::process::Command;

/// The machine code of one function.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Its name, such as `vmw_pvrdma::fast::post_send::post_send`.
    pub name: String,
    /// Instructions that save a register or make room on the stack.
    pub saves: Vec<String>,
    /// Calls, which come back.
    pub calls: Vec<String>,
    /// Jumps into other functions, which do not.
    pub leaves: Vec<String>,
}

/// All functions of a library. Panics without objdump.
pub fn functions(library: &Path) -> Vec<Function> {
    let output = Command::new("objdump")
        .args(["--disassemble", "--demangle", "--no-show-raw-insn", "--section=.text"])
        .arg(library)
        .output()
        .expect("objdump starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read(&String::from_utf8_lossy(&output.stdout))
}

/// The format: `0123456789abcdef <name>:` opens a function. An instruction is `    1234:`, a tab, the mnemonic, blanks
/// and its operands. Jumps and calls end in `<name+0x12>`.
fn read(text: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    for line in text.lines() {
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            functions.push(Function { name: name.to_owned(), ..Function::default() });
            continue;
        }
        let (Some(function), Some((_, instruction))) = (functions.last_mut(), line.split_once(":\t")) else { continue };
        // A prefix of its own word, as in `bnd jmp` or `lock xadd`.
        let instruction = instruction.trim();
        let bare = ["bnd ", "notrack ", "lock "].iter().find_map(|prefix| instruction.strip_prefix(prefix));
        let bare = bare.unwrap_or(instruction);
        let mnemonic = bare.split_whitespace().next().unwrap_or_default();
        let operands = bare[mnemonic.len()..].trim();
        let moves_stack = ["sub", "add", "lea", "and"].iter().any(|word| mnemonic.starts_with(word));
        if mnemonic.starts_with("push") || mnemonic.starts_with("enter") || moves_stack && operands.ends_with(",%rsp") {
            function.saves.push(instruction.to_owned());
        } else if mnemonic.starts_with("call") {
            function.calls.push(target(operands));
        } else if mnemonic.starts_with('j') {
            let target = target(operands);
            if target != function.name && !function.leaves.contains(&target) {
                function.leaves.push(target);
            }
        }
    }
    functions
}

/// The function that a jump or a call goes to; what it goes through where that is a register or memory.
fn target(operands: &str) -> String {
    let Some((_, name)) = operands.split_once(" <").filter(|_| !operands.starts_with('*')) else {
        return operands.to_owned();
    };
    let name = name.strip_suffix('>').unwrap_or(name);
    // What follows the last `+0x` is the distance from the function's start.
    name.rsplit_once("+0x").map_or(name, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
lib.so:     file format elf64-x86-64

Disassembly of section .text:

0000000000001000 <vmw::ops::post>:
    1000:\tmov    (%rdi),%rax
    1003:\tje     1010 <vmw::ops::post+0x10>
    1005:\tlock bts $0x0,(%rdi)
    100a:\tjb     2000 <vmw::cold::<impl vmw::Qp>::wait>
    1010:\tjmp    2000 <vmw::cold::<impl vmw::Qp>::wait>
    1015:\tret

0000000000002000 <vmw::cold::<impl vmw::Qp>::wait>:
    2000:\tpush   %rbp
    2001:\tsub    $0x20,%rsp
    2005:\tcall   1000 <vmw::ops::post>
    200a:\tcall   *0x123(%rip)        # 3000 <strlen@GLIBC_2.2.5>
    2010:\tadd    $0x20,%rsp
    2014:\tbnd jmp *%rax
";

    #[test]
    fn stack_calls_and_jumps_are_told_apart() {
        let [post, wait] = &read(TEXT)[..] else { panic!("two functions") };
        assert_eq!(post.name, "vmw::ops::post");
        assert_eq!(post.leaves, ["vmw::cold::<impl vmw::Qp>::wait"]);
        assert!(post.saves.is_empty() && post.calls.is_empty(), "{post:?}");
        assert_eq!(wait.saves, ["push   %rbp", "sub    $0x20,%rsp", "add    $0x20,%rsp"]);
        assert_eq!(wait.calls[0], "vmw::ops::post");
        assert!(wait.calls[1].starts_with("*0x123(%rip)"), "{wait:?}");
        assert_eq!(wait.leaves, ["*%rax"]);
    }
}
