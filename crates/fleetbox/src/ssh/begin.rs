//! Owns the beginning of a command: a channel, a terminal where one is wanted, and the request. Until
//! the request is sent nothing has run in the guest, and giving up leaves nothing behind there.

use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};

use super::command::Terminal;
use super::running::Request;
use super::session::{Lease, Open, Session, Use};
use crate::error::{Error, ErrorKind, Result};

/// Opens a channel, in a task of its own: russh cannot take back a request to open one.
async fn opened(session: &Session, wanted: Use) -> Result<Open> {
    let session = session.clone();
    match tokio::spawn(async move { session.open(wanted).await }).await {
        Ok(opened) => opened,
        Err(e) => Err(Error::new(ErrorKind::Internal, "the connecting task died").source(e)),
    }
}

/// Opens a channel and sends the command. Until the last lines nothing has run in the guest.
pub(super) async fn begin(
    session: &Session,
    request: &Request,
    wanted: Use,
) -> Result<(ChannelReadHalf, ChannelWriteHalf<Msg>, Lease)> {
    let mut open = opened(session, wanted).await?;
    if let (Some(terminal), Some(channel)) = (&request.terminal, open.channel()) {
        let Terminal { term, columns, rows } = terminal;
        // An error shows as the channel's end.
        let _ = channel.request_pty(true, term, *columns, *rows, 0, 0, &[]).await;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) | None => break,
                Some(ChannelMsg::Failure) => {
                    // Without a terminal it would not be the command that was asked for.
                    let text =
                        format!("run `{}`: the guest has no terminal to give", request.label);
                    return Err(Error::new(ErrorKind::Connect, text).vm(session.vm()));
                }
                Some(_) => {}
            }
        }
    }
    let Some((channel, lease)) = open.take() else {
        return Err(Error::new(ErrorKind::Internal, "the channel was taken twice"));
    };
    if let Err(e) = channel.exec(true, request.text.clone()).await {
        let text = format!("run `{}`: {}", request.label, lease.connection.loss());
        return Err(Error::new(ErrorKind::ConnectionLost, text).vm(session.vm()).source(e));
    }
    let (read, write) = channel.split();
    Ok((read, write, lease))
}
