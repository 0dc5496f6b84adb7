//! Rank 0's side: it listens, checks who comes, makes the offer when all are there, and tells everybody the outcome.
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use super::link::{Broken, Clock, Link, TICK};
use super::message::{Garbled, Hello, Message, PROTOCOL};
use super::refusal::Ranks;
use super::{Agreed, Id, Refusal, Seat, Terms, size_of};
use crate::Pe;

/// How often ranks hear who is missing.
const NEWS: Duration = Duration::from_millis(200);
/// How long rank 0 stays to tell ranks that come late why there is no meeting.
const STAY: Duration = Duration::from_secs(1);
/// How long it stays beyond its deadline to get a last word out.
const LAST_WORD: Duration = Duration::from_millis(200);
/// Connections that have not said who they are, beyond one for each rank; the oldest goes first.
const UNKNOWN: usize = 64;

/// A connection, and what is known of it.
struct Guest {
    link: Link,
    /// It has the token.
    known: bool,
    /// Its number, once it is accepted.
    rank: Option<Pe>,
    /// It has the offer.
    ready: bool,
    /// It has been told its outcome.
    told: bool,
}

struct Root<'a> {
    seat: Seat,
    terms: &'a Terms,
    clock: Clock,
    listener: TcpListener,
    guests: Vec<Guest>,
    strangers: u32,
    news: Instant,
}

/// Meets all others at a listener of this rank.
pub(super) fn meet(
    seat: Seat,
    terms: &Terms,
    clock: Clock,
    listener: TcpListener,
    make: impl FnOnce() -> Result<Id, String>,
) -> Result<Agreed, Refusal> {
    let mut root =
        Root { seat, terms, clock, listener, guests: Vec::new(), strangers: 0, news: Instant::now() };
    let outcome = root.gather(make);
    match &outcome {
        Ok(_) => root.send_off(&Message::Go, clock.left().max(LAST_WORD)),
        Err(why) => root.turn_away(why),
    }
    outcome
}

