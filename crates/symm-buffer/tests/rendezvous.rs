//! Ranks meet over TCP on this machine, in good weather and in bad: everybody gets the same or a typed error in time.
#![cfg(not(any(loom, shuttle)))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use symm_buffer::rendezvous::{
    Agreed, Hello, Id, Library, MAX_CONFIG, Message, Place, Refusal, Seat, Terms, Token, meet,
};
use symm_buffer::{Error, Pe, World};

/// Enough for what must succeed on a busy machine.
const LONG: Duration = Duration::from_secs(30);
/// For what must fail by its deadline.
const SHORT: Duration = Duration::from_millis(700);
/// How much later than its deadline a busy machine may be.
const SLACK: Duration = Duration::from_secs(5);
const ID: Id = [0x5a; 128];

/// A free port of this test's own: below those that the system gives away, 64 for each process.
fn place() -> Place {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let at = std::process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + at % 12_000).unwrap();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Place { host: "127.0.0.1".to_owned(), port, bind: None };
        }
    }
}

fn terms(token: &str, config: &[u8]) -> Terms {
    Terms::new(Token::new(token).unwrap(), config.to_vec()).unwrap()
}

/// What one rank does.
#[derive(Clone)]
struct Rank {
    me: u32,
    world: u32,
    terms: Terms,
    deadline: Duration,
    late: Duration,
}

fn rank(me: u32, world: u32) -> Rank {
    Rank { me, world, terms: terms("job", b"same"), deadline: LONG, late: Duration::ZERO }
}

fn world(size: u32) -> Vec<Rank> {
    (0..size).map(|me| rank(me, size)).collect()
}

