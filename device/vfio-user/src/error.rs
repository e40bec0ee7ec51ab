//! Why a server does not start. `pvrdma serve` prints an error with its causes, so no text repeats its cause's.

use std::io;
use std::path::PathBuf;

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody serves it already.
    #[error("{0}: another process serves this socket")]
    InUse(PathBuf),
    /// Something that is not a socket has that name.
    #[error("{0}: exists and is not a socket")]
    NotSocket(PathBuf),
    /// The socket cannot be made.
    #[error("{0}: cannot make a socket")]
    Bind(PathBuf, #[source] io::Error),
    /// The kernel has no io_submit(2), or this process may not use it.
    #[error("cannot raise interrupts, for which io_setup(2) is needed")]
    Interrupts(#[source] io::Error),
    /// Signals or threads.
    #[error(transparent)]
    System(#[from] io::Error),
}
