//! Owns the monitor's REST interface: one request, one connection, one answer (cloud-hypervisor's
//! `docs/api.md`). It must not know what the requests mean.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;

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
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(Method::PUT)
            .uri(format!("/api/v1/{action}"))
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .body(Full::new(body))
            .map_err(io::Error::other)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(lost)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(io::Error::other)?.aggregate();
            if status.is_success() { Ok(()) } else { Err(refusal(status.as_u16(), body)) }
        };
        tokio::pin!(answer);
        // The connection moves bytes only while it is polled; the answer ends it.
        tokio::select! {
            answer = &mut answer => answer,
            _ = connection => answer.await,
        }
    }
}

/// The monitor's own words: a list, from the outermost to the cause.
fn refusal(status: u16, body: impl Buf) -> io::Error {
    let chain: Vec<String> = serde_json::from_reader(body.reader()).unwrap_or_default();
    if chain.is_empty() {
        return io::Error::other(format!("it answered {status}"));
    }
    io::Error::other(crate::console::harmless(chain.join(": ").as_bytes()))
}

fn lost(error: hyper::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, error)
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
