//! Owns the wire types. They are frozen: a field is only ever added with a default, anything else
//! raises [`super::PROTOCOL`]. No behaviour here.

mod fault;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use self::fault::{ActiveFault, Broken, Disk, Fault, Link, Policy};
use crate::backend::{BootPlan, SavePlan};
use crate::error::{Error, ErrorKind};
use crate::spec::Name;

/// What every connection begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub protocol: u32,
    /// The speaker's release, for the error a stale peer gets.
    #[serde(default)]
    pub version: String,
    #[serde(flatten)]
    pub request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Request {
    /// The first message on the inherited connection; that connection then holds.
    Open {
        dir: PathBuf,
    },
    /// Keeps the holder alive while the connection is open, and the member if one is named; carries
    /// events.
    Hold {
        #[serde(default)]
        vm: Option<Name>,
    },
    /// The member runs on when nobody holds it any more.
    Detach {
        vm: Name,
    },
    Boot {
        plan: Box<BootPlan>,
    },
    Status,
    /// Presses the power button, and forces after the grace time.
    Stop {
        vm: Name,
        grace_ms: u64,
    },
    /// Ends the monitor at once.
    Kill {
        vm: Name,
    },
    /// Presses the reset button.
    Reset {
        vm: Name,
    },
    /// Stops the processors.
    Pause {
        vm: Name,
    },
    /// Lets the processors go on.
    Resume {
        vm: Name,
    },
    /// Takes that much memory from the guest; 0 gives all back.
    Balloon {
        vm: Name,
        mib: u32,
    },
    /// Asks for a connected socket; the reply carries the fd.
    Connect {
        vm: Name,
        port: u16,
    },
    /// Listens on a loopback port for a port of the guest.
    Forward {
        vm: Name,
        port: u16,
        listen: SocketAddr,
    },
    /// Breaks the network or a disk. It is mended when the connection this came on ends, unless kept.
    Fault {
        fault: Fault,
    },
    /// The fault stays when its connection ends.
    KeepFault {
        id: u64,
    },
    /// Mends what one fault broke; nothing to do if that is done.
    HealFault {
        id: u64,
    },
    /// Mends all that faults broke.
    Heal {
        /// Only what is like this.
        #[serde(default)]
        only: Option<Broken>,
    },
    /// Asks which faults there are.
    Faults,
    /// Copies what passes the member's tap, or the bridge, to the file whose fd comes with this
    /// message. [`Reply::Done`] says that it began. It ends when the caller ends its side of the
    /// connection, and [`Reply::Captured`] says what it came to.
    Capture {
        #[serde(default)]
        vm: Option<Name>,
    },
    /// Asks for a connected datagram socket; the reply carries the fd.
    ConnectUdp {
        vm: Name,
        port: u16,
    },
    /// Listens at any address of the host for a port of the guest.
    Publish {
        vm: Name,
        port: u16,
        listen: SocketAddr,
    },
    /// Lets the member stand still or be off until the caller ends its side of the connection, or is
    /// gone. [`Reply::Done`] says that it began, a second one that it is over.
    Outage {
        vm: Name,
        outage: Outage,
    },
    /// Writes down in the timeline what the caller did to a member by itself.
    Note {
        vm: Name,
        note: Note,
    },
    /// Gives members addresses that the host reaches, now and later; nothing to do if they have.
    RouteToHost,
    /// Saves members as they are at one instant.
    Save {
        members: Vec<SavePlan>,
    },
    /// Copies a running member's own disk to an empty overlay on the same.
    CopyDisk {
        vm: Name,
        target: PathBuf,
    },
    /// Ends the holder and all it holds.
    Close,
}

/// How a member is away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outage {
    /// Its processors stand still, then go on.
    Paused,
    /// Its power is cut, then it boots again.
    Off,
}

