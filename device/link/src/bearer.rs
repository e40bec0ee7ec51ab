//! One connection: a socket that never blocks, with TLS or without, and what waits at both of its ends. Once both hosts
//! say so, bytes go over their adapters instead, and the socket only tells of its end.

use mio::net::TcpStream;
use pvrdma_hca::Adapter;
use pvrdma_net::frame::FRAME;
use rustls::Connection;
use rustls::pki_types::CertificateDer;
use std::io::{self, Read, Write};

/// What is read may be as long as this; there is always room for a whole frame.
const INPUT: usize = 4 * FRAME;
/// Records of TLS are made of this much at a time: what is being encrypted stays in the cache.
const RECORDS: usize = 64 * 1024;

/// See the module text.
pub struct Bearer {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
    /// The socket may have something, or take something.
    readable: bool,
    writable: bool,
    /// The poll has told of its end, and will not do so again.
    ending: bool,
    /// Nothing more comes.
    ended: bool,
    input: Box<[u8]>,
    /// Bytes of `input` that are taken in, and that are there.
    taken: usize,
    filled: usize,
    out: Vec<u8>,
    /// Bytes of `out` that have left.
    sent: usize,
    adapter: Option<Adapter>,
    /// What comes is read from the adapter; `out` goes over it.
    reads_adapter: bool,
    over_adapter: bool,
    /// The socket may have something, which can only be its end.
    heard: bool,
    /// What the adapter has said of itself.
    failed: Option<io::Error>,
}

impl Bearer {
    /// A socket that is connected, or is about to be.
    pub fn new(socket: TcpStream, tls: Option<Connection>) -> Bearer {
        let _ = socket.set_nodelay(true);
        Bearer {
            socket,
            tls: tls.map(Box::new),
            readable: true,
            writable: true,
            ending: false,
            ended: false,
            input: vec![0; INPUT].into(),
            taken: 0,
            filled: 0,
            out: Vec::new(),
            sent: 0,
            adapter: None,
            reads_adapter: false,
            over_adapter: false,
            heard: false,
            failed: None,
        }
    }

    /// This host's adapter for this connection, from when the hosts speak of them.
    pub fn adapter(&mut self) -> &mut Option<Adapter> {
        &mut self.adapter
    }

    /// Whether there is one.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// The poll tells of the adapter.
    pub fn adapter_is_ready(&mut self) {
        let told = self.adapter.as_mut().map_or(Ok(()), Adapter::is_ready);
        self.failed = told.err().or(self.failed.take());
        (self.readable, self.writable) = (true, true);
    }

    /// What comes from now on comes over the adapter. `false`: something has come another way.
    pub fn read_adapter(&mut self) -> bool {
        if !self.reads_adapter {
            (self.reads_adapter, self.readable, self.heard) = (true, true, true);
            return self.input().is_empty();
        }
        true
    }

    /// Whether bytes go over the adapter, in either direction.
    pub fn uses_adapter(&self) -> bool {
        self.reads_adapter || self.over_adapter
    }

    /// The socket.
    pub fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// The poll says that the socket may go on, or that it comes to its end.
    pub fn is_ready(&mut self, reading: bool, writing: bool, ending: bool) {
        self.ending |= ending;
        self.heard = true;
        self.readable |= reading || ending;
        self.writable |= writing || ending;
    }

    /// Whether there may be something to read.
    pub fn may_read(&self) -> bool {
        self.readable && !self.ended
    }

    /// Whether the other end is known, where it must be: TLS has said its last word on that.
    pub fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// What the other end has shown.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.peer_certificates()?.first()
    }

    /// Bytes that have come and were not taken in.
    pub fn input(&self) -> &[u8] {
        &self.input[self.taken..self.filled]
    }

    /// So many of them are.
    pub fn take(&mut self, bytes: usize) {
        self.taken = (self.taken + bytes).min(self.filled);
    }

    /// Reads once. `Ok(false)`: there is nothing more for now.
    pub fn read(&mut self) -> io::Result<bool> {
        if self.taken == self.filled {
            (self.taken, self.filled) = (0, 0);
        } else if INPUT - self.taken < 2 * FRAME {
            // A frame that is not all there must fit behind what was taken in.
            self.input.copy_within(self.taken..self.filled, 0);
            (self.taken, self.filled) = (0, self.filled - self.taken);
        }
        let room = &mut self.input[self.filled..];
        if self.reads_adapter {
            return self.read_from_adapter();
        }
        let read = match &mut self.tls {
            None => self.socket.read(room),
            Some(tls) => read_tls(tls, &mut self.socket, room),
        };
        match read {
            Ok(0) => {
                self.ended = true;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Ok(bytes) => {
                // A stream that gives less than there was room for has no more (epoll(7), question 9).
                self.readable &= self.tls.is_some() || self.ending || bytes == room.len();
                self.filled += bytes;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn read_from_adapter(&mut self) -> io::Result<bool> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let Some(adapter) = &mut self.adapter else { return Err(io::ErrorKind::NotConnected.into()) };
        let read = adapter.read(&mut self.input[self.filled..]);
        // The other end may have said that there is room.
        self.writable |= adapter.has_room();
        match read {
            Ok(bytes) => {
                self.filled += bytes;
                return Ok(true);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) => self.readable = false,
        }
        // Before that the other end may have sent more, and then it is taken in first.
        if std::mem::take(&mut self.heard) {
            let mut byte = [0];
            let read = match &mut self.tls {
                None => self.socket.read(&mut byte),
                Some(tls) => read_tls(tls, &mut self.socket, &mut byte),
            };
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes behind the change to adapters")),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => self.heard = true,
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Where what is to be sent is put, once all that was there has left, and whether it goes over the adapter.
    pub fn out(&mut self, over_adapter: bool) -> Option<&mut Vec<u8>> {
        if self.sent < self.out.len() || !self.writable {
            return None;
        }
        self.over_adapter = over_adapter;
        self.out.clear();
        self.sent = 0;
        Some(&mut self.out)
    }

    /// Sends what there is, as far as the socket takes it. `false`: it takes no more for now.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.writable {
            let wants = self.tls.as_ref().is_some_and(|tls| tls.wants_write());
            let rest = &self.out[self.sent..];
            let wrote = match &mut self.tls {
                Some(tls) if wants => tls.write_tls(&mut self.socket),
                _ if rest.is_empty() => return Ok(true),
                _ if self.over_adapter => match &mut self.adapter {
                    Some(adapter) => adapter.write(rest).inspect(|bytes| self.sent += bytes),
                    None => Err(io::ErrorKind::NotConnected.into()),
                },
                Some(tls) if tls.is_handshaking() => return Ok(true),
                Some(tls) => tls.writer().write(&rest[..rest.len().min(RECORDS)]).inspect(|bytes| self.sent += bytes),
                None => self.socket.write(rest).inspect(|bytes| self.sent += bytes),
            };
            match wrote {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Reads records and takes out what was in them.
fn read_tls(tls: &mut Connection, socket: &mut TcpStream, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match tls.reader().read(room) {
            // It needs more records first.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        if tls.read_tls(socket)? == 0 {
            return Ok(0);
        }
        if let Err(error) = tls.process_new_packets() {
            // An alert says why, if there is room for it.
            let _ = tls.write_tls(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if tls.is_handshaking() {
            // Its own part of the handshake is to be sent before more can come.
            while tls.wants_write() {
                tls.write_tls(socket)?;
            }
        }
    }
}
