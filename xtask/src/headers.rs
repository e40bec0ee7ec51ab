//! `cargo xtask headers`: C headers of `ffi/`, for C programs and debuggers that look at the same memory.
//!
//! The headers are checked in below `include/`, never edited, and `cargo xtask test` proves them fresh.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Writes the headers; with `--check` only compares them.
pub fn main(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => write(),
        [one] if one == "--check" => check(),
        _ => bail!("usage: cargo xtask headers [--check]"),
    }
}

/// One header.
struct Header {
    /// What is made.
    name: &'static str,
    /// cbindgen's settings.
    config: &'static str,
    /// What it is made of. The rest of `ffi/` has C headers already.
    sources: &'static [&'static str],
    /// Which of them has what `rdma/vmw_pvrdma-abi.h` has.
    kernels: Option<&'static str>,
}

const HEADERS: &[Header] = &[
    Header {
        name: "include/pvrdma.h",
        config: "ffi/pvrdma.toml",
        sources: &["ffi/src/uapi/vmw_pvrdma.rs", "ffi/src/dev_api.rs"],
        kernels: Some("ffi/src/uapi/vmw_pvrdma.rs"),
    },
    Header {
        name: "include/infiniband/pvrdmadv.h",
        config: "ffi/pvrdmadv.toml",
        sources: &["ffi/src/pvrdmadv.rs", "provider/src/direct.rs"],
        kernels: None,
    },
];

fn write() -> Result<()> {
    HEADERS.iter().try_for_each(|header| {
        fs::write(shell::workspace().join(header.name), header.generate()?)
            .with_context(|| format!("cannot write {}", header.name))
    })
}

/// Fails with the first line that differs.
pub fn check() -> Result<()> {
    HEADERS.iter().try_for_each(Header::check)
}

impl Header {
    fn check(&self) -> Result<()> {
        let (name, fresh) = (self.name, self.generate()?);
        let path = shell::workspace().join(name);
        let kept = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        if fresh == kept {
            return Ok(());
        }
        let differs = fresh.lines().zip(kept.lines()).position(|(fresh, kept)| fresh != kept);
        let line = differs.unwrap_or_else(|| fresh.lines().count().min(kept.lines().count())) + 1;
        bail!("{name} is not what its Rust sources say, from line {line} on: run `cargo xtask headers`")
    }

    fn generate(&self) -> Result<String> {
        let mut config = cbindgen::Config::from_file(shell::workspace().join(self.config))
            .map_err(|error| anyhow::anyhow!("{}: {error}", self.config))?;
        let mut builder = cbindgen::Builder::new();
        for source in self.sources {
            let path = shell::workspace().join(source);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {source}"))?;
            config.export.include.extend(types(&text));
            builder = builder.with_src(path);
        }
        let bindings = builder.with_config(config).generate().context("cbindgen cannot read the sources")?;
        let mut text = Vec::new();
        bindings.write(&mut text);
        let text = String::from_utf8(text)?;
        // Rust's are unsigned, and in C a bit 31 that is signed spoils 64-bit words. What Rust calls safety are terms
        // like any others in C. And C of 1989 has one kind of comments.
        let text = text.replace("(1 << ", "(1u << ").replace("\n\n # Safety\n", "\n");
        let text = match self.kernels {
            None => text,
            Some(source) => beside_the_kernels(&text, &fs::read_to_string(shell::workspace().join(source))?)?,
        };
        Ok(text.replace("// __cplusplus", "/* __cplusplus */").replace("// extern \"C\"", "/* extern \"C\" */"))
    }
}

/// What is in that source and not in the kernel's header, by the beginnings of names.
const OURS: &[&str] =
    &["PCI_", "PVRDMA_PAGE_", "PVRDMA_SEND_", "PVRDMA_ACCESS_", "PVRDMA_ZERO_", "PVRDMA_SQ_", "pvrdma_ring"];

