//! Owns what one line of a console proves of a boot: the stage it has reached and when, by the guest's
//! own clock. It must not judge what went wrong; `cause` does.

use std::time::Duration;

use crate::progress::Stage;

/// What a line says, the earliest stage first. From the kernel (init/main.c, fs/ext4, fs/xfs, fs/btrfs),
/// initramfs-tools and dracut, systemd's status lines and cloud-init's `cloudinit/cmd/main.py`.
const MARKS: &[(&str, Stage)] = &[
    ("SeaBIOS (version", Stage::Firmware),
    ("UEFI firmware (version", Stage::Firmware),
    ("BdsDxe: ", Stage::Firmware),
    ("GNU GRUB", Stage::Firmware),
    ("Linux version ", Stage::Kernel),
    ("Run /init as init process", Stage::Initrd),
    ("Loading, please wait...", Stage::Initrd),
    ("dracut-cmdline", Stage::Initrd),
    (": mounted filesystem", Stage::Root),
    (": Mounted root (", Stage::Root),
    (": Ending clean mount", Stage::Root),
    ("Run /sbin/init as init process", Stage::Root),
    ("running in system mode", Stage::Init),
    ("systemd[1]:", Stage::Init),
    ("running 'init-local'", Stage::CloudInitLocal),
    ("Started systemd-networkd", Stage::Network),
    ("Finished networking.service", Stage::Network),
    ("Started NetworkManager", Stage::Network),
    ("Reached target network.target", Stage::Network),
    ("Reached target Network.", Stage::Network),
    ("running 'init' at", Stage::CloudInit),
    ("running 'modules:", Stage::CloudInit),
    ("Started ssh.service", Stage::Ssh),
    ("Started sshd.service", Stage::Ssh),
    ("Started OpenBSD Secure Shell server", Stage::Ssh),
    ("Started OpenSSH server daemon", Stage::Ssh),
];

/// A stage a line proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub stage: Stage,
    /// By the guest's clock since its kernel's start, where the line has it.
    pub guest: Option<Duration>,
}

/// The furthest stage that the line proves.
pub(super) fn mark(line: &str) -> Option<Mark> {
    let stage =
        MARKS.iter().rev().find(|(text, _)| line.contains(text)).map(|(_, stage)| *stage)?;
    Some(Mark { stage, guest: time(line) })
}

/// What says that there is no more to a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LastWord {
    /// A console's login (agetty(8)), which may come while cloud-init is at work.
    Login,
    /// The end of cloud-init's last stage (`cloudinit/cmd/main.py`).
    CloudInit,
}

/// Whether the line, or a prompt that ends none, is one.
pub(super) fn last_word(line: &str) -> Option<LastWord> {
    if line.contains("Cloud-init v. ") && line.contains(" finished at ") {
        return Some(LastWord::CloudInit);
    }
    line.ends_with(" login: ").then_some(LastWord::Login)
}

/// `[    1.234567] …` of the kernel, or `… Up 15.02 seconds.` of cloud-init.
fn time(line: &str) -> Option<Duration> {
    let kernel = || {
        let inner = line.trim_start().strip_prefix('[')?.split_once(']')?.0;
        seconds(inner.trim())
    };
    let cloud_init = || seconds(line.rsplit_once("Up ")?.1.split_once(" seconds")?.0);
    kernel().or_else(cloud_init)
}

fn seconds(text: &str) -> Option<Duration> {
    let number: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_boot_prove_its_stages() {
        let ms = Duration::from_millis;
        for (line, stage, guest) in [
            ("SeaBIOS (version 1.16.2-debian-1.16.2-1)", Stage::Firmware, None),
            ("[    0.000000] Linux version 6.1.0-26-cloud-amd64", Stage::Kernel, Some(ms(0))),
            ("[    2.250000] Run /init as init process", Stage::Initrd, Some(ms(2250))),
            (
                "[    3.500000] EXT4-fs (vda1): mounted filesystem with ordered data mode",
                Stage::Root,
                Some(ms(3500)),
            ),
            (
                "[    4.125000] systemd[1]: Detected virtualization qemu.",
                Stage::Init,
                Some(ms(4125)),
            ),
            (
                "[   15.2] cloud-init[301]: Cloud-init v. 22.4.2 running 'init-local' at Mon, 01 Jan 2024. Up 15.02 seconds.",
                Stage::CloudInitLocal,
                Some(ms(15200)),
            ),
            (
                "cloud-init[310]: Cloud-init v. 24.1 running 'modules:final' at Mon. Up 20.50 seconds.",
                Stage::CloudInit,
                Some(ms(20500)),
            ),
            ("[  OK  ] Started ssh.service - OpenBSD Secure Shell server.", Stage::Ssh, None),
            ("[  OK  ] Reached target network.target - Network.", Stage::Network, None),
        ] {
            assert_eq!(mark(line), Some(Mark { stage, guest }), "{line}");
        }
        assert_eq!(mark("[    1.0] random: crng init done"), None);
    }

    #[test]
    fn a_boots_last_words_are_known() {
        let end = "[ 9.1] cloud-init[9]: Cloud-init v. 22.4.2 finished at Mon, 01 Jan 2024. Up 9.1 seconds";
        assert_eq!(last_word(end), Some(LastWord::CloudInit));
        assert_eq!(last_word("node-1 login: "), Some(LastWord::Login));
        for line in ["Cloud-init v. 22.4.2 running 'init'", "login: root\n", "finished at last"] {
            assert_eq!(last_word(line), None, "{line}");
        }
    }

    #[test]
    fn absurd_times_are_none() {
        for line in
            ["[ -1.0] Linux version 6", "[1e300] Linux version 6", "[ nan ] Linux version 6"]
        {
            assert_eq!(mark(line).unwrap().guest, None, "{line}");
        }
    }
}
