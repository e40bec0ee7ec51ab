//! Whoever asks how something fares, over a socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

/// Tells whoever connects, for ever. Where nobody can be let in it is tried again: no descriptor is free, as a rule.
pub fn tell_all(accept: impl Fn() -> io::Result<UnixStream>, say: impl Fn(bool) -> String) -> ! {
    loop {
        match accept() {
            Ok(asker) => tell(asker, &say),
            Err(_) => thread::sleep(PATIENCE),
        }
    }
}

/// How long it may take to say what it wants, and to hear.
const PATIENCE: Duration = Duration::from_millis(50);

/// Tells one who has connected, in the words of `say`: as JSON if it wants that.
fn tell(mut asker: UnixStream, say: impl FnOnce(bool) -> String) {
    // It need not say anything, and need not listen.
    let _ = asker.set_read_timeout(Some(PATIENCE));
    let _ = asker.set_write_timeout(Some(PATIENCE));
    let mut word = [0; 5];
    let json = asker.read_exact(&mut word).is_ok() && word == *b"json\n";
    let _ = asker.write_all(say(json).as_bytes());
}
