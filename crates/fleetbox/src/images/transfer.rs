//! Owns fetching one file over HTTP into a partial file that a later try can go on with.
//! It must not know what an image is, nor retry.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode, Uri, header};

use super::cache::{absent_is_fine, hex, read_small};
use super::space;
use super::work::Cancel;
use crate::env;
use crate::error::{Error, ErrorKind, Result};
use crate::store::whole::write_atomic;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 256 << 10;
/// Progress is for eyes: more often would only cost time.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Why one try ended without the file.
pub(crate) enum Failure {
    /// Another try may do better.
    Transient(Error),
    /// It will not.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Final(error)
    }
}

/// One file to fetch.
pub(crate) struct Transfer<'a> {
    pub url: &'a str,
    pub part: PathBuf,
    pub part_record: PathBuf,
    pub cancel: &'a Cancel,
    pub progress: &'a dyn Fn(u64, Option<u64>),
}

/// What the bytes in the partial file belong to.
#[derive(Serialize, Deserialize)]
struct PartRecord {
    url: String,
    /// The server's name for this version of the file, sent back as `If-Range`.
    validator: String,
}

/// The bytes already here and their running checksum.
struct Part {
    file: File,
    hash: Sha256,
    length: u64,
    validator: Option<String>,
}

impl Transfer<'_> {
    /// One try. On success the partial file is the whole file and its sha256 is returned; on
    /// failure it stays for the next try, unless the disk is full.
    pub(crate) fn run(&self) -> Result<String, Failure> {
        self.fetch().inspect_err(|failure| {
            let (Failure::Final(error) | Failure::Transient(error)) = failure;
            if error.kind() == ErrorKind::NoSpace && self.discard().is_err() {
                log::warn!("{} could not be removed from a full disk", self.part.display());
            }
        })
    }

    pub(crate) fn discard(&self) -> Result<()> {
        for path in [&self.part_record, &self.part] {
            absent_is_fine("remove", path, std::fs::remove_file(path))?;
        }
        Ok(())
    }

    fn fetch(&self) -> Result<String, Failure> {
        let mut part = self.open_part()?;
        let response = self.request(&part)?;
        let status = response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE {
            self.discard()?;
            return Err(Failure::Transient(self.error("the server has less than is already here")));
        }
        if status == StatusCode::PARTIAL_CONTENT {
            if range_begin(response.headers()) != Some(part.length) {
                self.discard()?;
                return Err(Failure::Transient(self.error("the server sent another range")));
            }
        } else if status == StatusCode::OK {
            self.restart(&mut part, response.headers())?;
        } else {
            let error = self.error(&format!("the server answered {status}"));
            let transient = status.is_server_error()
                || status == StatusCode::TOO_MANY_REQUESTS
                || status == StatusCode::REQUEST_TIMEOUT;
            return Err(if transient { Failure::Transient(error) } else { Failure::Final(error) });
        }
        let rest = content_length(response.headers());
        let total = rest.map(|rest| part.length.saturating_add(rest));
        self.check_space(&part, rest)?;
        self.receive(&mut part, response.into_body().into_reader(), total)?;
        Ok(hex(&part.hash.finalize()))
    }

    /// Takes up what an earlier try left, if it is known to belong to this URL.
    fn open_part(&self) -> Result<Part> {
        let io = |e| Error::io("write", &self.part, e);
        let record = read_small(&self.part_record)
            .and_then(|bytes| serde_json::from_slice::<PartRecord>(&bytes).ok())
            .filter(|record| record.url == self.url);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(record.is_none())
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&self.part)
            .map_err(io)?;
        let mut hash = Sha256::new();
        let mut length = 0;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            self.cancel.check()?;
            // Reading leaves the position where writing goes on.
            let read = file.read(&mut buffer).map_err(io)?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            length += read as u64;
        }
        Ok(Part { file, hash, length, validator: record.map(|record| record.validator) })
    }

    fn request(&self, part: &Part) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let mut request = agent(self.url)?.get(self.url);
        if let Some(validator) = part.validator.as_deref().filter(|_| part.length > 0) {
            request = request
                .header(header::RANGE, format!("bytes={}-", part.length))
                .header(header::IF_RANGE, validator);
        }
        request.call().map_err(|e| {
            let permanent = matches!(
                e,
                ureq::Error::BadUri(_)
                    | ureq::Error::Http(_)
                    | ureq::Error::TooManyRedirects
                    | ureq::Error::InvalidProxyUrl
            );
            let error = self.error("no answer").source(e);
            if permanent { Failure::Final(error) } else { Failure::Transient(error) }
        })
    }

    /// The server sends the file from its beginning: forget what was there.
    fn restart(&self, part: &mut Part, headers: &HeaderMap) -> Result<()> {
        let io = |e| Error::io("write", &self.part, e);
        absent_is_fine("remove", &self.part_record, std::fs::remove_file(&self.part_record))?;
        part.file.set_len(0).map_err(io)?;
        std::io::Seek::rewind(&mut part.file).map_err(io)?;
        part.hash = Sha256::new();
        part.length = 0;
        // A weak validator may stand for other bytes, and If-Range does not take one (RFC 9110).
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let validator = text(header::ETAG)
            .filter(|tag| !tag.starts_with("W/"))
            .or_else(|| text(header::LAST_MODIFIED));
        if let Some(validator) = validator {
            let record = PartRecord { url: self.url.to_owned(), validator: validator.to_owned() };
            let json = serde_json::to_vec(&record)
                .map_err(|e| Error::new(ErrorKind::Internal, "record a transfer").source(e))?;
            write_atomic(&self.part_record, &json)?;
        }
        Ok(())
    }

    fn check_space(&self, part: &Part, rest: Option<u64>) -> Result<()> {
        let Some(needed_bytes) = rest else { return Ok(()) };
        let free_bytes = space::free_bytes_of(&part.file, &self.part)?;
        if needed_bytes <= free_bytes {
            return Ok(());
        }
        Err(space::too_little(&format!("fetch {}", self.url), needed_bytes, free_bytes))
    }

    fn receive(
        &self,
        part: &mut Part,
        mut body: impl Read,
        total: Option<u64>,
    ) -> Result<(), Failure> {
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut shown = Instant::now();
        (self.progress)(part.length, total);
        loop {
            self.cancel.check()?;
            let read = match body.read(&mut buffer) {
                Ok(read) => read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => {
                    return Err(Failure::Transient(self.error("the transfer broke off").source(e)));
                }
            };
            if read == 0 {
                break;
            }
            part.hash.update(&buffer[..read]);
            part.file.write_all(&buffer[..read]).map_err(|e| Error::io("write", &self.part, e))?;
            part.length += read as u64;
            if shown.elapsed() >= PROGRESS_INTERVAL {
                shown = Instant::now();
                (self.progress)(part.length, total);
            }
        }
        (self.progress)(part.length, total);
        if total.is_some_and(|total| part.length != total) {
            return Err(Failure::Transient(self.error("the transfer ended early")));
        }
        Ok(())
    }

    fn error(&self, what: &str) -> Error {
        Error::new(ErrorKind::Download, format!("fetch {}: {what}", self.url))
    }
}

fn agent(url: &str) -> Result<ureq::Agent> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .user_agent(concat!("fleetbox/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(STALL_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .proxy(proxy(url)?)
        .build();
    Ok(config.new_agent())
}

/// ureq takes the first proxy variable it finds for every URL; the customary meaning is by scheme.
fn proxy(url: &str) -> Result<Option<ureq::Proxy>> {
    let Ok(uri) = url.parse::<Uri>() else { return Ok(None) };
    let Some(value) = env::proxy(uri.scheme_str().unwrap_or("https"))? else { return Ok(None) };
    let excepted = ureq::Proxy::try_from_env().is_some_and(|proxy| proxy.is_no_proxy(&uri));
    if excepted {
        return Ok(None);
    }
    ureq::Proxy::new(&value).map(Some).map_err(|e| {
        Error::new(ErrorKind::InvalidSetting, "use the proxy named in the environment")
            .hint("write it as http://host:port in http_proxy, https_proxy or all_proxy")
            .source(e)
    })
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// The first byte of `Content-Range: bytes 5-9/10`.
fn range_begin(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.trim().strip_prefix("bytes")?.trim_start().split_once('-')?.0.parse().ok()
}
