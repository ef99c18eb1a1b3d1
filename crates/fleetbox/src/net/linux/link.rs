//! Owns the few rtnetlink requests fleetbox makes: bridges, address, up, enslave, remove,
//! neighbours (rtnetlink(7)). It acts on the calling thread's network namespace.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::RawFd;

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, IfinfoFlags, Ifinfomsg};
use netlink_bindings::rt_neigh::{self, Ndtmsg};
use netlink_bindings::rt_route::{self, RtmType, Rtmsg};
use netlink_socket2::NetlinkSocket;

/// A neighbour is asked for ten times a second instead of once, and given up after 3 s as before: a
/// guest is dialled while it boots, and each dial waits for the next question after it came up.
const NEIGHBOUR_ASKED_EACH_MS: u64 = 100;
const NEIGHBOUR_ASKED_TIMES: u32 = 30;

/// `IN6_ADDR_GEN_MODE_NONE`.
const ADDRESS_GENERATION_NONE: u8 = 1;

pub(super) fn index(netlink: &mut NetlinkSocket, name: &str) -> io::Result<u32> {
    let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
    request.encode().push_ifname(&CString::new(name)?);
    let mut replies = netlink.request(&request)?;
    let (header, _) = replies.recv_one()?;
    u32::try_from(header.ifi_index).map_err(io::Error::other)
}

pub(super) fn add_bridge(netlink: &mut NetlinkSocket, name: &str, mac: [u8; 6]) -> io::Result<()> {
    let mut request =
        rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
    request
        .encode()
        .push_ifname(&CString::new(name)?)
        .push_address(&mac)
        .nested_linkinfo()
        .push_kind(c"bridge")
        .nested_data_bridge()
        // Snooping holds back multicast until a querier is heard, and there is none.
        .push_mcast_snooping(0);
    Ok(netlink.request(&request)?.recv_ack()?)
}

pub(super) fn add_address(
    netlink: &mut NetlinkSocket,
    index: u32,
    address: Ipv4Addr,
    prefix_length: u8,
) -> io::Result<()> {
    let header = Ifaddrmsg {
        ifa_family: libc::AF_INET as u8,
        ifa_index: index,
        ifa_prefixlen: prefix_length,
        ..Ifaddrmsg::default()
    };
    let mut request = rt_addr::Request::new().set_create().set_change().op_newaddr_do(&header);
    request.encode().push_local(IpAddr::V4(address)).push_address(IpAddr::V4(address));
    Ok(netlink.request(&request)?.recv_ack()?)
}

pub(super) fn up(netlink: &mut NetlinkSocket, index: u32) -> io::Result<()> {
    let request = rt_link::Request::new().op_newlink_do(&up_header(index)?);
    Ok(netlink.request(&request)?.recv_ack()?)
}

pub(super) fn enslave_up(netlink: &mut NetlinkSocket, index: u32, bridge: u32) -> io::Result<()> {
    let mut request = rt_link::Request::new().op_newlink_do(&up_header(index)?);
    request.encode().push_master(bridge);
    Ok(netlink.request(&request)?.recv_ack()?)
}

/// A bridge of two ports that takes no part in what it carries: it answers no question for an
/// address and asks none.
pub(super) fn add_silent_bridge(netlink: &mut NetlinkSocket, name: &str) -> io::Result<u32> {
    let header = Ifinfomsg {
        ifi_flags: IfinfoFlags::NoArp as u32,
        ifi_change: IfinfoFlags::NoArp as u32,
        ..Ifinfomsg::default()
    };
    let mut request = rt_link::Request::new().set_create().set_excl().op_newlink_do(&header);
    request
        .encode()
        .push_ifname(&CString::new(name)?)
        .nested_linkinfo()
        .push_kind(c"bridge")
        .nested_data_bridge()
        .push_mcast_snooping(0);
    netlink.request(&request)?.recv_ack()?;
    let bridge = index(netlink, name)?;
    silence_ipv6(netlink, bridge);
    up(netlink, bridge)?;
    Ok(bridge)
}

/// Gives the interface no IPv6 address of its own, so that nothing is announced on it.
pub(super) fn silence_ipv6(netlink: &mut NetlinkSocket, index: u32) {
    let header = Ifinfomsg { ifi_index: i32::try_from(index).unwrap_or(0), ..Ifinfomsg::default() };
    let mut request = rt_link::Request::new().op_setlink_do(&header);
    request.encode().nested_af_spec().nested_inet6().push_addr_gen_mode(ADDRESS_GENERATION_NONE);
    let asked = netlink.request(&request).and_then(|mut replies| Ok(replies.recv_ack()?));
    // A kernel without IPv6 has no such setting, and nothing to be silenced.
    if let Err(e) = asked {
        log::debug!("keep IPv6 off interface {index}: {e}");
    }
}

pub(super) fn remove(netlink: &mut NetlinkSocket, name: &str) -> io::Result<()> {
    let header = Ifinfomsg {
        ifi_index: i32::try_from(index(netlink, name)?).map_err(io::Error::other)?,
        ..Ifinfomsg::default()
    };
    let request = rt_link::Request::new().op_dellink_do(&header);
    Ok(netlink.request(&request)?.recv_ack()?)
}

/// Sets how neighbours on `index` are asked for (arp(7), `retrans_time_ms` and its kin).
pub(super) fn ask_neighbours_often(netlink: &mut NetlinkSocket, index: u32) -> io::Result<()> {
    let header = Ndtmsg { family: libc::AF_INET as u8, ..Ndtmsg::default() };
    let mut request = rt_neigh::Request::new().set_replace().op_setneightbl_do(&header);
    request
        .encode()
        .push_name(c"arp_cache")
        .nested_parms()
        .push_ifindex(index)
        .push_retrans_time(NEIGHBOUR_ASKED_EACH_MS)
        .push_ucast_probes(NEIGHBOUR_ASKED_TIMES)
        .push_mcast_probes(NEIGHBOUR_ASKED_TIMES)
        .end_nested();
    Ok(netlink.request(&request)?.recv_ack()?)
}