/// The header, made so that `rdma/vmw_pvrdma-abi.h` may come before it or after it: what that has as well stands
/// behind its guard, and in the same form, with enums and with the union of a send WQE.
fn beside_the_kernels(text: &str, source: &str) -> Result<String> {
    let (head, items, tail) = items(text);
    let enums = enums(source);
    let is_shared = |name: &str| {
        let declared = ["pub const ", "pub struct "].iter().any(|word| {
            source.lines().filter_map(|line| line.strip_prefix(word)).any(|rest| {
                rest.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '_'))
            })
        });
        declared && !OURS.iter().any(|begin| name.starts_with(begin)) && !name.starts_with("pvrdma_wr_")
    };
    let (shared, own): (Vec<Item>, Vec<Item>) = items.into_iter().partition(|item| is_shared(&item.name));
    let mut out = head;
    out += "/*\n * What <rdma/vmw_pvrdma-abi.h> of Linux has too: taken from there if that was included before, and not again \
            from there\n * after this.\n */\n#ifndef __VMW_PVRDMA_ABI_H__\n#define __VMW_PVRDMA_ABI_H__\n\
            #define PVRDMA_H_HAS_ABI\n\n";
    let mut wqe = None;
    for item in &shared {
        let of = enums.iter().find(|(_, names)| names.contains(&item.name));
        match of {
            // All of an enum where its first one is.
            Some((name, names)) if names.first() == Some(&item.name) => {
                let values = names.iter().map(|name| {
                    let item = shared.iter().find(|item| item.name == *name).context("a value of an enum")?;
                    let value = item.text.rsplit_once(&format!("#define {name} ")).context("a value")?.1;
                    Ok(format!("    {name} = {}", value.trim()))
                });
                let values: Result<Vec<String>> = values.collect();
                out += &format!("enum {name} {{\n{}\n}};\n\n", values?.join(",\n"));
            }
            Some(_) => {}
            None if item.name == "pvrdma_sq_wqe_hdr" => wqe = Some(&item.text),
            None => out += &format!("{}\n", item.text),
        }
    }
    out += "#endif /* __VMW_PVRDMA_ABI_H__ */\n\n";
    for item in &own {
        let text = item.text.replace(
            "uint64_t wr_data[4];",
            "union {\n        struct pvrdma_ex_cmp_swap cmp_swap;\n        \
                                      struct pvrdma_ex_fetch_add fetch_add;\n    } wr_data;",
        );
        out += &format!("{text}\n");
    }
    let wqe = wqe.context("no send WQE")?;
    let forms = ["rdma", "atomic", "masked_atomics", "fast_reg", "ud"];
    let forms: String = forms.iter().map(|form| format!("        struct pvrdma_wr_{form} {form};\n")).collect();
    let union = format!("union {{\n{forms}    }} wr;");
    let wqe = wqe
        .replace("uint32_t ex;", "union {\n        uint32_t imm_data;\n        uint32_t invalidate_rkey;\n    } ex;")
        .replace("uint8_t wr[PVRDMA_SQ_WQE_WR_LEN];", &union);
    out += &format!("#ifdef PVRDMA_H_HAS_ABI\n\n{wqe}\n#endif /* PVRDMA_H_HAS_ABI */\n\n{tail}");
    Ok(out)
}

/// A macro or a struct with the comment in front of it.
struct Item {
    name: String,
    text: String,
}

/// What is before them, they, what is behind.
fn items(text: &str) -> (String, Vec<Item>, String) {
    let (mut items, mut pending, mut is_open) = (Vec::new(), String::new(), false);
    let (head, body) = text.split_once("#include <stdint.h>\n\n").unwrap_or(("", text));
    for line in body.lines() {
        // What is between two of them.
        if line.is_empty() && pending.is_empty() {
            continue;
        }
        pending += line;
        pending.push('\n');
        let word = |prefix: &str| line.strip_prefix(prefix).and_then(|rest| rest.split(' ').next()).map(str::to_owned);
        let name = word("#define ").or_else(|| word("struct ").inspect(|_| is_open = true));
        if let Some(name) = name {
            items.push(Item { name, text: String::new() });
        }
        if line.starts_with("#define ") || is_open && line == "};" {
            is_open = false;
            if let Some(item) = items.last_mut() {
                item.text = std::mem::take(&mut pending);
            }
        }
    }
    (format!("{head}#include <stdint.h>\n\n"), items, pending)
}

/// The enums that a source has constants of, by the headings of its sections.
fn enums(source: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut is_in = false;
    for line in source.lines() {
        if let Some(heading) = line.strip_prefix("// ---- ") {
            let name = heading.strip_prefix("enum ").filter(|rest| !rest.contains(','));
            is_in = name.is_some();
            found.extend(name.and_then(|rest| rest.split(' ').next()).map(|name| (name.to_owned(), Vec::new())));
        } else if let (true, Some(rest), Some((_, names))) = (is_in, line.strip_prefix("pub const "), found.last_mut())
        {
            names.extend(rest.split(':').next().map(str::to_owned));
        }
    }
    found
}

/// Names of the public structs and unions of a source file. cbindgen leaves out what no function uses, and few of
/// these are used by one.
fn types(source: &str) -> impl Iterator<Item = String> {
    source.lines().filter_map(|line| {
        let rest = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub union "))?;
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().map(str::to_owned)
    })
}
