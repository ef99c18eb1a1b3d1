//! Owns the one public error type: its kinds, who is at fault, the hint that names the fix.
//! It must not print, and no dependency's error type may show in a signature.

use std::error::Error as StdError;
use std::fmt;

use crate::{BootReport, Output};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: a [kind](ErrorKind) to match on, a sentence to read, usually a hint that
/// names the fix, and the cause as [`source`](StdError::source).
///
/// `Display` prints one lowercase fragment that reads on after "failed to …", without the source;
/// walk `source()` for the chain (or use [`Error::report`]).
///
/// ```
/// # async fn example() {
/// use fleetbox::{ErrorKind, Vm};
/// match Vm::start("no/such/name").await {
///     Err(e) if e.kind() == ErrorKind::InvalidName => eprintln!("{}", e.report()),
///     other => drop(other),
/// }
/// # }
/// ```
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    vm: Option<String>,
    hint: Option<String>,
    detail: Option<String>,
    output: Option<Output>,
    boot: Option<Box<FailedBoot>>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// What a boot that failed leaves.
struct FailedBoot {
    report: BootReport,
    console: Vec<u8>,
}

/// What went wrong, for a caller to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The name of a VM or cluster is empty, too long or has characters a host name cannot have.
    InvalidName,
    /// A number or option of the spec is zero, absurd or contradicts another.
    InvalidSpec,
    /// A host or guest path is missing, relative where it must be absolute, or of the wrong type.
    InvalidPath,
    /// The value of an environment variable or setting cannot be used.
    InvalidSetting,
    /// No image goes by that alias.
    UnknownImage,
    /// The image is there but cannot be read, or is damaged, or of a format we do not know.
    ImageUnreadable,
    /// The image has no kernel that can be booted.
    ImageWithoutKernel,
    /// What was fetched is not what was promised; it was discarded.
    ChecksumMismatch,
    /// A transfer from the network failed.
    Download,
    /// Something had to be fetched and `FLEETBOX_OFFLINE` forbids it.
    Offline,
    /// No space left on the host's disk.
    NoSpace,
    /// The state directory cannot be used: not writable, or too long for a socket's path.
    StateRoot,
    /// This host cannot do it: no user namespaces, no `/dev/net/tun`, …
    HostUnsupported,
    /// The virtual machine monitor is missing, of the wrong version, or does not start.
    BackendUnavailable,
    /// The VM's backend cannot do it; [`Backend::capabilities`](crate::Backend::capabilities) tells
    /// beforehand.
    Unsupported,
    /// This backend or platform cannot join VMs to a cluster.
    ClustersUnsupported,
    /// The holder could not be started, or does not answer.
    HolderUnavailable,
    /// The holder, or the VM's monitor, ended while it was needed.
    HolderDied,
    /// The other side speaks another version of the control protocol.
    ProtocolMismatch,
    /// There is no such VM.
    NotFound,
    /// The VM is not running.
    NotRunning,
    /// The snapshot cannot be restored here: it is damaged, or another monitor or processor made it.
    SnapshotUnusable,
    /// The VM exists in a form that forbids this call, for example it is in another holder's hands.
    Conflict,
    /// The guest did not come up: the message names the stage it reached.
    BootFailed,
    /// Nothing could be reached at that port or address of the guest.
    Connect,
    /// The guest showed another host key than the one pinned before its first boot.
    HostKeyMismatch,
    /// The guest refused our key.
    Authentication,
    /// The SSH connection was lost.
    ConnectionLost,
    /// The command ran and did not succeed; [`Error::output`] has what it said.
    CommandFailed,
    /// The call ran out of its time.
    TimedOut,
    /// What was [waited](crate::Vm::wait) for cannot come true any more.
    WaitFailed,
    /// A copy failed or would have written where it must not.
    Copy,
    /// The host's operating system refused a call; the source says which.
    Io,
    /// A defect of fleetbox itself.
    Internal,
}

/// Who has to act on an [`ErrorKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// The caller asked for something that cannot be.
    Request,
    /// The host lacks something or broke.
    Host,
    /// The guest did not do its part.
    Guest,
    /// A defect of fleetbox.
    Internal,
}

