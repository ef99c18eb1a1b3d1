//! Owns the guests' way out: a connection a guest opens to the world is accepted here and dialled
//! anew from the host's side. Nothing touches the host's forwarding or firewall.

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::linux::original_destination;

const DIAL_WAIT: Duration = Duration::from_secs(20);
/// Out of file descriptors: the pending connection stays in the queue, so wait until some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the task is dropped.
pub(crate) async fn serve(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((guest, _)) => {
                tokio::spawn(async move {
                    if let Err(e) = relay(guest).await {
                        tracing::debug!("an outgoing connection ended: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("accept an outgoing connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn relay(mut guest: TcpStream) -> io::Result<()> {
    let destination = original_destination(&guest)?;
    let dialled = tokio::time::timeout(DIAL_WAIT, TcpStream::connect(destination))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut world = match dialled {
        Ok(world) => world,
        Err(e) => {
            // The guest was let in before we knew; a reset tells it at once.
            guest.set_zero_linger()?;
            return Err(e);
        }
    };
    world.set_nodelay(true)?;
    guest.set_nodelay(true)?;
    let copied = tokio::io::copy_bidirectional(&mut guest, &mut world).await;
    if copied.is_err() {
        guest.set_zero_linger()?;
    }
    copied.map(|_| ())
}