/// Binds the first address that this machine has.
pub(super) fn listen(addresses: &[SocketAddr]) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind(addresses)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Root<'_> {
    fn gather(&mut self, make: impl FnOnce() -> Result<Id, String>) -> Result<Agreed, Refusal> {
        self.look_until(|root| root.missing().count() == 0)?;
        let id = make().map_err(|reason| Refusal::Offer { reason })?;
        let config = self.terms.config.clone();
        let offer = Message::Offer { id, config: config.clone() };
        self.tell_all(&offer);
        self.look_until(|root| root.guests.iter().all(|guest| guest.rank.is_none() || guest.ready))?;
        Ok(Agreed { id, config })
    }

    /// Looks after all connections until something holds.
    fn look_until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Refusal> {
        loop {
            self.look()?;
            if done(self) {
                return Ok(());
            }
            if self.clock.is_over() {
                return Err(self.too_late());
            }
            self.clock.pause(TICK);
        }
    }

    /// One round: new connections, new messages, news.
    fn look(&mut self) -> Result<(), Refusal> {
        self.accept();
        let mut at = 0;
        while at < self.guests.len() {
            match self.hear(at)? {
                true => at += 1,
                false => drop(self.guests.remove(at)),
            }
        }
        if self.news.elapsed() >= NEWS {
            self.news = Instant::now();
            let missing = self.missing();
            if missing.count() > 0 {
                self.tell_all(&Message::Waiting(missing));
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        // An error is "nobody now", or one that the next look may not see: the deadline decides.
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(link) = Link::new(stream) else { continue };
            self.guests.push(Guest { link, known: false, rank: None, ready: false, told: false });
            if self.guests.iter().filter(|guest| !guest.known).count() > self.seat.world.size() + UNKNOWN
                && let Some(oldest) = self.guests.iter().position(|guest| !guest.known)
            {
                self.guests.remove(oldest);
                self.strangers += 1;
            }
        }
    }

    /// Whether the guest stays; an error ends the rendezvous for all.
    fn hear(&mut self, at: usize) -> Result<bool, Refusal> {
        let guest = &mut self.guests[at];
        if guest.told {
            guest.link.end();
            return Ok(guest.link.drain());
        }
        let rank = guest.rank;
        match (guest.link.look(), rank) {
            (Ok(None), _) => Ok(true),
            (Ok(Some(Message::Hello(hello))), None) => self.admit(at, &hello).map(|()| true),
            (Ok(Some(Message::Ready)), Some(_)) => {
                guest.ready = true;
                Ok(true)
            }
            (Ok(Some(Message::GaveUp)), Some(rank)) => match self.missing() {
                missing if missing.count() > 0 => Err(self.too_late()),
                _ => Err(Refusal::Lost { rank }),
            },
            (Err(Broken::Closed(_)), Some(rank)) => Err(Refusal::Lost { rank }),
            (Err(Broken::Garbled(_)) | Ok(Some(_)), Some(rank)) => {
                Err(Refusal::Garbled { from: rank.to_string(), what: "out of turn".to_owned() })
            }
            (Err(Broken::Garbled(Garbled::Protocol(theirs))), None) => {
                self.refuse(at, Refusal::Protocol { theirs: PROTOCOL, ours: theirs });
                Ok(true)
            }
            (Err(_) | Ok(Some(_)), None) => {
                self.strangers += 1;
                Ok(false)
            }
        }
    }

    /// Checks who comes.
    fn admit(&mut self, at: usize, hello: &Hello) -> Result<(), Refusal> {
        if hello.token != self.terms.token.0 {
            self.refuse(at, Refusal::Token);
            return Ok(());
        }
        self.guests[at].known = true;
        let taken = self.guests.iter().any(|guest| guest.rank == Some(hello.rank));
        self.terms.check(self.seat.world, hello)?;
        if taken || hello.rank == self.seat.me {
            return Err(Refusal::Duplicate { rank: hello.rank });
        }
        self.guests[at].rank = Some(hello.rank);
        Ok(())
    }

    /// Tells a stranger why; it goes when it has heard.
    fn refuse(&mut self, at: usize, why: Refusal) {
        self.strangers += 1;
        let guest = &mut self.guests[at];
        guest.link.send(&Message::Refused(why));
        guest.told = true;
    }

    /// Who has not come.
    fn missing(&self) -> Ranks {
        let mut came = vec![false; self.seat.world.size()];
        let ranks = self.guests.iter().filter_map(|guest| guest.rank).chain([self.seat.me]);
        ranks.for_each(|rank| came[rank.index()] = true);
        Ranks::of(self.seat.world.ranks().filter(|rank| !came[rank.index()]))
    }

    fn too_late(&self) -> Refusal {
        let missing = self.missing();
        let silent = self.guests.iter().find(|guest| guest.rank.is_some() && !guest.ready);
        match silent.and_then(|guest| guest.rank) {
            Some(rank) if missing.count() == 0 => Refusal::Lost { rank },
            _ => {
                let world = size_of(self.seat.world);
                Refusal::Missing { missing, world, strangers: self.strangers }
            }
        }
    }

    fn tell_all(&mut self, message: &Message) {
        self.guests
            .iter_mut()
            .filter(|guest| guest.rank.is_some())
            .for_each(|guest| guest.link.send(message));
    }

    /// Tells everybody, and waits until they have heard or the time is up.
    fn send_off(&mut self, last: &Message, time: Duration) {
        self.tell_all(last);
        let clock = Clock::new(time);
        while !clock.is_over() {
            self.guests.retain_mut(|guest| guest.link.drain() && !guest.link.is_flushed());
            if self.guests.is_empty() {
                return;
            }
            clock.pause(TICK);
        }
    }

    /// Tells all who have the token why there is no meeting, also those who come in the next moments.
    fn turn_away(&mut self, why: &Refusal) {
        let clock = Clock::new(STAY.min(self.clock.left()).max(LAST_WORD));
        let mut heard = 0;
        while !clock.is_over() && heard + 1 < self.seat.world.size() {
            self.accept();
            self.guests.retain_mut(|guest| {
                let stays = guest.turn_away(self.terms, why);
                heard += usize::from(!stays && guest.known);
                stays
            });
            clock.pause(TICK);
        }
    }
}

impl Guest {
    /// Whether it stays, to hear why there is no meeting.
    fn turn_away(&mut self, terms: &Terms, why: &Refusal) -> bool {
        if !self.known
            && let Ok(Some(Message::Hello(hello))) = self.link.look()
        {
            self.known = hello.token == terms.token.0;
            let outcome = if self.known { why.clone() } else { Refusal::Token };
            self.link.send(&Message::Refused(outcome));
            self.told = true;
        }
        if self.known && !self.told {
            self.link.send(&Message::Refused(why.clone()));
            self.told = true;
        }
        let there = self.link.drain();
        if self.told {
            self.link.end();
        }
        there
    }
}