/// What is done without the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Note {
    /// The guest's wall clock was moved.
    ClockJump { by_ms: i64 },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Done,
    Status(HolderStatus),
    Booted(Booted),
    /// The fd comes with this very message.
    Connected,
    Forwarded {
        address: SocketAddr,
    },
    Fault {
        id: u64,
        /// What its dice were seeded with, if it has any.
        #[serde(default)]
        seed: Option<u64>,
    },
    Faults(Vec<ActiveFault>),
    Saved {
        /// How long the one stood still that did so the longest.
        paused_us: u64,
        /// What runs, in the order asked.
        plans: Vec<BootPlan>,
    },
    Captured {
        frames: u64,
        /// Frames that came faster than they could be written.
        lost: u64,
    },
    Error(WireError),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HolderStatus {
    pub version: String,
    /// Inside its namespace the holder is always 1, so the caller fills this in from the
    /// connection's credentials.
    #[serde(skip)]
    pub pid: Option<u32>,
    pub members: Vec<MemberStatus>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MemberStatus {
    pub vm: Name,
    pub running: bool,
    /// It runs, but its processors stand still.
    #[serde(default)]
    pub paused: bool,
    pub address: Ipv4Addr,
    /// Where the host reaches it, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address: Option<Ipv4Addr>,
    /// Why the monitor ended, if it did.
    #[serde(default)]
    pub ended: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Booted {
    pub address: Ipv4Addr,
    /// Whether this request started it, or it was running already.
    pub started: bool,
}

/// What a hold connection carries.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The monitor of a member ended.
    Ended { vm: Name, why: String },
}

/// An [`Error`] on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WireError {
    pub kind: String,
    pub message: String,
    #[serde(default)]
    pub vm: Option<String>,
    #[serde(default)]
    pub hint: Option<String>,
    #[serde(default)]
    pub detail: Option<String>,
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        let mut message = error.message().to_owned();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self {
            kind: error.kind().as_str().to_owned(),
            message,
            vm: error.vm_name().map(str::to_owned),
            hint: error.hint_text().map(str::to_owned),
            detail: error.detail_text().map(str::to_owned),
        }
    }
}

