//! Plans as text: what happens when, for people.
use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use symm_buffer::Bytes;

use super::{CpPlan, KvBlock, Pass, Piece, RankPlan, Stage};

impl Display for CpPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} ranks, imbalance {:.3} (most pairs of a rank / mean)",
            self.ranks.len(),
            self.imbalance()
        )?;
        self.ranks.iter().try_for_each(|rank| rank.fmt(f))
    }
}

impl Display for RankPlan {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (dims, choice, memory) = (self.shape.dims(), self.choice, self.memory);
        writeln!(
            f,
            "{}: {} of {} rows, batch {}, heads {}/{} of {}, {}",
            self.rank,
            dims.seq_q,
            dims.seq_k,
            dims.batch,
            dims.heads_q,
            dims.heads_kv,
            dims.head_dim,
            self.dtype
        )?;
        writeln!(
            f,
            "  pieces of {} KV heads x {} rows, local tail {}/256",
            choice.heads_per_piece, choice.rows_per_piece, choice.local_tail
        )?;
        writeln!(
            f,
            "  memory: gather 2 x {}, send {}, receive 2 x {}",
            Size(memory.gather_half),
            Size(memory.send),
            Size(memory.receive_half)
        )?;
        show_pass(f, "forward", &self.forward)?;
        show_pass(f, "backward", &self.backward)
    }
}

fn show_pass(f: &mut Formatter<'_>, name: &str, pass: &Pass) -> fmt::Result {
    let totals = &pass.totals;
    writeln!(
        f,
        "  {name}: {} pairs, {:.3e} flop, sends {} (mask-blind {})",
        totals.pairs,
        totals.flops as f64,
        Size(totals.bytes_sent()),
        Size(totals.bytes_mask_blind)
    )?;
    for (index, push) in pass.pushes.iter().enumerate() {
        writeln!(
            f,
            "    push {index:>3}  to {} step {}: {}, {}",
            push.to,
            push.arrival.step.0,
            Block(&push.block),
            Size(push.bytes)
        )?;
    }
    for (index, stage) in pass.stages.iter().enumerate() {
        write!(f, "    stage {index:>2}  ")?;
        match *stage {
            Stage::Attend(piece) => show_attend(f, pass.pieces.get(piece))?,
            Stage::Reduce(reduce) => match pass.reduces.get(reduce) {
                Some(reduce) => writeln!(
                    f,
                    "reduce {} step {}: {}, dK at {}, dV at {}",
                    reduce.from,
                    reduce.step.0,
                    Block(&reduce.block),
                    reduce.slot_dk.0,
                    reduce.slot_dv.0
                )?,
                None => writeln!(f, "reduce {reduce}, which is not there")?,
            },
        }
    }
    Ok(())
}

fn show_attend(f: &mut Formatter<'_>, piece: Option<&Piece>) -> fmt::Result {
    let Some(piece) = piece else { return writeln!(f, "attend to a piece that is not there") };
    match piece.arrival {
        None => write!(f, "attend local: {}", Block(&piece.block))?,
        Some(arrival) => write!(
            f,
            "attend {} step {}: {}, K at {}, V at {}",
            piece.owner,
            arrival.step.0,
            Block(&piece.block),
            arrival.k.0,
            arrival.v.0
        )?,
    }
    match piece.departure {
        None => writeln!(f),
        Some(departure) => {
            writeln!(f, "; partial back as step {}, {}", departure.step.0, Size(departure.bytes))
        }
    }
}

/// Heads, rows and needed rows of a block.
struct Block<'a>(&'a KvBlock);

impl Display for Block<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let KvBlock { heads, rows, needed } = self.0;
        write!(f, "heads {heads:?} rows {rows:?}")?;
        let count: usize = needed.iter().flatten().map(Range::len).sum();
        if count == rows.len() * needed.len() {
            return write!(f, ", all needed");
        }
        write!(f, ", {count} of {} needed", rows.len() * needed.len())?;
        match needed.as_slice() {
            // Longer lists would hide the rest of the line.
            [runs] if runs.len() <= 4 => write!(f, " {runs:?}"),
            _ => Ok(()),
        }
    }
}

/// Bytes in the largest binary unit that leaves at least 1.
struct Size(Bytes);

impl Display for Size {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        match units.into_iter().find(|(_, unit)| self.0.0 >= *unit) {
            Some((name, unit)) => write!(f, "{:.1} {name}", self.0.0 as f64 / unit as f64),
            None => write!(f, "{} B", self.0.0),
        }
    }
}
