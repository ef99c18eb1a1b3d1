//! Owns where the drives of a VM's fixtures come from, packed anew for a boot, or those of the saved machine
//! it comes back from; and a look whether the guest has mounted them. It must not know what is in them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::StartRequest;
use crate::console;
use crate::error::{Error, ErrorKind, Result};
use crate::images::work;
use crate::prepare::fixture;
use crate::spec::{FixtureSpec, VmSpec};
use crate::ssh::{Command, Session};
use crate::store::paths::{ClusterPaths, MemberPaths, Paths};
use crate::store::record::VmRecord;
use crate::store::whole::half_made_dir;

/// An emulated guest takes a second; this only bounds one that hangs.
const LOOK_WAIT: Duration = Duration::from_mins(1);
/// It is mounted before anyone can log in, unless cloud-init comes later in that image.
const MOUNT_WAIT: Duration = Duration::from_secs(30);
/// Names the first path where nothing is mounted, and what was said about it.
const LACKS_MOUNT: &str = r#"for path; do
    mountpoint -q "$path" && continue
    echo "nothing is mounted at $path"
    sudo -n tail -n 20 /var/log/cloud-init-output.log
    exit 1
done"#;
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_LAST: Duration = Duration::from_millis(250);

/// Who has fixtures that were packed by the starts that share this: the others of a cluster get the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed(Arc<Mutex<Vec<Had>>>);

/// Fixtures, and who has them.
type Had = (Vec<FixtureSpec>, MemberPaths);

impl Packed {
    /// The drives are in their place.
    pub(super) fn note(&self, fixtures: &[FixtureSpec], member: &MemberPaths) {
        let mut packed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        packed.push((fixtures.to_vec(), member.clone()));
    }

    fn find(&self, fixtures: &[FixtureSpec]) -> Option<MemberPaths> {
        let packed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = packed.iter().find(|(those, _)| those == fixtures);
        found.map(|(_, member)| member.clone())
    }
}

/// Refuses fixtures that cannot be packed, before any work.
pub(super) fn check(paths: &Paths, fixtures: &[FixtureSpec]) -> Result<()> {
    fixtures.iter().try_for_each(|fixture| fixture::check_host(fixture, paths.root()))
}

/// The same for a VM that was made with them.
pub(super) fn check_known(paths: &Paths, record: &VmRecord) -> Result<()> {
    check(paths, &record.spec.fixtures).map_err(|e| {
        let name = &record.name;
        e.hint(format!("put the directory back, or `fleetbox rm {name}` and make it anew"))
    })
}

/// A machine of the same kind, whoever's fixtures it gets.
pub(super) fn blank(spec: &VmSpec) -> Vec<FixtureSpec> {
    spec.fixtures.iter().map(|_| FixtureSpec::blank()).collect()
}

/// In words.
pub(super) fn told(fixtures: &[FixtureSpec]) -> String {
    if fixtures.is_empty() {
        return "no fixtures".to_owned();
    }
    let all: Vec<_> = fixtures
        .iter()
        .map(|fixture| format!("{} at {}", fixture.host.display(), fixture.guest.escape_debug()))
        .collect();
    format!("the fixtures {}", all.join(", "))
}

/// Packs the fixtures into the directory of a member that is being made.
pub(super) async fn pack(
    request: &StartRequest,
    fixtures: &[FixtureSpec],
    member: &MemberPaths,
) -> Result<()> {
    if let Some(sibling) = request.packed.find(fixtures)
        && link_all(fixtures.len(), &sibling, member)?
    {
        return Ok(());
    }
    let (fixtures, member) = (fixtures.to_vec(), member.clone());
    work::run("pack fixtures", move |cancel| {
        (0..fixtures.len())
            .try_for_each(|place| fixture::pack(&fixtures, place, &member.fixture(place), cancel))
    })
    .await
}

/// Packs the fixtures of a VM that is about to boot again: it has the old ones, or all new ones of each.
pub(super) async fn renew(
    request: &StartRequest,
    cluster: &ClusterPaths,
    record: &VmRecord,
) -> Result<()> {
    let fixtures = &record.spec.fixtures;
    if fixtures.is_empty() {
        return Ok(());
    }
    let half_made = half_made_dir(cluster.dir())?;
    let fresh = MemberPaths::at(half_made.path().to_owned());
    pack(request, fixtures, &fresh).await?;
    let member = cluster.member(&record.name);
    for place in 0..fixtures.len() {
        let (from, to) = (fresh.fixture(place), member.fixture(place));
        std::fs::rename(&from, &to).map_err(|e| Error::io("make", &to, e))?;
    }
    request.packed.note(fixtures, &member);
    Ok(())
}

/// Gives a member a sibling's drives; false if that is gone, or elsewhere.
fn link_all(count: usize, from: &MemberPaths, to: &MemberPaths) -> Result<bool> {
    for place in 0..count {
        if !link(&from.fixture(place), &to.fixture(place))? {
            for made in 0..place {
                let made = to.fixture(made);
                std::fs::remove_file(&made).map_err(|e| Error::io("remove", &made, e))?;
            }
            return Ok(false);
        }
    }
    Ok(true)
}

fn link(from: &Path, to: &Path) -> Result<bool> {
    match std::fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("link", from, e)),
    }
}

/// Waits until a guest that was booted has its fixtures where they belong: in all but odd guests nobody can
/// log in before.
pub(super) async fn has_mounted(session: &Session, record: &VmRecord) -> Result<()> {
    let mounts = fixture::mounts(&record.spec.fixtures);
    if mounts.is_empty() || record.backend.is_some_and(|backend| !backend.has_guest()) {
        return Ok(());
    }
    let deadline = Instant::now() + MOUNT_WAIT;
    let mut pause = POLL_FIRST;
    loop {
        let looks = ["-c", LACKS_MOUNT, "sh"].into_iter().map(str::to_owned);
        let paths = mounts.iter().map(|mount| mount.path.clone());
        let mut look = Command::new(session.clone(), "sh");
        let output = look.args(looks.chain(paths)).timeout(LOOK_WAIT).output().await?;
        if output.status.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let said = console::harmless(&output.stdout);
            return Err(Error::new(ErrorKind::BootFailed, "mount its fixtures in the guest")
                .vm(record.name.as_str())
                .detail(said)
                .hint("the guest needs ext4, Python 3 and cloud-init, as cloud images have them"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_LAST);
    }
}
