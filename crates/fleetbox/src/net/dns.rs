//! Owns the guests' name server: members and the host by name, everything else that the policy
//! allows relayed to the host's own name servers byte for byte. It must not cache.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use simple_dns::rdata::{A, RData};
use simple_dns::{CLASS, Packet, PacketFlag, QCLASS, QTYPE, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::plan;
use super::policy::{Rules, Seen};

/// Seconds a member's address may be kept by a guest: members come and go.
const TTL_SECONDS: u32 = 5;
/// Per server, as resolv.conf(5) has it.
const UPSTREAM_WAIT: Duration = Duration::from_secs(5);
/// The largest answer over UDP with EDNS (RFC 6891).
const UDP_BYTES_MAX: usize = 65_535;
const QUERIES_AT_ONCE: usize = 256;

/// Members by name, shared with the holder.
pub(crate) type Names = Arc<RwLock<HashMap<String, Ipv4Addr>>>;

/// What queries are answered from.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    pub names: Names,
    /// Who may know of the world.
    pub rules: Rules,
    /// Is told what guests are told.
    pub seen: Seen,
}

/// Serves both sockets until the task is dropped.
pub(crate) async fn serve(udp: UdpSocket, tcp: TcpListener, resolver: Resolver) {
    tokio::join!(serve_udp(Arc::new(udp), resolver.clone()), serve_tcp(tcp, resolver));
}

#[derive(Clone, Copy)]
enum Transport {
    Udp,
    Tcp,
}

impl Resolver {
    /// The answer to a query from a guest, if there can be one.
    async fn answer(&self, query: &[u8], from: IpAddr, by: Transport) -> Option<Vec<u8>> {
        if let Some(answer) = answer_member(query, &self.names) {
            return Some(answer);
        }
        let IpAddr::V4(from) = from else { return refusal(query, RCODE::Refused) };
        let asked = asked_name(query)?;
        if !self.rules.borrow().allow_name(from, &asked) {
            return refusal(query, RCODE::Refused);
        }
        let answer = match by {
            Transport::Udp => relay_udp(query).await,
            Transport::Tcp => relay_tcp(query).await,
        };
        if let Some(answer) = &answer {
            self.note(answer);
        }
        answer.or_else(|| refusal(query, RCODE::ServerFailure))
    }

    fn note(&self, answer: &[u8]) {
        let (Ok(packet), Some(asked)) = (Packet::parse(answer), asked_name(answer)) else { return };
        for record in &packet.answers {
            if let RData::A(a) = &record.rdata {
                self.seen.note(&asked, a.address.into());
            }
        }
    }
}

/// What the first question is about, in small letters and without the root's dot.
fn asked_name(message: &[u8]) -> Option<String> {
    let packet = Packet::parse(message).ok()?;
    let asked = packet.questions.first()?.qname.to_string().to_ascii_lowercase();
    Some(asked.trim_end_matches('.').to_owned())
}

