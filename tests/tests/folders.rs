//! Which folder of a crate may import which, and that no files import each other in a circle. Cargo sees
//! to the edges between crates (`architecture.rs`); inside one nothing but this test does.
//!
//! An import is any path that begins with `crate`, `super` or `self`, in code that is not a test.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pvrdma_tests::workspace;

/// A crate's rooms. A room is a folder below `src`, or a file there that has none.
struct House {
    /// Where its sources are.
    src: &'static str,
    /// Rooms of tests and of the other side played by hand: they may use everything, and nothing uses them.
    tests: &'static [&'static str],
    /// Each room and those it may import. `lib` and the tests are left out.
    rooms: &'static [(&'static str, &'static [&'static str])],
    /// Circles of files that are as they should be; see the documentation of the crate.
    circles: &'static [&'static [&'static str]],
}

const HOUSES: &[House] = &[
    House {
        src: "provider/src",
        tests: &["testing", "tests"],
        rooms: &[
            ("register", &["boundary", "ops", "support", "verbs"]),
            ("ops", &["boundary", "fast", "verbs"]),
            ("direct", &["boundary", "support", "verbs"]),
            ("boundary", &["support"]),
            ("fast", &["boundary", "ring", "support", "verbs"]),
            ("verbs", &["ring", "support"]),
            ("ring", &["support"]),
            ("support", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/cm/src",
        tests: &[],
        rooms: &[("manager", &["connection", "message"]), ("connection", &["message"]), ("message", &[])],
        circles: &[],
    },
    House {
        src: "device/core/src",
        tests: &["testing"],
        rooms: &[
            (
                "device",
                &[
                    "budget",
                    "clock",
                    "command",
                    "doorbell",
                    "engine",
                    "handle",
                    "interrupt",
                    "memory",
                    "objects",
                    "rings",
                    "transport",
                ],
            ),
            ("engine", &["budget", "clock", "handle", "interrupt", "memory", "objects", "rings", "transport"]),
            ("objects", &["budget", "command", "doorbell", "handle", "interrupt", "memory", "rings", "transport"]),
            ("transport", &["handle", "memory", "rings"]),
            ("rings", &["handle", "memory"]),
            ("command", &["handle", "memory"]),
            ("doorbell", &["handle"]),
            ("trace", &["doorbell", "handle", "interrupt", "rings", "transport"]),
            ("interrupt", &["handle", "rings", "transport"]),
            ("guest", &["handle"]),
            ("budget", &["memory"]),
            ("clock", &[]),
            ("memory", &[]),
            ("handle", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/fabric/src",
        tests: &["loom", "tests"],
        rooms: &[
            ("gateway", &["copy", "hazard", "segment", "sync", "taken", "transport", "words"]),
            ("transport", &["bell", "copy", "hazard", "say", "segment", "sync", "taken", "words"]),
            ("taken", &["segment"]),
            ("memory", &["copy", "section"]),
            ("copy", &["hazard", "say", "section", "segment", "sync"]),
            ("hazard", &["bell", "say", "section", "segment", "sync"]),
            ("segment", &["bell", "guard", "say", "section", "sync", "words"]),
            ("section", &["sync"]),
            ("bell", &["sync"]),
            ("guard", &[]),
            ("say", &[]),
            ("words", &[]),
            ("sync", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/net/src",
        tests: &["testing"],
        rooms: &[
            ("folder", &["fabric", "gids", "identity"]),
            ("issued", &["fabric", "gids"]),
            ("join", &["fabric", "identity"]),
            ("identity", &["gids"]),
            ("fabric", &["gids"]),
            ("hosts", &["connection", "event", "frame", "gids"]),
            ("connection", &["event", "frame", "lanes", "limits"]),
            ("gids", &["frame"]),
            ("event", &["frame"]),
            ("lanes", &["frame"]),
            ("limits", &["frame"]),
            ("frame", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/capture/src",
        tests: &[],
        rooms: &[
            ("tap", &["frames", "writer"]),
            ("recorder", &["frames", "writer"]),
            ("writer", &["file"]),
            ("frames", &[]),
            ("file", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/roce/src",
        tests: &["testing"],
        rooms: &[
            ("frame", &["headers", "icrc", "packet"]),
            ("icrc", &["headers"]),
            ("headers", &[]),
            ("rc", &["message", "packet"]),
            ("message", &["packet"]),
            ("packet", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/hca/src",
        tests: &[],
        rooms: &[
            ("adapter", &["card", "flow", "port", "verbs"]),
            ("port", &["card"]),
            ("card", &[]),
            ("flow", &[]),
            ("verbs", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/link/src",
        tests: &[],
        rooms: &[
            ("gateway", &["convert", "ethernet", "links", "near", "outbound", "socket", "tell", "udp"]),
            ("uplink", &["convert", "links", "log", "near", "outbound"]),
            ("outbound", &["convert"]),
            ("links", &["adapters", "bearer", "log", "near", "socket"]),
            ("adapters", &[]),
            ("bearer", &[]),
            ("convert", &[]),
            ("log", &[]),
            ("near", &[]),
            ("neighbours", &[]),
            ("socket", &["ethernet", "udp"]),
            ("ethernet", &["neighbours", "udp"]),
            ("tell", &[]),
            ("udp", &[]),
        ],
        circles: &[],
    },
    House {
        src: "device/standin/src",
        tests: &[],
        rooms: &[
            ("load", &["interpose", "kernel", "support"]),
            ("interpose", &["kernel", "process", "support"]),
            ("process", &["kernel", "support"]),
            ("kernel", &["support"]),
            ("support", &[]),
        ],
        // A descriptor's object is what a call on it is given, as the kernel's file->private_data is.
        circles: &[&["kernel/events", "kernel/fd", "kernel/uverbs"]],
    },
];

/// A module by its path below `crate`.
type Module = Vec<String>;

/// The modules of a crate and what each imports.
fn imports(house: &House) -> BTreeMap<Module, BTreeSet<Module>> {
    let src = workspace().join(house.src);
    let mut files = Vec::new();
    collect(&src, &mut files);
    let modules: BTreeMap<Module, PathBuf> = files.into_iter().map(|file| (module_of(&src, &file), file)).collect();
    let known: BTreeSet<Module> = modules.keys().cloned().collect();
    modules
        .iter()
        .filter(|(module, _)| !house.tests.iter().any(|tests| module.first().is_some_and(|first| first == tests)))
        .map(|(module, file)| {
            let code = without_tests_and_comments(&fs::read_to_string(file).expect("a source file"));
            let mut found = BTreeSet::new();
            for path in paths(&code, module) {
                // The longest beginning that is a file; what follows is an item in it.
                let target = (1..=path.len()).rev().map(|len| path[..len].to_vec()).find(|path| known.contains(path));
                found.extend(target.filter(|target| target != module));
            }
            (module.clone(), found)
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn module_of(src: &Path, file: &Path) -> Module {
    let relative = file.strip_prefix(src).expect("below src").with_extension("");
    let mut module: Module = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    module
}

/// Code down to the tests at its end, without comments.
fn without_tests_and_comments(text: &str) -> String {
    let end =
        text.find("\n#[cfg(test)]\nmod tests").or_else(|| text.find("\n#[cfg(test)]\n#[allow")).unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    // What is there for tests only is behind a line of its own.
    let mut kept = String::new();
    let mut skip = false;
    for line in lines {
        if !skip {
            kept.push_str(line);
            kept.push('\n');
        }
        skip = line.trim_start().starts_with("#[cfg(") && line.contains("test");
    }
    kept
}

/// All paths that begin with `crate`, `super` or `self`, braces resolved.
fn paths(code: &str, module: &Module) -> Vec<Module> {
    let parent = || module[..module.len().saturating_sub(1)].to_vec();
    let mut found = Vec::new();
    for (root, base) in [("crate::", Vec::new()), ("super::", parent()), ("self::", module.clone())] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            tree(&mut code[at + root.len()..].chars().peekable(), base.clone(), &mut found);
        }
    }
    found
}

/// One path or, in braces, several.
fn tree(code: &mut std::iter::Peekable<std::str::Chars<'_>>, mut path: Module, found: &mut Vec<Module>) {
    loop {
        while code.next_if(|c| c.is_whitespace()).is_some() {}
        if code.next_if_eq(&'{').is_some() {
            loop {
                tree(code, path.clone(), found);
                while code.next_if(|c| c.is_whitespace()).is_some() {}
                match code.next() {
                    Some(',') => {}
                    _ => return,
                }
            }
        }
        let mut word = String::new();
        while let Some(c) = code.next_if(|c| c.is_alphanumeric() || *c == '_') {
            word.push(c);
        }
        if word.is_empty() {
            break;
        }
        if word != "self" {
            path.push(word);
        }
        if code.next_if_eq(&':').is_none() || code.next_if_eq(&':').is_none() {
            break;
        }
    }
    found.push(path);
}

#[test]
fn folders_import_only_what_they_may() {
    for house in HOUSES {
        let allowed: BTreeMap<&str, &[&str]> = house.rooms.iter().copied().collect();
        let imports = imports(house);
        let rooms: BTreeSet<&str> = imports.keys().filter_map(|module| Some(module.first()?.as_str())).collect();
        let rooms: BTreeSet<&str> = rooms.into_iter().filter(|room| *room != "lib").collect();
        assert_eq!(rooms, allowed.keys().copied().collect(), "{}: every room has its line in HOUSES", house.src);
        for (from, targets) in &imports {
            let Some(room) = from.first().filter(|room| *room != "lib") else { continue };
            for to in targets.iter().filter(|to| to[0] != *room) {
                let message = format!("{}: {} must not import {}", house.src, from.join("/"), to.join("/"));
                assert!(allowed[room.as_str()].contains(&to[0].as_str()), "{message}");
            }
        }
        // A permission nobody uses is a door left open.
        for (room, may) in house.rooms {
            for may in *may {
                let used = imports.iter().any(|(from, targets)| {
                    from.first().is_some_and(|f| f == room) && targets.iter().any(|to| to[0] == *may)
                });
                assert!(used, "{}: {room} may import {may} and does not", house.src);
            }
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for house in HOUSES {
        let mut left = imports(house);
        // Files that import nothing which is left, or are imported by nothing, are in no circle.
        loop {
            let remaining: BTreeSet<Module> = left.keys().cloned().collect();
            let imported: BTreeSet<Module> = left.values().flatten().cloned().collect();
            let before = left.len();
            left.retain(|module, targets| {
                targets.retain(|target| remaining.contains(target));
                !targets.is_empty() && imported.contains(module)
            });
            if left.len() == before {
                break;
            }
        }
        let circle: BTreeSet<String> = left.keys().map(|module| module.join("/")).collect();
        let allowed: BTreeSet<String> =
            house.circles.iter().flat_map(|circle| circle.iter()).map(|s| s.to_string()).collect();
        assert_eq!(circle, allowed, "{}: files that import each other", house.src);
    }
}

#[test]
fn paths_in_braces_are_all_seen() {
    let code = "use crate::a::{self, b, c::{D, e}};\nfn f() { crate::g::h(); super::i::J; not_crate::k(); }";
    let found: BTreeSet<String> =
        paths(code, &vec!["x".into(), "y".into()]).iter().map(|path| path.join("/")).collect();
    assert_eq!(found, ["a", "a/b", "a/c/D", "a/c/e", "g/h", "x/i/J"].map(String::from).into());
}
