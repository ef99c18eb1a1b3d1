//! Owns the server's side of the network block device protocol, as far as one local client needs it:
//! the fixed newstyle handshake and simple replies
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>). It must not keep data.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::net::UnixStream;

use super::cache::Cache;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;

const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) + 1;
const INFO_EXPORT: u16 = 0;

const HAS_FLAGS: u16 = 1;
const SENDS_FLUSH: u16 = 1 << 2;
const SENDS_FUA: u16 = 1 << 3;

const COMMAND_READ: u16 = 0;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;
const FLAG_FUA: u16 = 1;

/// Names of exports are 4096 bytes at most, other options shorter.
const OPTION_BYTES_MAX: u32 = 8192;
/// What the protocol lets a client take for granted.
const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// How the client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Goodbye,
    /// Without a word, as a process does that is killed.
    Lost,
}

/// Answers one client to its end. A request that fails is answered so and the next is taken; only a
/// client that does not speak the protocol is an error.
pub(super) fn serve(socket: &UnixStream, cache: &mut Cache) -> io::Result<End> {
    let mut peer = Peer { from: BufReader::new(socket), to: BufWriter::new(socket) };
    let served = peer.greet(cache).and_then(|greeted| match greeted {
        Some(end) => Ok(end),
        None => peer.answer_all(cache),
    });
    match served {
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset
            ) =>
        {
            Ok(End::Lost)
        }
        served => served,
    }
}

struct Peer<'a> {
    from: BufReader<&'a UnixStream>,
    to: BufWriter<&'a UnixStream>,
}

struct Request {
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
}

impl Peer<'_> {
    /// Goes through the options until the client begins; or it leaves.
    fn greet(&mut self, cache: &Cache) -> io::Result<Option<End>> {
        self.to.write_all(&MAGIC.to_be_bytes())?;
        self.to.write_all(&OPTION_MAGIC.to_be_bytes())?;
        self.to.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
        self.to.flush()?;
        let _client_flags: [u8; 4] = self.take()?;
        loop {
            if u64::from_be_bytes(self.take()?) != OPTION_MAGIC {
                return Err(nonsense("an option"));
            }
            let option = u32::from_be_bytes(self.take()?);
            let length = u32::from_be_bytes(self.take()?);
            if length > OPTION_BYTES_MAX {
                return Err(nonsense("an option's length"));
            }
            io::copy(&mut (&mut self.from).take(length.into()), &mut io::sink())?;
            match option {
                OPTION_GO => {
                    let flags = HAS_FLAGS | SENDS_FLUSH | SENDS_FUA;
                    let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                    info.extend(cache.size_bytes().to_be_bytes());
                    info.extend(flags.to_be_bytes());
                    self.reply_option(option, REPLY_INFO, &info)?;
                    self.reply_option(option, REPLY_ACK, &[])?;
                    return Ok(None);
                }
                OPTION_ABORT => {
                    self.reply_option(option, REPLY_ACK, &[])?;
                    return Ok(Some(End::Goodbye));
                }
                _ => self.reply_option(option, REPLY_UNSUPPORTED, &[])?,
            }
        }
    }

    fn reply_option(&mut self, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        self.to.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
        for word in [option, kind, data.len() as u32] {
            self.to.write_all(&word.to_be_bytes())?;
        }
        self.to.write_all(data)?;
        self.to.flush()
    }

    fn answer_all(&mut self, cache: &mut Cache) -> io::Result<End> {
        let mut payload = Vec::new();
        loop {
            let request = self.request()?;
            let done = match request.command {
                COMMAND_DISCONNECT => return Ok(End::Goodbye),
                COMMAND_READ => {
                    payload.resize(request.length as usize, 0);
                    cache.read(request.offset, &mut payload)
                }
                COMMAND_WRITE => {
                    payload.resize(request.length as usize, 0);
                    self.from.read_exact(&mut payload)?;
                    let written = cache.write(request.offset, &payload);
                    payload.clear();
                    written
                }
                COMMAND_FLUSH => cache.flush(),
                _ => Err(io::ErrorKind::InvalidInput.into()),
            };
            let forced = request.command == COMMAND_WRITE && request.flags & FLAG_FUA != 0;
            let done = if forced { done.and_then(|()| cache.flush()) } else { done };
            let error = done.as_ref().err().map_or(0, code);
            self.to.write_all(&REPLY_MAGIC.to_be_bytes())?;
            self.to.write_all(&error.to_be_bytes())?;
            self.to.write_all(&request.cookie.to_be_bytes())?;
            if request.command == COMMAND_READ && done.is_ok() {
                self.to.write_all(&payload)?;
            }
            self.to.flush()?;
        }
    }

    fn request(&mut self) -> io::Result<Request> {
        if u32::from_be_bytes(self.take()?) != REQUEST_MAGIC {
            return Err(nonsense("a request"));
        }
        let request = Request {
            flags: u16::from_be_bytes(self.take()?),
            command: u16::from_be_bytes(self.take()?),
            cookie: u64::from_be_bytes(self.take()?),
            offset: u64::from_be_bytes(self.take()?),
            length: u32::from_be_bytes(self.take()?),
        };
        if request.length > PAYLOAD_BYTES_MAX {
            return Err(nonsense("a request's length"));
        }
        Ok(request)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// The protocol's own numbers of errors (its section "Error values").
fn code(error: &io::Error) -> u32 {
    match error.kind() {
        io::ErrorKind::InvalidInput => 22,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => 28,
        _ => 5,
    }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the monitor sent no sense for {what}"))
}
