//! Owns the question whether this host can run a test's machines: a test that cannot have them is
//! skipped with the reason, or fails where `FLEETBOX_REQUIRE` names the backend.

use fleetbox::Backend;

/// The image real machines boot.
const IMAGE: &str = "debian-12";

/// Says why a test does not run, or fails it where the backend is required.
pub(crate) fn missing(backend: Backend, why: &str) {
    let required = fleetbox::testing::required(backend).unwrap();
    assert!(!required, "{backend} is required, but {why}");
    eprintln!("skipped: {why}");
}

/// Whether the image is here already: a test does not fetch it.
pub(crate) async fn has_image() -> bool {
    has(IMAGE).await
}

/// Whether that image is here already.
pub(crate) async fn has(reference: &str) -> bool {
    fleetbox::images::list()
        .await
        .unwrap()
        .iter()
        .any(|image| image.reference == reference && image.state != fleetbox::ImageState::Available)
}

/// Whether real machines can be had here.
pub(crate) async fn can_boot() -> bool {
    let lacks: Vec<String> = fleetbox::host::check()
        .await
        .into_iter()
        .filter(|check| check.verdict == fleetbox::host::Verdict::Missing)
        .map(|check| format!("{}: {}", check.name, check.detail))
        .collect();
    let has_image = has_image().await;
    let can = lacks.is_empty() && has_image;
    if !can {
        missing(Backend::Qemu, &format!("no machine boots: {lacks:?}, image here: {has_image}"));
    }
    can
}
