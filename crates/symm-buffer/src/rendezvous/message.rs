//! What ranks say to each other, as bytes: bounded frames, little-endian, one encoding for each message.
//!
//! A frame is `SBRV`, the protocol's version (2 bytes), the kind (2), the length of the body (4), and the body.
use super::refusal::{Library, Ranks};
use super::{ID_BYTES, MAX_CONFIG, MAX_TOKEN, Refusal};
use crate::Pe;

/// Version of the frames and of who says what.
pub const PROTOCOL: u16 = 1;

/// Bytes before a body.
const HEADER: usize = 12;
/// Longest body: a hello with the longest token and configuration, and room for its numbers.
const MAX_BODY: usize = MAX_TOKEN + MAX_CONFIG + 64;
/// Longest frame.
pub(super) const MAX_FRAME: usize = HEADER + MAX_BODY;
/// Longest text in a refusal; longer ones are cut.
const MAX_TEXT: usize = 200;
const MAGIC: &[u8; 4] = b"SBRV";

/// Who somebody is, and what must be the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The job's token.
    pub token: Vec<u8>,
    /// Ranks that the sender expects.
    pub world: u32,
    /// The sender.
    pub rank: Pe,
    /// Library that it has loaded.
    pub library: Library,
    /// Its configuration; empty takes rank 0's.
    pub config: Vec<u8>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// A rank to rank 0, first of all.
    Hello(Hello),
    /// Rank 0 to a rank: who has not come yet.
    Waiting(Ranks),
    /// Rank 0 to all, when all have come.
    Offer {
        /// The id that rank 0 has made.
        id: [u8; ID_BYTES],
        /// Rank 0's configuration.
        config: Vec<u8>,
    },
    /// A rank to rank 0: it has the offer.
    Ready,
    /// Rank 0 to all: everybody has the offer.
    Go,
    /// Rank 0 to a rank: it will not be.
    Refused(Refusal),
    /// A rank to rank 0: its deadline has passed.
    GaveUp,
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    /// They do not start like one.
    #[error("it does not start like a message")]
    Magic,
    /// Another protocol.
    #[error("it speaks protocol {0}")]
    Protocol(u16),
    /// Longer than any message may be.
    #[error("a body of {0} bytes is longer than any message")]
    Length(u32),
    /// Unknown kind, or a body that is not of its kind.
    #[error("kind {0} has no such body")]
    Body(u16),
}

impl Message {
    /// The frame. Lists and texts that are too long are cut; a token or configuration is not, its owner checks it.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Writer(Vec::new());
        let kind: u16 = match self {
            Self::Hello(hello) => {
                body.bytes(&hello.token);
                body.numbers(&[hello.world, hello.rank.0]);
                body.library(hello.library);
                body.bytes(&hello.config);
                1
            }
            Self::Waiting(ranks) => {
                body.ranks(ranks);
                2
            }
            Self::Offer { id, config } => {
                body.0.extend(id);
                body.bytes(config);
                3
            }
            Self::Ready => 4,
            Self::Go => 5,
            Self::Refused(why) => {
                body.refusal(why);
                6
            }
            Self::GaveUp => 7,
        };
        let mut frame = MAGIC.to_vec();
        frame.extend(PROTOCOL.to_le_bytes());
        frame.extend(kind.to_le_bytes());
        frame.extend(length(&body.0).to_le_bytes());
        frame.extend(body.0);
        frame
    }

    /// The first message in `bytes` and the length of its frame; nothing when more bytes must come first. What can be
    /// told from a part of a frame is told at once.
    ///
    /// # Errors
    /// [`Garbled`].
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Garbled> {
        let start = bytes.len().min(MAGIC.len());
        if bytes[..start] != MAGIC[..start] {
            return Err(Garbled::Magic);
        }
        let Some((header, rest)) = bytes.split_at_checked(HEADER) else { return Ok(None) };
        let mut header = Reader(&header[MAGIC.len()..]);
        let (Some(protocol), Some(kind), Some(len)) = (header.short(), header.short(), header.number())
        else {
            return Ok(None);
        };
        if protocol != PROTOCOL {
            return Err(Garbled::Protocol(protocol));
        }
        let end = usize::try_from(len).ok().filter(|end| *end <= MAX_BODY).ok_or(Garbled::Length(len))?;
        let Some(body) = rest.get(..end) else { return Ok(None) };
        let mut body = Reader(body);
        let message = body.message(kind).filter(|_| body.0.is_empty()).ok_or(Garbled::Body(kind))?;
        Ok(Some((message, HEADER + end)))
    }
}

