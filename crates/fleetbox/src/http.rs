//! Owns one HTTP exchange over a connection that is there already: a request, its answer, and the
//! connection is of no more use. It must not dial, nor know what is asked.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use ureq_proto::client::state::RecvResponse;
use ureq_proto::client::{Call, RecvResponseResult, SendRequestResult};
pub(crate) use ureq_proto::http::Request;

/// A head that is longer is no answer to anything we ask.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES: usize = 4096;

/// The head of an answer, and the connection its body comes from.
pub(crate) struct Answer<S> {
    status: u16,
    call: Call<RecvResponse>,
    stream: S,
    /// What was read and does not belong to the head.
    unread: Vec<u8>,
}

/// Asks and waits for the answer's head. The URI is absolute: its authority becomes the header
/// `host`; the body's length is told if there is one, or if the request's header tells it.
pub(crate) async fn ask<S>(
    mut stream: S,
    request: Request<()>,
    body: &[u8],
) -> io::Result<Answer<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (bytes, mut call) = written(request, body)?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let mut unread = Vec::with_capacity(READ_BYTES);
    loop {
        if stream.read_buf(&mut unread).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"));
        }
        // More than one, where informational ones come before.
        loop {
            let (used, head) = call.try_response(&unread, false).map_err(io::Error::other)?;
            unread.drain(..used);
            if let Some(head) = head {
                return Ok(Answer { status: head.status().as_u16(), call, stream, unread });
            }
            if used == 0 {
                break;
            }
        }
        if unread.len() > HEAD_BYTES_MAX {
            return Err(io::Error::other("the head of its answer does not end"));
        }
    }
}

/// The bytes of a request.
fn written(mut request: Request<()>, body: &[u8]) -> io::Result<(Vec<u8>, Call<RecvResponse>)> {
    use ureq_proto::http::header::{CONTENT_LENGTH, HeaderValue};
    let room = 1024 + request.uri().to_string().len();
    if !body.is_empty() || request.method() != ureq_proto::http::Method::GET {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    let mut bytes = vec![0; room + body.len()];
    let mut call = Call::new(request).map_err(io::Error::other)?.proceed();
    let mut length = call.write(&mut bytes).map_err(io::Error::other)?;
    let call = match call.proceed().map_err(io::Error::other)? {
        Some(SendRequestResult::RecvResponse(call)) => Some(call),
        Some(SendRequestResult::SendBody(mut call)) => {
            let (_, more) = call.write(body, &mut bytes[length..]).map_err(io::Error::other)?;
            length += more;
            call.proceed()
        }
        // Nobody asks to be asked for a body.
        Some(SendRequestResult::Await100(_)) | None => None,
    };
    bytes.truncate(length);
    let call = call.ok_or_else(|| io::Error::other("the request is too long"))?;
    Ok((bytes, call))
}

impl<S: AsyncRead + Unpin> Answer<S> {
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Reads the body; one that is longer is an error.
    pub(crate) async fn body(mut self, bytes_max: usize) -> io::Result<Vec<u8>> {
        let Some(RecvResponseResult::RecvBody(mut call)) = self.call.proceed() else {
            return Ok(Vec::new());
        };
        let mut body = Vec::new();
        let mut piece = [0; READ_BYTES];
        loop {
            let (used, length) = call.read(&self.unread, &mut piece).map_err(io::Error::other)?;
            self.unread.drain(..used);
            body.extend_from_slice(&piece[..length]);
            if body.len() > bytes_max {
                return Err(io::Error::other("its answer is too long"));
            }
            let by_its_end = call.body_mode() == ureq_proto::BodyMode::CloseDelimited;
            if call.can_proceed() && !by_its_end {
                return Ok(body);
            }
            if used == 0 && length == 0 && self.stream.read_buf(&mut self.unread).await? == 0 {
                return if by_its_end {
                    Ok(body)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is asked of a server that says `says`, and what is understood of it.
    async fn exchange(
        method: &str,
        body: &[u8],
        says: &[u8],
    ) -> (String, io::Result<(u16, String)>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let request =
            Request::builder().method(method).uri("http://name:8080/a?b").body(()).unwrap();
        let client = async {
            let answer = ask(near, request, body).await?;
            let status = answer.status();
            Ok((status, String::from_utf8(answer.body(10).await?).unwrap()))
        };
        let server = async {
            let (mut reader, mut writer) = tokio::io::split(far);
            // In pieces, as nothing promises how they come.
            for piece in says.chunks(7) {
                // A client that heard enough is gone.
                if writer.write_all(piece).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(writer.shutdown().await);
            let mut asked = Vec::new();
            reader.read_to_end(&mut asked).await.unwrap();
            String::from_utf8(asked).unwrap()
        };
        let (outcome, asked) = tokio::join!(client, server);
        (asked, outcome)
    }

    #[tokio::test]
    async fn a_request_names_its_host_and_the_length_of_its_body() {
        let (asked, outcome) =
            exchange("PUT", b"{\"a\":1}", b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(asked.starts_with("PUT /a?b HTTP/1.1\r\nhost: name:8080\r\n"), "{asked}");
        assert!(asked.contains("content-length: 7\r\n") && asked.ends_with("\r\n\r\n{\"a\":1}"));
        assert_eq!(outcome.unwrap(), (204, String::new()));
        let (asked, _) = exchange("PUT", b"", b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(asked.ends_with("content-length: 0\r\n\r\n"), "{asked}");
        let (asked, _) = exchange("GET", b"", b"HTTP/1.1 204 No Content\r\n\r\n").await;
        assert!(!asked.contains("content-length") && !asked.contains("chunked"), "{asked}");
    }

    #[tokio::test]
    async fn an_answer_is_read_however_its_end_is_told() {
        for says in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwho\r\n2\r\nle\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nwhole",
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole, more",
        ] {
            let (_, outcome) = exchange("GET", b"", says.as_bytes()).await;
            assert_eq!(outcome.unwrap(), (200, "whole".to_owned()), "{says}");
        }
        let redirect = b"HTTP/1.1 301 Moved\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(exchange("GET", b"", redirect).await.1.unwrap().0, 301);
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        let endless = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(HEAD_BYTES_MAX + READ_BYTES));
        for says in [
            "",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwho",
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n01234567890",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nwho\r\n",
            &endless,
        ] {
            let (_, outcome) = exchange("GET", b"", says.as_bytes()).await;
            assert!(outcome.is_err(), "{outcome:?} of {}", &says[..says.len().min(60)]);
        }
    }
}
