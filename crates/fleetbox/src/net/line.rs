//! Owns a line to one guest below its network: questions and answers in frames of a type of their own,
//! straight into its tap. No address, route or rule of the guest or the cluster is in the way. It must
//! not know what is asked.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::linux::Network;
use crate::sys::{packet, random};

/// Set aside for experiments in a local network (IEEE 802, local experimental ethertype 1).
pub(crate) const ETHERTYPE: u16 = 0x88b5;
/// A question has to fit into one frame.
const FRAME_BYTES_MAX: usize = 1500;
/// A question is asked again as frames may be lost; whoever answers does what is asked once.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(250);
const ASK_AGAIN_LAST: Duration = Duration::from_secs(2);

/// An open line.
#[derive(Debug)]
pub(crate) struct Line {
    socket: AsyncFd<OwnedFd>,
    interface: u32,
    /// What both ends know each other by.
    token: String,
    /// The number of the last question.
    asked: u64,
}

impl Line {
    /// A line into the tap with this number.
    pub(crate) async fn open(network: &Network, tap: u32, token: &str) -> io::Result<Self> {
        let (socket, interface) = network.line_socket(tap, ETHERTYPE).await?;
        let socket = packet::waited_for(socket)?;
        // All machines of one snapshot have the same token, and every line hears the answers of all: another
        // beginning for each tells them apart.
        let beginning = random::bytes::<4>().map_err(io::Error::other)?;
        let asked = u64::from(u32::from_le_bytes(beginning)) << 16;
        Ok(Self { socket, interface, token: token.to_owned(), asked })
    }

    /// Asks until there is an answer or the time is over.
    pub(crate) async fn ask(&mut self, question: &Value, within: Duration) -> io::Result<Value> {
        self.asked += 1;
        let frame = json!({ "token": self.token, "number": self.asked, "ask": question });
        let frame = frame.to_string();
        if frame.len() > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the question is too long"));
        }
        let deadline = tokio::time::Instant::now() + within;
        let mut patience = ASK_AGAIN_FIRST;
        loop {
            packet::send_to_all(
                self.socket.get_ref().as_fd(),
                self.interface,
                ETHERTYPE,
                frame.as_bytes(),
            )?;
            let until = deadline.min(tokio::time::Instant::now() + patience);
            match tokio::time::timeout_at(until, self.answer()).await {
                Ok(answered) => return answered,
                Err(_) if tokio::time::Instant::now() >= deadline => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the guest says nothing"));
                }
                Err(_) => patience = (patience * 2).min(ASK_AGAIN_LAST),
            }
        }
    }

    /// The answer to the last question; anything else that comes is passed over.
    async fn answer(&self) -> io::Result<Value> {
        let mut frame = vec![0; 65_536];
        loop {
            let receive = |socket: &OwnedFd| packet::receive(socket.as_fd(), &mut frame);
            let received = self.socket.async_io(Interest::READABLE, receive).await?;
            // Short frames are filled up.
            let bytes = frame[..received.bytes].trim_ascii_end();
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let Ok(mut said) = serde_json::from_slice::<Value>(&bytes[..end]) else { continue };
            if said["token"] == self.token.as_str() && said["answers"] == self.asked {
                return Ok(said["answer"].take());
            }
        }
    }
}
