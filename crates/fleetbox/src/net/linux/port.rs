//! Owns how a member's tap is wired: straight to the cluster's bridge, or through the two taps of a
//! relay; and who may send to whom on the bridge. It must not relay.
//!
//! ```text
//! guest ─ fbtapN ─ br0                                    (no link fault)
//! guest ─ fbtapN ─ fbmidN ─ fbinN ═ relay ═ fboutN ─ br0  (link at fault)
//! ```
//!
//! A guest sends segments far larger than a frame with checksums left to do, and cannot be told
//! otherwise while it runs. `fbinN` is a tap without offloads: the kernel cuts them up on their way
//! into it.

use std::io;
use std::os::fd::OwnedFd;

use super::{BRIDGE, BRIDGE_MAC, Change, Cut, Network, cut, link};
use crate::net::plan;
use crate::net::relay::{HostSide, Taps};
use crate::sys;

/// What a relay knows the host's own frames by.
pub(crate) const HOST_SIDE: HostSide = HostSide { mac: BRIDGE_MAC, address: plan::GATEWAY };

impl Network {
    /// The taps for a relay of the tap with this number. Nothing goes through them yet.
    pub(crate) async fn relay_taps(&self, number: u32) -> io::Result<Taps> {
        self.run(move |netlink| {
            let [middle, inner, outer] = plan::relay_names(number);
            let guest = sys::tun::plain_tap(&inner)?;
            let bridge = sys::tun::plain_tap(&outer)?;
            let middle = link::add_silent_bridge(netlink, &middle)?;
            for (tap, master) in [(inner, middle), (outer, link::index(netlink, BRIDGE)?)] {
                let tap = link::index(netlink, &tap)?;
                link::enslave_up(netlink, tap, master)?;
            }
            Ok(Taps { guest, bridge })
        })
        .await
    }

    /// Leads the tap through its relay, which must run.
    pub(crate) async fn enter_relay(&self, number: u32) -> io::Result<()> {
        let [middle, ..] = plan::relay_names(number);
        self.move_tap(number, middle).await
    }

    /// Leads the tap straight to the bridge.
    pub(crate) async fn leave_relay(&self, number: u32) -> io::Result<()> {
        self.move_tap(number, BRIDGE.to_owned()).await
    }

    /// Removes what the relay's taps do not take along when they are closed.
    pub(crate) async fn remove_relay(&self, number: u32) -> io::Result<()> {
        self.run(move |netlink| link::remove(netlink, &plan::relay_names(number)[0])).await
    }

    /// Leads a tap that was apart to the bridge.
    pub(crate) async fn join(&self, number: u32) -> io::Result<()> {
        self.move_tap(number, BRIDGE.to_owned()).await
    }

    /// A socket for frames of that type, and the tap with this number as where to send them. It hears
    /// them from wherever the tap leads, too.
    pub(crate) async fn line_socket(
        &self,
        number: u32,
        ethertype: u16,
    ) -> io::Result<(OwnedFd, u32)> {
        self.run(move |netlink| {
            let tap = link::index(netlink, &plan::tap_name(number))?;
            Ok((sys::packet::of_type(ethertype)?, tap))
        })
        .await
    }

    async fn move_tap(&self, number: u32, master: String) -> io::Result<()> {
        self.run(move |netlink| {
            let tap = link::index(netlink, &plan::tap_name(number))?;
            let master = link::index(netlink, &master)?;
            link::enslave_up(netlink, tap, master)
        })
        .await
    }

    /// A socket that gets every frame of the tap with this number, else of the bridge.
    pub(crate) async fn packets(&self, tap: Option<u32>) -> io::Result<OwnedFd> {
        let interface = tap.map_or_else(|| BRIDGE.to_owned(), plan::tap_name);
        self.run(move |netlink| sys::packet::listen(link::index(netlink, &interface)?)).await
    }

    /// Makes what [`Network::change_cuts`] changes, once. Fails where the kernel has no nftables
    /// for bridges.
    pub(crate) async fn allow_cuts(&self) -> io::Result<()> {
        self.run(cut::make).await
    }

    pub(crate) async fn change_cuts(&self, change: Change, cuts: Vec<Cut>) -> io::Result<()> {
        self.run(move |netlink| cut::change(netlink, change, &cuts)).await
    }
}
