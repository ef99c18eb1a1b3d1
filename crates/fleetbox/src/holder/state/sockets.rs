//! Owns what leads to a member from outside: connections, datagrams, forwarded and published ports,
//! captures. It must not carry what goes through a passed socket.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::{Forward, State};
use crate::error::{Error, ErrorKind, Result};
use crate::net::{Capture, Network};
use crate::spec::Name;

impl State {
    /// A socket connected to the guest, ready to be passed on.
    pub(in crate::holder) async fn connect(&self, vm: &Name, port: u16) -> Result<OwnedFd> {
        let to = self.address(vm, port)?;
        let stream = self.network.connect(to).await.map_err(|e| unreachable_port(vm, port, e))?;
        let passed = stream.into_std().map_err(|e| unreachable_port(vm, port, e))?;
        Ok(passed.into())
    }

    /// A datagram socket connected to the guest. Nothing is sent yet, so nobody need listen.
    pub(in crate::holder) async fn connect_udp(&self, vm: &Name, port: u16) -> Result<OwnedFd> {
        let to = self.address(vm, port)?;
        self.network.connect_udp(to).await.map_err(|e| unreachable_port(vm, port, e))
    }

    /// Writes what passes the member's tap, or the bridge, to the file.
    pub(in crate::holder) async fn capture(
        &self,
        vm: Option<&Name>,
        file: OwnedFd,
    ) -> Result<Capture> {
        let tap = match vm {
            None => None,
            Some(vm) => {
                self.machine(vm)?;
                self.lock().members.get(vm).map(|member| member.tap)
            }
        };
        let socket = self.network.packets(tap).await.map_err(|e| {
            Error::new(ErrorKind::HostUnsupported, "open a packet socket")
                .hint("use a kernel with packet sockets (CONFIG_PACKET; `modprobe af_packet`)")
                .source(e)
        })?;
        Capture::start(socket, file)
            .map_err(|e| Error::new(ErrorKind::Io, "write the capture").source(e))
    }

    fn address(&self, vm: &Name, port: u16) -> Result<SocketAddrV4> {
        self.machine(vm)?;
        match self.lock().members.get(vm) {
            Some(member) => Ok(SocketAddrV4::new(member.plan.address, port)),
            None => Err(Error::not_running(vm.as_str())),
        }
    }

    /// Relays a loopback port of the host to a port of the guest until the machine ends. Asked
    /// again for the same port, it answers with what is there.
    pub(in crate::holder) async fn forward(
        self: &Arc<Self>,
        vm: &Name,
        port: u16,
        listen: SocketAddr,
    ) -> Result<SocketAddr> {
        if !listen.ip().is_loopback() {
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                format!("listen at {listen}: not a loopback address"),
            )
            .hint("use 127.0.0.1, or publish it for everybody who reaches this host"));
        }
        self.listen(vm, (port, false), listen).await
    }

    /// The same at any address of the host.
    pub(in crate::holder) async fn publish(
        self: &Arc<Self>,
        vm: &Name,
        port: u16,
        listen: SocketAddr,
    ) -> Result<SocketAddr> {
        self.listen(vm, (port, true), listen).await
    }

    async fn listen(
        self: &Arc<Self>,
        vm: &Name,
        way: (u16, bool),
        listen: SocketAddr,
    ) -> Result<SocketAddr> {
        let to = self.address(vm, way.0)?;
        if let Some(known) = self.lock().members.get(vm).and_then(|m| m.forwards.get(&way))
            && (listen.port() == 0 || listen == known.address)
        {
            return Ok(known.address);
        }
        let busy = |e: io::Error| {
            let hint = match e.kind() {
                io::ErrorKind::PermissionDenied => "choose a port from 1024 on, or 0 for any",
                io::ErrorKind::AddrNotAvailable => "choose an address this host has, or 0.0.0.0",
                _ => "choose another port, or 0 for any",
            };
            Error::new(ErrorKind::Conflict, format!("listen at {listen}")).hint(hint).source(e)
        };
        let listener = TcpListener::bind(listen).await.map_err(busy)?;
        let address = listener.local_addr().map_err(busy)?;
        let task = tokio::spawn(relay_all(listener, self.network.clone(), to)).abort_handle();
        if let Some(member) = self.lock().members.get_mut(vm)
            && let Some(old) = member.forwards.insert(way, Forward { address, task })
        {
            old.task.abort();
        }
        Ok(address)
    }
}

async fn relay_all(listener: TcpListener, network: Network, to: SocketAddrV4) {
    loop {
        let Ok((mut host, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let network = network.clone();
        tokio::spawn(async move {
            match network.connect(to).await {
                // Either side's end is the other's; an error has nobody left to hear it.
                Ok(mut guest) => drop(tokio::io::copy_bidirectional(&mut host, &mut guest).await),
                Err(e) => {
                    log::debug!("forward to {to}: {e}");
                    drop(host.set_zero_linger());
                }
            }
        });
    }
}

fn unreachable_port(vm: &Name, port: u16, source: io::Error) -> Error {
    Error::new(ErrorKind::Connect, format!("connect to port {port}"))
        .vm(vm.as_str())
        .hint("check that a service listens there, on all addresses rather than 127.0.0.1")
        .source(source)
}
