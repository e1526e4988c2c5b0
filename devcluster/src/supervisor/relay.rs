//! Ports of 127.0.0.1 of this machine that lead into the cluster, and listeners inside that lead out to this machine.
//! The only ways in and out: there is no route.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::namespaces::Namespace;
use crate::error::{Error, Result};

/// All open relays.
#[derive(Clone, Default)]
pub(crate) struct Relays(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    inward: BTreeMap<u16, Relay>,
    outward: Vec<(SocketAddr, SocketAddr)>,
}

struct Relay {
    target: SocketAddr,
    task: JoinHandle<()>,
}

/// From where a relay reaches its target.
#[derive(Clone)]
enum From {
    Namespace(Namespace),
    ThisMachine,
}

impl Relays {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a relay inward. Port 0 lets the kernel choose; the answer is the port.
    pub(crate) async fn open(&self, port: u16, target: SocketAddr, from: &Namespace) -> Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener
            .map_err(|error| Error::Other(format!("failed to listen on 127.0.0.1:{port}: {error}")))?;
        let port = listener
            .local_addr()
            .map_err(|error| Error::Other(error.to_string()))?
            .port();
        let task = tokio::spawn(serve(listener, target, From::Namespace(from.clone())));
        self.lock().inward.insert(port, Relay { target, task });
        Ok(port)
    }

    /// Closes a relay inward, and returns when its port is free; its connections live on until either end closes them.
    pub(crate) async fn close(&self, port: u16) -> Result<()> {
        let relay = self.lock().inward.remove(&port);
        let relay = relay.ok_or_else(|| Error::Other(format!("127.0.0.1:{port} is not forwarded")))?;
        relay.task.abort();
        // Until the task is gone it listens: whoever opens the port again at once would be told that it is in use.
        let _ = relay.task.await;
        Ok(())
    }

    /// Opens a relay outward.
    pub(crate) async fn expose(&self, at: &Namespace, listen: SocketAddr, target: SocketAddr) -> Result<()> {
        let listener = at.listen_tcp(listen).await?;
        tokio::spawn(serve(listener, target, From::ThisMachine));
        self.lock().outward.push((listen, target));
        Ok(())
    }

    /// Where each port of this machine leads.
    pub(crate) fn inward(&self) -> BTreeMap<u16, SocketAddr> {
        self.lock()
            .inward
            .iter()
            .map(|(port, relay)| (*port, relay.target))
            .collect()
    }

    /// Where each listener inside leads.
    pub(crate) fn outward(&self) -> Vec<(SocketAddr, SocketAddr)> {
        self.lock().outward.clone()
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, from: From) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(carry(client, target, from.clone()));
            }
            // Out of descriptors, most likely: they come back when connections end.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
        }
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr, from: From) {
    let connected = match from {
        From::Namespace(namespace) => namespace.connect(target).await,
        From::ThisMachine => TcpStream::connect(target).await,
    };
    // A target that refuses is seen by the client as a closed connection.
    let Ok(mut server) = connected else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
