//! Owns the one thread that lives in the cluster's network namespace, and what may be asked of it.
//! It must not do traffic: it makes sockets and taps, and every other thread uses them.
//!
//! A socket keeps the namespace it was made in, so the rest of the process stays in the host's
//! network and still listens, connects and dials inside the cluster's.

mod cut;
mod host;
mod link;
mod local;
mod nft;
mod port;
mod translate;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netlink_socket2::NetlinkSocket;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

pub(crate) use self::cut::{Change, Cut};
pub(crate) use self::host::{check_host_routable, remove_host_links};
pub(crate) use self::local::LocalName;
pub(crate) use self::port::HOST_SIDE;
use super::plan;
use crate::error::{Error, ErrorKind, Result};
use crate::sys;

const BRIDGE: &str = "br0";
/// Explicit, as a bridge otherwise takes the lowest MAC of its ports and changes when they do.
const BRIDGE_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0xfb, 0x00, 0x01];
/// A guest that is gone is noticed after this long, also by sockets passed to other processes.
const DEAD_PEER_MS: u32 = 30_000;
/// ARP gives up on an absent guest after about 3 s; a filtered port takes longer.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce(&mut NetlinkSocket) + Send>;

/// A living network namespace. It ends with the last clone of this, the taps and the sockets made
/// in it.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    jobs: mpsc::Sender<Job>,
}

/// What the proxy listens on.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub dns_udp: UdpSocket,
    pub dns_tcp: TcpListener,
    /// Where guests' outgoing connections end up; absent if the kernel cannot redirect them.
    pub egress: std::result::Result<TcpListener, String>,
}