/// Runs the ranks as threads; none may take longer than its deadline and some slack.
fn run(place: &Place, ranks: &[Rank]) -> Vec<Result<Agreed, Error>> {
    let one = |rank: &Rank| {
        thread::sleep(rank.late);
        let seat = Seat::new(Pe(rank.me), World::new(rank.world)?)?;
        let begin = Instant::now();
        let outcome = meet(seat, place, &rank.terms, rank.deadline, || Ok(ID));
        assert!(begin.elapsed() < rank.deadline + SLACK, "{:?} for {outcome:?}", begin.elapsed());
        outcome
    };
    thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter().map(|rank| scope.spawn(move || one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn reasons(outcomes: &[Result<Agreed, Error>]) -> Vec<Refusal> {
    let reason = |outcome: &Result<Agreed, Error>| match outcome {
        Err(Error::Rendezvous { why, .. }) => (**why).clone(),
        other => panic!("{other:?}"),
    };
    outcomes.iter().map(reason).collect()
}

fn hello(me: u32, world: u32) -> Hello {
    let (token, config) = (b"job".to_vec(), b"same".to_vec());
    Hello { token, world, rank: Pe(me), library: Library::default(), config }
}

/// A connection to rank 0, as soon as it listens.
fn connect(place: &Place) -> TcpStream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, place.port));
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs ranks while a thread misbehaves.
fn beside(ranks: &[Rank], misbehave: impl FnOnce(&Place) + Send) -> Vec<Result<Agreed, Error>> {
    let place = place();
    thread::scope(|scope| {
        scope.spawn(|| misbehave(&place));
        run(&place, ranks)
    })
}

fn all_agree(outcomes: &[Result<Agreed, Error>]) {
    for outcome in outcomes {
        assert_eq!(*outcome, Ok(Agreed { id: ID, config: b"same".to_vec() }));
    }
}

#[test]
fn worlds_of_many_sizes_agree() {
    for size in [1, 2, 3, 8, 24] {
        all_agree(&run(&place(), &world(size)));
    }
}

#[test]
fn ranks_may_come_in_any_order_and_take_rank_0s_configuration() {
    let mut ranks = world(4);
    ranks[0].late = Duration::from_millis(300);
    ranks[2].late = Duration::from_millis(150);
    ranks[3].terms = terms("job", b"");
    all_agree(&run(&place(), &ranks));
}

#[test]
fn the_longest_configuration_arrives_and_a_longer_one_is_refused() {
    let long = vec![9; MAX_CONFIG];
    let mut ranks = world(3);
    ranks.iter_mut().for_each(|rank| rank.terms = terms("job", &long));
    for outcome in run(&place(), &ranks) {
        assert_eq!(outcome.unwrap().config, long);
    }
    let refused = Terms::new(Token::new("job").unwrap(), vec![0; MAX_CONFIG + 1]).unwrap_err();
    assert!(matches!(refused, Error::TooLong { most: MAX_CONFIG, .. }), "{refused}");
}

#[test]
fn who_does_not_come_is_named_on_every_rank() {
    let mut ranks = world(5);
    ranks.iter_mut().for_each(|rank| rank.deadline = SHORT);
    ranks.remove(3);
    ranks.remove(1);
    for why in reasons(&run(&place(), &ranks)) {
        let Refusal::Missing { missing, world: 5, .. } = &why else { panic!("{why}") };
        assert_eq!(missing.named(), [Pe(1), Pe(3)], "{why}");
    }
}

#[test]
fn a_rank_whose_deadline_is_first_names_who_is_missing_too() {
    let mut ranks = world(3);
    ranks.pop();
    ranks[1].deadline = SHORT;
    for why in reasons(&run(&place(), &ranks)) {
        assert!(matches!(&why, Refusal::Missing { missing, .. } if missing.named() == [Pe(2)]), "{why}");
    }
}

#[test]
fn without_rank_0_its_address_is_named() {
    let mut lone = rank(1, 2);
    lone.deadline = SHORT;
    let place = place();
    let why = &reasons(&run(&place, &[lone]))[0];
    assert!(why.to_string().contains(&format!("127.0.0.1:{}", place.port)), "{why}");
    assert!(matches!(why, Refusal::Unreachable { .. }), "{why}");
}

#[test]
fn two_ranks_with_one_number_are_told_everywhere() {
    for twice in [0, 2] {
        let mut ranks = world(4);
        ranks[1].late = Duration::from_millis(300);
        ranks[3].me = twice;
        ranks[3].late = Duration::from_millis(100);
        for why in reasons(&run(&place(), &ranks)) {
            assert_eq!(why, Refusal::Duplicate { rank: Pe(twice) });
        }
    }
}

/// Makes a rank differ.
type Change = fn(&mut Rank);

#[test]
fn worlds_versions_and_settings_that_differ_are_told_everywhere() {
    let newer = Library { major: 3, minor: 5, patch: 0 };
    let changes: [(Change, Refusal); 4] = [
        (|rank| rank.world = 4, Refusal::World { rank: Pe(2), theirs: 4, roots: 3 }),
        (
            |rank| rank.terms.library = Library { major: 3, minor: 5, patch: 0 },
            Refusal::Library { rank: Pe(2), theirs: newer, roots: Library::default() },
        ),
        (|rank| rank.terms = terms("job", b"sane"), Refusal::Config { rank: Pe(2), at: 2 }),
        (|rank| rank.terms = terms("job", b"same and more"), Refusal::Config { rank: Pe(2), at: 4 }),
    ];
    for (change, wanted) in changes {
        let mut ranks = world(3);
        change(&mut ranks[2]);
        assert_eq!(reasons(&run(&place(), &ranks)), vec![wanted; 3]);
    }
}

#[test]
fn a_wrong_token_is_refused_and_the_job_waits_for_its_own() {
    let mut ranks = world(3);
    ranks[2].late = Duration::from_millis(300);
    let mut stranger = rank(2, 3);
    stranger.terms = terms("another job", b"same");
    ranks.push(stranger);
    let mut outcomes = run(&place(), &ranks);
    let why = reasons(&outcomes.split_off(3));
    all_agree(&outcomes);
    assert_eq!(why, [Refusal::Token]);
}

#[test]
fn garbage_oversize_and_silence_do_not_disturb() {
    let oversize = b"SBRV\x01\x00\x01\x00\xff\xff\xff\xff".to_vec();
    let inputs =
        [b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 100_000], oversize, Vec::new(), b"SBRV".to_vec()];
    let mut ranks = world(3);
    ranks[1].late = Duration::from_millis(400);
    let outcomes = beside(&ranks, move |place| {
        let mut kept = Vec::new();
        for input in inputs.iter().cycle().take(100) {
            let mut stream = connect(place);
            // Rank 0 may hang up before all is sent.
            _ = stream.write_all(input);
            kept.push(stream);
        }
        thread::sleep(Duration::from_millis(600));
    });
    all_agree(&outcomes);
}

