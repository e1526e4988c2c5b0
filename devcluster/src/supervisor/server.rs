//! The control socket. Carries out requests of whoever may open the state folder (root).

use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::{Cluster, namespaces, node, process};
use crate::control::{Place, Reply, Request, Status};
use crate::error::{Error, Result};
use crate::paths::StateDir;

/// Starts to answer.
pub(super) fn listen(cluster: &Arc<Cluster>) -> Result<()> {
    let path = StateDir::inside().control_socket();
    let listener = UnixListener::bind(&path).map_err(Error::file("listen on", &path))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .map_err(Error::file("protect", &path))?;
    let cluster = Arc::clone(cluster);
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            let cluster = Arc::clone(&cluster);
            tokio::spawn(async move {
                // Who asked may be gone before the answer is ready.
                let _ = converse(stream, &cluster).await;
            });
        }
    });
    Ok(())
}

async fn converse(stream: UnixStream, cluster: &Cluster) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let reply = match serde_json::from_str(&line) {
            Ok(request) => answer(request, cluster)
                .await
                .unwrap_or_else(|error| failed(&error)),
            Err(error) => Reply::Failed {
                message: format!("unreadable request: {error}"),
            },
        };
        let mut text = serde_json::to_vec(&reply)?;
        text.push(b'\n');
        writer.write_all(&text).await?;
    }
    Ok(())
}

fn failed(error: &Error) -> Reply {
    Reply::Failed {
        message: error.to_string(),
    }
}

async fn answer(request: Request, cluster: &Cluster) -> Result<Reply> {
    match request {
        Request::Status => Ok(Reply::Status(status(cluster))),
        Request::Down => {
            cluster.end.notify_one();
            Ok(Reply::Done)
        }
        Request::Component { name, action } => {
            cluster.parts.act(&name, action).await?;
            Ok(Reply::Done)
        }
        Request::Exec { place, argv, stdin } => {
            let mut command = match place {
                Place::Node => namespaces::enter(namespaces::NODE),
                Place::Outside => namespaces::enter(namespaces::OUTSIDE),
                Place::HostMounts => Vec::new(),
            };
            command.extend(argv);
            let env = super::start::environment(&cluster.tools);
            Ok(Reply::Output(
                process::output(&command, stdin.as_deref(), &env).await?,
            ))
        }
        Request::ImportImage { file, name, digest } => {
            if file.contains('/') {
                return Err(Error::Other(format!(
                    "`{file}` is not a file in the state folder"
                )));
            }
            let tar = StateDir::inside().join(file);
            node::import_image(cluster, &tar, &name, digest.as_deref()).await?;
            Ok(Reply::Done)
        }
        Request::Hits => Ok(Reply::Hits(
            cluster
                .outside
                .get()
                .map(|record| record.hits())
                .unwrap_or_default(),
        )),
        Request::Forward { listen, target } => {
            let node = cluster
                .node
                .get()
                .ok_or_else(|| Error::Other("the network is not up yet".to_owned()))?;
            Ok(Reply::Port {
                port: cluster.relays.open(listen, target, node).await?,
            })
        }
        Request::Expose {
            place,
            listen,
            target,
        } => {
            let namespace = match place {
                Place::Node => namespaces::Namespace::open(namespaces::NODE)?,
                Place::Outside => namespaces::Namespace::open(namespaces::OUTSIDE)?,
                Place::HostMounts => {
                    return Err(Error::Other(
                        "this machine's own network needs no relay".to_owned(),
                    ));
                }
            };
            cluster.relays.expose(&namespace, listen, target).await?;
            Ok(Reply::Done)
        }
        Request::Unforward { listen } => {
            cluster.relays.close(listen).await?;
            Ok(Reply::Done)
        }
    }
}

fn status(cluster: &Cluster) -> Status {
    Status {
        name: cluster.orders.name.clone(),
        level: cluster.orders.level,
        ready: cluster.ready.load(Ordering::Acquire),
        api_port: cluster.api_port.get().copied().unwrap_or(0),
        timings: *cluster.timings.lock().unwrap_or_else(PoisonError::into_inner),
        components: cluster.parts.status(),
        forwards: cluster.relays.inward(),
        exposed: cluster.relays.outward(),
    }
}
