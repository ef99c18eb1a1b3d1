//! Owns fetching over HTTP, from the publishers or a mirror of them. It must not keep what it
//! fetched, nor know what it is.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::time::Duration;

use sha2::{Digest, Sha256, Sha512};

use crate::failure::{Failure, Outcome};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 256 << 10;

/// Where files are fetched from.
pub(super) struct Site {
    agent: ureq::Agent,
    mirror: Option<String>,
}

/// What a file's bytes come to, in hex.
pub(super) struct Digests {
    pub sha256: String,
    pub sha512: String,
}

impl Site {
    pub(super) fn new(mirror: Option<&str>) -> Outcome<Self> {
        if let Some(mirror) = mirror
            && !(mirror.starts_with("http://") || mirror.starts_with("https://"))
        {
            return Err(Failure::new(format!("failed to use the mirror {mirror}"))
                .hint("give a base URL such as http://mirror.example/images"));
        }
        let config = ureq::Agent::config_builder()
            .user_agent(concat!("fleetbox/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(STALL_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            mirror: mirror.map(|mirror| mirror.trim_end_matches('/').to_owned()),
        })
    }

    /// A page or another small file; `None` if there is none.
    pub(super) fn text(&self, url: &str) -> Outcome<Option<String>> {
        let url = self.address(url);
        let body = match self.agent.get(&url).call() {
            Err(ureq::Error::StatusCode(404)) => return Ok(None),
            answer => answer.map_err(|e| unfetched(&url, &e))?.into_body(),
        };
        let text = { body }.read_to_string().map_err(|e| unfetched(&url, &e))?;
        Ok(Some(text))
    }

    /// Reads a large file through and keeps none of it.
    pub(super) fn digests(&self, url: &str) -> Outcome<Digests> {
        let url = self.address(url);
        // It takes minutes; whoever waits is told, and what is told does not matter if nobody is.
        let _ = writeln!(std::io::stderr(), "reads {url}");
        let answer = self.agent.get(&url).call().map_err(|e| unfetched(&url, &e))?;
        let mut body = answer.into_body().into_reader();
        let (mut sha256, mut sha512) = (Sha256::new(), Sha512::new());
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let count = body.read(&mut buffer).map_err(|e| unfetched(&url, &e))?;
            if count == 0 {
                break;
            }
            sha256.update(&buffer[..count]);
            sha512.update(&buffer[..count]);
        }
        Ok(Digests { sha256: hex(&sha256.finalize()), sha512: hex(&sha512.finalize()) })
    }

    /// The URL with the mirror in front of its path.
    fn address(&self, url: &str) -> String {
        match &self.mirror {
            None => url.to_owned(),
            Some(mirror) => {
                format!("{mirror}/{}", url.splitn(4, '/').nth(3).unwrap_or_default())
            }
        }
    }
}

fn unfetched(url: &str, cause: &dyn std::error::Error) -> Failure {
    Failure::new(format!("failed to fetch {url}: {cause}"))
        .hint("try again later, or give --mirror a copy of the site")
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
