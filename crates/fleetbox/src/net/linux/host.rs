//! Owns the way from the host's own network to a cluster's members, for root on request: a veth, a
//! subnet no other has on this host, and its translation inside the cluster's namespace. It must not
//! change the host's forwarding or firewall.
//!
//! ```text
//! host ── fbhostN 198.19.N.1/24 ═══ fbhost │ 198.19.N.H → 10.213.77.H │ br0 ── members
//! ```
//!
//! The translation is stateful NAT in the namespace, where alone forwarding is on: to members the host
//! is their gateway, as it always is, so links at fault know its frames and leave them alone. What
//! members begin themselves is not forwarded: egress stays the proxy's, with its policy.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use netlink_socket2::NetlinkSocket;

use super::{BRIDGE, Network, link, translate};
use crate::error::{Error, ErrorKind, Result};
use crate::net::plan::{self, HostSubnet};
use crate::store::lock;

/// The veth's end in the namespace.
const INNER: &str = "fbhost";
const HINT: &str = "give it up and use `fleetbox port` or `Vm::publish`, or run as root on a kernel with \
                    veth and nftables";

impl Network {
    /// Makes the way, under the first subnet from `first` on that nothing on the host uses. `label` is
    /// the link's alias, by whose beginning [`remove_host_links`] finds it. The lock is held for that instant.
    pub(crate) async fn route_to_host(
        &self,
        label: String,
        first: u8,
        lock_path: PathBuf,
    ) -> Result<HostSubnet> {
        let failed = |e: io::Error| {
            Error::new(ErrorKind::HostUnsupported, "make members routable from the host")
                .hint(HINT)
                .source(e)
        };
        let _claim = lock::lock(&lock_path, || ()).await?;
        let peer = self.run(move |netlink| link::add_veth(netlink, INNER, &label)).await;
        let peer = peer.map_err(failed)?;
        match self.lead_out(peer, first).await {
            Ok(subnet) => Ok(subnet),
            Err(e) => {
                // It takes its other end along.
                if let Err(e) = self.run(|netlink| link::remove(netlink, INNER)).await {
                    log::warn!("remove {INNER}: {e}");
                }
                Err(failed(e))
            }
        }
    }

    /// Takes the way back, both ends of it.
    pub(crate) async fn leave_host(&self) -> io::Result<()> {
        self.run(|netlink| link::remove(netlink, INNER)).await
    }

    async fn lead_out(&self, peer: u32, first: u8) -> io::Result<HostSubnet> {
        // Every thread but the network's is in the host's network.
        let host = File::open("/proc/thread-self/ns/net")?;
        let taken = blocking(link::networks).await?;
        for subnet in plan::host_subnets(first) {
            if taken.iter().any(|(address, length)| subnet.overlaps(*address, *length)) {
                continue;
            }
            let (name, host) = (subnet.link_name(), host.try_clone()?);
            let moved = move |netlink: &mut NetlinkSocket| {
                link::rename(netlink, peer, &name)?;
                link::move_to(netlink, peer, host.as_raw_fd())
            };
            match self.run(moved).await {
                // Of another state root, or one whose holder was killed and which a socket keeps.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                moved => moved?,
            }
            blocking(move |netlink| {
                let index = link::index(netlink, &subnet.link_name())?;
                link::add_address(netlink, index, subnet.host(), plan::PREFIX_LENGTH)?;
                link::up(netlink, index)
            })
            .await?;
            self.run(move |netlink| lead_in(netlink, subnet)).await?;
            return Ok(subnet);
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "every subnet of 198.19.0.0/16 is in use"))
    }
}

/// The namespace's side.
fn lead_in(netlink: &mut NetlinkSocket, subnet: HostSubnet) -> io::Result<()> {
    let (inner, loopback) = (link::index(netlink, INNER)?, link::index(netlink, "lo")?);
    link::up(netlink, inner)?;
    link::add_route(netlink, link::Route::To(subnet.host()), inner)?;
    // What asks for a member's address there is answered, as if it were ours.
    link::add_route(netlink, link::Route::Own(subnet.network()), loopback)?;
    translate::make(netlink, INNER, BRIDGE, subnet)?;
    // A thread sees its own namespace's settings.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
}

/// Runs it on another thread, which is in the host's network.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce(&mut NetlinkSocket) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(move || act(&mut NetlinkSocket::new()))
        .await
        .map_err(io::Error::other)?
}

/// Removes the links whose label begins like this from the calling thread's network, if there are
/// any. They go with the namespace; but a socket that somebody still has keeps it.
pub(crate) fn remove_host_links(label: &str) -> io::Result<()> {
    let netlink = &mut NetlinkSocket::new();
    for name in link::named(netlink, label.as_bytes())? {
        match link::remove(netlink, &name) {
            // It went just now.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            removed => removed?,
        }
    }
    Ok(())
}

/// Whether this process may ask for such a way at all.
pub(crate) fn check_host_routable() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::HostUnsupported,
        "make members routable from the host: only root can",
    )
    .hint("run it by `sudo`; without root, `fleetbox port` and `Vm::publish` reach single ports"))
}