impl ErrorKind {
    /// Who has to act.
    ///
    /// ```
    /// use fleetbox::{ErrorKind, Fault};
    /// assert_eq!(ErrorKind::InvalidName.fault(), Fault::Request);
    /// ```
    #[must_use]
    pub fn fault(self) -> Fault {
        use ErrorKind as K;
        match self {
            K::InvalidName
            | K::InvalidSpec
            | K::InvalidPath
            | K::InvalidSetting
            | K::UnknownImage
            | K::NotFound
            | K::NotRunning
            | K::Conflict => Fault::Request,
            K::BootFailed
            | K::Connect
            | K::HostKeyMismatch
            | K::Authentication
            | K::ConnectionLost
            | K::CommandFailed
            | K::TimedOut
            | K::WaitFailed
            | K::Copy
            | K::ImageWithoutKernel => Fault::Guest,
            K::Internal => Fault::Internal,
            K::ImageUnreadable
            | K::ChecksumMismatch
            | K::Download
            | K::Offline
            | K::NoSpace
            | K::StateRoot
            | K::HostUnsupported
            | K::BackendUnavailable
            | K::Unsupported
            | K::SnapshotUnusable
            | K::ClustersUnsupported
            | K::HolderUnavailable
            | K::HolderDied
            | K::ProtocolMismatch
            | K::Io => Fault::Host,
        }
    }

    /// The kind as a stable word of `snake_case`, as it goes over the control socket and into
    /// `--output json`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        KIND_WORDS.iter().find(|(kind, _)| *kind == self).map_or("internal", |(_, word)| word)
    }

    /// The reverse of [`ErrorKind::as_str`]; a word we do not know is `Internal`.
    pub(crate) fn from_word(word: &str) -> Self {
        KIND_WORDS.iter().find(|(_, w)| *w == word).map_or(ErrorKind::Internal, |(kind, _)| *kind)
    }
}

