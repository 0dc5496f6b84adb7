//! The codec: what is written is read again, nothing else is accepted, and nothing makes it panic.
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn ranks() -> impl Strategy<Value = Ranks> {
    (vec(any::<u32>().prop_map(Pe), 0..=Ranks::NAMED), 0..1000u32)
        .prop_map(|(named, more)| Ranks { count: u32::try_from(named.len()).unwrap() + more, named })
}

fn library() -> impl Strategy<Value = Library> {
    any::<[u32; 3]>().prop_map(|[major, minor, patch]| Library { major, minor, patch })
}

fn refusal() -> impl Strategy<Value = Refusal> {
    let rank = any::<u32>().prop_map(Pe);
    prop_oneof![
        (ranks(), any::<[u32; 2]>()).prop_map(|(missing, [world, strangers])| Refusal::Missing {
            missing,
            world,
            strangers
        }),
        rank.clone().prop_map(|rank| Refusal::Lost { rank }),
        rank.clone().prop_map(|rank| Refusal::Duplicate { rank }),
        (rank.clone(), any::<[u32; 2]>()).prop_map(|(rank, [theirs, roots])| Refusal::World {
            rank,
            theirs,
            roots
        }),
        (rank.clone(), any::<u32>()).prop_map(|(rank, world)| Refusal::Outside { rank, world }),
        (rank.clone(), library(), library()).prop_map(|(rank, theirs, roots)| Refusal::Library {
            rank,
            theirs,
            roots
        }),
        (rank, any::<u32>()).prop_map(|(rank, at)| Refusal::Config { rank, at }),
        Just(Refusal::Token),
        "[a-zäß€ ]{0,60}".prop_map(|reason| Refusal::Offer { reason }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let hello = (vec(any::<u8>(), 0..=MAX_TOKEN), any::<[u32; 2]>(), library(), vec(any::<u8>(), 0..300));
    prop_oneof![
        hello.prop_map(|(token, [world, rank], library, config)| {
            Message::Hello(Hello { token, world, rank: Pe(rank), library, config })
        }),
        ranks().prop_map(Message::Waiting),
        (any::<[u8; 32]>(), vec(any::<u8>(), 0..300)).prop_map(|(part, config)| {
            let mut id = [0; ID_BYTES];
            id[96..].copy_from_slice(&part);
            Message::Offer { id, config }
        }),
        Just(Message::Ready),
        Just(Message::Go),
        refusal().prop_map(Message::Refused),
        Just(Message::GaveUp),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(message in message(), behind in vec(any::<u8>(), 0..20)) {
        let frame = message.encode();
        let bytes = [&frame[..], &behind].concat();
        prop_assert_eq!(Message::decode(&bytes), Ok(Some((message, frame.len()))));
    }

    #[test]
    fn a_part_of_a_frame_asks_for_more(message in message(), cut in any::<prop::sample::Index>()) {
        let frame = message.encode();
        prop_assert_eq!(Message::decode(&frame[..cut.index(frame.len())]), Ok(None));
    }

    #[test]
    fn one_changed_byte_is_refused_or_another_message(
        message in message(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut frame = message.encode();
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        if let Ok(Some((other, len))) = Message::decode(&frame) {
            prop_assert_ne!(&other, &message);
            // One encoding for each message.
            prop_assert_eq!(other.encode(), &frame[..len]);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_the_one_encoding_of_a_message(kind in 0..9u16, body in vec(any::<u8>(), 0..200)) {
        let len = u32::try_from(body.len()).unwrap().to_le_bytes();
        let frame = [&MAGIC[..], &PROTOCOL.to_le_bytes(), &kind.to_le_bytes(), &len, &body].concat();
        if let Ok(Some((message, len))) = Message::decode(&frame) {
            prop_assert_eq!(message.encode(), &frame[..len]);
        }
    }
}

#[test]
fn a_frame_is_what_the_documentation_says() {
    assert_eq!(Message::Go.encode(), b"SBRV\x01\x00\x05\x00\x00\x00\x00\x00");
}

#[test]
fn every_refusal_of_a_header_is_its_own() {
    let frame = |protocol: u16, kind: u16, len: u32| {
        [&MAGIC[..], &protocol.to_le_bytes(), &kind.to_le_bytes(), &len.to_le_bytes()].concat()
    };
    assert_eq!(Message::decode(b"SBxV"), Err(Garbled::Magic));
    assert_eq!(Message::decode(b"G"), Err(Garbled::Magic));
    assert_eq!(Message::decode(&frame(2, 1, 0)), Err(Garbled::Protocol(2)));
    // Known from the header alone, before any of the body has come.
    assert_eq!(Message::decode(&frame(PROTOCOL, 1, u32::MAX)), Err(Garbled::Length(u32::MAX)));
    assert_eq!(Message::decode(&frame(PROTOCOL, 99, 0)), Err(Garbled::Body(99)));
    assert_eq!(Message::decode(&frame(PROTOCOL, 1, 0)), Err(Garbled::Body(1)));
}

#[test]
fn the_longest_hello_fits_and_long_texts_are_cut() {
    let hello = Hello {
        token: vec![1; MAX_TOKEN],
        world: 1,
        rank: Pe(0),
        library: Library::default(),
        config: vec![2; MAX_CONFIG],
    };
    let frame = Message::Hello(hello.clone()).encode();
    assert!(frame.len() <= MAX_FRAME);
    assert_eq!(Message::decode(&frame), Ok(Some((Message::Hello(hello), frame.len()))));
    let frame = Message::Refused(Refusal::Offer { reason: "ä".repeat(500) }).encode();
    let Ok(Some((Message::Refused(Refusal::Offer { reason }), _))) = Message::decode(&frame) else {
        panic!()
    };
    assert_eq!(reason, "ä".repeat(MAX_TEXT / 2));
}