impl From<WireError> for Error {
    fn from(wire: WireError) -> Self {
        let mut error = Error::new(ErrorKind::from_word(&wire.kind), wire.message);
        if let Some(vm) = wire.vm {
            error = error.vm(vm);
        }
        if let Some(hint) = wire.hint {
            error = error.hint(hint);
        }
        if let Some(detail) = wire.detail {
            error = error.detail(detail);
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples of protocol 1, kept for ever.
    #[test]
    fn old_samples_still_read() {
        for sample in [
            r#"{"protocol":1,"version":"0.1.0","op":"hold"}"#,
            r#"{"protocol":1,"op":"hold","vm":"web"}"#,
            r#"{"protocol":1,"op":"detach","vm":"web"}"#,
            r#"{"protocol":1,"op":"status"}"#,
            r#"{"protocol":1,"op":"stop","vm":"web","grace_ms":15000}"#,
            r#"{"protocol":1,"op":"pause","vm":"web"}"#,
            r#"{"protocol":1,"op":"resume","vm":"web"}"#,
            r#"{"protocol":1,"op":"balloon","vm":"web","mib":256}"#,
            r#"{"protocol":1,"op":"connect","vm":"web-1","port":22}"#,
            r#"{"protocol":1,"op":"forward","vm":"web","port":80,"listen":"127.0.0.1:0"}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"cut","from":"a","to":"b"}}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"partition","groups":[["a"],["b"]]}}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"isolate","vm":"a"}}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"link","vm":"a","link":{"loss":0.1}}}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"egress","policy":{"only":["a.b:1"]}}}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"egress","vm":"a","policy":"deny"}}"#,
            r#"{"protocol":1,"op":"fault","fault":{"what":"disk","vm":"a","disk":{"iops":9}}}"#,
            r#"{"protocol":1,"op":"heal","only":{"disk":{"vm":"a"}}}"#,
            r#"{"protocol":1,"op":"heal","only":"network"}"#,
            r#"{"protocol":1,"op":"keep_fault","id":1}"#,
            r#"{"protocol":1,"op":"heal_fault","id":1}"#,
            r#"{"protocol":1,"op":"heal"}"#,
            r#"{"protocol":1,"op":"faults"}"#,
            r#"{"protocol":1,"op":"capture","vm":"a"}"#,
            r#"{"protocol":1,"op":"capture"}"#,
            r#"{"protocol":1,"op":"connect_udp","vm":"a","port":53}"#,
            r#"{"protocol":1,"op":"route_to_host"}"#,
            r#"{"protocol":1,"op":"save","members":[{"vm":"a","memory":"/m","device":"/d","disk":"/k","spare":"/s","vmm_log":"/l","token":"t"}]}"#,
            r#"{"protocol":1,"op":"copy_disk","vm":"a","target":"/t"}"#,
            r#"{"protocol":1,"op":"publish","vm":"a","port":80,"listen":"0.0.0.0:80"}"#,
            r#"{"protocol":1,"op":"outage","vm":"a","outage":"paused"}"#,
            r#"{"protocol":1,"op":"outage","vm":"a","outage":"off"}"#,
            r#"{"protocol":1,"op":"note","vm":"a","note":{"what":"clock_jump","by_ms":-1000}}"#,
        ] {
            let envelope: Envelope = serde_json::from_str(sample).unwrap();
            assert_eq!(envelope.protocol, 1);
        }
        let reply: Reply = serde_json::from_str(
            r#"{"status":{"version":"0.1.0","members":[{"vm":"web","running":true,"address":"10.9.0.10"}]}}"#,
        )
        .unwrap();
        assert!(matches!(reply, Reply::Status(s) if s.members[0].running));
        let reply: Reply = serde_json::from_str(
            r#"{"status":{"version":"0.1.0","members":[{"vm":"web","running":true,"address":"10.9.0.10","host_address":"198.19.3.10"}]}}"#,
        )
        .unwrap();
        assert!(matches!(reply, Reply::Status(s) if s.members[0].host_address.is_some()));
    }

    /// The same of boots, of which later ones have more.
    #[test]
    fn old_boots_still_read() {
        let boot = |more: &str| {
            let sample = format!(
                r#"{{"protocol":1,"op":"boot","plan":{{"vm":"a","backend":"qemu","program":"/q","accel":"tcg","arch":"x86_64","cpus":1,"memory_mib":512,"boot":"nothing","disk":"/d","seed":"/s","mac":"52:54:00:00:00:01","address":"10.9.0.10","console":"/c","vmm_log":"/l","ephemeral":true{more}}}}}"#
            );
            match serde_json::from_str::<Envelope>(&sample).unwrap().request {
                Request::Boot { plan } => plan,
                other => panic!("{other:?}"),
            }
        };
        assert!(boot("").fixtures.is_empty());
        let fixtures = r#","fixtures":[{"image":"/f","serial":"fleetbox-0"}]"#;
        assert_eq!(boot(fixtures).fixtures[0].serial, "fleetbox-0");
        let identity = r#"{"token":"t","hostname":"a","fqdn":"a.x","machine_id":null,"host_key_private_openssh":"k","host_key_public":"k","mac":"m","address":"10.9.0.10","prefix_length":24,"gateway":"10.9.0.1","saved_mac":"m","saved_address":"10.9.0.10","fellows":[]}"#;
        let restored = |more: &str| {
            let restore = format!(
                r#","restore":{{"memory":"/m","device":"/d","identity":{identity}{more}}}"#
            );
            boot(&restore).restore.unwrap().mounts
        };
        assert!(restored("").is_empty());
        let mounts = restored(r#","mounts":[{"serial":"fleetbox-0","path":"/srv"}]"#);
        assert_eq!(mounts[0].path, "/srv");
    }

    #[test]
    fn a_name_on_the_wire_is_checked() {
        assert!(
            serde_json::from_str::<Envelope>(r#"{"protocol":1,"op":"kill","vm":"../x"}"#).is_err()
        );
    }

    #[test]
    fn an_error_keeps_kind_hint_and_causes_over_the_wire() {
        let error = Error::new(ErrorKind::HostUnsupported, "make a tap")
            .hint("do this")
            .source(std::io::Error::other("no such device"));
        let back = Error::from(WireError::from(&error));
        assert_eq!(back.kind(), ErrorKind::HostUnsupported);
        assert_eq!(back.report(), "make a tap: no such device\nhint: do this");
    }
}