#[test]
fn another_protocol_is_told_so() {
    let mut ranks = world(2);
    ranks[1].late = Duration::from_millis(400);
    let outcomes = beside(&ranks, |place| {
        let mut stream = connect(place);
        stream.write_all(b"SBRV\x09\x00\x01\x00\x00\x00\x00\x00").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(matches!(Message::decode(&answer), Ok(Some((Message::Refused(_), _)))), "{answer:?}");
    });
    all_agree(&outcomes);
    // The same from the other side: a rank 0 of another protocol.
    let place = place();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, place.port)).unwrap();
    let outcomes = thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"SBRV\x09\x00\x06\x00\x00\x00\x00\x00").unwrap();
            thread::sleep(Duration::from_millis(200));
        });
        run(&place, &[rank(1, 2)])
    });
    assert_eq!(reasons(&outcomes), [Refusal::Protocol { theirs: 9, ours: 1 }]);
}

#[test]
fn a_peer_that_sends_byte_by_byte_is_waited_for() {
    let outcomes = beside(&[rank(0, 2)], |place| {
        let mut stream = connect(place);
        let frames = [Message::Hello(hello(1, 2)).encode(), Message::Ready.encode()].concat();
        let (all_but_ready, ready) = frames.split_at(frames.len() - 12);
        for byte in all_but_ready {
            stream.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(3));
        }
        thread::sleep(Duration::from_millis(200));
        stream.write_all(ready).unwrap();
        thread::sleep(Duration::from_millis(200));
    });
    all_agree(&outcomes);
}

#[test]
fn a_connection_that_dies_names_its_rank_everywhere() {
    // Before the offer, and after it.
    for size in [4, 3] {
        let ranks = [rank(0, size), rank(1, size)];
        let outcomes = beside(&ranks, move |place| {
            let mut stream = connect(place);
            stream.write_all(&Message::Hello(hello(2, size)).encode()).unwrap();
            thread::sleep(Duration::from_millis(300));
        });
        assert_eq!(reasons(&outcomes), vec![Refusal::Lost { rank: Pe(2) }; 2]);
    }
}

#[test]
fn a_peer_that_never_answers_the_offer_is_named() {
    let mut ranks = [rank(0, 3), rank(1, 3)];
    ranks[0].deadline = SHORT;
    let outcomes = beside(&ranks, |place| {
        let mut stream = connect(place);
        stream.write_all(&Message::Hello(hello(2, 3)).encode()).unwrap();
        thread::sleep(SHORT + Duration::from_millis(500));
    });
    assert_eq!(reasons(&outcomes), vec![Refusal::Lost { rank: Pe(2) }; 2]);
}

#[test]
fn an_offer_that_cannot_be_made_is_told_everywhere() {
    let place = place();
    let outcomes = thread::scope(|scope| {
        let join = |me| {
            let seat = Seat::new(Pe(me), World::new(3)?)?;
            meet(seat, &place, &terms("job", b""), LONG, || Err("no network interface".to_owned()))
        };
        let threads: Vec<_> = (0..3).map(|me| scope.spawn(move || join(me))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let wanted = Refusal::Offer { reason: "no network interface".to_owned() };
    assert_eq!(reasons(&outcomes), vec![wanted; 3]);
}

#[test]
fn an_address_that_is_not_ours_and_a_port_that_is_taken_are_told() {
    let mut alone = rank(0, 2);
    alone.deadline = SHORT;
    let elsewhere = Place { bind: Some(Ipv4Addr::new(192, 0, 2, 1).into()), ..place() };
    assert!(matches!(reasons(&run(&elsewhere, &[alone.clone()]))[..], [Refusal::Address { .. }]));
    let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = Place { port: other.local_addr().unwrap().port(), ..place() };
    assert!(matches!(reasons(&run(&taken, &[alone]))[..], [Refusal::Address { .. }]));
}
