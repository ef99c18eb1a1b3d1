//! Copies in both directions.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fleetbox::{ErrorKind, Result};

use super::bed::Bed;

/// Bytes that no text conversion and no lost block leaves as they are.
fn bytes(count: u32) -> Vec<u8> {
    (0..count).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

pub(super) async fn a_file_comes_back_exact(bed: &mut Bed) -> Result<()> {
    let home = bed.vm().ssh("pwd").await?;
    let dir = tempfile::tempdir()?;
    let (file, back) = (dir.path().join("file"), dir.path().join("back"));
    let content = bytes(1 << 18);
    std::fs::write(&file, &content)?;
    bed.vm().copy_to(&file, &format!("{home}/renamed")).await?;
    assert_eq!(bed.vm().ssh("wc -c < renamed").await?.trim(), content.len().to_string());
    bed.vm().copy_from(&format!("{home}/renamed"), &back).await?;
    assert!(std::fs::read(&back)? == content, "the file changed on its way");
    // Again, over what is there.
    std::fs::write(&file, "short")?;
    bed.vm().copy_to(&file, &format!("{home}/renamed")).await?;
    assert_eq!(bed.vm().ssh("cat renamed").await?, "short");
    Ok(())
}

pub(super) async fn a_directory_keeps_names_modes_and_links(bed: &mut Bed) -> Result<()> {
    let home = bed.vm().ssh("pwd").await?;
    let dir = tempfile::tempdir()?;
    let tree = dir.path().join("tree");
    std::fs::create_dir_all(tree.join("inner/empty"))?;
    std::fs::write(tree.join("inner/a b"), "spaces")?;
    std::fs::write(tree.join("run"), "#!/bin/sh\necho ran\n")?;
    std::fs::set_permissions(tree.join("run"), PermissionsExt::from_mode(0o750))?;
    std::fs::set_permissions(tree.join("inner/a b"), PermissionsExt::from_mode(0o604))?;
    std::os::unix::fs::symlink("inner/a b", tree.join("link"))?;
    // An existing directory takes it in under its own name.
    bed.vm().copy_to(&tree, &home).await?;
    assert_eq!(bed.vm().ssh("tree/run && cat tree/link").await?, "ran\nspaces");

    let back = dir.path().join("back");
    bed.vm().copy_from(&format!("{home}/tree"), &back).await?;
    assert_eq!(std::fs::read(back.join("inner/a b"))?, b"spaces");
    assert_eq!(mode(&back.join("run")), 0o750);
    assert_eq!(mode(&back.join("inner/a b")), 0o604);
    assert_eq!(std::fs::read_link(back.join("link"))?, Path::new("inner/a b"));
    assert!(back.join("inner/empty").is_dir());
    Ok(())
}

pub(super) async fn bad_paths_are_refused_before_any_work(bed: &mut Bed) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let error = bed.vm().copy_to(dir.path(), "relative").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPath);
    let error = bed.vm().copy_to(dir.path().join("none"), "/tmp").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidPath);
    let error = bed.vm().copy_from("/no/such/file", dir.path().join("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Copy);
    assert!(!dir.path().join("x").exists());
    Ok(())
}