const KIND_WORDS: &[(ErrorKind, &str)] = &[
    (ErrorKind::InvalidName, "invalid_name"),
    (ErrorKind::InvalidSpec, "invalid_spec"),
    (ErrorKind::InvalidPath, "invalid_path"),
    (ErrorKind::InvalidSetting, "invalid_setting"),
    (ErrorKind::UnknownImage, "unknown_image"),
    (ErrorKind::ImageUnreadable, "image_unreadable"),
    (ErrorKind::ImageWithoutKernel, "image_without_kernel"),
    (ErrorKind::ChecksumMismatch, "checksum_mismatch"),
    (ErrorKind::Download, "download"),
    (ErrorKind::Offline, "offline"),
    (ErrorKind::NoSpace, "no_space"),
    (ErrorKind::StateRoot, "state_root"),
    (ErrorKind::HostUnsupported, "host_unsupported"),
    (ErrorKind::BackendUnavailable, "backend_unavailable"),
    (ErrorKind::Unsupported, "unsupported"),
    (ErrorKind::ClustersUnsupported, "clusters_unsupported"),
    (ErrorKind::HolderUnavailable, "holder_unavailable"),
    (ErrorKind::HolderDied, "holder_died"),
    (ErrorKind::ProtocolMismatch, "protocol_mismatch"),
    (ErrorKind::NotFound, "not_found"),
    (ErrorKind::NotRunning, "not_running"),
    (ErrorKind::SnapshotUnusable, "snapshot_unusable"),
    (ErrorKind::Conflict, "conflict"),
    (ErrorKind::BootFailed, "boot_failed"),
    (ErrorKind::Connect, "connect"),
    (ErrorKind::HostKeyMismatch, "host_key_mismatch"),
    (ErrorKind::Authentication, "authentication"),
    (ErrorKind::ConnectionLost, "connection_lost"),
    (ErrorKind::CommandFailed, "command_failed"),
    (ErrorKind::TimedOut, "timed_out"),
    (ErrorKind::WaitFailed, "wait_failed"),
    (ErrorKind::Copy, "copy"),
    (ErrorKind::Io, "io"),
    (ErrorKind::Internal, "internal"),
];

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                kind,
                message: message.into(),
                vm: None,
                hint: None,
                detail: None,
                output: None,
                boot: None,
                source: None,
            }),
        }
    }

    /// An operating system error about `path`; a full disk and a refused permission keep their own
    /// kind and hint.
    pub(crate) fn io(action: &str, path: &std::path::Path, source: std::io::Error) -> Self {
        let message = format!("{action} {}", path.display());
        let error = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::new(ErrorKind::NoSpace, message)
                    .hint("free some space, `fleetbox image rm` what is not needed, or point FLEETBOX_HOME at a larger disk")
            }
            std::io::ErrorKind::ReadOnlyFilesystem => Self::new(ErrorKind::StateRoot, message)
                .hint("set FLEETBOX_HOME to a directory you can write to"),
            std::io::ErrorKind::PermissionDenied => {
                Self::new(ErrorKind::Io, message).hint("check who owns the path and its mode")
            }
            _ => Self::new(ErrorKind::Io, message),
        };
        error.source(source)
    }

    /// Something was asked of a VM that does not run.
    pub(crate) fn not_running(vm: &str) -> Self {
        Self::new(ErrorKind::NotRunning, "act: it is not running")
            .vm(vm)
            .hint(format!("start it: `fleetbox up {vm}`"))
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.inner.hint = Some(hint.into());
        self
    }

    /// Names the VM unless a deeper layer already did.
    #[must_use]
    pub(crate) fn vm(mut self, vm: impl Into<String>) -> Self {
        self.inner.vm.get_or_insert_with(|| vm.into());
        self
    }

    /// Makes it the error of something larger, which is named before it, and not of the VM it took.
    pub(crate) fn within(mut self, what: &str) -> Self {
        self.inner.message = format!("{what}: {}", self.inner.message);
        self.inner.vm = None;
        self
    }

    /// Several lines shown below the message: a console's tail, a monitor's last words.
    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.inner.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub(crate) fn with_output(mut self, output: Output) -> Self {
        self.inner.output = Some(output);
        self
    }

    #[must_use]
    pub(crate) fn with_boot(mut self, report: BootReport, console: Vec<u8>) -> Self {
        self.inner.boot = Some(Box::new(FailedBoot { report, console }));
        self
    }

    #[must_use]
    pub(crate) fn source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// What went wrong, for matching.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The message alone, without the VM's name.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The name of the VM this is about, if one is.
    #[must_use]
    pub fn vm_name(&self) -> Option<&str> {
        self.inner.vm.as_deref()
    }

    /// One line that names the fix, where there is one to name.
    #[must_use]
    pub fn hint_text(&self) -> Option<&str> {
        self.inner.hint.as_deref()
    }

    /// Further lines of evidence, such as the console's tail. Control bytes a guest sent are
    /// already harmless here.
    #[must_use]
    pub fn detail_text(&self) -> Option<&str> {
        self.inner.detail.as_deref()
    }

    /// What a failed command wrote and how it ended, for [`ErrorKind::CommandFailed`].
    #[must_use]
    pub fn output(&self) -> Option<&Output> {
        self.inner.output.as_ref()
    }

    /// How far a boot came that failed, and the likely cause, for [`ErrorKind::BootFailed`].
    #[must_use]
    pub fn boot_report(&self) -> Option<&BootReport> {
        self.inner.boot.as_ref().map(|boot| &boot.report)
    }

    /// The end of what the guest of a boot that failed wrote to its console, byte for byte, at most 1 MiB.
    /// Show it through [`harmless`](crate::harmless).
    #[must_use]
    pub fn boot_console(&self) -> Option<&[u8]> {
        self.inner.boot.as_ref().map(|boot| boot.console.as_slice())
    }

    /// The whole story for a person: message, each cause once, evidence, hint.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut source = StdError::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        if let Some(detail) = &self.inner.detail {
            text.push('\n');
            text.push_str(detail.trim_end());
        }
        if let Some(hint) = &self.inner.hint {
            text.push_str("\nhint: ");
            text.push_str(hint);
        }
        text
    }
}

/// For callers that use the operating system beside a VM: the kind is [`ErrorKind::Io`].
impl From<std::io::Error> for Error {
    fn from(source: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, "use the operating system").source(source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(vm) = &self.inner.vm {
            write!(f, "{vm}: ")?;
        }
        f.write_str(&self.inner.message)
    }
}

// `unwrap()` and a test that returns `Err` print `Debug`: give them the readable report.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.report(), self.inner.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|s| s as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_prints_each_cause_once_and_the_hint_last() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::new(ErrorKind::Io, "read image /x")
            .vm("web")
            .source(cause)
            .detail("line one\nline two\n")
            .hint("put it out");
        assert_eq!(
            error.report(),
            "web: read image /x: disk on fire\nline one\nline two\nhint: put it out"
        );
    }

    #[test]
    fn every_kind_has_a_word_that_reads_back() {
        for (kind, word) in KIND_WORDS {
            assert_eq!(ErrorKind::from_word(word), *kind);
            assert_eq!(kind.as_str(), *word);
        }
    }

    #[test]
    fn the_innermost_vm_name_stays() {
        let error = Error::new(ErrorKind::NotFound, "x").vm("inner").vm("outer");
        assert_eq!(error.vm_name(), Some("inner"));
    }

    #[test]
    fn a_full_disk_keeps_its_kind() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("write", std::path::Path::new("/x"), full);
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.hint_text().is_some());
    }
}
