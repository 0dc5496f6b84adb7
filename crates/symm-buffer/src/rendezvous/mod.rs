//! Ranks meet before they share memory: everybody gets rank 0's id and configuration, or everybody gets an error.
//!
//! Libraries that make symmetric memory end the process, or wait for ever, when two ranks have one number, worlds or
//! versions differ, or somebody does not come. Here that is found first, within a deadline, and named.
//!
//! Rank 0 listens on one address, the others go there. Each says who it is; rank 0 checks, and when all are there offers
//! the id; each says that it has it; then rank 0 says go. The first wrong thing ends it for all. A connection without
//! the job's token is refused and does not disturb. The token keeps jobs apart; it goes over the wire as it is, so it is
//! no defence against who can listen on the network.
//!
//! Ranks that have a broadcast of their own (of PyTorch, of MPI) use [`meet_by`] instead. Who is which rank is in the
//! variables of the launcher: [`Launch`].
//!
//! ```
//! use std::{net::TcpListener, thread, time::Duration};
//! use symm_buffer::{Pe, World, rendezvous::{Place, Seat, Terms, Token, meet}};
//!
//! let world = World::new(2)?;
//! let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
//! let terms = Terms::new(Token::new("job 17")?, b"settings".to_vec())?;
//! let join = |rank| {
//!     let place = Place { host: "127.0.0.1".to_owned(), port, bind: None };
//!     meet(Seat::new(Pe(rank), world)?, &place, &terms, Duration::from_secs(10), || Ok([7; 128]))
//! };
//! let agreed = thread::scope(|scope| {
//!     let other = scope.spawn(|| join(1));
//!     (join(0), other.join().expect("no panic"))
//! });
//! assert_eq!(agreed.0?.id, agreed.1?.id);
//! # Ok::<(), symm_buffer::Error>(())
//! ```
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use crate::{Error, Pe, World};

mod broadcast;
pub mod launch;
mod link;
mod message;
mod nodelist;
mod peer;
mod refusal;
mod root;

pub use broadcast::meet_by;
pub use launch::{Launch, Launcher};
pub use message::{Garbled, Hello, Message, PROTOCOL};
pub use refusal::{Library, Ranks, Refusal};

use link::Clock;

/// Bytes of the id: NVSHMEM's unique id has as many.
pub const ID_BYTES: usize = 128;
/// Longest configuration.
pub const MAX_CONFIG: usize = 64 << 10;
/// Longest token.
pub const MAX_TOKEN: usize = 128;

/// What rank 0 makes and all get.
pub type Id = [u8; ID_BYTES];

/// A rank of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    me: Pe,
    world: World,
}

impl Seat {
    /// Rank `me` of `world`.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`].
    pub fn new(me: Pe, world: World) -> Result<Self, Error> {
        let inside = me.index() < world.size();
        let outside = Error::NoSuchPe { call: "Seat::new", pe: me, world: world.size() };
        inside.then_some(Self { me, world }).ok_or(outside)
    }

    /// This rank.
    pub const fn me(self) -> Pe {
        self.me
    }

    /// All ranks.
    pub const fn world(self) -> World {
        self.world
    }
}

/// Where rank 0 listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name or address of rank 0's machine, as all ranks know it.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Interface that rank 0 binds, where it is another than `host` says; all others ignore it.
    pub bind: Option<IpAddr>,
}

/// What tells the ranks of one job from other programs.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Vec<u8>);

impl Token {
    /// Any text that all ranks of the job know, at most 128 bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn new(text: &str) -> Result<Self, Error> {
        at_most("Token::new", text.len(), MAX_TOKEN)?;
        Ok(Self(text.as_bytes().to_vec()))
    }

    /// The same and some more.
    fn with(&self, text: &str) -> Result<Self, Error> {
        at_most("Token::with", self.0.len() + text.len(), MAX_TOKEN)?;
        Ok(Self([&self.0, text.as_bytes()].concat()))
    }
}

/// Does not show it: logs are read by many.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token({} bytes)", self.0.len())
    }
}

/// What must be the same on all ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    token: Token,
    config: Vec<u8>,
    /// The library that was loaded; 0.0.0 where there is none.
    pub library: Library,
}

