//! Real machines by the command: one as an ordinary user, one whose holder is killed.

pub(crate) fn image() -> Option<std::path::PathBuf> {
    None
}
