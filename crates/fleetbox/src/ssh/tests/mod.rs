//! Owns the tests of commands, sessions and copies: each runs against the fake guest and, where the
//! host has one, against OpenSSH's sshd.

mod cancel;
mod commands;
mod connections;
mod copies;
mod lab;

/// Makes a test for each kind of guest of each `async fn(&Lab)` named.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        mod fake {
            $(#[tokio::test]
            async fn $name() {
                super::$name(&crate::ssh::tests::lab::Lab::fake().await).await;
            })*
        }
        mod openssh {
            $(#[tokio::test]
            async fn $name() {
                if let Some(lab) = crate::ssh::tests::lab::Lab::openssh().await {
                    super::$name(&lab).await;
                }
            })*
        }
    };
}
use scenarios;
