//! Owns the nftables rules that keep frames from one port of the bridge to another (nft(8), family
//! `bridge`). It acts on the calling thread's network namespace.
//!
//! ```text
//! table bridge fleetbox {
//!     set cut { type ifname . ifname; }
//!     set isolated { type ifname; }
//!     chain forward {
//!         type filter hook forward priority filter;
//!         iifname . oifname @cut drop
//!         iifname @isolated drop
//!         oifname @isolated drop
//!     }
//! }
//! ```

use std::ffi::CStr;
use std::io;

use netlink_bindings::nftables::{Chained, MetaKeys, Nfgenmsg, Registers, VerdictCode};
use netlink_socket2::NetlinkSocket;

use super::nft::{begin, end};

const TABLE: &CStr = c"fleetbox";
const CHAIN: &CStr = c"forward";
const CUT: &CStr = c"cut";
const ISOLATED: &CStr = c"isolated";
/// `NFPROTO_BRIDGE`.
const FAMILY_BRIDGE: u8 = 7;
/// `NF_BR_FORWARD`.
const HOOK_FORWARD: u32 = 2;
/// `NF_BR_PRI_FILTER_BRIDGED`.
const PRIORITY_FILTER: i32 = -200;
/// `IFNAMSIZ`: an interface's name fills a register of this size.
const NAME_BYTES: usize = 16;
/// The type nft(8) shows for an interface's name, and how it joins two (its `TYPE_BITS`).
const TYPE_IFNAME: u32 = 41;
const TYPE_BITS: u32 = 6;
/// An attribute holds 64 KiB; an element takes less than 64 bytes.
const ELEMENTS_AT_ONCE: usize = 1000;

/// An element of one of the sets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cut {
    /// From the first port to the second.
    Pair(String, String),
    /// To and from the port.
    Isolated(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Add,
    Remove,
}

/// The table with empty sets.
pub(super) fn make(netlink: &mut NetlinkSocket) -> io::Result<()> {
    let mut batch = begin(netlink, 16)?;
    batch.request().set_create().op_newtable_do(&header()).encode().push_name(TABLE);
    for (id, set, names) in [(1, CUT, 2), (2, ISOLATED, 1)] {
        let kind = if names == 2 { TYPE_IFNAME << TYPE_BITS | TYPE_IFNAME } else { TYPE_IFNAME };
        batch
            .request()
            .set_create()
            .op_newset_do(&header())
            .encode()
            .push_table(TABLE)
            .push_name(set)
            .push_flags(0)
            .push_key_type(kind)
            .push_key_len(names * NAME_BYTES as u32)
            .push_id(id);
    }
    batch
        .request()
        .set_create()
        .op_newchain_do(&header())
        .encode()
        .push_table(TABLE)
        .push_name(CHAIN)
        .push_type(c"filter")
        .nested_hook()
        .push_num(HOOK_FORWARD)
        .push_priority(PRIORITY_FILTER)
        .end_nested();
    push_rule(&mut batch, &[MetaKeys::Iifname, MetaKeys::Oifname], CUT, 1);
    push_rule(&mut batch, &[MetaKeys::Iifname], ISOLATED, 2);
    push_rule(&mut batch, &[MetaKeys::Oifname], ISOLATED, 2);
    end(netlink, batch)
}

/// Changes the sets, each thousand elements at once.
pub(super) fn change(netlink: &mut NetlinkSocket, change: Change, cuts: &[Cut]) -> io::Result<()> {
    for cuts in cuts.chunks(ELEMENTS_AT_ONCE) {
        let mut batch = begin(netlink, 8)?;
        for set in [CUT, ISOLATED] {
            let keys: Vec<Vec<u8>> =
                cuts.iter().filter(|cut| cut.set() == set).map(Cut::key).collect();
            if keys.is_empty() {
                continue;
            }
            match change {
                Change::Add => {
                    let mut request = batch.request().set_create().op_newsetelem_do(&header());
                    let mut elements =
                        request.encode().push_table(TABLE).push_set(set).nested_elements();
                    for key in &keys {
                        elements = elements
                            .nested_elem()
                            .nested_key()
                            .push_value(key)
                            .end_nested()
                            .end_nested();
                    }
                    elements.end_nested();
                }
                Change::Remove => {
                    let mut request = batch.request().op_delsetelem_do(&header());
                    let mut elements =
                        request.encode().push_table(TABLE).push_set(set).nested_elements();
                    for key in &keys {
                        elements = elements
                            .nested_elem()
                            .nested_key()
                            .push_value(key)
                            .end_nested()
                            .end_nested();
                    }
                    elements.end_nested();
                }
            }
        }
        end(netlink, batch)?;
    }
    Ok(())
}

impl Cut {
    fn set(&self) -> &'static CStr {
        match self {
            Cut::Pair(..) => CUT,
            Cut::Isolated(_) => ISOLATED,
        }
    }

    fn key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(2 * NAME_BYTES);
        let mut push = |name: &str| {
            let end = key.len() + NAME_BYTES;
            key.extend_from_slice(name.as_bytes());
            key.resize(end, 0);
        };
        match self {
            Cut::Pair(from, to) => {
                push(from);
                push(to);
            }
            Cut::Isolated(port) => push(port),
        }
        key
    }
}

fn push_rule(batch: &mut Chained<'static>, keys: &[MetaKeys], set: &CStr, set_id: u32) {
    // Registers of 16 bytes that lie one after the other.
    let registers = [Registers::Reg1 as u32, Registers::Reg2 as u32];
    let mut request = batch.request().set_create().set_append().op_newrule_do(&header());
    let mut expressions = request.encode().push_table(TABLE).push_chain(CHAIN).nested_expressions();
    for (key, register) in keys.iter().zip(registers) {
        expressions = expressions
            .nested_elem()
            .nested_data_meta()
            .push_dreg(register)
            .push_key(*key as u32)
            .end_nested()
            .end_nested();
    }
    expressions
        .nested_elem()
        .nested_data_lookup()
        .push_set(set)
        .push_set_id(set_id)
        .push_sreg(registers[0])
        .end_nested()
        .end_nested()
        .nested_elem()
        .nested_data_immediate()
        .push_dreg(Registers::RegVerdict as u32)
        .nested_data()
        .nested_verdict()
        .push_code(VerdictCode::Drop as u32)
        .end_nested()
        .end_nested()
        .end_nested()
        .end_nested()
        .end_nested();
}

fn header() -> Nfgenmsg {
    Nfgenmsg { nfgen_family: FAMILY_BRIDGE, ..Nfgenmsg::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_each_name_in_a_register_of_its_own() {
        let key = Cut::Pair("fbtap1".into(), "fbout22".into()).key();
        assert_eq!(key.len(), 32);
        assert_eq!(&key[..7], b"fbtap1\0");
        assert_eq!(&key[16..24], b"fbout22\0");
    }
}
