//! Owns [`Link`], the description of a bad link, and whether it is one there can be. It must not
//! apply it.

use std::fmt;
use std::time::Duration;

use super::{Cluster, NetworkFault};
use crate::control::message;
use crate::error::{Error, ErrorKind, Result};

/// Above this a latency is a mistake.
const LATENCY_MAX: Duration = Duration::from_hours(1);

/// What a link does to frames, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct Impairment {
    /// How much later a frame arrives.
    pub latency: Duration,
    /// How much more or less than that at most.
    pub jitter: Duration,
    /// The share of frames that are lost, from 0 to 1.
    pub loss: f64,
    /// The share of frames that arrive twice, from 0 to 1.
    pub duplicate: f64,
    /// The share of frames that the next one overtakes, from 0 to 1.
    pub reorder: f64,
    /// What the link carries in a second, in 1000 bits; `None` is as much as it can.
    pub bandwidth_kbit_per_s: Option<u64>,
}

/// A bad link, to be [applied](Link::apply): made by [`Cluster::link`] and [`Cluster::link_between`].
///
/// All it does holds for each direction by itself, for every frame: broadcasts and address questions,
/// too. The host's own way to the guest (SSH, connections, copies, name queries) is not touched.
///
/// ```no_run
/// # async fn example(cluster: fleetbox::Cluster) -> fleetbox::Result<()> {
/// use std::time::Duration;
///
/// let satellite = cluster
///     .link("node-1")
///     .latency(Duration::from_millis(300))
///     .jitter(Duration::from_millis(20))
///     .loss(0.01)
///     .bandwidth_kbit_per_s(10_000)
///     .apply()
///     .await?;
/// println!("again with seed {:?}", satellite.seed());
/// satellite.heal().await
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens until it is applied"]
pub struct Link {
    cluster: Cluster,
    vm: String,
    peer: Option<String>,
    impairment: Impairment,
    seed: Option<u64>,
}

impl Link {
    pub(super) fn new(cluster: Cluster, vm: &str, peer: Option<&str>) -> Self {
        Self {
            cluster,
            vm: vm.to_owned(),
            peer: peer.map(str::to_owned),
            impairment: Impairment::default(),
            seed: None,
        }
    }

    /// Each frame takes this much longer, so a round trip takes twice as much longer. An hour at
    /// most. Default: none.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.impairment.latency = latency;
        self
    }

    /// The latency varies evenly by up to this much up and down, the latency itself at most. Frames
    /// stay in order; [`Link::reorder`] is for that. Default: none.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.impairment.jitter = jitter;
        self
    }

    /// This share of frames is lost: 0.1 is one in ten, 1.0 all. Default: 0.
    pub fn loss(mut self, share: f64) -> Self {
        self.impairment.loss = share;
        self
    }

    /// This share of frames arrives twice. Default: 0.
    pub fn duplicate(mut self, share: f64) -> Self {
        self.impairment.duplicate = share;
        self
    }

    /// This share of frames is held back until the next frame has overtaken it, or for 100 ms if
    /// none comes. Default: 0.
    pub fn reorder(mut self, share: f64) -> Self {
        self.impairment.reorder = share;
        self
    }

    /// The link carries this many thousand bits a second, counted over whole Ethernet frames. Up to
    /// 200 ms worth of frames wait for their turn, those above are lost. Default: no bound.
    pub fn bandwidth_kbit_per_s(mut self, kbit_per_s: u64) -> Self {
        self.impairment.bandwidth_kbit_per_s = Some(kbit_per_s);
        self
    }

    /// Seeds the dice: with the same seed the n-th frame each way has the same fate. Default: drawn,
    /// see [`NetworkFault::seed`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Makes the link as bad as described.
    ///
    /// # Errors
    /// Before any work: [`ErrorKind::InvalidSpec`] if a value is not one there can be, or the link
    /// leads from a member to itself; [`ErrorKind::NotFound`] with the nearest name if a member is
    /// unknown; [`ErrorKind::NotRunning`] if it does not run.
    pub async fn apply(self) -> Result<NetworkFault> {
        check(&self.impairment)?;
        let vm = self.cluster.member(&self.vm)?;
        let peer = self.peer.as_deref().map(|peer| self.cluster.member(peer)).transpose()?;
        if peer.as_ref() == Some(&vm) {
            return Err(super::network::with_itself(&vm));
        }
        let link = self.impairment.into();
        self.cluster.cause(message::Fault::Link { vm, peer, link, seed: self.seed }).await
    }
}

