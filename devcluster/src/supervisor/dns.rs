//! A stub of the cluster's DNS: A records of services, and names of the outside world that say their own addresses. Reads
//! Services from the API server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::namespaces::Namespace;
use crate::config::{DNS_NODE_PORT, NODE_ADDRESS};
use crate::error::Result;

/// Short: services come and go in tests. CoreDNS has the same for the cluster's own names.
const TTL_SECONDS: u32 = 5;
/// The zone, as every Kubernetes has it.
const ZONE: &str = "cluster.local";
/// A zone of the outside world: `203-0-113-10.at.example` is 203.0.113.10, and `203-0-113-10.10-96-0-1.at.example` is both. A
/// test can so have a name lead anywhere, also where no honest name would.
const OUTSIDE_ZONE: &str = "at.example";

/// What a name turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// A service, or a name of the outside world, with these addresses.
    Addresses(Vec<Ipv4Addr>),
    /// A service without an address of its own.
    NoAddress,
    /// No such name.
    Unknown,
    /// The API server could not be asked.
    Unavailable,
}

/// Starts to answer on the node's address.
pub(crate) async fn serve(node: &Namespace, client: Client) -> Result<()> {
    let at = SocketAddr::from((NODE_ADDRESS, DNS_NODE_PORT));
    let udp = Arc::new(node.listen_udp(at).await?);
    let tcp = node.listen_tcp(at).await?;
    tokio::spawn(serve_udp(udp, client.clone()));
    tokio::spawn(serve_tcp(tcp, client));
    Ok(())
}

async fn serve_udp(socket: Arc<UdpSocket>, client: Client) {
    let mut buffer = [0; 4096];
    loop {
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let (query, socket, client) = (buffer[..length].to_vec(), Arc::clone(&socket), client.clone());
        tokio::spawn(async move {
            if let Some(response) = respond(&query, &client).await {
                let _ = socket.send_to(&response, source).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, client: Client) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let client = client.clone();
        tokio::spawn(async move {
            // Over TCP each message is preceded by its length; a broken one ends the connection.
            let _ = converse(stream, &client).await;
        });
    }
}

async fn converse(mut stream: TcpStream, client: &Client) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; usize::from(length)];
        stream.read_exact(&mut query).await?;
        let Some(response) = respond(&query, client).await else {
            return Ok(());
        };
        stream
            .write_u16(u16::try_from(response.len()).unwrap_or(0))
            .await?;
        stream.write_all(&response).await?;
    }
}

async fn respond(query: &[u8], client: &Client) -> Option<Vec<u8>> {
    let query = Message::from_bytes(query).ok()?;
    let name = query.queries.first()?.name().clone();
    let answer = match (service_of(&name), addresses_of(&name)) {
        (Some((service, namespace)), _) => look_up(client, &service, &namespace).await,
        (None, Some(addresses)) => Answer::Addresses(addresses),
        (None, None) => Answer::Unknown,
    };
    reply(&query, &answer)?.to_bytes().ok()
}

/// `NAME.NAMESPACE.svc.cluster.local`, and nothing else, is a service.
fn service_of(name: &Name) -> Option<(String, String)> {
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let below = text.strip_suffix(ZONE)?.strip_suffix(".svc.")?;
    let (service, namespace) = below.split_once('.')?;
    (!namespace.contains('.')).then(|| (service.to_owned(), namespace.to_owned()))
}

/// The addresses that a name of the outside world says.
fn addresses_of(name: &Name) -> Option<Vec<Ipv4Addr>> {
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let labels = text.strip_suffix(OUTSIDE_ZONE)?.strip_suffix('.')?;
    labels
        .split('.')
        .map(|label| label.replace('-', ".").parse().ok())
        .collect()
}

async fn look_up(client: &Client, service: &str, namespace: &str) -> Answer {
    match Api::<Service>::namespaced(client.clone(), namespace)
        .get_opt(service)
        .await
    {
        Ok(Some(service)) => {
            let address = service.spec.and_then(|spec| spec.cluster_ip);
            address
                .and_then(|text| text.parse().ok())
                .map_or(Answer::NoAddress, |address| Answer::Addresses(vec![address]))
        }
        Ok(None) => Answer::Unknown,
        // A name that cannot be a Service's is refused by the API server, which is an answer.
        Err(kube::Error::Api(_)) => Answer::Unknown,
        Err(_) => Answer::Unavailable,
    }
}

fn reply(query: &Message, answer: &Answer) -> Option<Message> {
    let question = query.queries.first()?;
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.authoritative = true;
    reply.add_query(question.clone());
    match answer {
        Answer::Addresses(addresses) if question.query_type() == RecordType::A => {
            for address in addresses {
                let record = Record::from_rdata(question.name().clone(), TTL_SECONDS, RData::A(A(*address)));
                reply.add_answer(record);
            }
        }
        // The name exists, without a record of that type.
        Answer::Addresses(_) | Answer::NoAddress => {}
        Answer::Unknown => reply.metadata.response_code = ResponseCode::NXDomain,
        Answer::Unavailable => reply.metadata.response_code = ResponseCode::ServFail,
    }
    Some(reply)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::op::Query;

    use super::*;

    fn ask(name: &str, kind: RecordType, answer: &Answer) -> Message {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        let bytes = reply(&query, answer).unwrap().to_bytes().unwrap();
        Message::from_bytes(&bytes).unwrap()
    }

    #[test]
    fn only_names_of_services_are_looked_up() {
        let of = |name: &str| service_of(&Name::from_str(name).unwrap());
        let expected = Some(("kubernetes".to_owned(), "default".to_owned()));
        assert_eq!(of("kubernetes.default.svc.cluster.local."), expected);
        assert_eq!(of("KUBERNETES.default.svc.cluster.local"), expected);
        for other in [
            "example.org.",
            "a.b.c.svc.cluster.local.",
            "svc.cluster.local.",
            "x.evilcluster.local.",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_of_the_outside_world_says_its_own_addresses() {
        let of = |name: &str| addresses_of(&Name::from_str(name).unwrap());
        let (near, far) = (Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(203, 0, 113, 10));
        assert_eq!(of("203-0-113-10.at.example."), Some(vec![far]));
        assert_eq!(of("203-0-113-10.10-96-0-1.at.example."), Some(vec![far, near]));
        for other in [
            "at.example.",
            "x.at.example.",
            "203-0-113-10.example.",
            "203-0-113.at.example.",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_service_has_an_address_and_no_other_record() {
        let address = Answer::Addresses(vec![Ipv4Addr::new(10, 96, 0, 1)]);
        let found = ask("kubernetes.default.svc.cluster.local.", RecordType::A, &address);
        assert_eq!((found.metadata.id, found.answers.len()), (7, 1));
        assert_eq!(found.answers[0].data, RData::A(A::new(10, 96, 0, 1)));
        let v6 = ask(
            "kubernetes.default.svc.cluster.local.",
            RecordType::AAAA,
            &address,
        );
        assert_eq!(
            (v6.metadata.response_code, v6.answers.len()),
            (ResponseCode::NoError, 0)
        );
    }

    #[test]
    fn what_is_unknown_and_what_cannot_be_asked_differ() {
        let unknown = ask("x.y.svc.cluster.local.", RecordType::A, &Answer::Unknown);
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
        let unavailable = ask("x.y.svc.cluster.local.", RecordType::A, &Answer::Unavailable);
        assert_eq!(unavailable.metadata.response_code, ResponseCode::ServFail);
    }
}
