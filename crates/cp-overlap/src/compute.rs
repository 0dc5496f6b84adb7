//! The other seam: who does the arithmetic. One call a pass; the executor's [`Readiness`] says what is there.
use std::time::Duration;

use symm_buffer::{Epoch, SignalId, Span};

use crate::{Error, plan::RankPlan};

/// The arithmetic of one rank, on any device. It owns (or borrows) Q, local K, V, O, dO and the outputs.
///
/// Implementations walk `plan.forward.stages` or `plan.backward.stages` in order and ask `ready` before they touch
/// anything remote. They never wait in another way, and never inside a task that other tasks wait for (rule R6).
pub trait Compute {
    /// Attends with the local queries to all pieces and writes O and LSE.
    ///
    /// # Errors
    /// What `ready` returned, or [`Error::Compute`].
    fn forward(&mut self, plan: &RankPlan, ready: &mut dyn Readiness) -> Result<(), Error>;

    /// Computes dQ, the dK, dV partials of remote pieces, and local dK, dV including the partials of peers.
    ///
    /// # Errors
    /// As [`Compute::forward`].
    fn backward(&mut self, plan: &RankPlan, ready: &mut dyn Readiness) -> Result<(), Error>;
}

/// The arithmetic of one rank whose calls are enqueued. It owns (or borrows) what [`Compute`] does.
pub trait Enqueue {
    /// Queues attention of the local queries to all keys on the caller's stream, and returns at once. What runs there
    /// waits for a head group of a remote segment by itself, and for nothing else (rule R1).
    ///
    /// # Errors
    /// [`Error::Compute`]; nothing may have been queued then.
    fn forward(&mut self, plan: &RankPlan, ready: &ReadyWords) -> Result<(), Error>;

    /// So many batches of pushes are queued: called with 0 before the first, for those who take times on
    /// [`Session::push_stream`](crate::Session::push_stream).
    ///
    /// # Errors
    /// [`Error::Compute`].
    fn pushed(&mut self, batches: usize) -> Result<(), Error> {
        _ = batches;
        Ok(())
    }
}

/// Where remote keys will be and what says that they are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyWords {
    /// A piece with step s is there when its owner's word is at least `base + s`.
    pub base: Epoch,
    /// The words, for each segment of the plan; none for the local one.
    pub signals: Vec<Option<SignalId>>,
    /// The half of the gather buffer in which places of the plan count; none when there are no remote keys.
    pub half: Option<Span>,
    /// Budget of each wait (rule D1).
    pub deadline: Duration,
}

/// Two tensors of one piece in symmetric memory of this rank: K and V, or dK and dV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairSpans {
    /// K or dK: dense [b, rows, heads, d].
    pub k: Span,
    /// V or dV: dense [b, rows, heads, d].
    pub v: Span,
}

/// Answers of the executor while a pass runs. Indices are those of the pass's `pieces` and `reduces`.
pub trait Readiness {
    /// Blocks until a piece is there. `None` for local pieces: read the caller's K, V in place.
    ///
    /// # Errors
    /// [`Error::Fabric`] with the report when the deadline passes; [`Error::PlanMismatch`].
    fn piece(&mut self, piece: usize) -> Result<Option<PairSpans>, Error>;

    /// The word and value that say that a piece is there, for kernels that wait themselves.
    ///
    /// # Errors
    /// [`Error::Fabric`] when the epoch does not fit.
    fn signal(&self, piece: usize) -> Result<Option<(SignalId, Epoch)>, Error>;

    /// Where the dK, dV partial of a remote piece is to be written (f32). `None` for local pieces.
    ///
    /// # Errors
    /// [`Error::Fabric`] when the plan does not fit the buffers.
    fn partial_out(&mut self, piece: usize) -> Result<Option<PairSpans>, Error>;

    /// The partial of a remote piece is complete: send it to its owner. Returns at once.
    ///
    /// # Errors
    /// [`Error::Fabric`].
    fn partial_done(&mut self, piece: usize) -> Result<(), Error>;

    /// Blocks until a peer's partial for my keys is there (f32).
    ///
    /// # Errors
    /// As [`Readiness::piece`].
    fn partial_in(&mut self, reduce: usize) -> Result<PairSpans, Error>;
}
