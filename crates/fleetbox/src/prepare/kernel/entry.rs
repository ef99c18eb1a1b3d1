//! Owns reading boot loaders' text: grub.cfg, boot loader entries, fstab; and versions' order.
//! Pure: it must not touch a file system.

use std::cmp::Ordering;

/// One way to boot, as the image describes it; paths are as written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub kernel: String,
    pub initrd: Option<String>,
    pub args: Vec<String>,
}

/// The first menu entry with a kernel: what GRUB boots unless somebody chose otherwise.
pub(super) fn from_grub(config: &str) -> Option<Entry> {
    let mut entry: Option<Entry> = None;
    for line in config.lines() {
        let line = line.trim();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("linux" | "linuxefi" | "linux16") if entry.is_none() => {
                let mut words = words.map(unquote);
                let kernel = words.next()?;
                entry = Some(Entry { kernel, initrd: None, args: words.collect() });
            }
            Some("initrd" | "initrdefi" | "initrd16") => {
                if let Some(entry) = entry.as_mut().filter(|entry| entry.initrd.is_none()) {
                    // Several files are early microcode and the real one last.
                    entry.initrd = words.next_back().map(unquote);
                }
            }
            // The entry is over once another begins or its brace closes.
            Some("}" | "menuentry") if entry.is_some() => break,
            _ => {}
        }
    }
    entry
}

/// A boot loader specification entry, `loader/entries/*.conf`.
pub(super) fn from_bls(text: &str) -> Option<Entry> {
    let mut entry = Entry::default();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once(char::is_whitespace) else { continue };
        match key {
            "linux" => entry.kernel = unquote(value.trim()),
            "initrd" => entry.initrd = value.split_whitespace().next_back().map(unquote),
            "options" => entry.args.extend(value.split_whitespace().map(unquote)),
            _ => {}
        }
    }
    (!entry.kernel.is_empty()).then_some(entry)
}

fn unquote(word: &str) -> String {
    word.chars().filter(|c| !matches!(c, '"' | '\'')).collect()
}

/// The image's arguments that still make sense: consoles and the root are decided here, variables
/// of a boot loader that does not run mean nothing, and a quiet kernel hides why it did not boot.
pub(super) fn kept_args(args: &[String]) -> Vec<&str> {
    const DROPPED: &[&str] = &["quiet", "splash", "ro", "rw", "nosplash"];
    const DROPPED_KEYS: &[&str] = &[
        "console",
        "earlyprintk",
        "earlycon",
        "root",
        "BOOT_IMAGE",
        "initrd",
        "init",
        "vt.handoff",
        "loglevel",
    ];
    args.iter()
        .map(String::as_str)
        .filter(|arg| {
            let key = arg.split('=').next().unwrap_or_default();
            !DROPPED.contains(arg)
                && !DROPPED_KEYS.contains(&key)
                && !arg.is_empty()
                && arg.chars().all(|c| c.is_ascii_graphic() && c != '$')
        })
        .collect()
}

/// Whether fstab mounts the root, so that systemd makes it writable.
pub(super) fn fstab_has_root(fstab: &str) -> bool {
    fstab
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .any(|line| line.split_whitespace().nth(1) == Some("/"))
}

/// Orders versions as people do: runs of digits by their number, the rest by character.
pub(super) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let order = match (leading_number(&mut a), leading_number(&mut b)) {
            (Some(x), Some(y)) => x.len().cmp(&y.len()).then_with(|| x.cmp(y)),
            (x, y) if x.is_some() || y.is_some() => x.is_some().cmp(&y.is_some()),
            _ => match (a.split_first(), b.split_first()) {
                (None, None) => return Ordering::Equal,
                (Some((x, rest_a)), Some((y, rest_b))) => {
                    (a, b) = (rest_a, rest_b);
                    // A tilde comes before everything, even the end (deb-version(7)).
                    (*x != b'~', x).cmp(&(*y != b'~', y))
                }
                (Some((b'~', _)), None) => Ordering::Less,
                (None, Some((b'~', _))) => Ordering::Greater,
                (x, y) => x.is_some().cmp(&y.is_some()),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Takes a run of digits from the front, without its leading zeros.
fn leading_number<'a>(text: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(length);
    *text = rest;
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    (length > 0).then(|| &digits[zeros..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRUB: &str = r#"
set default="0"
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
fi
menuentry 'Debian GNU/Linux' --class debian {
	insmod ext2
	search --no-floppy --fs-uuid --set=root 1234
	echo	'Loading Linux ...'
	linux	/boot/vmlinuz-6.1.0-9-cloud-amd64 root=PARTUUID=abc ro  console=tty0 console=ttyS0,115200 earlyprintk=ttyS0 consoleblank=0 "quiet" $vt_handoff
	initrd	/boot/early.cpio /boot/initrd.img-6.1.0-9-cloud-amd64
}
submenu 'Advanced options' {
	menuentry 'older' {
		linux /boot/vmlinuz-5 root=x
		initrd /boot/initrd.img-5
	}
}
"#;

    #[test]
    fn the_first_grub_entry_is_taken_without_consoles() {
        let entry = from_grub(GRUB).unwrap();
        assert_eq!(entry.kernel, "/boot/vmlinuz-6.1.0-9-cloud-amd64");
        assert_eq!(entry.initrd.as_deref(), Some("/boot/initrd.img-6.1.0-9-cloud-amd64"));
        assert_eq!(kept_args(&entry.args), ["consoleblank=0"]);
        assert_eq!(from_grub("insmod blscfg\nblscfg\n"), None);
        assert_eq!(from_grub("linux"), None);
    }

    #[test]
    fn a_boot_loader_entry_reads() {
        let text = "title Fedora\nversion 6\nlinux /vmlinuz-6\ninitrd /initramfs-6.img $tuned\noptions root=UUID=1 ro rootflags=x $kernelopts\n";
        let entry = from_bls(&text.replace(" $tuned", "")).unwrap();
        assert_eq!(entry.kernel, "/vmlinuz-6");
        assert_eq!(entry.initrd.as_deref(), Some("/initramfs-6.img"));
        assert_eq!(kept_args(&entry.args), ["rootflags=x"]);
        assert_eq!(from_bls("title nothing"), None);
    }

    #[test]
    fn control_bytes_never_reach_the_command_line() {
        let args = ["a\u{1b}b", "ok=1", "x\ny", "", "ä"].map(str::to_owned);
        assert_eq!(kept_args(&args), ["ok=1"]);
    }

    #[test]
    fn versions_are_in_the_order_people_mean() {
        let mut versions = ["6.1.0-10", "6.1.0-9", "5.10.0-30", "6.1.0-9~rc1", "6.12", "6.1.0"];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(versions, ["5.10.0-30", "6.1.0", "6.1.0-9~rc1", "6.1.0-9", "6.1.0-10", "6.12"]);
        assert_eq!(compare_versions("007", "7"), Ordering::Equal);
        assert_eq!(compare_versions(&"9".repeat(500), "1"), Ordering::Greater);
    }

    #[test]
    fn fstab_tells_whether_the_root_is_mounted_by_it() {
        assert!(fstab_has_root("# x\nUUID=1 / ext4 defaults 0 1\n"));
        assert!(!fstab_has_root("# UNCONFIGURED / FSTAB\nUUID=1 /boot ext4 defaults 0 1\n"));
    }
}
