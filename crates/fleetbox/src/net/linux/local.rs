//! Owns unix sockets that exist by name in the cluster's network namespace alone: abstract ones
//! (unix(7)), which nobody outside can reach and which leave no file.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;

use super::Network;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The name of a listener.
#[derive(Debug, Clone)]
pub(crate) struct LocalName(String);

impl Network {
    /// A listener for a program that is started with it.
    pub(crate) async fn listen_local(&self, name: String) -> io::Result<(LocalName, OwnedFd)> {
        let name = LocalName(name);
        let address = name.address()?;
        let listener = self
            .run(move |_| {
                let listener = socket(SocketFlags::empty())?;
                rustix::net::bind(&listener, &address)?;
                rustix::net::listen(&listener, BACKLOG)?;
                Ok(listener)
            })
            .await?;
        Ok((name, listener))
    }

    /// A connection to such a listener. Refused at once if it is gone.
    pub(crate) async fn connect_local(&self, name: &LocalName) -> io::Result<UnixStream> {
        let address = name.address()?;
        let stream = self
            .run(move |_| {
                let stream = socket(SocketFlags::NONBLOCK)?;
                rustix::net::connect(&stream, &address)?;
                Ok(stream)
            })
            .await?;
        UnixStream::from_std(stream.into())
    }
}

impl LocalName {
    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(SocketAddrUnix::new_abstract_name(self.0.as_bytes())?)
    }
}

fn socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_is_found_by_name_in_its_own_network_only() {
        let Ok((network, _listeners)) = Network::start() else {
            // Without privileges the namespace is made by the holder, not by a test.
            return;
        };
        let (name, listener) = network.listen_local("vmm-1".to_owned()).await.unwrap();
        network.connect_local(&name).await.unwrap();
        let here = socket(SocketFlags::empty()).unwrap();
        let refused = rustix::net::connect(&here, &name.address().unwrap()).unwrap_err();
        assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::ConnectionRefused);
        drop(listener);
        let gone = network.connect_local(&name).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::ConnectionRefused);
    }
}
