//! Owns the monitor's REST interface: one request, one connection, one answer (cloud-hypervisor's
//! `docs/api.md`). It must not know what the requests mean.

use std::io;
use std::time::Duration;

use serde_json::Value;

use crate::http::Request;
use crate::net::{LocalName, Network};

const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Reaches the monitor by a name that exists only in the cluster's network namespace.
#[derive(Debug, Clone)]
pub(super) struct Api {
    network: Network,
    name: LocalName,
    answer_wait: Duration,
}

impl Api {
    pub(super) fn new(network: Network, name: LocalName, answer_wait: Duration) -> Self {
        Self { network, name, answer_wait }
    }

    #[cfg(test)]
    pub(super) fn answering_within(&self, answer_wait: Duration) -> Self {
        Self { answer_wait, ..self.clone() }
    }

    /// Asks for an action.
    pub(super) async fn put(&self, action: &str, body: Option<Value>) -> io::Result<()> {
        self.put_within(self.answer_wait, action, body).await
    }

    /// Asks for an action that may take that long.
    pub(super) async fn put_within(
        &self,
        answer_wait: Duration,
        action: &str,
        body: Option<Value>,
    ) -> io::Result<()> {
        let exchange = self.exchange(action, body);
        tokio::time::timeout(answer_wait, exchange)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn exchange(&self, action: &str, body: Option<Value>) -> io::Result<()> {
        let stream = self.network.connect_local(&self.name).await?;
        let request = Request::put(format!("http://localhost/api/v1/{action}"))
            .header("accept", "application/json")
            .body(())
            .map_err(io::Error::other)?;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let answer = crate::http::ask(stream, request, body.as_bytes()).await?;
        let status = answer.status();
        let words = answer.body(ANSWER_BYTES_MAX).await?;
        if (200..300).contains(&status) { Ok(()) } else { Err(refusal(status, &words)) }
    }
}

/// The monitor's own words: a list, from the outermost to the cause.
fn refusal(status: u16, body: &[u8]) -> io::Error {
    let chain: Vec<String> = serde_json::from_slice(body).unwrap_or_default();
    if chain.is_empty() {
        return io::Error::other(format!("it answered {status}"));
    }
    io::Error::other(crate::console::harmless(chain.join(": ").as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_monitors_words() {
        let body = br#"["Error from API","The VM could not be paused"]"#;
        assert_eq!(
            refusal(500, &body[..]).to_string(),
            "Error from API: The VM could not be paused"
        );
        assert_eq!(refusal(404, &b""[..]).to_string(), "it answered 404");
    }
}
