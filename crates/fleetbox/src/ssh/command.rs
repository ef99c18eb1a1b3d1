//! Owns commands.
/// What a command wrote and how it ended.
#[derive(Debug, Clone)]
pub struct Output {}
