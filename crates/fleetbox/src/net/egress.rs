//! Owns the guests' way out: a connection a guest opens to the world is accepted here and dialled
//! anew from the host's side, as long as the policy allows it. Nothing touches the host's forwarding or firewall.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::linux::original_destination;
use super::plan;
use super::policy::{RuleSet, Rules, Seen};

const DIAL_WAIT: Duration = Duration::from_secs(20);
/// Out of file descriptors: the pending connection stays in the queue, so wait until some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener, rules: Rules, seen: Seen) {
    loop {
        match listener.accept().await {
            Ok((guest, from)) => {
                let (rules, seen) = (rules.clone(), seen.clone());
                tokio::spawn(async move {
                    if let Err(e) = relay(guest, from, rules, seen).await {
                        log::debug!("an outgoing connection ended: {e}");
                    }
                });
            }
            Err(e) => {
                log::warn!("accept an outgoing connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn relay(
    mut guest: TcpStream,
    from: SocketAddr,
    mut rules: Rules,
    seen: Seen,
) -> io::Result<()> {
    let destination = original_destination(&guest)?;
    let refused = async {
        let IpAddr::V4(from) = from.ip() else { return };
        let refuses = |rules: &RuleSet| !rules.allow(from, destination, &seen);
        if rules.wait_for(refuses).await.is_err() {
            // The holder ends.
            std::future::pending::<()>().await;
        }
    };
    let served = tokio::select! {
        biased;
        () = refused => {
            Err(io::Error::new(io::ErrorKind::PermissionDenied, "the egress policy refuses it"))
        }
        served = serve_one(&mut guest, destination) => served,
    };
    if served.is_err() {
        // The guest was let in before we knew; a reset tells it at once.
        guest.set_zero_linger()?;
    }
    served
}

async fn serve_one(guest: &mut TcpStream, destination: SocketAddrV4) -> io::Result<()> {
    let mut world = tokio::time::timeout(DIAL_WAIT, dial(destination))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    world.set_nodelay(true)?;
    guest.set_nodelay(true)?;
    tokio::io::copy_bidirectional(guest, &mut world).await.map(drop)
}

/// The gateway is the host: what a guest asks of it is asked of the host's loopback.
async fn dial(destination: SocketAddrV4) -> io::Result<TcpStream> {
    if *destination.ip() != plan::GATEWAY {
        return TcpStream::connect(destination).await;
    }
    let port = destination.port();
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(host) => Ok(host),
        Err(e) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.map_err(|_| e),
    }
}
