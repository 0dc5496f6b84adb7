//! The other ranks' side: they go to rank 0 until it is there, say who they are, and hear the outcome.
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::link::{Broken, Clock, Link, TICK};
use super::message::{Garbled, Hello, Message, PROTOCOL};
use super::refusal::Ranks;
use super::{Agreed, Refusal};
use crate::Pe;

/// Between two attempts to reach rank 0, which may start later.
const AGAIN: Duration = Duration::from_millis(20);
/// Longest single attempt.
const ATTEMPT: Duration = Duration::from_secs(2);

/// What a rank knows of the others.
struct Peer<'a> {
    address: &'a str,
    hello: &'a Hello,
    clock: Clock,
    /// Who is missing, by rank 0's last word.
    missing: Option<Ranks>,
    offer: Option<Agreed>,
    /// Rank 0 has said something.
    heard: bool,
}

/// Goes to rank 0 at any of the addresses; `address` is for messages.
pub(super) fn meet(
    address: &str,
    addresses: &[SocketAddr],
    hello: &Hello,
    clock: Clock,
) -> Result<Agreed, Refusal> {
    let mut peer = Peer { address, hello, clock, missing: None, offer: None, heard: false };
    let mut reason = "nobody listens there".to_owned();
    loop {
        for at in addresses {
            let attempt = ATTEMPT.min(clock.left()).max(TICK);
            let link = TcpStream::connect_timeout(at, attempt).and_then(Link::new);
            match link.map_err(|error| error.to_string()) {
                Ok(link) => match peer.talk(link)? {
                    Ok(agreed) => return Ok(agreed),
                    Err(closed) => reason = closed,
                },
                Err(error) => reason = error,
            }
        }
        if clock.is_over() {
            return Err(Refusal::Unreachable { address: address.to_owned(), reason });
        }
        clock.pause(AGAIN);
    }
}

impl Peer<'_> {
    /// One conversation; the inner error is a connection that ended before rank 0 said anything: it may be the last
    /// moment of an older listener.
    fn talk(&mut self, mut link: Link) -> Result<Result<Agreed, String>, Refusal> {
        link.send(&Message::Hello(self.hello.clone()));
        loop {
            match link.look() {
                Ok(None) if self.clock.is_over() => {
                    link.send(&Message::GaveUp);
                    link.drain();
                    return Err(self.too_late());
                }
                Ok(None) => self.clock.pause(TICK),
                Ok(Some(message)) => {
                    self.heard = true;
                    if let Some(agreed) = self.hear(message, &mut link)? {
                        return Ok(Ok(agreed));
                    }
                }
                Err(Broken::Closed(reason)) if !self.heard => return Ok(Err(reason)),
                Err(Broken::Closed(_)) => return Err(Refusal::Lost { rank: Pe(0) }),
                Err(Broken::Garbled(Garbled::Protocol(theirs))) => {
                    return Err(Refusal::Protocol { theirs, ours: PROTOCOL });
                }
                Err(Broken::Garbled(what)) => return Err(self.garbled(&what)),
            }
        }
    }

    fn hear(&mut self, message: Message, link: &mut Link) -> Result<Option<Agreed>, Refusal> {
        match message {
            Message::Waiting(missing) => self.missing = Some(missing),
            Message::Offer { id, config } => {
                self.offer = Some(Agreed { id, config });
                self.missing = None;
                link.send(&Message::Ready);
            }
            Message::Go => return self.offer.take().map(Some).ok_or_else(|| self.garbled(&"out of turn")),
            Message::Refused(why) => return Err(why),
            _ => return Err(self.garbled(&"out of turn")),
        }
        Ok(None)
    }

    fn garbled(&self, what: &dyn std::fmt::Display) -> Refusal {
        Refusal::Garbled { from: self.address.to_owned(), what: what.to_string() }
    }

    fn too_late(&mut self) -> Refusal {
        let world = self.hello.world;
        match self.missing.take() {
            Some(missing) => Refusal::Missing { missing, world, strangers: 0 },
            // It has the offer, so all had come; or rank 0 accepts and says nothing.
            None if self.offer.is_some() => Refusal::Lost { rank: Pe(0) },
            None => Refusal::Unreachable {
                address: self.address.to_owned(),
                reason: "somebody listens there but says nothing".to_owned(),
            },
        }
    }
}
