//! Streams, events, words: what programs see of the driver's order.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;
#[path = "common/gpu.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod gpu;

use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{CudaContext, result};
use gpu::{at, get, set, soon, stays};

#[test]
#[ignore = "is started by the other tests"]
fn child() {
    let words = common::words();
    match words[0].as_str() {
        "order" => order(),
        "events" => events(),
        "recordings" => recordings(),
        "comparisons" => comparisons(),
        "batch" => batch(),
        "connections" => connections(words[1].parse().unwrap()),
        "events-hold" => events_hold(),
        "host" => host_functions(),
        other => panic!("no case {other}"),
    }
}

#[test]
fn operations_of_a_stream_run_in_order_and_after_its_waits() {
    common::run("order", &[]);
}

fn order() {
    let context = gpu::context();
    let (stream, words) = (gpu::stream(&context), gpu::words(8));
    let [gate, a, b, c, done, ..] = words else { unreachable!() };
    for round in 1..=100 {
        gpu::wait(&stream, gate, round);
        gpu::write(&stream, a, round);
        gpu::copy(&stream, at(b), at(a), 8);
        gpu::copy(&stream, at(c), at(b), 8);
        gpu::write(&stream, a, 0);
        gpu::write(&stream, done, round);
    }
    stays("a stream waits at its gate", || get(done) == 0 && !gpu::is_idle(&stream));
    for round in 1..=100 {
        set(gate, round);
        soon("the gate is open", || get(done) >= round);
        assert_eq!([a, b, c].map(get), [0, round, round]);
    }
    stream.synchronize().unwrap();
    assert!(gpu::is_idle(&stream));
}

#[test]
fn events_order_streams() {
    common::run("events", &[]);
    common::run("recordings", &[]);
}

fn events() {
    let context = gpu::context();
    let [one, two] = [(); 2].map(|()| gpu::stream(&context));
    let [gate, data, copy, ..] = gpu::words(8) else { unreachable!() };
    let begin = one.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    begin.synchronize().unwrap();
    gpu::wait(&one, gate, 1);
    gpu::write(&one, data, 7);
    let event = one.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    two.wait(&event).unwrap();
    gpu::copy(&two, at(copy), at(data), 8);
    stays("the second stream waits for the event", || get(copy) == 0 && !event.is_complete());
    set(gate, 1);
    two.synchronize().unwrap();
    assert_eq!(get(copy), 7);
    assert!(event.is_complete() && begin.elapsed_ms(&event).unwrap() >= 25.0);
}

/// A wait is for what was recorded when it was asked for.
fn recordings() {
    let context = gpu::context();
    let [one, two, three] = [(); 3].map(|()| gpu::stream(&context));
    let [gate, later, out, ..] = gpu::words(8) else { unreachable!() };
    let event = context.new_event(None).unwrap();
    // Never recorded: nothing to wait for.
    two.wait(&event).unwrap();
    two.synchronize().unwrap();
    gpu::wait(&one, gate, 1);
    event.record(&one).unwrap();
    two.wait(&event).unwrap();
    gpu::write(&two, out, 1);
    gpu::wait(&three, later, 1);
    event.record(&three).unwrap();
    set(gate, 1);
    soon("the first recording is enough", || get(out) == 1);
    assert!(!event.is_complete());
    set(later, 1);
    event.synchronize().unwrap();
}

#[test]
fn waits_compare_as_the_driver_says() {
    common::run("comparisons", &[]);
}

fn comparisons() {
    let context = gpu::context();
    let (stream, word) = (gpu::stream(&context), &gpu::words(1)[0]);
    // Flags, the value that is waited for, a word that is not enough, one that is.
    let eight = [
        (0, 5, 4, 5),
        (0, 5, 4, 900),
        (0, 1, u64::MAX, 1),
        (0, u64::MAX, u64::MAX - 1, 3),
        (1, 5, 6, 5),
        (2, 0b110, 0b001, 0b011),
        (3, u64::MAX << 1, 1, 0),
    ];
    for (flags, value, too_little, enough) in eight {
        set(word, too_little);
        gpu::wait_until(&stream, at(word), value, flags).unwrap();
        stays("not yet", || !gpu::is_idle(&stream));
        set(word, enough);
        stream.synchronize().unwrap();
    }
    // Four bytes: the other half of the word is not looked at.
    for (flags, value, too_little, enough) in [
        (0, 1, 0xFFFF_FFFF, 1),
        (0, 0x8000_0000, 0x7FFF_FFFF, 0x8000_0000),
        (1, 5, 6, 5),
        (2, 4, 3, 4),
        (3, 0xFFFF_FFFE, 1, 0),
    ] {
        set(word, (5 << 32) | too_little);
        // SAFETY: the driver checks the address.
        let queued = unsafe { sys::cuStreamWaitValue32_v2(stream.cu_stream(), at(word), value, flags) };
        queued.result().unwrap();
        stays("not yet", || !gpu::is_idle(&stream));
        set(word, (6 << 32) | enough);
        stream.synchronize().unwrap();
    }
    // SAFETY: the driver checks the address.
    unsafe { sys::cuStreamWriteValue32_v2(stream.cu_stream(), at(word) + 4, 9, 0) }.result().unwrap();
    stream.synchronize().unwrap();
    assert_eq!(get(word), 9 << 32);
    // Misaligned, null, in memory that the device cannot reach, flags that there are not.
    let local = 0_u64;
    for (address, flags) in [(at(word) + 4, 0), (0, 0), ((&raw const local) as u64, 0), (at(word), 4)] {
        let error = gpu::wait_until(&stream, address, 0, flags).unwrap_err();
        assert_eq!(error.0, CUresult::CUDA_ERROR_INVALID_VALUE);
    }
}

