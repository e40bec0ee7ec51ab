//! A cable between two hosts, which a test can cut, mend, or have carry nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// See the module text.
pub struct Cable {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    cut: AtomicBool,
    frozen: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
}

impl Cable {
    /// One that ends at a host which listens there, sooner or later.
    pub fn to(host: SocketAddr) -> Cable {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let own = state.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(host)) else { continue };
                let mut sockets = own.sockets.lock().unwrap();
                if own.cut.load(Ordering::SeqCst) {
                    continue;
                }
                let copies = [(&near, &far), (&far, &near)].map(|(from, to)| (clone(from), clone(to)));
                sockets.extend([near, far]);
                for (from, to) in copies {
                    let state = own.clone();
                    std::thread::spawn(move || carry(&state, from, to));
                }
            }
        });
        Cable { address, state }
    }

    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends connections, and lets none begin.
    pub fn cut(&self) {
        let mut sockets = self.state.sockets.lock().unwrap();
        self.state.cut.store(true, Ordering::SeqCst);
        for socket in sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// It carries nothing any more, and nobody is told.
    pub fn freeze(&self) {
        self.state.frozen.store(true, Ordering::SeqCst);
    }

    /// It is as new.
    pub fn mend(&self) {
        self.state.frozen.store(false, Ordering::SeqCst);
        self.state.cut.store(false, Ordering::SeqCst);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.cut();
    }
}

fn clone(socket: &TcpStream) -> TcpStream {
    socket.try_clone().unwrap()
}

fn carry(state: &State, mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer);
        while state.frozen.load(Ordering::SeqCst) && !state.cut.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        match read {
            Ok(len) if len > 0 && to.write_all(&buffer[..len]).is_ok() => {}
            _ => {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}
