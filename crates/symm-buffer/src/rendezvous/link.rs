//! One connection that never blocks, the clock of a rendezvous, and addresses.
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::Refusal;
use super::message::{Garbled, MAX_FRAME, Message};
use crate::sync::thread;

/// Between two looks at all sockets: little beside a start-up, and next to no work.
pub(super) const TICK: Duration = Duration::from_millis(1);

/// When a rendezvous ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    begin: Instant,
    end: Instant,
}

impl Clock {
    /// A budget too large for the clock means ten years.
    pub(super) fn new(budget: Duration) -> Self {
        let begin = Instant::now();
        let years = Duration::from_secs(10 * 365 * 24 * 3600);
        Self { begin, end: begin.checked_add(budget).unwrap_or(begin + years) }
    }

    pub(super) fn waited(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Zero when it is over.
    pub(super) fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    pub(super) fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// Sleeps, but not past the end.
    pub(super) fn pause(&self, time: Duration) {
        thread::sleep(time.min(self.left()));
    }
}

/// Addresses of a host; a name is looked up, which ends with the clock too.
pub(super) fn resolve(host: &str, port: u16, clock: &Clock) -> Result<Vec<SocketAddr>, Refusal> {
    let failed = |reason: String| Refusal::Address { address: format!("{host}:{port}"), reason };
    let wanted = (host.to_owned(), port);
    let look = move || wanted.to_socket_addrs().map(|found| found.collect::<Vec<_>>());
    let lookup = thread::Builder::new().name("rendezvous-lookup".to_owned()).spawn(look);
    let lookup = lookup.map_err(|error| failed(error.to_string()))?;
    while !lookup.is_finished() {
        if clock.is_over() {
            return Err(failed("the name is still being looked up".to_owned()));
        }
        clock.pause(TICK);
    }
    match lookup.join() {
        Ok(Ok(found)) if found.is_empty() => Err(failed("the name has no address".to_owned())),
        Ok(found) => found.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed("the lookup panicked".to_owned())),
    }
}

/// Why a connection is of no more use.
#[derive(Debug)]
pub(super) enum Broken {
    /// It ended.
    Closed(String),
    /// It says what is no message.
    Garbled(Garbled),
}

/// A connection with what came and what is still to go.
#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
}

impl Link {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, inbox: Vec::new(), outbox: Vec::new() })
    }

    /// Queues a message; looks send it.
    pub(super) fn send(&mut self, message: &Message) {
        self.outbox.extend(message.encode());
    }

    /// Whether all that was queued has gone.
    pub(super) fn is_flushed(&self) -> bool {
        self.outbox.is_empty()
    }

    /// Says that nothing more will come, when all has gone.
    pub(super) fn end(&self) {
        if self.is_flushed() {
            // It may be closed already, which is as good.
            _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Sends what can be sent, takes what has come, and returns the next message if it is whole.
    pub(super) fn look(&mut self) -> Result<Option<Message>, Broken> {
        let sent = self.flush();
        let took = self.take();
        if let Some((message, len)) = Message::decode(&self.inbox).map_err(Broken::Garbled)? {
            self.inbox.drain(..len);
            return Ok(Some(message));
        }
        // A last message may lie before the end.
        sent.and(took).map(|()| None).map_err(|error| Broken::Closed(error.to_string()))
    }

    /// Sends what can be sent and drops what has come; whether the other side is still there.
    pub(super) fn drain(&mut self) -> bool {
        let there = self.flush().and_then(|()| self.take()).is_ok();
        self.inbox.clear();
        there
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes at most about one message: nobody can fill the memory.
    fn take(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4096];
        while self.inbox.len() < MAX_FRAME {
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "the other side closed it")),
                Ok(len) => self.inbox.extend(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
