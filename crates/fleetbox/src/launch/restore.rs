//! Owns the saved machine that a new VM comes back from: finding it, refusing what cannot be restored
//! here, and what the backend and the guest are told. It must not save or boot.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::plan::Start;
use crate::backend::{Identity, Restore};
use crate::error::{Error, ErrorKind, Result};
use crate::net::plan;
use crate::prepare::fixture;
use crate::snapshot;
use crate::spec::Name;
use crate::store::lock::{self, SharedLock};
use crate::store::paths::{MemberPaths, Paths, SavedPaths, SnapshotPaths};
use crate::store::record::{SnapshotOf, VmRecord};
use crate::store::snapshot::{SavedMember, SnapshotRecord};
use crate::sys::random;

/// A machine of a snapshot, whose files stay while this is there.
pub(crate) struct Saved {
    pub paths: SnapshotPaths,
    pub member: SavedMember,
    /// What it is called, if it has a name.
    pub of: Option<SnapshotOf>,
    fellows: Vec<Ipv4Addr>,
    /// The name it had among its fellows, which they know it by.
    alias: Option<Name>,
    _used: SharedLock,
}

impl Saved {
    /// The machine `vm` of that snapshot. Marks it as used.
    pub(super) fn open(
        paths: SnapshotPaths,
        record: SnapshotRecord,
        vm: &Name,
        of: Option<SnapshotOf>,
    ) -> Result<Self> {
        let addresses =
            record.members.iter().map(|member| (&member.record.name, member.record.address));
        let fellows =
            addresses.filter(|(name, _)| *name != vm).map(|(_, address)| address).collect();
        let alias = (record.members.len() > 1).then(|| vm.clone());
        let Some(member) = record.members.into_iter().find(|m| m.record.name == *vm) else {
            return Err(Error::new(ErrorKind::NotFound, format!("find {vm} in the snapshot")));
        };
        let saved = paths.member(vm);
        member.check(&saved)?;
        let Some(used) = lock::try_share(&saved.memory())? else {
            return Err(Error::new(
                ErrorKind::SnapshotUnusable,
                format!("restore {}: it is being removed", saved.dir().display()),
            )
            .hint("make it anew"));
        };
        snapshot::touch(&paths)?;
        Ok(Self { paths, member, of, fellows, alias, _used: used })
    }

    /// Refuses what this monitor, machine or host cannot restore.
    pub(super) fn check(&self, start: &Start) -> Result<()> {
        let here = start.maker(&self.member.record)?;
        let Some(why) = here.differs(&self.member.maker) else { return Ok(()) };
        let name = self.of.as_ref().map_or("a snapshot", |of| of.snapshot.as_str());
        Err(Error::new(ErrorKind::SnapshotUnusable, format!("restore {name}: {why}"))
            .hint("restore it where it was made, or make it anew here"))
    }

    /// Notes in a new VM's record what it comes from.
    pub(super) fn describe(&self, record: &mut VmRecord) {
        record.layers.clone_from(&self.member.layers);
        record.snapshot.clone_from(&self.of);
        let alias = self.alias.iter().filter(|alias| **alias != record.name);
        record.aliases.extend(alias.cloned());
    }

    /// What its disk lies on, the disk it had included.
    pub(super) fn layers(&self) -> Vec<PathBuf> {
        let saved = self.member_paths();
        self.member.layers.iter().map(|layer| saved.layer(layer)).collect()
    }

    pub(super) fn member_paths(&self) -> SavedPaths {
        self.paths.member(&self.member.record.name)
    }

    /// Gives the VM's directory the layers its disk lies on.
    pub(super) fn link_layers(&self, member: &MemberPaths) -> Result<()> {
        snapshot::link_into_member(&self.member.layers, &self.member_paths(), member)
    }

    /// Whether its guest has fixtures mounted, which then come back with it.
    pub(super) fn has_fixtures(&self) -> bool {
        self.member.record.spec.mounted_fixtures().next().is_some()
    }

    /// Gives the VM's directory the drives its guest has mounted.
    pub(super) fn link_fixtures(&self, member: &MemberPaths) -> Result<()> {
        snapshot::link_fixtures(&self.member, &self.member_paths(), member)
    }

    /// What the backend comes back from, and whom the guest becomes.
    pub(super) fn restore(&self, record: &VmRecord, host_key_private_openssh: String) -> Restore {
        let saved = self.member_paths();
        Restore {
            memory: saved.memory(),
            device: saved.device(),
            identity: Identity {
                token: self.member.token.clone(),
                hostname: record.name.to_string(),
                fqdn: format!("{}.{}", record.name, plan::DOMAIN),
                machine_id: record.machine_id.clone(),
                host_key_private_openssh,
                host_key_public: record.host_key.clone(),
                mac: record.mac.to_ascii_lowercase(),
                address: record.address,
                prefix_length: plan::PREFIX_LENGTH,
                gateway: plan::GATEWAY,
                saved_mac: self.member.record.mac.to_ascii_lowercase(),
                saved_address: self.member.record.address,
                fellows: self.fellows.clone(),
            },
            mounts: if self.has_fixtures() {
                Vec::new()
            } else {
                fixture::mounts(&record.spec.fixtures)
            },
        }
    }
}

/// A machine's own, as systemd makes one (machine-id(5)): a random UUID of version 4.
pub(super) fn machine_id() -> Result<String> {
    Ok(crate::images::hex(&random::uuid()?.0))
}

/// The machine of a snapshot that has a name.
pub(super) fn named(paths: &Paths, of: &SnapshotOf) -> Result<Saved> {
    let dir = paths.snapshot(&of.snapshot);
    let Some(record) = SnapshotRecord::read(&dir)? else {
        return Err(snapshot::not_found(paths, &of.snapshot));
    };
    Saved::open(dir, record, &of.vm, Some(of.clone()))
}