/// A veth with one end of that name, and both with an alias. Returns the other end's index.
pub(super) fn add_veth(netlink: &mut NetlinkSocket, name: &str, alias: &str) -> io::Result<u32> {
    let mut request =
        rt_link::Request::new().set_create().set_excl().op_newlink_do(&Ifinfomsg::new());
    request.encode().push_ifname(&CString::new(name)?).nested_linkinfo().push_kind(c"veth");
    netlink.request(&request)?.recv_ack()?;
    let mut request = rt_link::Request::new().op_getlink_do(&Ifinfomsg::new());
    request.encode().push_ifname(&CString::new(name)?);
    let mut replies = netlink.request(&request)?;
    let (_, attributes) = replies.recv_one()?;
    let peer = attributes.get_link().map_err(io::Error::other)?;
    let mut request = rt_link::Request::new().op_setlink_do(&header(peer)?);
    request.encode().push_ifalias(&CString::new(alias)?);
    netlink.request(&request)?.recv_ack()?;
    Ok(peer)
}

pub(super) fn rename(netlink: &mut NetlinkSocket, index: u32, name: &str) -> io::Result<()> {
    let mut request = rt_link::Request::new().op_setlink_do(&header(index)?);
    request.encode().push_ifname(&CString::new(name)?);
    Ok(netlink.request(&request)?.recv_ack()?)
}

/// Moves it to the network namespace of that fd, where its name must not be taken.
pub(super) fn move_to(netlink: &mut NetlinkSocket, index: u32, namespace: RawFd) -> io::Result<()> {
    let mut request = rt_link::Request::new().op_setlink_do(&header(index)?);
    request.encode().push_net_ns_fd(u32::try_from(namespace).map_err(io::Error::other)?);
    Ok(netlink.request(&request)?.recv_ack()?)
}

/// The names of the links whose alias begins like this.
pub(super) fn named(netlink: &mut NetlinkSocket, alias: &[u8]) -> io::Result<Vec<String>> {
    let request = rt_link::Request::new().op_getlink_dump(&Ifinfomsg::new());
    let mut replies = netlink.request(&request)?;
    let mut names = Vec::new();
    while let Some(reply) = replies.recv() {
        let (_, attributes) = reply?;
        if attributes.get_ifalias().is_ok_and(|found| found.to_bytes().starts_with(alias))
            && let Ok(name) = attributes.get_ifname()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Every IPv4 network there is an address in or a route to, but for default routes.
pub(super) fn networks(netlink: &mut NetlinkSocket) -> io::Result<Vec<(Ipv4Addr, u8)>> {
    let mut networks = Vec::new();
    let header = Ifaddrmsg { ifa_family: libc::AF_INET as u8, ..Ifaddrmsg::default() };
    let request = rt_addr::Request::new().op_getaddr_dump(&header);
    let mut replies = netlink.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (header, attributes) = reply?;
        if let Ok(IpAddr::V4(address)) = attributes.get_address() {
            networks.push((address, header.ifa_prefixlen));
        }
    }
    let header = Rtmsg { rtm_family: libc::AF_INET as u8, ..Rtmsg::default() };
    let request = rt_route::Request::new().op_getroute_dump(&header);
    let mut replies = netlink.request(&request)?;
    while let Some(reply) = replies.recv() {
        let (header, attributes) = reply?;
        if let Ok(IpAddr::V4(network)) = attributes.get_dst()
            && header.rtm_dst_len > 0
        {
            networks.push((network, header.rtm_dst_len));
        }
    }
    Ok(networks)
}

/// What a route is about.
#[derive(Debug, Clone, Copy)]
pub(super) enum Route {
    /// To this one address.
    To(Ipv4Addr),
    /// This /24 is the namespace's own.
    Own(Ipv4Addr),
}

pub(super) fn add_route(netlink: &mut NetlinkSocket, route: Route, link: u32) -> io::Result<()> {
    let (to, length, table, scope, kind) = match route {
        Route::To(to) => (to, 32, libc::RT_TABLE_MAIN, libc::RT_SCOPE_LINK, RtmType::Unicast),
        Route::Own(to) => (to, 24, libc::RT_TABLE_LOCAL, libc::RT_SCOPE_HOST, RtmType::Local),
    };
    let header = Rtmsg {
        rtm_family: libc::AF_INET as u8,
        rtm_dst_len: length,
        rtm_table: table,
        rtm_protocol: libc::RTPROT_STATIC,
        rtm_scope: scope,
        rtm_type: kind as u8,
        ..Rtmsg::default()
    };
    let mut request = rt_route::Request::new().set_create().set_excl().op_newroute_do(&header);
    request.encode().push_dst(IpAddr::V4(to)).push_oif(link);
    Ok(netlink.request(&request)?.recv_ack()?)
}

fn header(index: u32) -> io::Result<Ifinfomsg> {
    let ifi_index = i32::try_from(index).map_err(io::Error::other)?;
    Ok(Ifinfomsg { ifi_index, ..Ifinfomsg::default() })
}

fn up_header(index: u32) -> io::Result<Ifinfomsg> {
    Ok(Ifinfomsg {
        ifi_index: i32::try_from(index).map_err(io::Error::other)?,
        ifi_flags: IfinfoFlags::Up as u32,
        ifi_change: IfinfoFlags::Up as u32,
        ..Ifinfomsg::default()
    })
}
