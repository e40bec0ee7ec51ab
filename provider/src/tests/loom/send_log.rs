//! [`crate::support::send_log`] by itself, with a device that loom knows nothing of: a completion comes, and
//! nothing but the log orders poster and poller.

use super::{both, holds};
use crate::support::send_log::{Logged, SendLog};
use pvrdma_ffi::verbs::IBV_SEND_SIGNALED;
use std::rc::Rc;

pub fn a_completion_finds_what_was_noted() {
    let log = Rc::new(SendLog::new(2));
    let first = log.note(log.next().unwrap(), 1, IBV_SEND_SIGNALED);
    let other = log.clone();
    let post = move || other.note(other.next().unwrap(), 2, IBV_SEND_SIGNALED);
    // Cookies are numbered.
    let (second, found) = both(post, || log.completed(first + 1));
    assert_eq!(second, first + 1);
    // It was noted, or not yet.
    assert!(found.is_none_or(|found| found == Logged { wr_id: 2, signaled: true }), "{found:?}");
}

#[test]
fn a_completion_finds_what_was_noted_or_nothing() {
    holds(a_completion_finds_what_was_noted);
}
