//! A thread that stands for a rank's device: it runs "kernels" one after the other, each when its stream has come to it.
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cp_overlap::plan::{RankPlan, Stage};
use cp_overlap::{Enqueue, Error, ReadyWords};
use symm_buffer::host::{HostFabric, HostStream};
use symm_buffer::{Epoch, Fabric, Label, Pe, Post, Put, SignalId, Step, Use, Wait};

use super::marks;

/// Longer than any test; what hangs ends with it.
const LONG: Duration = Duration::from_secs(40);

/// The host's side of the device.
pub(crate) struct Device {
    fabric: Arc<HostFabric>,
    jobs: Option<Sender<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    words: Words,
    kernels: u64,
    /// Kernels that were launched and have not told yet that they are over.
    running: u64,
    over: Receiver<()>,
    wrong: Arc<Mutex<Vec<String>>>,
    stream: Arc<HostStream>,
}

/// Words that a rank raises for itself: its stream has come to kernel n; kernel n has ended.
#[derive(Clone, Copy)]
struct Words {
    begun: SignalId,
    ended: SignalId,
}

struct Job {
    plan: Arc<RankPlan>,
    call: u64,
    kernel: u64,
    ready: ReadyWords,
}

/// One launch.
pub(crate) struct Launch<'a> {
    pub(crate) device: &'a mut Device,
    pub(crate) plan: Arc<RankPlan>,
    /// Number of the call in the test, which its marks have.
    pub(crate) call: u64,
    /// Refused by the kernel's checks.
    pub(crate) refused: bool,
}

impl Device {
    /// Collective.
    pub(crate) fn new(fabric: &Arc<HostFabric>) -> Self {
        let first = fabric.alloc_signals(2, LONG).unwrap();
        let words = Words { begun: first, ended: SignalId(first.0 + 1) };
        let (jobs, work) = channel();
        let own = fabric.stream("kernels").unwrap();
        let wrong = Arc::<Mutex<Vec<String>>>::default();
        let (tell, over) = channel();
        let runner = Runner { fabric: fabric.clone(), own, words, tell, wrong: wrong.clone() };
        let thread = Some(std::thread::spawn(move || runner.run(work)));
        let stream = Arc::new(fabric.stream("caller").unwrap());
        let (fabric, jobs) = (fabric.clone(), Some(jobs));
        Self { fabric, jobs, thread, words, kernels: 0, running: 0, over, wrong, stream }
    }

    /// The caller's stream.
    pub(crate) const fn stream(&self) -> &Arc<HostStream> {
        &self.stream
    }

    /// Another stream of the caller from now on.
    pub(crate) fn change_stream(&mut self) {
        self.stream = Arc::new(self.fabric.stream("other").unwrap());
    }

    /// What kernels read that was wrong.
    pub(crate) fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }

    /// Waits until all kernels are over. In a failure they end; what they read then is of no matter, as calls that come
    /// before a difference of plans is found may read anything. Then they count from 0 again, in a new incarnation.
    pub(crate) fn reset(&mut self) {
        (0..std::mem::take(&mut self.running)).for_each(|_| self.over.recv_timeout(LONG).unwrap());
        self.wrong.lock().unwrap().clear();
        self.kernels = 0;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

impl Enqueue for Launch<'_> {
    fn forward(&mut self, _plan: &RankPlan, ready: &ReadyWords) -> Result<(), Error> {
        let Device { fabric, words, kernels, running, jobs, stream, .. } = &mut *self.device;
        if self.refused {
            return Err(Error::Compute { call: "forward", rank: fabric.me(), source: "refused".into() });
        }
        raise(fabric, stream, words.begun, *kernels)?;
        let job = Job { plan: self.plan.clone(), call: self.call, kernel: *kernels, ready: ready.clone() };
        jobs.as_ref().unwrap().send(job).unwrap();
        *running += 1;
        fabric.wait_on(stream, wait(fabric, words.ended, *kernels)?, LONG)?;
        *kernels += 1;
        Ok(())
    }
}

struct Runner {
    fabric: Arc<HostFabric>,
    own: HostStream,
    words: Words,
    tell: Sender<()>,
    wrong: Arc<Mutex<Vec<String>>>,
}

impl Runner {
    fn run(&self, work: Receiver<Job>) {
        // A kernel that does not get its keys fails the group, which is how the host hears of it.
        for job in work {
            _ = self.kernel(&job);
            _ = self.tell.send(());
        }
    }

    fn kernel(&self, job: &Job) -> Result<(), Error> {
        self.fabric.wait(wait(&self.fabric, self.words.begun, job.kernel)?, LONG)?;
        for stage in &job.plan.forward.stages {
            let Stage::Attend(index) = *stage else { continue };
            let piece = &job.plan.forward.pieces[index];
            let (Some(arrival), Some(signal)) = (piece.arrival, job.ready.signals[piece.segment]) else {
                continue;
            };
            let at_least = Epoch(job.ready.base.0 + u64::from(arrival.step.0));
            let label = Label { stage: "gather", piece: arrival.step.0 - 1 };
            self.fabric.wait(Wait { signal, at_least, peer: piece.owner, label }, job.ready.deadline)?;
            if let Err(wrong) = marks::check(&self.fabric, &job.plan, (piece, job.call), &job.ready) {
                self.wrong.lock().unwrap().push(wrong);
            }
        }
        Ok(raise(&self.fabric, &self.own, self.words.ended, job.kernel)?)
    }
}

fn raise(
    fabric: &HostFabric,
    stream: &HostStream,
    signal: SignalId,
    kernel: u64,
) -> Result<(), symm_buffer::Error> {
    let value = Epoch::new(fabric.incarnation(), Use(kernel), Step(1))?;
    fabric.put_signal(stream, Put { to: fabric.me(), copies: &[], post: Some(Post { signal, value }) })
}

fn wait(fabric: &HostFabric, signal: SignalId, kernel: u64) -> Result<Wait, symm_buffer::Error> {
    let at_least = Epoch::new(fabric.incarnation(), Use(kernel), Step(1))?;
    Ok(Wait { signal, at_least, peer: Pe(fabric.me().0), label: Label { stage: "kernel", piece: 0 } })
}
