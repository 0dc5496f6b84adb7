//! Random programs of several streams with events and launches: everything runs, and nothing before what it is after.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod common;
#[path = "common/gpu.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod gpu;

use std::ffi::c_void;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaStream, result};
use cudarc::nvrtc::Ptx;

/// Programs of one child.
const PROGRAMS: u64 = 25;
/// Steps of one program.
const STEPS: usize = 150;
const STREAMS: usize = 5;
const EVENTS: usize = 6;
const GATES: usize = 4;

/// Steps in the order in which they ran, and `STEPS + gate` where a gate opened.
static LOG: Mutex<Vec<usize>> = Mutex::new(Vec::new());

#[test]
#[ignore = "is started by the other tests"]
fn child() {
    let words = common::words();
    let seed: u64 = words[1].parse().unwrap();
    (0..PROGRAMS).for_each(|more| program(seed + more));
}

#[test]
fn random_programs_keep_the_order_of_streams_and_events() {
    for (seed, connections) in [(1000, "1"), (2000, "2"), (3000, "8"), (4000, "32")] {
        common::run(&format!("programs {seed}"), &[("CUDA_DEVICE_MAX_CONNECTIONS", connections)]);
    }
}

/// Numbers that look random (xorshift of 64 bits; Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end as u64).unwrap()
    }
}

/// What is known of the order while a program is made: the last logged step that each stream and recording is after.
struct Program {
    numbers: Numbers,
    streams: Vec<Arc<CudaStream>>,
    events: Vec<CudaEvent>,
    gates: &'static [AtomicU64],
    spin: CudaFunction,
    /// Steps that the next step of each stream comes after.
    heads: Vec<Vec<usize>>,
    recorded: Vec<Vec<usize>>,
    /// (earlier, later)
    edges: Vec<(usize, usize)>,
}

fn program(seed: u64) {
    let context = gpu::context();
    let mut program = Program::new(&context, seed);
    let gates = program.gates;
    let opener = thread::spawn(move || {
        for (gate, word) in gates.iter().enumerate() {
            thread::sleep(Duration::from_millis(2));
            LOG.lock().unwrap().push(STEPS + gate);
            gpu::set(word, 1);
        }
    });
    (0..STEPS).for_each(|step| program.step(step));
    context.synchronize().unwrap();
    opener.join().unwrap();
    let log = std::mem::take(&mut *LOG.lock().unwrap());
    let mut places = [usize::MAX; STEPS + GATES];
    log.iter().enumerate().for_each(|(place, step)| places[*step] = place);
    for (earlier, later) in &program.edges {
        assert!(places[*earlier] < places[*later], "seed {seed}: {later} ran before {earlier}: {log:?}");
    }
    let steps: std::collections::BTreeSet<_> = program.heads.iter().flatten().collect();
    assert!(steps.iter().all(|step| places[**step] < log.len()), "seed {seed}: a step is missing");
}

impl Program {
    fn new(context: &Arc<CudaContext>, seed: u64) -> Self {
        let module = context.load_module(Ptx::from_binary(b"any".to_vec())).unwrap();
        Self {
            numbers: Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            streams: (0..STREAMS).map(|_| gpu::stream(context)).collect(),
            events: (0..EVENTS).map(|_| context.new_event(None).unwrap()).collect(),
            gates: gpu::words(GATES),
            spin: module.load_function("gpu_sim_spin_until").unwrap(),
            heads: vec![Vec::new(); STREAMS],
            recorded: vec![Vec::new(); EVENTS],
            edges: Vec::new(),
        }
    }

    fn step(&mut self, step: usize) {
        let (at, event, gate) =
            (self.numbers.below(STREAMS), self.numbers.below(EVENTS), self.numbers.below(GATES));
        let stream = self.streams[at].clone();
        match self.numbers.below(10) {
            0 | 1 => {
                self.events[event].record(&stream).unwrap();
                self.recorded[event] = self.heads[at].clone();
            }
            2 | 3 => {
                stream.wait(&self.events[event]).unwrap();
                self.heads[at].extend(&self.recorded[event]);
            }
            4 => {
                gpu::wait(&stream, &self.gates[gate], 1);
                self.heads[at].push(STEPS + gate);
            }
            5 => {
                self.launch(&stream, gate);
                self.heads[at].push(STEPS + gate);
            }
            _ => {
                self.log(&stream, step);
                let earlier = std::mem::replace(&mut self.heads[at], vec![step]);
                self.edges.extend(earlier.into_iter().map(|earlier| (earlier, step)));
            }
        }
    }

    fn launch(&self, stream: &CudaStream, gate: usize) {
        let mut parameter = [gpu::at(&self.gates[gate]), 1];
        let mut parameters = [parameter.as_mut_ptr().cast::<c_void>()];
        let (function, stream) = (self.spin.cu_function(), stream.cu_stream());
        // SAFETY: the kernel takes these two words, which the call copies.
        unsafe { result::launch_kernel(function, (1, 1, 1), (32, 1, 1), 0, stream, &mut parameters) }
            .unwrap();
    }

    fn log(&self, stream: &CudaStream, step: usize) {
        unsafe extern "C" fn push(step: *mut c_void) {
            LOG.lock().unwrap().push(step as usize);
        }
        // SAFETY: the function takes a number, no address.
        unsafe { result::stream::launch_host_function(stream.cu_stream(), push, step as *mut c_void) }
            .unwrap();
    }
}