impl Terms {
    /// A job's token and a rank's configuration, at most 64 KiB; an empty one takes rank 0's.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn new(token: Token, config: Vec<u8>) -> Result<Self, Error> {
        at_most("Terms::new", config.len(), MAX_CONFIG)?;
        Ok(Self { token, config, library: Library::default() })
    }

    /// What a rank says of itself.
    fn hello(&self, seat: Seat) -> Hello {
        let (token, config) = (self.token.0.clone(), self.config.clone());
        Hello { token, world: size_of(seat.world), rank: seat.me, library: self.library, config }
    }

    /// Whether a rank goes with these, which are rank 0's.
    fn check(&self, world: World, hello: &Hello) -> Result<(), Refusal> {
        let Hello { rank, library: theirs, ref config, .. } = *hello;
        let (roots, size) = (self.library, size_of(world));
        if hello.world != size {
            return Err(Refusal::World { rank, theirs: hello.world, roots: size });
        }
        if rank.0 >= size {
            return Err(Refusal::Outside { rank, world: size });
        }
        if theirs != roots {
            return Err(Refusal::Library { rank, theirs, roots });
        }
        if config.is_empty() || *config == self.config {
            return Ok(());
        }
        let same = config.iter().zip(&self.config).take_while(|(theirs, mine)| theirs == mine).count();
        Err(Refusal::Config { rank, at: u32::try_from(same).unwrap_or(u32::MAX) })
    }
}

/// What all ranks have after a rendezvous.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The id that rank 0 has made.
    pub id: Id,
    /// Rank 0's configuration.
    pub config: Vec<u8>,
}

/// Meets all ranks of the world; `make` is called on rank 0 only, when all are there. Collective.
///
/// # Errors
/// [`Error::Rendezvous`] with the reason: within the deadline, and on every rank that has come. A rank that comes
/// more than a second after it failed, to a rank 0 that has left, is told that rank 0 cannot be reached.
pub fn meet(
    seat: Seat,
    place: &Place,
    terms: &Terms,
    deadline: Duration,
    make: impl FnOnce() -> Result<Id, String>,
) -> Result<Agreed, Error> {
    let clock = Clock::new(deadline);
    let outcome = meet_in_time(seat, place, terms, clock, make);
    outcome.map_err(|why| Error::Rendezvous { me: seat.me, waited: clock.waited(), why: Box::new(why) })
}

fn meet_in_time(
    seat: Seat,
    place: &Place,
    terms: &Terms,
    clock: Clock,
    make: impl FnOnce() -> Result<Id, String>,
) -> Result<Agreed, Refusal> {
    if seat.world.size() == 1 {
        let id = make().map_err(|reason| Refusal::Offer { reason })?;
        return Ok(Agreed { id, config: terms.config.clone() });
    }
    let Place { host, port, bind } = place;
    let address = format!("{host}:{port}");
    let hello = terms.hello(seat);
    if seat.me != Pe(0) {
        let addresses = link::resolve(host, *port, &clock)?;
        return peer::meet(&address, &addresses, &hello, clock);
    }
    let addresses = match bind {
        Some(interface) => vec![(*interface, *port).into()],
        None => link::resolve(host, *port, &clock)?,
    };
    match root::listen(&addresses) {
        Ok(listener) => root::meet(seat, terms, clock, listener, make),
        Err(error) => {
            // It may be a second rank 0 of this very job: the first one tells.
            if error.kind() == ErrorKind::AddrInUse
                && let Err(Refusal::Duplicate { rank }) = peer::meet(&address, &addresses, &hello, clock)
            {
                return Err(Refusal::Duplicate { rank });
            }
            Err(Refusal::Address { address, reason: error.to_string() })
        }
    }
}

/// A world's size as it is sent.
fn size_of(world: World) -> u32 {
    u32::try_from(world.size()).unwrap_or(u32::MAX)
}

fn at_most(call: &'static str, len: usize, most: usize) -> Result<(), Error> {
    if len <= most { Ok(()) } else { Err(Error::TooLong { call, len, most }) }
}
