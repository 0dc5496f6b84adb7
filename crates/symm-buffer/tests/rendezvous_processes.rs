//! The rendezvous between processes: this test program starts itself, one of them is killed.
#![cfg(not(any(loom, shuttle)))]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use symm_buffer::rendezvous::{Place, Seat, Terms, Token, meet};
use symm_buffer::{Pe, World};

const DEADLINE: Duration = Duration::from_secs(20);

/// One rank: reads `rank world port` from its input, prints what it got.
#[test]
#[ignore = "is started by the other tests"]
fn one_rank() {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().unwrap());
    let mut number = || numbers.next().unwrap();
    let seat = Seat::new(Pe(number()), World::new(number()).unwrap()).unwrap();
    let place = Place { host: "localhost".to_owned(), port: u16::try_from(number()).unwrap(), bind: None };
    let terms = Terms::new(Token::new("processes").unwrap(), Vec::new()).unwrap();
    match meet(seat, &place, &terms, DEADLINE, || Ok([42; 128])) {
        Ok(agreed) => println!("outcome: id {}", agreed.id[7]),
        Err(error) => println!("outcome: {error}"),
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Its end may have come already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn start(rank: u32, world: u32, port: u16) -> Process {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_rank", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{rank} {world} {port}").unwrap();
    Process(child)
}

fn outcome(mut process: Process) -> String {
    let mut text = String::new();
    BufReader::new(process.0.stdout.take().unwrap()).read_to_string(&mut text).unwrap();
    assert!(process.0.wait().unwrap().success());
    let at = text.find("outcome: ").unwrap_or_else(|| panic!("{text}"));
    text[at..].lines().next().unwrap().to_owned()
}

/// Below those ports that the system gives away, apart for each process and test.
fn free_port(test: u32) -> u16 {
    let ports = (0..)
        .map(|more| 20_000 + std::process::id().wrapping_mul(64).wrapping_add(32 + test + 8 * more) % 12_000);
    let mut ports = ports.map(|port| u16::try_from(port).unwrap());
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}

#[test]
fn processes_meet() {
    let port = free_port(0);
    let processes = [3, 1, 0, 2].map(|rank| start(rank, 4, port));
    for process in processes {
        assert_eq!(outcome(process), "outcome: id 42");
    }
}

#[test]
fn a_killed_process_is_named_by_the_others_before_the_deadline() {
    let port = free_port(1);
    let [zero, one, two] = [0, 1, 2].map(|rank| start(rank, 4, port));
    // It has said hello by then, or it has not: the others end either way, by its loss or by rank 3's.
    std::thread::sleep(Duration::from_millis(1500));
    drop(one);
    let begin = std::time::Instant::now();
    for process in [zero, two] {
        let outcome = outcome(process);
        assert!(outcome.contains("rank 1 came and was lost"), "{outcome}");
    }
    assert!(begin.elapsed() < DEADLINE / 2);
}
