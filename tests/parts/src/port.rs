//! Ports of loopback that nobody else takes. Binds sockets.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpSocket;

/// A port that is kept for one program to listen on. One that was free a moment ago may be the near end of somebody's connection by
/// the time a program gets to it; a bound socket that does not listen keeps it from that, and from nobody who means this port.
#[derive(Debug)]
pub struct Port {
    /// Where to listen.
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Port {
    /// Takes one.
    ///
    /// # Panics
    /// If this machine has none.
    pub fn take() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        // With it on both sides the second may bind as long as the first does not listen (Linux, socket(7)).
        socket.set_reuseaddr(true).expect("its port may be shared");
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .expect("a port is free");
        let address = socket.local_addr().expect("a bound socket has an address");
        Self {
            address,
            _socket: socket,
        }
    }

    /// Takes one for as long as this process runs.
    ///
    /// # Panics
    /// If this machine has none.
    pub fn for_good() -> SocketAddr {
        let port = Self::take();
        let address = port.address;
        std::mem::forget(port);
        address
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_is_kept_for_who_listens_on_it() {
        let port = Port::take();
        let listener = TcpListener::bind(port.address).unwrap();
        assert_eq!(listener.local_addr().unwrap(), port.address);
        let others: Vec<_> = (0..200).map(|_| Port::take()).collect();
        assert!(others.iter().all(|other| other.address != port.address));
    }
}