async fn serve_udp(socket: Arc<UdpSocket>, resolver: Resolver) {
    let slots = Arc::new(Semaphore::new(QUERIES_AT_ONCE));
    let mut buffer = vec![0; UDP_BYTES_MAX];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let query = buffer[..length].to_vec();
        // A flood is answered as fast as it can be; what is above is dropped, as UDP allows.
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (socket, resolver) = (socket.clone(), resolver.clone());
        tokio::spawn(async move {
            if let Some(answer) = resolver.answer(&query, peer.ip(), Transport::Udp).await {
                // The guest asks again if this is lost.
                drop(socket.send_to(&answer, peer).await);
            }
            drop(slot);
        });
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Resolver) {
    loop {
        let Ok((mut guest, from)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let resolver = resolver.clone();
        tokio::spawn(async move {
            let served = async {
                let query = read_framed(&mut guest).await?;
                let answer = resolver.answer(&query, from.ip(), Transport::Tcp).await;
                write_framed(&mut guest, &answer.unwrap_or_default()).await
            };
            let served: io::Result<()> = served.await;
            if let Err(e) = served {
                log::debug!("a name query over TCP ended: {e}");
            }
        });
    }
}

/// The answer if the question is about a member or the host, or about a name that only a member could
/// have: what the world says of our domain is no business of a guest's.
fn answer_member(query: &[u8], names: &Names) -> Option<Vec<u8>> {
    let packet = Packet::parse(query).ok()?;
    let question = packet.questions.first()?;
    let asked = asked_name(query)?;
    let in_domain = asked.strip_suffix(plan::DOMAIN).and_then(|s| s.strip_suffix('.'));
    let known = if asked == plan::HOST_NAME {
        Some(plan::GATEWAY)
    } else {
        names.read().ok()?.get(in_domain.unwrap_or(&asked)).copied()
    };
    let mut reply = packet.clone().into_reply();
    reply.additional_records.clear();
    reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
    let address = match (known, in_domain) {
        (Some(address), _) => address,
        (None, Some(_)) => {
            *reply.rcode_mut() = RCODE::NameError;
            return reply.build_bytes_vec_compressed().ok();
        }
        (None, None) => return None,
    };
    let wants_address = matches!(question.qtype, QTYPE::TYPE(TYPE::A) | QTYPE::ANY)
        && matches!(question.qclass, QCLASS::CLASS(CLASS::IN) | QCLASS::ANY);
    if wants_address {
        reply.answers.push(ResourceRecord::new(
            question.qname.clone(),
            CLASS::IN,
            TTL_SECONDS,
            RData::A(A { address: address.into() }),
        ));
    }
    reply.build_bytes_vec_compressed().ok()
}

/// What a guest is told when no server answers, or it may not know.
fn refusal(query: &[u8], why: RCODE) -> Option<Vec<u8>> {
    let mut reply = Packet::parse(query).ok()?.into_reply();
    reply.additional_records.clear();
    *reply.rcode_mut() = why;
    reply.build_bytes_vec_compressed().ok()
}

async fn relay_udp(query: &[u8]) -> Option<Vec<u8>> {
    for server in host_servers() {
        let asked = async {
            let any: SocketAddr = match server {
                IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any).await?;
            socket.connect((server, 53)).await?;
            socket.send(query).await?;
            let mut answer = vec![0; UDP_BYTES_MAX];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            io::Result::Ok(answer)
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(UPSTREAM_WAIT, asked).await {
            return Some(answer);
        }
    }
    None
}

async fn relay_tcp(query: &[u8]) -> Option<Vec<u8>> {
    for server in host_servers() {
        let asked = async {
            let mut upstream = TcpStream::connect((server, 53)).await?;
            write_framed(&mut upstream, query).await?;
            read_framed(&mut upstream).await
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(UPSTREAM_WAIT, asked).await {
            return Some(answer);
        }
    }
    None
}

/// DNS over TCP puts a 16-bit length before each message (RFC 1035, 4.2.2).
async fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Read at each query: a laptop changes networks.
fn host_servers() -> Vec<IpAddr> {
    servers_of(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn servers_of(resolv_conf: &str) -> Vec<IpAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|rest| rest.split('%').next()?.trim().parse().ok())
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::{Name, Question};

    fn names() -> Names {
        Arc::new(RwLock::new(HashMap::from([("node-1".to_owned(), Ipv4Addr::new(10, 0, 0, 5))])))
    }

    fn query(name: &str, kind: TYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(7);
        packet.questions.push(Question::new(
            Name::new(name).unwrap(),
            QTYPE::TYPE(kind),
            QCLASS::CLASS(CLASS::IN),
            false,
        ));
        packet.build_bytes_vec().unwrap()
    }

    #[test]
    fn members_are_answered_by_short_and_full_name_in_any_case() {
        for name in ["node-1", "NODE-1", "node-1.fleetbox.internal"] {
            let answer = answer_member(&query(name, TYPE::A), &names()).unwrap();
            let packet = Packet::parse(&answer).unwrap();
            assert_eq!(packet.id(), 7);
            assert!(
                matches!(&packet.answers[0].rdata, RData::A(a) if Ipv4Addr::from(a.address) == Ipv4Addr::new(10, 0, 0, 5))
            );
        }
    }

    #[test]
    fn a_member_has_no_ipv6_and_says_so_at_once() {
        let answer = answer_member(&query("node-1", TYPE::AAAA), &names()).unwrap();
        let packet = Packet::parse(&answer).unwrap();
        assert!(packet.answers.is_empty());
        assert_eq!(packet.rcode(), RCODE::NoError);
    }

    #[test]
    fn a_name_of_the_domain_that_no_member_has_is_not_asked_of_the_world() {
        let answer = answer_member(&query("node-9.fleetbox.internal", TYPE::A), &names()).unwrap();
        let packet = Packet::parse(&answer).unwrap();
        assert!(packet.answers.is_empty());
        assert_eq!(packet.rcode(), RCODE::NameError);
        assert!(answer_member(&query("evilfleetbox.internal", TYPE::A), &names()).is_none());
    }

    #[test]
    fn strangers_and_garbage_are_not_members() {
        assert!(answer_member(&query("example.org", TYPE::A), &names()).is_none());
        assert!(answer_member(b"\xff\x00garbage", &names()).is_none());
        assert!(refusal(b"\xff", RCODE::Refused).is_none());
    }

    #[test]
    fn resolv_conf_is_read_as_the_libc_does() {
        let text =
            "# x\nsearch a\nnameserver 10.1.1.1\n nameserver fe80::1%eth0\nnameserver junk\n";
        let servers = servers_of(text);
        assert_eq!(servers.len(), 2);
        assert_eq!(servers[0], IpAddr::V4(Ipv4Addr::new(10, 1, 1, 1)));
    }
}
