//! Owns the ways to and from a [`Vm`] beside TCP for this host alone: datagrams, published ports,
//! captures. Every call hands on to the holder.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;

use tokio::net::UdpSocket;

use super::{State, Vm};
use crate::capture::Capture;
use crate::error::{Error, ErrorKind, Result};

impl Vm {
    /// Where the host reaches the VM; none unless it was started
    /// [so](crate::VmBuilder::host_routable), which only root can.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`]; else if the holder cannot be asked.
    ///
    /// ```no_run
    /// # async fn example() -> fleetbox::Result<()> {
    /// let web = fleetbox::Vm::builder("web").host_routable(true).start().await?;
    /// if let Some(address) = web.host_address().await? {
    ///     println!("http://{address}/");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn host_address(&self) -> Result<Option<IpAddr>> {
        let info = self.info().await?;
        if info.state == State::Stopped {
            return Err(Error::not_running(self.name()));
        }
        Ok(info.host_address.map(IpAddr::V4))
    }

    /// A UDP socket connected to a port of the guest: it sends there, and receives what comes from
    /// there. As with any datagrams, nobody need listen, and a port that is closed shows as
    /// [`ConnectionRefused`](std::io::ErrorKind::ConnectionRefused) of a later call on the socket.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> Result<(), Box<dyn std::error::Error>> {
    /// let socket = vm.connect_udp(7).await?;
    /// socket.send(b"ping").await?;
    /// let mut answer = [0; 1500];
    /// let length = socket.recv(&mut answer).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn connect_udp(&self, port: u16) -> Result<UdpSocket> {
        let fd = self.inner.client.connect_udp(&self.inner.record.name, port).await;
        let socket = std::net::UdpSocket::from(fd.map_err(|e| self.mine(e))?);
        socket.set_nonblocking(true).and_then(|()| UdpSocket::from_std(socket)).map_err(|e| {
            self.mine(
                Error::new(ErrorKind::Connect, format!("use the socket to port {port}")).source(e),
            )
        })
    }

    /// Makes a TCP port of the guest reachable at any address of the host, until the VM ends; port 0
    /// is any free one. Beware: whoever reaches that address reaches the guest's port, `0.0.0.0`
    /// being every address this host has. [`Vm::forward`] is for this host alone.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] if the port is taken, or this host has no such address;
    /// [`ErrorKind::NotRunning`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let address = vm.publish(80, ([0, 0, 0, 0], 8080).into()).await?;
    /// println!("everybody may try http://{address}/");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn publish(&self, port: u16, listen: SocketAddr) -> Result<SocketAddr> {
        let name = &self.inner.record.name;
        self.inner.client.publish(name, port, listen).await.map_err(|e| self.mine(e))
    }

    /// Writes every frame that the guest sends or gets to a file in the pcap format, for Wireshark
    /// and tcpdump: its traffic with the host, too. The file is made anew; at any time it has whole
    /// records. It goes on until the returned [`Capture`] is stopped or dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the file cannot be written; [`ErrorKind::NotRunning`].
    ///
    /// ```no_run
    /// # async fn example(vm: fleetbox::Vm) -> fleetbox::Result<()> {
    /// let capture = vm.capture("web.pcap").await?;
    /// vm.ssh("curl -s http://node-2/").await?;
    /// println!("{} frames", capture.stop().await?.frames);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn capture(&self, path: impl AsRef<Path>) -> Result<Capture> {
        let (client, vm) = (&self.inner.client, &self.inner.record.name);
        self.inner.session.note_capture(path.as_ref());
        Capture::to_path(client, Some(vm), path.as_ref()).await.map_err(|e| self.mine(e))
    }

    /// [`Vm::capture`] to what is open already, such as a pipe.
    ///
    /// # Errors
    /// As [`Vm::capture`].
    pub async fn capture_to(&self, file: impl AsFd) -> Result<Capture> {
        let (client, vm) = (&self.inner.client, &self.inner.record.name);
        Capture::to_file(client, Some(vm), file.as_fd()).await.map_err(|e| self.mine(e))
    }
}
