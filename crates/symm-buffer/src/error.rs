//! What can go wrong between ranks; every variant carries the call and the numbers.
use std::time::Duration;

#[cfg(not(any(loom, shuttle)))]
use crate::rendezvous::Refusal;
use crate::{Bytes, Epoch, Incarnation, Pe, RegionId, Report, SignalId, Span, Step, Use};

/// Errors of this crate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A world needs ranks.
    #[error("{call}: 0 ranks; a world has at least 1")]
    NoRanks {
        /// Call that refused it.
        call: &'static str,
    },
    /// A wait of this rank passed its deadline: a peer is slow, dead, or runs another plan.
    #[error("timeout: {0}; look at that rank first, then call recover()")]
    Timeout(Report),
    /// Another rank's wait passed its deadline, or it gave up; this rank stopped with it.
    #[error("{me} stopped because {by} gave up: {report}; call recover() on every live rank")]
    Aborted {
        /// This rank.
        me: Pe,
        /// Who gave up.
        by: Pe,
        /// Why.
        report: Report,
    },
    /// A local queue did not drain in time.
    #[error(
        "{call}: {me}'s stream '{stream}' is not done after {waited:.1?}; raise the deadline or look for a blocked wait on it"
    )]
    Drain {
        /// Call that waited.
        call: &'static str,
        /// This rank.
        me: Pe,
        /// The stream.
        stream: &'static str,
        /// How long it waited.
        waited: Duration,
    },
    /// A collective was not joined by everybody in time.
    #[error(
        "{call}: {me} waited {waited:.1?} but {missing} did not come; check that it is alive and makes the same calls"
    )]
    Missing {
        /// The collective.
        call: &'static str,
        /// This rank.
        me: Pe,
        /// A rank that did not come.
        missing: Pe,
        /// How long this rank waited.
        waited: Duration,
    },
    /// Ranks asked for different sizes in one collective.
    #[error("{call}: {me} asks for {mine:?}, {peer} for {theirs:?}; all ranks must run the same plan")]
    AllocMismatch {
        /// The collective.
        call: &'static str,
        /// This rank.
        me: Pe,
        /// A rank that differs.
        peer: Pe,
        /// What this rank asked for.
        mine: Bytes,
        /// What the peer asked for.
        theirs: Bytes,
    },
    /// Bytes outside a region.
    #[error("{call}: {span:?} ends outside its region of {region_len:?}")]
    OutOfRange {
        /// Call that refused it.
        call: &'static str,
        /// The bytes.
        span: Span,
        /// Length of the region.
        region_len: Bytes,
    },
    /// No such region (freed, or a source whose scope ended).
    #[error("{call}: region {region:?} does not exist here; it was freed, or its source scope has ended")]
    UnknownRegion {
        /// Call that refused it.
        call: &'static str,
        /// The region.
        region: RegionId,
    },
    /// A 2-D view whose rows overlap or whose numbers overflow.
    #[error(
        "{call}: {rows} rows of {width} bytes at pitch {pitch} is not a 2-D view; pitch must be at least width"
    )]
    Pitch {
        /// Call that refused it.
        call: &'static str,
        /// Rows.
        rows: usize,
        /// Bytes of a row.
        width: usize,
        /// Bytes between rows.
        pitch: usize,
    },
    /// No such rank.
    #[error("{call}: {pe} is outside a world of {world} ranks")]
    NoSuchPe {
        /// Call that refused it.
        call: &'static str,
        /// The rank.
        pe: Pe,
        /// Size of the world.
        world: usize,
    },
    /// No such signal word.
    #[error("{call}: signal {} is outside the table of {len} words", signal.0)]
    NoSuchSignal {
        /// Call that refused it.
        call: &'static str,
        /// The word.
        signal: SignalId,
        /// Words that exist.
        len: usize,
    },
    /// A part of an epoch is too large.
    #[error("{call}: {incarnation:?}, {at:?}, {step:?} do not fit a signal; make a new group")]
    EpochRange {
        /// Call that refused it.
        call: &'static str,
        /// Incarnation.
        incarnation: Incarnation,
        /// Use.
        at: Use,
        /// Step.
        step: Step,
    },
    /// Memory is read and written at once: the protocol was broken.
    #[error(
        "{call}: {wanted:?} is in use ({holder}); a slot was written before its reader was done, or read before its data came"
    )]
    Conflict {
        /// Call that refused it.
        call: &'static str,
        /// The bytes.
        wanted: Span,
        /// Who holds them.
        holder: &'static str,
    },
    /// Ranks are in different collectives at once.
    #[error(
        "{call}: {me} is in {call} while {peer} is in {theirs}; all ranks must make the same calls in the same order"
    )]
    CallMismatch {
        /// The collective of this rank, with its argument.
        call: String,
        /// This rank.
        me: Pe,
        /// A rank that differs.
        peer: Pe,
        /// The collective of the peer, with its argument.
        theirs: String,
    },
    /// A rank has no memory for its part of a region.
    #[error("{call}: {pe} has no room for {wanted:?}; plan smaller windows or use more ranks")]
    NoMemory {
        /// The collective.
        call: &'static str,
        /// The rank without room.
        pe: Pe,
        /// What was asked for.
        wanted: Bytes,
    },
    /// A size that no address reaches.
    #[error(
        "{call}: {wanted:?} after {used:?} do not fit an address; check the sizes that the plan asks for"
    )]
    TooLarge {
        /// Call that refused it.
        call: &'static str,
        /// Bytes before.
        used: Bytes,
        /// Bytes that do not fit.
        wanted: Bytes,
    },
    /// A signal would fall: the rules say that it only grows.
    #[error("{call}: signal {} of {to} is {seen} and cannot go back to {value}; post each step once, on one stream", signal.0)]
    SignalWentBack {
        /// Call that refused it.
        call: &'static str,
        /// Owner of the word.
        to: Pe,
        /// The word.
        signal: SignalId,
        /// What it is.
        seen: Epoch,
        /// What it should have become.
        value: Epoch,
    },
    /// A signal has two writers: the rules say one.
    #[error("{call}: signal {} of {to} is written by {writer} and by {second}; give each writer its own word", signal.0)]
    SignalWriters {
        /// Call that refused it.
        call: &'static str,
        /// Owner of the word.
        to: Pe,
        /// The word.
        signal: SignalId,
        /// Its writer so far.
        writer: Pe,
        /// The other one.
        second: Pe,
    },
    /// What arrived is not what was sent; found by a host world that verifies its puts.
    #[error(
        "{call}: {wanted:?} of {to} is not what {from} sent; the link or the memory is broken, so drop these results"
    )]
    Corrupt {
        /// Call that found it.
        call: &'static str,
        /// The sender.
        from: Pe,
        /// Whose memory.
        to: Pe,
        /// The bytes.
        wanted: Span,
    },
    /// A failure that was asked for with [`crate::host::Faults`].
    #[error("{call}: an injected fault lets {me} fail here; call recover() on every live rank")]
    Injected {
        /// Call that failed.
        call: &'static str,
        /// This rank.
        me: Pe,
    },
    /// Text that is not what it should be.
    #[error("'{text}' is not {what}; expected {expected}")]
    Text {
        /// What it should be.
        what: &'static str,
        /// What it is.
        text: String,
        /// How it is written.
        expected: &'static str,
    },
    /// A stream could not be made, or its worker is gone.
    #[error("{call}: stream '{stream}': {reason}")]
    Stream {
        /// Call that failed.
        call: &'static str,
        /// The stream.
        stream: &'static str,
        /// Why.
        reason: String,
    },
    /// Ranks did not meet.
    #[cfg(not(any(loom, shuttle)))]
    #[error("rendezvous: {me} gave up after {waited:.1?}: {why}")]
    Rendezvous {
        /// This rank.
        me: Pe,
        /// How long it took.
        waited: Duration,
        /// Why.
        why: Box<Refusal>,
    },
    /// Something is too long to be sent to other ranks.
    #[error("{call}: {len} bytes, but at most {most} can be sent to other ranks; shorten it")]
    TooLong {
        /// Call that refused it.
        call: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        most: usize,
    },
    /// A launcher's variable is missing or wrong.
    #[error("variable {name} is '{value}'; it must be {wanted}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// What it holds; empty when it is not set.
        value: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A job's ranks were to form a group, with a wrong list of them.
    #[error(
        "{me} asked for a group of the job's ranks, but {pe} {what}; give all its ranks one list with themselves in it"
    )]
    NoPart {
        /// The rank that asked.
        me: Pe,
        /// The rank that is wrong.
        pe: Pe,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A process of the group is gone.
    #[error(
        "{call}: the process of {peer} has ended, as {me} sees; start the job again from its last checkpoint"
    )]
    Lost {
        /// Call that found it.
        call: &'static str,
        /// This rank.
        me: Pe,
        /// The rank whose process is gone.
        peer: Pe,
    },
    /// NVSHMEM does not return: a collective of its own has no deadline, and was left.
    #[error(
        "{call}: NVSHMEM has not come back from '{inside}' for {waited:.1?} and cannot be used by this process any more; look at the other ranks, end the process and start the job again"
    )]
    Stuck {
        /// Call that found it.
        call: &'static str,
        /// The call in which NVSHMEM is.
        inside: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// A group has more ranks than a backend can take.
    #[error("{call}: {ranks} ranks, but a group has at most {most}; make several groups")]
    TooManyRanks {
        /// Call that refused it.
        call: &'static str,
        /// Ranks.
        ranks: usize,
        /// The limit.
        most: usize,
    },
    /// A file that the processes of a group share.
    #[error("{call}: {file}: {reason}; the folder must be in memory, writable, and the same for all ranks")]
    SharedFile {
        /// Call that failed.
        call: &'static str,
        /// The file.
        file: String,
        /// Why.
        reason: String,
    },
    /// The CUDA driver refused a call, or reports that earlier work failed.
    #[error("{call}: the CUDA driver says: {reason}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// Its error, by name and in words.
        reason: String,
    },
    /// NVSHMEM refused a call.
    #[cfg(feature = "nvshmem")]
    #[error("{0}")]
    Nvshmem(#[source] nvshmem_sys::Error),
    /// A rank whose memory this one cannot reach by loads and stores.
    #[error(
        "{call}: {me} cannot reach the memory of {peer}; put the ranks of a group on one machine with peer access"
    )]
    Unreachable {
        /// Call that found it.
        call: &'static str,
        /// This rank.
        me: Pe,
        /// The other one.
        peer: Pe,
    },
    /// Something is still used, or is used after its end.
    #[error("{call}: {what} is in the way; close all groups first, and use none after its end")]
    InUse {
        /// Call that refused it.
        call: &'static str,
        /// What is used.
        what: &'static str,
    },
}
