//! Owns the user's own terminal while a guest's program has it: raw mode, always given back, and
//! its size.

use std::io::{self, IsTerminal};

use fleetbox::Terminal;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode; dropping this gives it back as it was.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to give back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Whether both ends of a conversation are a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// The terminal's kind and size, for the guest.
pub(crate) fn describe() -> Terminal {
    let (columns, rows) = size();
    let term = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
    Terminal { term, columns, rows }
}

/// Columns and rows; 80 by 24 where there is no terminal.
pub(crate) fn size() -> (u32, u32) {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}
