//! Owns the peer of a cluster's network: a bridge and two taps made by `ip` as root in the host's own
//! network, with bare QEMU on them. All of it goes with the value, also after a failure.

use super::super::bare::{Kept, Monitor};
use super::super::report;
use super::super::stage::Stage;
use super::{Pair, prepare};
use crate::failure::{Failure, Outcome};
use crate::process;

/// What the seeds say is their gateway.
const GATEWAY: &str = "10.213.77.1";
const NETWORK: &str = "10.213.77.0/24";
/// That of the machines' own network (the library's `net/linux`). A guest that was saved remembers it, and
/// would talk to nobody for the seconds after which it asks again.
const GATEWAY_MAC: &str = "52:54:00:fb:00:01";

pub(super) struct ByHand {
    guests: Vec<Guest>,
    // After the guests, whose taps are on it.
    bridge: Bridge,
}

struct Guest {
    kept: Kept,
    monitor: Monitor,
}

impl ByHand {
    /// Boots the same two guests on a bridge of its own.
    pub(super) fn start(stage: &Stage, pair: &Pair) -> Outcome<Self> {
        let image = stage.image()?;
        let bridge = Bridge::make()?;
        report::progress("booting the same two guests on a bridge by hand");
        let mut guests = Vec::new();
        for (vm, tap) in [&pair.a, &pair.b].into_iter().zip(&bridge.taps) {
            let kept = Kept::on_tap(stage, vm, tap)?;
            let monitor = kept.start(&image)?;
            guests.push(Guest { kept, monitor });
        }
        let mut by_hand = Self { guests, bridge };
        for guest in &mut by_hand.guests {
            guest.kept.wait(stage, &mut guest.monitor)?;
        }
        for number in 0..by_hand.guests.len() {
            by_hand.ssh(number, "systemctl is-system-running --wait || true")?;
            by_hand.ssh(number, &prepare())?;
        }
        Ok(by_hand)
    }

    /// Runs a line in one of the guests.
    pub(super) fn ssh(&self, number: usize, line: &str) -> Outcome<String> {
        let output = process::run(&mut self.guests[number].kept.ssh(line))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Ends all of it, and says what could not be.
    pub(super) fn close(self) -> Outcome<()> {
        let Self { guests, bridge } = self;
        drop(guests);
        bridge.close()
    }
}

/// A bridge with two taps, and the seeds' gateway on it.
pub(in crate::bench) struct Bridge {
    name: String,
    pub(in crate::bench) taps: [String; 2],
}

impl Bridge {
    pub(in crate::bench) fn make() -> Outcome<Self> {
        let routes = process::run(process::command("ip").args(["route", "show", NETWORK]))?.stdout;
        if !routes.is_empty() {
            return Err(Failure::new(format!("the host has a route to {NETWORK} already"))
                .hint("a bridge by hand needs it; remove what has it"));
        }
        let number = std::process::id();
        let name = format!("fbb{number}");
        let taps = [1, 2].map(|tap| format!("fbb{number}t{tap}"));
        // From here on it is removed, whatever fails.
        let bridge = Self { name, taps };
        ip(&[
            "link",
            "add",
            &bridge.name,
            "address",
            GATEWAY_MAC,
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        ])
        .map_err(|e| e.hint("only root makes a bridge by hand"))?;
        ip(&["addr", "add", &format!("{GATEWAY}/24"), "dev", &bridge.name])?;
        ip(&["link", "set", &bridge.name, "up"])?;
        for tap in &bridge.taps {
            ip(&["tuntap", "add", tap, "mode", "tap", "vnet_hdr"])?;
            ip(&["link", "set", tap, "master", &bridge.name, "up"])?;
        }
        Ok(bridge)
    }

    fn remove(&self) -> Outcome<()> {
        let mut outcome = Ok(());
        for link in self.taps.iter().chain([&self.name]) {
            if std::path::Path::new("/sys/class/net").join(link).exists() {
                outcome = outcome.and(ip(&["link", "del", link]));
            }
        }
        outcome
    }

    pub(in crate::bench) fn close(self) -> Outcome<()> {
        self.remove()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Err(failure) = self.remove() {
            report::progress(&format!("the bridge {} is left: {failure}", self.name));
        }
    }
}

fn ip(words: &[&str]) -> Outcome<()> {
    process::run(process::command("ip").args(words)).map(drop)
}
