//! What a failing rank tells the others, and what such news means (rules P1, D2).
use std::sync::Mutex;

use symm_buffer::{Error as Symm, Fabric, Label, Pe, Report, Use};

use super::handle::lock;
use super::hello::Hello;
use super::notes::Notes;
use super::report::PassKind;
use crate::Error;

/// Marks a report whose stage is not a stage but the field in which two ranks' plans differ.
const DISAGREED: u32 = u32::MAX;

/// The cause behind an error of a call; and all other ranks' waits end, if nobody has ended them yet.
///
/// A failure between ranks may be the echo of two that run different plans: then that is the cause, on every rank.
pub(crate) fn explain<F: Fabric>(
    fabric: &F,
    hello: &Hello,
    (pass, at): (PassKind, Use),
    error: Error,
) -> Error {
    because(fabric, pass, || hello.arrived_difference(fabric, at), error)
}

/// As [`explain`] for forward calls that were enqueued.
pub(crate) fn explain_queued<F: Fabric>(fabric: &F, notes: &Mutex<Notes>, at: Use, error: Error) -> Error {
    let difference = || {
        let compared = lock(notes).compare(fabric, at);
        compared.err().filter(|error| matches!(error, Error::PlanMismatch { .. }))
    };
    because(fabric, PassKind::Forward, difference, error)
}

fn because<F: Fabric>(
    fabric: &F,
    pass: PassKind,
    difference: impl FnOnce() -> Option<Error>,
    error: Error,
) -> Error {
    let told = matches!(error, Error::Fabric(Symm::Timeout(_) | Symm::Aborted { .. }));
    let error = match heard(error) {
        error @ Error::Fabric(_) => difference().unwrap_or(error),
        error => error,
    };
    if !told {
        fabric.abort(news(fabric.me(), pass, &error));
    }
    error
}

/// Another rank's news as this rank's error.
pub(crate) fn heard(error: Error) -> Error {
    match error {
        Error::Fabric(Symm::Aborted { report, .. }) if report.label.piece == DISAGREED => {
            Error::PlanMismatch { rank: report.rank, peer: report.peer, field: report.label.stage }
        }
        error => error,
    }
}

fn news(me: Pe, pass: PassKind, error: &Error) -> Report {
    match error {
        Error::PlanMismatch { rank, peer, field } => {
            Report::plain(*rank, *peer, Label { stage: field, piece: DISAGREED })
        }
        _ => Report::plain(me, me, Label { stage: pass.name(), piece: 0 }),
    }
}