pub(super) fn check(impairment: &Impairment) -> Result<()> {
    let refused = |what: String, hint: &str| {
        Err(Error::new(ErrorKind::InvalidSpec, format!("impair a link: {what}")).hint(hint))
    };
    if *impairment == Impairment::default() {
        return refused(
            "nothing is to be done to it".into(),
            "set a latency, loss, duplicate, reorder or bandwidth",
        );
    }
    for (name, share) in [
        ("loss", impairment.loss),
        ("duplicate", impairment.duplicate),
        ("reorder", impairment.reorder),
    ] {
        if !(0.0..=1.0).contains(&share) {
            return refused(format!("a {name} of {share}"), "use a share from 0 to 1");
        }
    }
    let latency = humantime::format_duration(impairment.latency);
    if impairment.latency > LATENCY_MAX {
        return refused(format!("a latency of {latency}"), "use an hour at most");
    }
    if impairment.jitter > impairment.latency {
        let jitter = humantime::format_duration(impairment.jitter);
        return refused(
            format!("a jitter of {jitter} around a latency of {latency}"),
            "use a latency as large as the jitter at least",
        );
    }
    if impairment.bandwidth_kbit_per_s == Some(0) {
        return refused("a bandwidth of 0".into(), "use a loss of 1, or cut it");
    }
    Ok(())
}

impl From<Impairment> for message::Link {
    fn from(impairment: Impairment) -> Self {
        let us = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self {
            latency_us: us(impairment.latency),
            jitter_us: us(impairment.jitter),
            loss: impairment.loss,
            duplicate: impairment.duplicate,
            reorder: impairment.reorder,
            bandwidth_kbit_per_s: impairment.bandwidth_kbit_per_s,
        }
    }
}

impl From<message::Link> for Impairment {
    fn from(link: message::Link) -> Self {
        Self {
            latency: Duration::from_micros(link.latency_us),
            jitter: Duration::from_micros(link.jitter_us),
            loss: link.loss,
            duplicate: link.duplicate,
            reorder: link.reorder,
            bandwidth_kbit_per_s: link.bandwidth_kbit_per_s,
        }
    }
}

/// As the command line takes it.
impl fmt::Display for Impairment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for (name, duration) in [("latency", self.latency), ("jitter", self.jitter)] {
            if !duration.is_zero() {
                let text = humantime::format_duration(duration).to_string();
                parts.push(format!("--{name} {}", text.replace(' ', "")));
            }
        }
        for (name, share) in
            [("loss", self.loss), ("duplicate", self.duplicate), ("reorder", self.reorder)]
        {
            if share > 0.0 {
                // Without the digits that only the binary form has, if it is the same number.
                let percent = (share * 1e8).round() / 1e6;
                #[expect(clippy::float_cmp, reason = "what is read back shall be the same")]
                let same = percent / 100.0 == share;
                parts.push(if same {
                    format!("--{name} {percent}%")
                } else {
                    format!("--{name} {share}")
                });
            }
        }
        if let Some(kbit) = self.bandwidth_kbit_per_s {
            parts.push(match kbit {
                whole if whole % 1_000_000 == 0 => format!("--bandwidth {}gbit", whole / 1_000_000),
                whole if whole % 1000 == 0 => format!("--bandwidth {}mbit", whole / 1000),
                kbit => format!("--bandwidth {kbit}kbit"),
            });
        }
        f.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Impairment {
        Impairment { latency: Duration::from_millis(50), loss: 0.1, ..Impairment::default() }
    }

    #[test]
    fn what_no_link_can_be_is_refused() {
        assert!(check(&good()).is_ok());
        let ms = Duration::from_millis;
        for bad in [
            Impairment::default(),
            Impairment { loss: -0.1, ..good() },
            Impairment { loss: f64::NAN, ..good() },
            Impairment { duplicate: 1.1, ..good() },
            Impairment { reorder: f64::INFINITY, ..good() },
            Impairment { latency: LATENCY_MAX + ms(1), ..good() },
            Impairment { jitter: ms(51), ..good() },
            Impairment { bandwidth_kbit_per_s: Some(0), ..good() },
        ] {
            let error = check(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidSpec, "{bad:?}");
            assert!(error.hint_text().is_some());
        }
    }

    #[test]
    fn it_is_the_same_after_the_wire() {
        let link = message::Link::from(good());
        assert_eq!(Impairment::from(link), good());
    }
}
