//! Owns what stands for mounted fixtures: their images, unpacked, and their paths in the words of commands.
//! Directories can be written to, so that whoever removes the guest can. It must not pack.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use ext4_view::{Ext4, Ext4Read};
use serde_json::Value;

use crate::backend::BootPlan;

/// Where the guest has it, and where it is.
pub(super) type Mounted = (String, PathBuf);

/// Unpacks the drives that the seed has mounted, as a real guest does at each boot.
pub(super) fn mount(plan: &BootPlan, config: &Value) -> io::Result<Vec<Mounted>> {
    let mut mounted = Vec::new();
    let words = config["bootcmd"][0].as_array().map(Vec::as_slice).unwrap_or_default();
    let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
    // A shell, its line, and the program that is run by it.
    for pair in words.get(4..).unwrap_or_default().chunks(2) {
        let [serial, path] = pair else { continue };
        let drive = plan.fixtures.iter().find(|drive| drive.serial == *serial);
        let drive = drive.ok_or_else(|| io::Error::other(format!("there is no drive {serial}")))?;
        let dir = plan.seed.with_file_name("mounted").join(serial);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => std::fs::create_dir_all(&dir)?,
        }
        let image = Image(File::open(&drive.image)?);
        let ext4 = Ext4::load(Box::new(image)).map_err(io::Error::other)?;
        unpack(&ext4, b"/", &dir)?;
        // Also as it is within single quotes.
        mounted.push((path.replace('\'', "'\\''"), dir.clone()));
        mounted.push(((*path).to_owned(), dir));
    }
    // The innermost is named by the longest path.
    mounted.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    Ok(mounted)
}

/// The line with the paths of fixtures where they really are.
pub(super) fn in_place(mounted: &[Mounted], line: &[u8]) -> Vec<u8> {
    let goes_on = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let (mut out, mut at) = (Vec::new(), 0);
    while at < line.len() {
        let rest = &line[at..];
        let found = mounted.iter().find(|(path, _)| {
            rest.starts_with(path.as_bytes())
                && !rest.get(path.len()).is_some_and(|byte| goes_on(*byte))
        });
        if let Some((path, dir)) = found {
            out.extend_from_slice(dir.as_os_str().as_bytes());
            at += path.len();
        } else {
            out.push(rest[0]);
            at += 1;
        }
    }
    out
}

fn unpack(ext4: &Ext4, from: &[u8], to: &Path) -> io::Result<()> {
    let path = |bytes: &[u8]| ext4_view::PathBuf::try_from(bytes).map_err(io::Error::other);
    for entry in ext4.read_dir(&path(from)?).map_err(io::Error::other)? {
        let entry = entry.map_err(io::Error::other)?;
        let name = entry.file_name();
        let name: &[u8] = name.as_ref();
        if name == b"." || name == b".." {
            continue;
        }
        let inner = [from.strip_suffix(b"/").unwrap_or(from), b"/", name].concat();
        let target = to.join(std::ffi::OsStr::from_bytes(name));
        let (kind, inner_path) = (entry.file_type().map_err(io::Error::other)?, path(&inner)?);
        if kind.is_dir() {
            std::fs::create_dir(&target)?;
            unpack(ext4, &inner, &target)?;
        } else if kind.is_symlink() {
            let leads = ext4.read_link(&inner_path).map_err(io::Error::other)?;
            symlink(std::ffi::OsStr::from_bytes(leads.as_ref()), &target)?;
        } else {
            std::fs::write(&target, ext4.read(&inner_path).map_err(io::Error::other)?)?;
            let mode = ext4.metadata(&inner_path).map_err(io::Error::other)?.mode();
            let mode = std::fs::Permissions::from_mode(u32::from(mode & 0o777));
            std::fs::set_permissions(&target, mode)?;
        }
    }
    Ok(())
}

struct Image(File);

impl Ext4Read for Image {
    fn read(
        &mut self,
        start_byte: u64,
        bytes: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.read_exact_at(bytes, start_byte)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_alone_are_paths_of_a_fixture() {
        let mounted = [("/srv/a/in".to_owned(), "/2".into()), ("/srv/a".to_owned(), "/1".into())];
        for (line, asked) in [
            ("cat /srv/a/x /srv/ab", "cat /1/x /srv/ab"),
            ("ls /srv/a; ls '/srv/a/in'", "ls /1; ls '/2'"),
            ("ls /srv/a/in/y", "ls /2/y"),
        ] {
            assert_eq!(in_place(&mounted, line.as_bytes()), asked.as_bytes());
        }
    }
}
