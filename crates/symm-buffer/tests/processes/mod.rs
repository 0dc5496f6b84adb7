//! Ranks as processes: a test starts its own program once per rank, on the GPUs of the machine or, where there are none,
//! on the simulated driver.
#![allow(dead_code, reason = "each test file uses some of it")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::cell::Cell;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use symm_buffer::nvshmem::cudarc::driver::CudaContext;
use symm_buffer::nvshmem::{DeviceSource, NvshmemConfig, NvshmemFabric, NvshmemWorld, Ordinal};
use symm_buffer::rendezvous::{Place, Seat, Terms, Token};
use symm_buffer::suite::Backend;
use symm_buffer::{Bytes, Error, Fabric, Pe, RegionId, World};

/// Deadline of what must succeed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Said by a rank that has come to the end of its job.
const DONE: &str = "this rank has done its job";

/// What a rank's process is told.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    pub(crate) port: u16,
    /// Which of the jobs of its test.
    pub(crate) job: u32,
}

/// A rank's process, and where its words go.
pub(crate) struct Rank {
    pub(crate) child: Child,
    output: PathBuf,
    _folder: std::rc::Rc<tempfile::TempDir>,
}

/// How a process ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
}

#[expect(clippy::disallowed_methods, reason = "no library, but the tests' own switches")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// This process's part, if it is a rank.
pub(crate) fn part() -> Option<Part> {
    let text = variable("SYMM_BUFFER_TEST_PART")?;
    let mut numbers = text.split(' ').map(|number| number.parse::<u32>().unwrap());
    let mut next = || numbers.next().unwrap();
    let (rank, ranks, port, job) = (next(), next(), next(), next());
    Some(Part { rank, ranks, port: u16::try_from(port).unwrap(), job })
}

/// GPUs of this machine.
pub(crate) fn gpus() -> usize {
    static GPUS: OnceLock<usize> = OnceLock::new();
    *GPUS.get_or_init(|| {
        // No driver is no GPU.
        let count = std::panic::catch_unwind(|| CudaContext::device_count().unwrap_or(0)).unwrap_or(0);
        let count = usize::try_from(count).unwrap();
        assert!(count > 0 || variable("FM_REQUIRE_GPU").as_deref() != Some("1"), "there is no GPU");
        count
    })
}

/// The folder of the simulated driver, when there is no GPU.
fn simulator() -> Option<&'static std::path::Path> {
    static INSTALLED: OnceLock<Option<gpu_sim::Installed>> = OnceLock::new();
    let install = || (gpus() == 0).then(|| gpu_sim::install().unwrap());
    INSTALLED.get_or_init(install).as_ref().map(|installed| installed.folder())
}

/// Starts all ranks of a job of `test`, with variables of their own.
pub(crate) fn start(test: &str, ranks: u32, job: u32, variables: &[(&str, &str)]) -> Vec<Rank> {
    let port = free_port();
    let folder = std::rc::Rc::new(tempfile::tempdir().unwrap());
    let start = |rank: u32| {
        let output = folder.path().join(rank.to_string());
        let file = File::create(&output).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--include-ignored"]);
        command.env("SYMM_BUFFER_TEST_PART", format!("{rank} {ranks} {port} {job}"));
        command.env("NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME", "lo");
        command.stdout(file.try_clone().unwrap()).stderr(file);
        if let Some(folder) = simulator() {
            command.env("LD_LIBRARY_PATH", folder);
        }
        command.envs(variables.iter().copied());
        Rank { child: command.spawn().unwrap(), output, _folder: folder.clone() }
    };
    (0..ranks).map(start).collect()
}

/// Below those ports that the system gives away, apart for each process and job.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = std::iter::repeat_with(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        20_000 + std::process::id().wrapping_mul(64).wrapping_add(7 * number) % 12_000
    });
    let mut ports = ports.map(|port| u16::try_from(port).unwrap());
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}

impl Rank {
    /// Waits for its end.
    pub(crate) fn end(&mut self, limit: Instant) -> Ended {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended { status, output: std::fs::read_to_string(&self.output).unwrap() };
            }
            if Instant::now() > limit {
                _ = self.child.kill();
                _ = self.child.wait();
                panic!("a rank hangs: {}", std::fs::read_to_string(&self.output).unwrap());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it has said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        // Its end may have come already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits for all, and fails with what they said unless each has run its one test to a good end; what they said.
pub(crate) fn expect_success(ranks: Vec<Rank>) -> Vec<String> {
    let limit = Instant::now() + 2 * LONG;
    let ended: Vec<Ended> = ranks.into_iter().map(|mut rank| rank.end(limit)).collect();
    // A name that is no test would succeed too.
    let good = |ended: &Ended| ended.status.success() && ended.output.contains("test result: ok. 1 passed");
    if !ended.iter().all(good) {
        let said: String =
            ended.iter().map(|ended| format!("--- {}\n{}\n", ended.status, ended.output)).collect();
        panic!("{said}");
    }
    ended.into_iter().map(|ended| ended.output).collect()
}

/// Joins as the process's part says.
pub(crate) fn join(part: &Part, deadline: Duration) -> Result<std::sync::Arc<NvshmemWorld>, Error> {
    let seat = Seat::new(Pe(part.rank), World::new(part.ranks)?)?;
    let place = Place { host: "127.0.0.1".to_owned(), port: part.port, bind: None };
    let terms = Terms::new(Token::new("test")?, Vec::new())?;
    let gpus = usize::try_from(CudaContext::device_count().unwrap()).unwrap().max(1);
    let device = Ordinal(part.rank as usize % gpus);
    NvshmemWorld::meet(seat, &place, &terms, (device, NvshmemConfig::default()), deadline)
}

/// The backend under test. Each [`Backend::run`] is a job of its own: in a rank's process only that one runs.
#[derive(Default)]
pub(crate) struct Processes {
    test: Cell<&'static str>,
    jobs: Cell<u32>,
}

impl Backend for Processes {
    type Fabric = NvshmemFabric;

    fn begin(&self, test: &'static str) {
        self.test.set(test);
    }

    #[expect(clippy::print_stdout, reason = "its parent listens")]
    fn run(&self, ranks: u32, body: &(dyn Fn(NvshmemFabric) + Sync)) {
        let job = self.jobs.replace(self.jobs.get() + 1);
        let Some(part) = part() else {
            let said = expect_success(start(self.test.get(), ranks, job, &[]));
            assert!(said.iter().all(|said| said.contains(DONE)), "a rank did nothing: {said:?}");
            return;
        };
        if part.job == job {
            let world = join(&part, LONG).unwrap();
            body(world.fabric(LONG).unwrap());
            println!("{DONE}");
        }
    }

    fn with_sources<R>(fabric: &NvshmemFabric, bytes: &[&[u8]], body: impl FnOnce(&[RegionId]) -> R) -> R {
        let stream = fabric.context().new_stream().unwrap();
        let upload = |bytes: &&[u8]| stream.clone_htod(*bytes).unwrap();
        let memory: Vec<_> = bytes.iter().map(upload).collect();
        stream.synchronize().unwrap();
        let source = |(slice, bytes): (&_, &&[u8])| {
            let (address, _record) =
                symm_buffer::nvshmem::cudarc::driver::DevicePtr::device_ptr(slice, &stream);
            // SAFETY: the slice lives until the scope has ended, and nobody writes to it.
            unsafe { DeviceSource::from_raw(address, Bytes(bytes.len())) }
        };
        let sources: Vec<DeviceSource<'_>> = memory.iter().zip(bytes).map(source).collect();
        fabric.with_sources(&sources, body)
    }
}