/// Lengths here are bounded far below 2^32; what is not is refused by its reader.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

struct Writer(Vec<u8>);

impl Writer {
    fn numbers(&mut self, numbers: &[u32]) {
        self.0.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.numbers(&[length(bytes)]);
        self.0.extend(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(&text.as_bytes()[..text.floor_char_boundary(MAX_TEXT)]);
    }

    fn library(&mut self, Library { major, minor, patch }: Library) {
        self.numbers(&[major, minor, patch]);
    }

    fn ranks(&mut self, ranks: &Ranks) {
        let named = &ranks.named[..ranks.named.len().min(Ranks::NAMED)];
        self.numbers(&[ranks.count]);
        self.0.push(u8::try_from(named.len()).unwrap_or(0));
        named.iter().for_each(|rank| self.numbers(&[rank.0]));
    }

    /// Those that rank 0 sends; any other is told as a failed offer, with its text.
    fn refusal(&mut self, why: &Refusal) {
        let mut tag = |tag: u8| self.0.push(tag);
        match why {
            Refusal::Missing { missing, world, strangers } => {
                tag(1);
                self.ranks(missing);
                self.numbers(&[*world, *strangers]);
            }
            Refusal::Lost { rank } => {
                tag(2);
                self.numbers(&[rank.0]);
            }
            Refusal::Duplicate { rank } => {
                tag(3);
                self.numbers(&[rank.0]);
            }
            Refusal::World { rank, theirs, roots } => {
                tag(4);
                self.numbers(&[rank.0, *theirs, *roots]);
            }
            Refusal::Outside { rank, world } => {
                tag(5);
                self.numbers(&[rank.0, *world]);
            }
            Refusal::Library { rank, theirs, roots } => {
                tag(6);
                self.numbers(&[rank.0]);
                self.library(*theirs);
                self.library(*roots);
            }
            Refusal::Config { rank, at } => {
                tag(7);
                self.numbers(&[rank.0, *at]);
            }
            Refusal::Token => tag(8),
            Refusal::Offer { reason } => {
                tag(9);
                self.text(reason);
            }
            other => {
                tag(9);
                self.text(&other.to_string());
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn short(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn rank(&mut self) -> Option<Pe> {
        self.number().map(Pe)
    }

    fn bytes(&mut self, most: usize) -> Option<Vec<u8>> {
        let len = usize::try_from(self.number()?).ok().filter(|len| *len <= most)?;
        self.take(len).map(<[u8]>::to_vec)
    }

    fn library(&mut self) -> Option<Library> {
        Some(Library { major: self.number()?, minor: self.number()?, patch: self.number()? })
    }

    fn ranks(&mut self) -> Option<Ranks> {
        let count = self.number()?;
        let [len] = self.array()?;
        let fits = usize::from(len) <= Ranks::NAMED && u32::from(len) <= count;
        let named = (0..if fits { len } else { return None }).map(|_| self.rank()).collect::<Option<_>>()?;
        Some(Ranks { named, count })
    }

    fn message(&mut self, kind: u16) -> Option<Message> {
        Some(match kind {
            1 => Message::Hello(Hello {
                token: self.bytes(MAX_TOKEN)?,
                world: self.number()?,
                rank: self.rank()?,
                library: self.library()?,
                config: self.bytes(MAX_CONFIG)?,
            }),
            2 => Message::Waiting(self.ranks()?),
            3 => Message::Offer { id: self.array()?, config: self.bytes(MAX_CONFIG)? },
            4 => Message::Ready,
            5 => Message::Go,
            6 => Message::Refused(self.refusal()?),
            7 => Message::GaveUp,
            _ => return None,
        })
    }

    fn refusal(&mut self) -> Option<Refusal> {
        let [tag] = self.array()?;
        Some(match tag {
            1 => {
                let missing = self.ranks()?;
                Refusal::Missing { missing, world: self.number()?, strangers: self.number()? }
            }
            2 => Refusal::Lost { rank: self.rank()? },
            3 => Refusal::Duplicate { rank: self.rank()? },
            4 => Refusal::World { rank: self.rank()?, theirs: self.number()?, roots: self.number()? },
            5 => Refusal::Outside { rank: self.rank()?, world: self.number()? },
            6 => Refusal::Library { rank: self.rank()?, theirs: self.library()?, roots: self.library()? },
            7 => Refusal::Config { rank: self.rank()?, at: self.number()? },
            8 => Refusal::Token,
            9 => Refusal::Offer { reason: String::from_utf8(self.bytes(MAX_TEXT)?).ok()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
