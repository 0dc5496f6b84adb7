//! All ranks on one time line, as Chrome's trace events, which Perfetto and chrome://tracing show.
//!
//! Each rank times its calls by its device's clock, and reads that clock and the system's before and behind them
//! (`Probes::read_clock`). Between the two readings device time is system time along a line, so that crystals of
//! different speeds do no harm; ranks of one machine share the system's clock, those of several are as near as their
//! machines keep it.
use std::collections::BTreeSet;

use fm_cp::{ClockSpan, DeviceTimes};
use fm3_kernels::cuda::ClockPair;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One call of one rank, and the clocks before and behind it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Traced {
    pub clocks: [ClockPair; 2],
    pub times: DeviceTimes,
}

/// One call on all ranks.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub name: String,
    pub ranks: Vec<Traced>,
}

/// Threads of a rank in the picture; those of waits follow.
const ATTENTION: usize = 0;
const PUSHES: usize = 1;
const WAITS: usize = 2;

impl Traced {
    /// Nanoseconds since 1970 of a reading of the device's clock.
    fn on_host(&self, device_ns: u64) -> f64 {
        let [before, behind] = self.clocks;
        let apart = |later: u64, earlier: u64| later.wrapping_sub(earlier).cast_signed() as f64;
        let device = apart(behind.device_ns, before.device_ns);
        let rate = if device > 0.0 { apart(behind.host_ns, before.host_ns) / device } else { 1.0 };
        before.host_ns as f64 + apart(device_ns, before.device_ns) * rate
    }
}

/// The whole file; times begin at the first event.
pub(super) fn document(calls: &[Call]) -> Value {
    let mut spans = Vec::new();
    for call in calls {
        for (rank, traced) in call.ranks.iter().enumerate() {
            spans.extend(spans_of(&call.name, rank, traced));
        }
    }
    let first = spans.iter().map(|span| span.begin).fold(f64::INFINITY, f64::min);
    let threads: BTreeSet<(usize, usize, &str)> =
        spans.iter().map(|span| (span.rank, span.thread, span.thread_name.as_str())).collect();
    let mut events = Vec::new();
    for rank in threads.iter().map(|(rank, ..)| *rank).collect::<BTreeSet<_>>() {
        let args = json!({ "name": format!("rank {rank}") });
        events.push(json!({ "ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": args }));
    }
    for (rank, thread, name) in &threads {
        let args = json!({ "name": name });
        events.push(json!({ "ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": args }));
    }
    // Microseconds.
    events.extend(spans.iter().map(|span| {
        json!({
            "ph": "X", "name": span.name, "cat": span.category, "pid": span.rank, "tid": span.thread,
            "ts": (span.begin - first) / 1e3, "dur": (span.end - span.begin) / 1e3, "args": span.args,
        })
    }));
    let errors = calls.iter().flat_map(|call| &call.ranks).flat_map(|traced| traced.clocks);
    let error = errors.map(|clock| clock.error).max().unwrap_or_default();
    json!({
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": { "clocks are off by at most, us": error.as_secs_f64() * 1e6 },
    })
}

/// One event; nanoseconds since 1970.
struct Span {
    rank: usize,
    thread: usize,
    thread_name: String,
    category: &'static str,
    name: String,
    begin: f64,
    end: f64,
    args: Value,
}

fn spans_of(call: &str, rank: usize, traced: &Traced) -> Vec<Span> {
    let on_host = |span: ClockSpan| (traced.on_host(span.begin), traced.on_host(span.end));
    let span = |(thread, thread_name): (usize, String), category, name, of, args| {
        let (begin, end) = on_host(of);
        Span { rank, thread, thread_name, category, name, begin, end, args }
    };
    let times = &traced.times;
    let args = json!({
        "exposed_us": times.exposed().as_secs_f64() * 1e6, "idle_us": times.idle.as_secs_f64() * 1e6,
    });
    let attention = (ATTENTION, "attention".to_owned());
    let mut spans = vec![span(attention, "attention", call.to_owned(), times.attention, args)];
    spans.extend(times.pushes.iter().map(|push| {
        let rate = push.bytes.0 as f64 / push.span.duration().as_secs_f64().max(1e-9) / 1e9;
        let args = json!({ "bytes": push.bytes.0, "GB/s": rate });
        let thread = (PUSHES, "pushes".to_owned());
        span(thread, "push", format!("push head group {}", push.piece), push.span, args)
    }));
    // Blocks wait for several pieces at a time, and events of one thread must not cross: each piece has a thread.
    let pieces = times.waits.iter().map(|wait| wait.piece as usize + 1).max().unwrap_or(0);
    spans.extend(times.waits.iter().map(|wait| {
        let of = format!("rank {}, head group {}", wait.peer.0, wait.piece);
        let thread = WAITS + wait.peer.index() * pieces + wait.piece as usize;
        let args = json!({ "longest_us": wait.longest.as_secs_f64() * 1e6, "blocks": wait.blocks });
        span((thread, format!("waits for {of}")), "wait", format!("wait for {of}"), wait.span, args)
    }));
    spans
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fm_cp::{Bytes, Pe, PushSpan, WaitSpan};

    use super::*;

    /// Clocks of different beginnings; that of rank 1 goes twice as fast.
    fn traced(rank: u64) -> Traced {
        let pair = |host_ns, device_ns| ClockPair { host_ns, device_ns, error: Duration::from_nanos(500) };
        let device = |host: u64| (1 + rank) * (host + 7_000);
        let clocks = [pair(10_000, device(10_000)), pair(30_000, device(30_000))];
        let span = |begin, end| ClockSpan { begin: device(begin), end: device(end) };
        let wait = |piece| WaitSpan {
            peer: Pe(1),
            piece,
            span: span(12_000, 14_000 + u64::from(piece)),
            longest: Duration::from_nanos(2_000),
            blocks: 3,
        };
        let pushes = vec![PushSpan { piece: 0, bytes: Bytes(4_000), span: span(11_500, 12_500) }];
        let times = DeviceTimes {
            attention: span(12_000 + rank * 1_000, 20_000),
            waits: vec![wait(0), wait(1)],
            idle: Duration::ZERO,
            pushes,
        };
        Traced { clocks, times }
    }

    #[test]
    fn devices_come_on_one_line_and_no_two_events_of_a_thread_cross() {
        let call = Call { name: "16 K causal".to_owned(), ranks: vec![traced(0), traced(1)] };
        let document = document(&[call]);
        let events = document["traceEvents"].as_array().unwrap();
        let find = |rank: u64, name: &str| {
            let is = |event: &&Value| event["ph"] == "X" && event["pid"] == rank && event["name"] == name;
            events.iter().find(is).unwrap_or_else(|| panic!("no {name} of rank {rank}"))
        };
        let at = |event: &Value| (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        let near = |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).abs() < 0.01 && (b - d).abs() < 0.01;
        // Microseconds behind the first push.
        assert!(near(at(find(0, "16 K causal")), (0.5, 8.0)), "{document:#}");
        assert!(near(at(find(1, "16 K causal")), (1.5, 7.0)), "{document:#}");
        assert!(near(at(find(1, "push head group 0")), (0.0, 1.0)));
        let waits = [0, 1].map(|piece| find(1, &format!("wait for rank 1, head group {piece}")));
        assert_ne!(waits[0]["tid"], waits[1]["tid"]);
        assert!(near(at(waits[1]), (0.5, 2.001)));
        let names = events.iter().filter(|event| event["name"] == "process_name").count();
        assert_eq!(names, 2);
    }
}
