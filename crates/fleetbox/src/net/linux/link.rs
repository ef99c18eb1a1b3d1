//! Owns the few rtnetlink requests fleetbox makes: bridges, address, up, enslave, remove,
//! neighbours (rtnetlink(7)). It acts on the calling thread's network namespace.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_bindings::rt_addr::{self, Ifaddrmsg};
use netlink_bindings::rt_link::{self, IfinfoFlags, Ifinfomsg};
use netlink_bindings::rt_neigh::{self, Ndtmsg};
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
    let header =
        Ifinfomsg { ifi_index: i32::try_from(bridge).unwrap_or(0), ..Ifinfomsg::default() };
    let mut request = rt_link::Request::new().op_setlink_do(&header);
    request.encode().nested_af_spec().nested_inet6().push_addr_gen_mode(ADDRESS_GENERATION_NONE);
    // A kernel without IPv6 has no such setting, and nothing to be silenced.
    if let Err(e) = netlink.request(&request)?.recv_ack() {
        tracing::debug!("keep IPv6 off {name}: {e}");
    }
    up(netlink, bridge)?;
    Ok(bridge)
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

fn up_header(index: u32) -> io::Result<Ifinfomsg> {
    Ok(Ifinfomsg {
        ifi_index: i32::try_from(index).map_err(io::Error::other)?,
        ifi_flags: IfinfoFlags::Up as u32,
        ifi_change: IfinfoFlags::Up as u32,
        ..Ifinfomsg::default()
    })
}