#[test]
fn a_batch_of_memory_operations_runs_in_order() {
    common::run("batch", &[]);
}

fn batch() {
    let context = gpu::context();
    let (stream, words) = (gpu::stream(&context), gpu::words(4));
    // Operation, address, value, flags; as CUDA's header lays the union out.
    let operation = |kind: u64, word: usize, value: u64, flags: u64| sys::CUstreamBatchMemOpParams {
        pad: [kind, at(&words[word]), value, flags, 0, 0],
    };
    let mut operations = [
        operation(5, 1, 10, 0),
        operation(4, 0, 3, 0),
        operation(2, 2, 0xAAAA_0000_0005, 0),
        operation(6, 0, 0, 0),
        operation(1, 2, 5, 1),
        operation(5, 1, 11, 0),
    ];
    let mut queue = |count: u32, flags| {
        // SAFETY: there are as many operations.
        unsafe { sys::cuStreamBatchMemOp_v2(stream.cu_stream(), count, operations.as_mut_ptr(), flags) }
    };
    queue(6, 0).result().unwrap();
    assert_eq!(queue(1, 1), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(queue(257, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
    soon("what is before the wait is done", || get(&words[1]) == 10);
    stays("what is behind it is not", || get(&words[1]) == 10 && get(&words[2]) == 0);
    set(&words[0], 4);
    stream.synchronize().unwrap();
    assert_eq!([get(&words[1]), get(&words[2])], [11, 5]);
}

#[test]
fn a_blocked_stream_holds_those_of_its_connection_and_no_others() {
    for connections in ["1", "8", "32"] {
        common::run(&format!("connections {connections}"), &[("CUDA_DEVICE_MAX_CONNECTIONS", connections)]);
    }
    // 8 is the default, and no more than 32 are there.
    common::run("connections 8", &[]);
    common::run("connections 32", &[("CUDA_DEVICE_MAX_CONNECTIONS", "100")]);
}

fn connections(count: usize) {
    let context = gpu::context();
    let streams: Vec<_> = (0..2 * count).map(|_| gpu::stream(&context)).collect();
    let words = gpu::words(1 + streams.len());
    let (gate, out) = words.split_first().unwrap();
    // The second of the first connection was there before the wait.
    gpu::write(&streams[count], &out[count], 1);
    streams[count].synchronize().unwrap();
    gpu::wait(&streams[0], gate, 1);
    (0..streams.len()).for_each(|at| gpu::write(&streams[at], &out[at], 2));
    for at in (0..streams.len()).filter(|at| at % count != 0) {
        streams[at].synchronize().unwrap();
        assert_eq!(get(&out[at]), 2);
    }
    context.default_stream().synchronize().unwrap();
    stays("the first connection is blocked", || get(&out[0]) == 0 && get(&out[count]) == 1);
    set(gate, 1);
    streams[count].synchronize().unwrap();
    assert_eq!([get(&out[0]), get(&out[count])], [2, 2]);
}

#[test]
fn a_wait_for_an_event_holds_its_connection_too() {
    common::run("events-hold", &[("CUDA_DEVICE_MAX_CONNECTIONS", "2")]);
}

fn events_hold() {
    let context = gpu::context();
    let [blocked, waiting, _, neighbour] = [(); 4].map(|()| gpu::stream(&context));
    let [gate, out, ..] = gpu::words(8) else { unreachable!() };
    gpu::wait(&blocked, gate, 1);
    waiting.join(&blocked).unwrap();
    gpu::write(&neighbour, out, 1);
    stays("the neighbour of the one that waits is held", || get(out) == 0);
    set(gate, 1);
    neighbour.synchronize().unwrap();
    assert_eq!(get(out), 1);
}

#[test]
fn functions_of_the_host_run_in_the_streams_order() {
    common::run("host", &[]);
}

fn host_functions() {
    unsafe extern "C" fn double(data: *mut std::ffi::c_void) {
        // SAFETY: the test passes a word that lives on.
        let word = unsafe { std::sync::atomic::AtomicU64::from_ptr(data.cast()) };
        set(word, 2 * get(word));
    }
    let context: std::sync::Arc<CudaContext> = gpu::context();
    let (stream, word) = (gpu::stream(&context), &gpu::words(1)[0]);
    gpu::write(&stream, word, 21);
    // SAFETY: the word is never freed.
    unsafe { result::stream::launch_host_function(stream.cu_stream(), double, word.as_ptr().cast()) }
        .unwrap();
    stream.synchronize().unwrap();
    assert_eq!(get(word), 42);
}
