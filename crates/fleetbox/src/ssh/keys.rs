//! Owns key pairs: the one of this installation on disk, and how keys are written for sshd, ssh and
//! `known_hosts`. It must never touch `~/.ssh`, and never replace a key it cannot read.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey, PublicKey};

use crate::error::{Error, ErrorKind, Result};
use crate::store::paths::Paths;
use crate::store::whole::{make_private_dir, write_atomic};

/// The comment of the installation's key, seen in a guest's `authorized_keys`.
const INSTALLATION_COMMENT: &str = "fleetbox";

/// An ed25519 key pair. `Debug` shows the public half only.
pub(crate) struct KeyPair {
    private: Arc<PrivateKey>,
    private_openssh: String,
    public_openssh: String,
}

impl KeyPair {
    pub(crate) fn generate(comment: &str) -> Result<Self> {
        let mut key = PrivateKey::random(&mut russh::keys::key::safe_rng(), Algorithm::Ed25519)
            .map_err(|e| Error::new(ErrorKind::Internal, "make a key pair").source(e))?;
        key.set_comment(comment);
        Self::from_key(key)
    }

    /// Reads the OpenSSH private format; only an unencrypted ed25519 key will do.
    pub(crate) fn parse(private_openssh: &str) -> Result<Self> {
        let damaged = |e| Error::new(ErrorKind::Io, "read a private key").source(e);
        let key = PrivateKey::from_openssh(private_openssh)
            .map_err(|e| damaged(Box::<dyn std::error::Error + Send + Sync>::from(e)))?;
        if key.is_encrypted() {
            return Err(damaged("the key has a passphrase".into()));
        }
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(damaged(format!("{} is not ed25519", key.algorithm()).into()));
        }
        Self::from_key(key)
    }

    fn from_key(key: PrivateKey) -> Result<Self> {
        let encode = |e| Error::new(ErrorKind::Internal, "write a key").source(e);
        let private_openssh = key.to_openssh(LineEnding::LF).map_err(encode)?.to_string();
        let public_openssh = key.public_key().to_openssh().map_err(encode)?;
        Ok(Self { private: Arc::new(key), private_openssh, public_openssh })
    }

    /// The private half in the format `ssh -i` reads, final newline included.
    pub(crate) fn private_openssh(&self) -> String {
        self.private_openssh.clone()
    }

    /// The public half on one line, `ssh-ed25519 AAAA… comment`, without a newline.
    pub(crate) fn public_openssh(&self) -> String {
        self.public_openssh.clone()
    }

    pub(super) fn private(&self) -> Arc<PrivateKey> {
        self.private.clone()
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.public_openssh)
    }
}

/// The key pair of this installation, made at first use. Safe to call from several processes at
/// once: all get the same pair. A file that is there but cannot be read is an error, since guests
/// made with that key would lock us out of themselves.
pub(crate) fn installation_key(paths: &Paths) -> Result<Arc<KeyPair>> {
    if let Some(pair) = read(&paths.key())? {
        return complete(paths, pair);
    }
    make_private_dir(&paths.keys())?;
    let _lock = crate::store::lock::lock_briefly(&paths.key_lock())?;
    if let Some(pair) = read(&paths.key())? {
        return complete(paths, pair);
    }
    let pair = KeyPair::generate(INSTALLATION_COMMENT)?;
    write_atomic(&paths.key(), pair.private_openssh.as_bytes())?;
    complete(paths, pair)
}

/// Adds the public half if a process died between the two writes.
fn complete(paths: &Paths, pair: KeyPair) -> Result<Arc<KeyPair>> {
    if !paths.public_key().exists() {
        write_atomic(&paths.public_key(), format!("{}\n", pair.public_openssh).as_bytes())?;
    }
    Ok(Arc::new(pair))
}

fn read(path: &Path) -> Result<Option<KeyPair>> {
    match std::fs::read_to_string(path) {
        Ok(text) => KeyPair::parse(&text).map(Some).map_err(|cause| unusable(path, cause)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => Err(unusable(path, e)),
        Err(e) => Err(Error::io("read the private key", path, e)),
    }
}

fn unusable(path: &Path, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::StateRoot, format!("use the private key {}", path.display()))
        .hint("restore the file; without it the VMs made with it stay closed. To give them up, delete it and a new key is made")
        .source(cause)
}

/// One line of a `known_hosts` file: these names have this host key.
pub(crate) fn known_hosts_line(names: &[&str], public_openssh: &str) -> String {
    // The comment of a key is nobody's business here, and could hold anything.
    let key: Vec<&str> = public_openssh.split_whitespace().take(2).collect();
    format!("{} {}", names.join(","), key.join(" "))
}

/// Reads a public key in the one-line format.
pub(super) fn parse_public(public_openssh: &str) -> Result<PublicKey> {
    PublicKey::from_openssh(public_openssh)
        .map_err(|e| Error::new(ErrorKind::Internal, "read the pinned host key").source(e))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn home() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::at(&dir.path().join("home")).unwrap();
        (dir, paths)
    }

    #[test]
    fn the_key_is_made_once_private_and_read_back() {
        let (_dir, paths) = home();
        let first = installation_key(&paths).unwrap();
        let second = installation_key(&paths).unwrap();
        assert_eq!(first.private_openssh(), second.private_openssh());
        for path in [paths.key(), paths.public_key()] {
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(first.public_openssh().starts_with("ssh-ed25519 AAAA"));
        assert!(first.public_openssh().ends_with(" fleetbox"));
    }

    #[test]
    fn a_race_yields_one_key() {
        let (_dir, paths) = home();
        let keys: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| installation_key(&paths).unwrap().private_openssh()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|k| *k == keys[0]));
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays() {
        let (_dir, paths) = home();
        make_private_dir(&paths.keys()).unwrap();
        for damage in [&b"not a key\n"[..], b"\xff\xfe", b""] {
            std::fs::write(paths.key(), damage).unwrap();
            let error = installation_key(&paths).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StateRoot);
            assert!(error.report().contains("id_ed25519"));
            assert_eq!(std::fs::read(paths.key()).unwrap(), damage);
        }
    }

    #[test]
    fn a_lost_public_half_is_written_again() {
        let (_dir, paths) = home();
        let pair = installation_key(&paths).unwrap();
        std::fs::remove_file(paths.public_key()).unwrap();
        installation_key(&paths).unwrap();
        let text = std::fs::read_to_string(paths.public_key()).unwrap();
        assert_eq!(text, format!("{}\n", pair.public_openssh()));
    }

    #[test]
    fn ssh_keygen_reads_what_is_written() {
        let (_dir, paths) = home();
        let pair = installation_key(&paths).unwrap();
        let output = match std::process::Command::new("ssh-keygen")
            .arg("-y")
            .arg("-f")
            .arg(paths.key())
            .output()
        {
            Ok(output) => output,
            // Not every host has it; the format is checked by `parse` as well.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
            Err(e) => panic!("{e}"),
        };
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), pair.public_openssh());
    }

    #[test]
    fn known_hosts_has_names_and_key_without_the_comment() {
        assert_eq!(
            known_hosts_line(&["web", "10.0.0.2"], "ssh-ed25519 AAAAx some one"),
            "web,10.0.0.2 ssh-ed25519 AAAAx"
        );
    }
}