impl Network {
    /// Makes the namespace with its bridge. Takes a few milliseconds.
    pub(crate) fn start() -> Result<(Self, Listeners)> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, made) = mpsc::channel();
        thread::Builder::new()
            .name("network".into())
            .spawn(move || {
                let mut netlink = NetlinkSocket::new();
                let result = sys::namespace::enter_network()
                    .map_err(|e| failed("make a network namespace", e))
                    .and_then(|()| set_up(&mut netlink));
                let failed = result.is_err();
                if ready.send(result).is_err() || failed {
                    return;
                }
                while let Ok(job) = inbox.recv() {
                    job(&mut netlink);
                }
            })
            .map_err(|e| failed("start the network's thread", e))?;
        let listeners = made
            .recv()
            .map_err(|_| Error::new(ErrorKind::Internal, "the network's thread died"))??;
        Ok((Self { jobs }, listeners))
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut NetlinkSocket) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        let gone = || io::Error::other("the network's thread is gone");
        self.jobs
            .send(Box::new(move |netlink| drop(sender.send(job(netlink)))))
            .map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }

    /// A new tap on the bridge, up. It goes when the fd and its copies do.
    pub(crate) async fn tap(&self, name: String) -> Result<OwnedFd> {
        self.run(move |netlink| {
            let began = Instant::now();
            let tap = sys::tun::tap(&name)?;
            let bridge = link::index(netlink, BRIDGE)?;
            let tap_index = link::index(netlink, &name)?;
            link::enslave_up(netlink, tap_index, bridge)?;
            log::info!("the tap {name} is there after {} us", began.elapsed().as_micros());
            Ok(tap)
        })
        .await
        .map_err(tap_failed)
    }

    /// A new tap that leads nowhere, up: only what is sent to it by a [`Line`](crate::net::Line)
    /// reaches its guest, until [`Network::join`]. The host itself says nothing on it.
    pub(crate) async fn tap_apart(&self, name: String) -> Result<OwnedFd> {
        self.run(move |netlink| {
            let tap = sys::tun::tap(&name)?;
            let index = link::index(netlink, &name)?;
            link::silence_ipv6(netlink, index);
            link::up(netlink, index)?;
            Ok(tap)
        })
        .await
        .map_err(tap_failed)
    }

    /// A connection to a guest, from the bridge's address. Set up so that a dead guest is noticed
    /// by whoever holds the socket: a passed socket keeps the namespace alive.
    pub(crate) async fn connect(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let socket = self
            .run(|_| {
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket =
                    rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
                sockopt::set_socket_keepalive(&socket, true)?;
                sockopt::set_tcp_keepidle(&socket, Duration::from_secs(10))?;
                sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(5))?;
                sockopt::set_tcp_keepcnt(&socket, 4)?;
                sockopt::set_tcp_user_timeout(&socket, DEAD_PEER_MS)?;
                Ok(socket)
            })
            .await?;
        let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
        tokio::time::timeout(CONNECT_WAIT, socket.connect(to.into()))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// A datagram socket to a guest, from the bridge's address.
    pub(crate) async fn connect_udp(&self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        self.run(move |_| {
            let socket = UdpSocket::bind((plan::GATEWAY, 0))?;
            socket.connect(to)?;
            Ok(socket.into())
        })
        .await
    }

    /// The same for datagrams, at an address that [`Network::listen_at`] gave it.
    #[cfg(feature = "unstable-fake")]
    pub(crate) async fn bind_udp_at(&self, address: SocketAddrV4) -> io::Result<UdpSocket> {
        self.run(move |_| {
            let socket = UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .await
    }

    /// Gives the host's side a further address, for a guest that is a process of ours.
    #[cfg(feature = "unstable-fake")]
    pub(crate) async fn listen_at(&self, address: SocketAddrV4) -> io::Result<TcpListener> {
        self.run(move |netlink| {
            let bridge = link::index(netlink, BRIDGE)?;
            link::add_address(netlink, bridge, *address.ip(), plan::PREFIX_LENGTH)?;
            listen(address)
        })
        .await
    }
}

fn set_up(netlink: &mut NetlinkSocket) -> Result<Listeners> {
    let bridge_up = |netlink: &mut NetlinkSocket| -> io::Result<()> {
        let loopback = link::index(netlink, "lo")?;
        link::up(netlink, loopback)?;
        link::add_bridge(netlink, BRIDGE, BRIDGE_MAC)?;
        let bridge = link::index(netlink, BRIDGE)?;
        link::add_address(netlink, bridge, plan::GATEWAY, plan::PREFIX_LENGTH)?;
        link::ask_neighbours_often(netlink, bridge)?;
        link::up(netlink, bridge)
    };
    bridge_up(netlink).map_err(|e| failed("make a bridge", e))?;
    let dns = SocketAddrV4::new(plan::GATEWAY, 53);
    let listen_dns = || -> io::Result<_> {
        let udp = UdpSocket::bind(dns)?;
        udp.set_nonblocking(true)?;
        Ok((udp, listen(dns)?))
    };
    let (dns_udp, dns_tcp) = listen_dns().map_err(|e| failed("listen for name queries", e))?;
    let egress = redirect_egress(netlink).map_err(|e| e.to_string());
    Ok(Listeners { dns_udp, dns_tcp, egress })
}

fn redirect_egress(netlink: &mut NetlinkSocket) -> io::Result<TcpListener> {
    let listener = listen(SocketAddrV4::new(plan::GATEWAY, 0))?;
    nft::redirect(netlink, plan::GATEWAY, listener.local_addr()?.port())?;
    Ok(listener)
}

fn listen(address: SocketAddrV4) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The address a redirected connection was meant for.
pub(crate) fn original_destination(stream: &TcpStream) -> io::Result<SocketAddrV4> {
    let destination = sockopt::ip_original_dst(stream)?;
    if *destination.ip() == Ipv4Addr::UNSPECIFIED {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(destination)
}

fn failed(step: &str, source: io::Error) -> Error {
    Error::new(ErrorKind::HostUnsupported, step)
        .hint("run `fleetbox doctor` to see what this host lacks")
        .source(source)
}

fn tap_failed(source: io::Error) -> Error {
    let error =
        Error::new(ErrorKind::HostUnsupported, format!("make a tap with {}", sys::tun::PATH));
    match source.kind() {
        io::ErrorKind::PermissionDenied => {
            error.hint("run `sudo chmod 666 /dev/net/tun`, the mode distributions ship it with")
        }
        io::ErrorKind::NotFound => error
            .hint("run `sudo modprobe tun`; in a container start it with `--device /dev/net/tun`"),
        _ => error.hint("run `fleetbox doctor` to see what this host lacks"),
    }
    .source(source)
}
