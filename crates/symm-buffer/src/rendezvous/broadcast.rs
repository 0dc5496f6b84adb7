//! The rendezvous over a broadcast of the caller's own.
use super::message::Message;
use super::{Agreed, Id, Refusal, Seat, Terms, Token, size_of};
use crate::{Error, Pe};
use std::time::Duration;

/// Meets all ranks by the caller's own broadcast from rank 0: it gets rank 0's bytes there, nothing elsewhere, and
/// gives back rank 0's bytes on every rank. `make` is called on rank 0 only. Collective; the broadcast has the deadline.
///
/// Each rank compares itself with rank 0: world, library, configuration. Two ranks of one number, or a rank that does
/// not come, only the broadcast itself can notice. When rank 0 has no id, its broadcast says so to all.
///
/// # Errors
/// [`Error::Rendezvous`] with the reason.
pub fn meet_by(
    seat: Seat,
    terms: &Terms,
    make: impl FnOnce() -> Result<Id, String>,
    broadcast: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, String>,
) -> Result<Agreed, Error> {
    let outcome = exchange(seat, terms, make, broadcast);
    outcome.map_err(|why| Error::Rendezvous { me: seat.me, waited: Duration::ZERO, why: Box::new(why) })
}

fn exchange(
    seat: Seat,
    terms: &Terms,
    make: impl FnOnce() -> Result<Id, String>,
    broadcast: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, String>,
) -> Result<Agreed, Refusal> {
    let mine = if seat.me == Pe(0) { envelope(seat, terms, make) } else { Vec::new() };
    let bytes = broadcast(mine).map_err(|reason| Refusal::Broadcast { reason })?;
    let garbled = |what: &dyn std::fmt::Display| Refusal::Garbled {
        from: "the broadcast".to_owned(),
        what: what.to_string(),
    };
    let mut rest = &bytes[..];
    let mut next = || -> Result<Message, Refusal> {
        let (message, len) = Message::decode(rest)
            .map_err(|what| garbled(&what))?
            .ok_or_else(|| garbled(&"it is cut short"))?;
        rest = &rest[len..];
        Ok(message)
    };
    let root = match next()? {
        Message::Hello(root) => root,
        Message::Refused(why) => return Err(why),
        _ => return Err(garbled(&"out of turn")),
    };
    let Message::Offer { id, config } = next()? else { return Err(garbled(&"out of turn")) };
    if !rest.is_empty() {
        return Err(garbled(&"something follows it"));
    }
    // The same check as rank 0's, with its word for the terms.
    if root.world != size_of(seat.world) {
        return Err(Refusal::World { rank: seat.me, theirs: size_of(seat.world), roots: root.world });
    }
    let roots = Terms { token: Token(Vec::new()), config: config.clone(), library: root.library };
    roots.check(seat.world, &terms.hello(seat))?;
    Ok(Agreed { id, config })
}

/// What rank 0 broadcasts: who it is and its offer, or why there is none. The token stays at home.
fn envelope(seat: Seat, terms: &Terms, make: impl FnOnce() -> Result<Id, String>) -> Vec<u8> {
    let mut hello = terms.hello(seat);
    let config = std::mem::take(&mut hello.config);
    hello.token.clear();
    match make() {
        Ok(id) => [Message::Hello(hello).encode(), Message::Offer { id, config }.encode()].concat(),
        Err(reason) => Message::Refused(Refusal::Offer { reason }).encode(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;
    use crate::rendezvous::Library;

    fn terms(config: &[u8]) -> Terms {
        Terms::new(Token::new("secret").unwrap(), config.to_vec()).unwrap()
    }

    fn seat(me: u32, world: u32) -> Seat {
        Seat::new(Pe(me), World::new(world).unwrap()).unwrap()
    }

    /// What rank 0 of 3 sends.
    fn sent(make: Result<Id, String>) -> Vec<u8> {
        let mut sent = Vec::new();
        let keep = |bytes: Vec<u8>| {
            sent.clone_from(&bytes);
            Ok(bytes)
        };
        _ = meet_by(seat(0, 3), &terms(b"ab"), || make, keep);
        sent
    }

    fn why(outcome: Result<Agreed, Error>) -> Refusal {
        match outcome {
            Err(Error::Rendezvous { why, .. }) => *why,
            other => panic!("{other:?}"),
        }
    }

    fn receive(me: Seat, terms: &Terms, bytes: &[u8]) -> Result<Agreed, Error> {
        meet_by(
            me,
            terms,
            || panic!("only rank 0 makes it"),
            |mine| {
                assert!(mine.is_empty());
                Ok(bytes.to_vec())
            },
        )
    }

    #[test]
    fn all_ranks_get_rank_0s_id_and_nobody_the_token() {
        let bytes = sent(Ok([5; 128]));
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        for config in [&b"ab"[..], b""] {
            let agreed = receive(seat(2, 3), &terms(config), &bytes).unwrap();
            assert_eq!(agreed, Agreed { id: [5; 128], config: b"ab".to_vec() });
        }
    }

    #[test]
    fn each_difference_is_its_own_error() {
        let bytes = sent(Ok([5; 128]));
        let world = why(receive(seat(2, 4), &terms(b"ab"), &bytes));
        assert_eq!(world, Refusal::World { rank: Pe(2), theirs: 4, roots: 3 });
        let config = why(receive(seat(1, 3), &terms(b"ac"), &bytes));
        assert_eq!(config, Refusal::Config { rank: Pe(1), at: 1 });
        let mut other = terms(b"ab");
        other.library.patch = 4;
        let library = why(receive(seat(1, 3), &other, &bytes));
        let roots = Library::default();
        assert_eq!(library, Refusal::Library { rank: Pe(1), theirs: other.library, roots });
        let offer = why(receive(seat(1, 3), &terms(b""), &sent(Err("no network".to_owned()))));
        assert_eq!(offer, Refusal::Offer { reason: "no network".to_owned() });
    }

    #[test]
    fn broken_bytes_and_a_broken_broadcast_are_errors() {
        let bytes = sent(Ok([5; 128]));
        for len in 0..bytes.len() {
            let cut = why(receive(seat(1, 3), &terms(b""), &bytes[..len]));
            assert!(matches!(cut, Refusal::Garbled { .. }), "{len}: {cut}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(matches!(why(receive(seat(1, 3), &terms(b""), &longer)), Refusal::Garbled { .. }));
        let failed = meet_by(seat(0, 3), &terms(b""), || Ok([0; 128]), |_| Err("down".to_owned()));
        assert_eq!(why(failed), Refusal::Broadcast { reason: "down".to_owned() });
    }
}
