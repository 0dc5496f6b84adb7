//! Ranks as processes: a test starts its own program once per rank, on the GPUs of the machine or on the simulator.
use std::io::{BufRead as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fm_cp::cuda::cudarc::driver::CudaContext;
use fm_cp::cuda::{Attention, KernelSource, Kernels, is_present};
use fm_cp::nvshmem::{NvshmemConfig, NvshmemWorld, Ordinal};
use fm_cp::rendezvous::{Place, Seat, Terms, Token};
use fm_cp::{Config, CpGroup, Pe, World};

/// Deadline of what must succeed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What a rank's process is told, in one line of its input.
pub(crate) struct Part {
    pub(crate) rank: u32,
    pub(crate) ranks: u32,
    port: u16,
    pub(crate) scenario: String,
    /// Folder of the kernels; none: where they usually are.
    kernels: Option<String>,
}

/// This process's part.
pub(crate) fn part() -> Part {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let mut words = line.split_whitespace();
    let mut word = || words.next().map(str::to_owned);
    let mut number = || word().unwrap().parse::<u32>().unwrap();
    let (rank, ranks, port) = (number(), number(), u16::try_from(number()).unwrap());
    Part { rank, ranks, port, scenario: word().unwrap(), kernels: word() }
}

/// A rank's world, and the kernels for its groups.
pub(crate) struct Machine {
    world: Arc<NvshmemWorld>,
    attention: Attention,
}

impl Machine {
    /// Meets the other ranks.
    pub(crate) fn meet(part: &Part) -> Self {
        let seat = Seat::new(Pe(part.rank), World::new(part.ranks).unwrap()).unwrap();
        let place = Place { host: "127.0.0.1".to_owned(), port: part.port, bind: None };
        let terms = Terms::new(Token::new("gpu_forward").unwrap(), Vec::new()).unwrap();
        let device = Ordinal(part.rank as usize % gpus().max(1));
        let world =
            NvshmemWorld::meet(seat, &place, &terms, (device, NvshmemConfig::default()), LONG).unwrap();
        let source = match &part.kernels {
            Some(folder) => KernelSource::Folder(folder.into()),
            None => KernelSource::Search,
        };
        let attention = Attention::new(Arc::new(Kernels::load(world.context(), &source).unwrap()));
        Self { world, attention }
    }

    /// Makes a group. Collective.
    pub(crate) fn group(&self, config: &Config) -> CpGroup {
        let fabric = self.world.fabric(LONG).unwrap();
        CpGroup::join_with(fabric, config.clone(), self.attention.clone()).unwrap()
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        self.world.context()
    }

    /// Ends NVSHMEM. Collective.
    pub(crate) fn end(self) {
        let Self { world, attention } = self;
        drop(attention);
        world.finalize(LONG).unwrap();
    }
}

/// GPUs of this machine; no driver is no GPU.
fn gpus() -> usize {
    let count = if is_present() { CudaContext::device_count().unwrap_or(0) } else { 0 };
    #[expect(clippy::disallowed_methods, reason = "no library, but the tests' own switch")]
    let required = std::env::var("FM_REQUIRE_GPU").as_deref() == Ok("1");
    assert!(count > 0 || !required, "there is no GPU");
    usize::try_from(count).unwrap()
}

/// The simulator, when there is no GPU.
fn simulator() -> Option<&'static kernel_sim::Installed> {
    static INSTALLED: OnceLock<Option<kernel_sim::Installed>> = OnceLock::new();
    INSTALLED.get_or_init(|| (gpus() == 0).then(|| kernel_sim::install().unwrap())).as_ref()
}

struct Process {
    child: Child,
    output: std::path::PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its end may have come already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Runs a scenario on so many ranks; all must come to its end, and their processes to a good one.
pub(crate) fn run(scenario: &str, ranks: u32) {
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    let start = |rank: u32| {
        let output = folder.path().join(rank.to_string());
        let file = std::fs::File::create(&output).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "one_rank", "--ignored", "--nocapture"]).stdin(Stdio::piped());
        command.env("NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME", "lo");
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let kernels = simulator().map_or(String::new(), |simulator| {
            command.envs(simulator.variables());
            simulator.kernels().display().to_string()
        });
        let mut child = command.spawn().unwrap();
        writeln!(child.stdin.take().unwrap(), "{rank} {ranks} {port} {scenario} {kernels}").unwrap();
        Process { child, output }
    };
    let mut processes: Vec<Process> = (0..ranks).map(start).collect();
    let limit = Instant::now() + 2 * LONG;
    while processes.iter_mut().any(|process| process.child.try_wait().unwrap().is_none())
        && Instant::now() < limit
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    let end = |process: &mut Process| {
        let status = process.child.try_wait().unwrap();
        let said = std::fs::read_to_string(&process.output).unwrap();
        let is_good = status.is_some_and(|status| status.success()) && said.contains("outcome: good");
        let status = status.map_or("still runs".to_owned(), |status| status.to_string());
        (is_good, format!("--- {status}\n{said}"))
    };
    let (good, said): (Vec<bool>, Vec<String>) = processes.iter_mut().map(end).unzip();
    assert!(good.iter().all(|good| *good), "{scenario}:\n{}", said.join("\n"));
}

/// Below those ports that the system gives away, apart for each process and scenario.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports = std::iter::repeat_with(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        20_000 + std::process::id().wrapping_mul(64).wrapping_add(7 * number) % 12_000
    });
    let mut ports = ports.map(|port| u16::try_from(port).unwrap());
    ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()).unwrap()
}
