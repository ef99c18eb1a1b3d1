//! Owns what the shell is offered at the Tab key: names that exist now. It must not fail: a name
//! that cannot be found out is not offered.

use std::ffi::OsStr;

use clap_complete::CompletionCandidate;
use fleetbox::{ImageState, VmInfo};

/// Names of VMs.
pub(crate) fn vms(current: &OsStr) -> Vec<CompletionCandidate> {
    typed(current, described(&infos()))
}

/// Names of VMs, and of clusters that are not called like one.
pub(crate) fn names(current: &OsStr) -> Vec<CompletionCandidate> {
    let infos = infos();
    let mut clusters: Vec<&str> = infos.iter().map(|vm| vm.cluster.as_str()).collect();
    clusters.dedup();
    let clusters = clusters
        .into_iter()
        .filter(|cluster| infos.iter().all(|vm| vm.name != *cluster))
        .map(|cluster| CompletionCandidate::new(cluster).help(Some("cluster".into())));
    typed(current, described(&infos).chain(clusters))
}

fn described(infos: &[VmInfo]) -> impl Iterator<Item = CompletionCandidate> {
    infos.iter().map(|vm| CompletionCandidate::new(&vm.name).help(Some(vm.state.as_str().into())))
}

/// Those that go on as the word began.
fn typed(
    current: &OsStr,
    candidates: impl Iterator<Item = CompletionCandidate>,
) -> Vec<CompletionCandidate> {
    let typed = current.to_string_lossy();
    candidates.filter(|c| c.get_value().to_string_lossy().starts_with(&*typed)).collect()
}

/// Images that are here or known.
pub(crate) fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    let typed = current.to_string_lossy();
    let images = block_on(fleetbox::images::list()).and_then(Result::ok).unwrap_or_default();
    images
        .into_iter()
        .filter(|image| image.reference.starts_with(&*typed))
        .map(|image| {
            let help = match image.state {
                ImageState::Available => "would be fetched",
                _ => "here",
            };
            CompletionCandidate::new(image.reference).help(Some(help.into()))
        })
        .collect()
}

/// Snapshots with a name.
pub(crate) fn snapshots(current: &OsStr) -> Vec<CompletionCandidate> {
    let snapshots = fleetbox::snapshots().unwrap_or_default();
    let named = snapshots.iter().flatten().filter(|snapshot| !snapshot.is_golden());
    typed(
        current,
        named.map(|s| CompletionCandidate::new(s.name()).help(Some(s.members().join(" ").into()))),
    )
}

/// Sides of a copy: `NAME:/` besides the paths the shell itself offers.
pub(crate) fn sides(current: &OsStr) -> Vec<CompletionCandidate> {
    let typed = current.to_string_lossy();
    infos()
        .into_iter()
        .map(|vm| format!("{}:/", vm.name))
        .filter(|side| side.starts_with(&*typed))
        .map(CompletionCandidate::new)
        .collect()
}

fn infos() -> Vec<VmInfo> {
    let listed = block_on(fleetbox::list()).and_then(Result::ok).unwrap_or_default();
    listed.into_iter().flatten().collect()
}

fn block_on<F: Future>(future: F) -> Option<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    Some(runtime.block_on(future))
}
