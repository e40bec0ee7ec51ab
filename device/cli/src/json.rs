//! The little JSON that is written here.

use std::fmt::Write;
use std::net::SocketAddr;

/// A string of JSON.
pub fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if u32::from(c) < 0x20 => write!(out, "\\u{:04x}", u32::from(c)).expect("a string grows"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The members of an object that say which host it is about.
pub fn host(number: u16, name: &str, address: SocketAddr) -> String {
    let (name, address) = (quoted(name), quoted(&address.to_string()));
    format!("\"number\": {number}, \"name\": {name}, \"address\": {address}")
}
