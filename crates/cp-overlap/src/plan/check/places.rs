//! Places are aligned, inside the memory and disjoint within a half.
use symm_buffer::Bytes;

use super::{View, broken};
use crate::Error;
use crate::plan::{PLACE_ALIGN, RankPlan};

pub(super) fn check(view: View<'_>, rank: &RankPlan) -> Result<(), Error> {
    let pass = view.pass(rank);
    let (mut gather, mut send) = (Vec::new(), Vec::new());
    for piece in &pass.pieces {
        if let Some(arrival) = piece.arrival {
            let len = rank.kv_bytes(&piece.block);
            gather.extend([(arrival.k, len), (arrival.v, len)]);
        }
        if let Some(departure) = piece.departure {
            let len = rank.partial_bytes(&piece.block);
            send.extend([(departure.send_dk, len), (departure.send_dv, len)]);
        }
    }
    let slots = pass.reduces.iter().flat_map(|reduce| {
        let len = rank.partial_bytes(&reduce.block);
        [(reduce.slot_dk, len), (reduce.slot_dv, len)]
    });
    disjoint(rank, "gather places are disjoint", gather, rank.memory.gather_half)?;
    disjoint(rank, "send slots are disjoint", send, rank.memory.send)?;
    disjoint(rank, "receive slots are disjoint", slots.collect(), rank.memory.receive_half)
}

fn disjoint(
    rank: &RankPlan,
    rule: &'static str,
    mut places: Vec<(Bytes, Bytes)>,
    memory: Bytes,
) -> Result<(), Error> {
    places.sort_unstable();
    let mut end = 0;
    for (start, len) in places {
        let place = format!("{} bytes at {}", len.0, start.0);
        if !start.0.is_multiple_of(PLACE_ALIGN) {
            return broken(rank.rank, "places are aligned", place);
        }
        if start.0 < end {
            return broken(rank.rank, rule, format!("{place}, but the one before ends at {end}"));
        }
        end = start.0.saturating_add(len.0);
        if end > memory.0 {
            return broken(rank.rank, "places are inside the memory", format!("{place} of {}", memory.0));
        }
    }
    Ok(())
}
