//! Owns the question in which cluster's directory a VM of a given name is, or belongs: no other file
//! may derive one from the other. It must not create anything but a lock.

use crate::error::{Error, ErrorKind, Result};
use crate::spec::Name;
use crate::store::lock::{self, Lock};
use crate::store::paths::{ClusterPaths, Paths};
use crate::store::record::{self, VmRecord};

/// A VM there is.
#[derive(Debug)]
pub(crate) struct Placed {
    pub cluster: ClusterPaths,
    pub record: VmRecord,
}

/// The VM of that name, if there is one.
pub(crate) fn find(paths: &Paths, vm: &Name) -> Result<Option<Placed>> {
    let Some(cluster) = cluster_of(paths, vm)? else { return Ok(None) };
    let cluster = paths.cluster(&cluster);
    // It may go at any time.
    Ok(VmRecord::read(&cluster.member(vm))?.map(|record| Placed { cluster, record }))
}

/// The cluster that has a VM of that name, whatever its record says. The one its name suggests is
/// looked at first; named members may be in any.
pub(crate) fn cluster_of(paths: &Paths, vm: &Name) -> Result<Option<Name>> {
    let likely = vm.likely_cluster();
    if has(paths, &likely, vm)? {
        return Ok(Some(likely));
    }
    for cluster in record::clusters(paths)? {
        if has(paths, &cluster, vm)? {
            return Ok(Some(cluster));
        }
    }
    Ok(None)
}

fn has(paths: &Paths, cluster: &Name, vm: &Name) -> Result<bool> {
    let config = paths.cluster(cluster).member(vm).config();
    match config.try_exists() {
        // A state root that cannot be one has no VMs; a start says what is wrong with it.
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Ok(false),
        exists => exists.map_err(|e| Error::io("find", &config, e)),
    }
}

/// The cluster to start a VM in: the one asked for, else the one that has it, else the one its name
/// suggests. A VM of another cluster than the one asked for is a conflict.
pub(crate) fn cluster_for(paths: &Paths, vm: &Name, asked: Option<&Name>) -> Result<Name> {
    match (cluster_of(paths, vm)?, asked) {
        (Some(has), Some(asked)) if has != *asked => Err(elsewhere(vm, asked, &has)),
        (Some(has), _) => Ok(has),
        (None, Some(asked)) => Ok(asked.clone()),
        (None, None) => Ok(vm.likely_cluster()),
    }
}

/// The right to make a VM of that name in the cluster, as no other has one. Held for the instant in
/// which it appears, as every VM's name is unique in the state root.
pub(crate) fn claim(paths: &Paths, vm: &Name, cluster: &Name) -> Result<Lock> {
    let claim = lock::lock_briefly(&paths.names_lock())?;
    match cluster_of(paths, vm)? {
        Some(has) if has != *cluster => Err(elsewhere(vm, cluster, &has)),
        _ => Ok(claim),
    }
}

fn elsewhere(vm: &Name, asked: &Name, has: &Name) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("be in the cluster {asked}: the cluster {has} has a VM of this name"),
    )
    .vm(vm.as_str())
    .hint(format!("choose another name, or `fleetbox rm {vm}` first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// A state root with these members, each as `cluster/vm`.
    fn root(members: &[&str]) -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(dir.path()).unwrap();
        for member in members {
            let member = paths.clusters().join(member);
            std::fs::create_dir_all(&member).unwrap();
            std::fs::write(member.join("config.json"), "{}").unwrap();
        }
        (dir, paths)
    }

    #[test]
    fn a_member_is_found_by_its_number_and_by_its_name() {
        let (_dir, paths) = root(&["node/node-1", "shop/db", "shop/web", "other/node-2"]);
        for (vm, cluster) in [("node-1", "node"), ("db", "shop"), ("node-2", "other")] {
            assert_eq!(cluster_of(&paths, &name(vm)).unwrap(), Some(name(cluster)), "{vm}");
            assert_eq!(cluster_for(&paths, &name(vm), None).unwrap(), name(cluster), "{vm}");
        }
        assert_eq!(cluster_of(&paths, &name("shop")).unwrap(), None, "a cluster is no VM");
        assert_eq!(cluster_for(&paths, &name("new-3"), None).unwrap(), name("new"));
        assert_eq!(cluster_for(&paths, &name("new"), Some(&name("shop"))).unwrap(), name("shop"));
    }

    #[test]
    fn a_name_of_another_cluster_is_a_conflict_that_names_both() {
        let (_dir, paths) = root(&["shop/db"]);
        let refused = cluster_for(&paths, &name("db"), Some(&name("lab"))).unwrap_err();
        let claimed = claim(&paths, &name("db"), &name("lab")).unwrap_err();
        for error in [refused, claimed] {
            assert_eq!(error.kind(), ErrorKind::Conflict);
            for word in ["db", "shop", "lab"] {
                assert!(error.report().contains(word), "no {word} in {}", error.report());
            }
        }
        claim(&paths, &name("db"), &name("shop")).unwrap();
    }

    #[test]
    fn a_claim_waits_for_the_one_before() {
        let (_dir, paths) = root(&[]);
        let first = claim(&paths, &name("db"), &name("shop")).unwrap();
        let second = std::thread::spawn({
            let paths = paths.clone();
            move || claim(&paths, &name("db"), &name("lab"))
        });
        let member = paths.cluster(&name("shop")).member(&name("db"));
        std::fs::create_dir_all(member.dir()).unwrap();
        std::fs::write(member.config(), "{}").unwrap();
        drop(first);
        assert_eq!(second.join().unwrap().unwrap_err().kind(), ErrorKind::Conflict);
    }
}
