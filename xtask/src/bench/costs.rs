//! What a call costs apart from its work: enqueuing it, a launch with nothing to do, preparing a mask.
use fm3_kernels::cuda::{MaskForm, PreparedMask};
use fm3_kernels::mask::KeySegments;
use fm3_kernels::shape::Dims;
use serde::Serialize;

use super::cases::{Case, Pass, case, named};
use super::device::{Device, Half, timed};
use super::measure::Bench;
use super::peers::Launches;
use super::stats::Summary;

/// A cost in microseconds; less is better.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Cost {
    pub name: String,
    pub us: Summary,
    pub floor_us: Option<f64>,
    pub goal_us: Option<f64>,
}

/// Share of the forward's time that preparing its mask may take.
const PREPARE_SHARE: f64 = 0.02;

impl Cost {
    /// How far it comes.
    pub(super) fn verdict(&self) -> &'static str {
        let within = |limit: Option<f64>| limit.is_some_and(|limit| self.us.median <= limit);
        match (within(self.goal_us), within(self.floor_us), self.floor_us) {
            (true, ..) => "goal",
            (_, true, _) => "floor",
            (_, _, Some(_)) => "BELOW",
            (_, _, None) => "-",
        }
    }
}

/// All costs.
///
/// # Errors
/// A launch that fails.
pub(super) fn all<T: Half>(bench: &mut Bench<'_, T>) -> anyhow::Result<Vec<Cost>> {
    let mut costs = tiny(bench)?;
    costs.extend(prepare(bench)?);
    Ok(costs)
}

/// One tile of one head. A call of some milliseconds goes before, so that the host is ahead of the device and the
/// events see the device alone.
fn tiny<T: Half>(bench: &mut Bench<'_, T>) -> anyhow::Result<Vec<Cost>> {
    let sizes = |heads, seq| Dims {
        batch: 1,
        heads_q: heads,
        heads_kv: heads,
        seq_q: seq,
        seq_k: seq,
        head_dim: 128,
    };
    let (small, large) = (sizes(1, 128), sizes(16, 16384));
    let device = &mut *bench.device;
    let mut tensors = [device.tensors(&bench.pool, small, None)?, device.tensors(&bench.pool, large, None)?];
    let masks = [small, large].map(|dims| named("full").build(dims));
    let [of_small, of_large] = masks;
    let masks =
        [device.prepare(&of_small?, vec![small.seq_k])?, device.prepare(&of_large?, vec![large.seq_k])?];
    let (mut gpu, mut host) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        device.enqueue(&mut tensors[1], &masks[1])?;
        let counts = Launches { warmups: 3, launches: 20 };
        gpu.extend(device.calls(&mut tensors[0], &masks[0], counts, &mut host)?.iter().map(|ms| ms * 1e3));
    }
    let cost = |name: &str, times: &[f64], [floor, goal]: [f64; 2]| {
        let us = Summary::of(times)?;
        Some(Cost { name: name.to_owned(), us, floor_us: Some(floor), goal_us: Some(goal) })
    };
    let names = ["call on a prepared mask, host", "call on a prepared mask, GPU"];
    Ok([cost(names[0], &host, [25.0, 15.0]), cost(names[1], &gpu, [15.0, 8.0])]
        .into_iter()
        .flatten()
        .collect())
}

/// A mask over 128 K tokens, and the forward that it serves.
fn prepare<T: Half>(bench: &mut Bench<'_, T>) -> anyhow::Result<Vec<Cost>> {
    let Case { dims, mask, .. } =
        case(Pass::Forward, "", [1, 131_072, 131_072], [32, 8], named("causal-document"));
    let mask = mask.build(dims)?;
    let device: &mut Device = bench.device;
    let prepared = device.prepare(&mask, vec![dims.seq_k])?;
    let mut tensors = device.tensors(&bench.pool, dims, None)?;
    let counts = Launches { warmups: 3, launches: 9 };
    let forward = device.calls(&mut tensors, &prepared, counts, &mut Vec::new())?;

    let segments = KeySegments::new(vec![dims.seq_k])?;
    let form = MaskForm { dims: mask.dims(), columns: mask.columns(), causal: mask.is_causal() };
    let bounds = device.stream.clone_htod(mask.bounds())?;
    let stream = device.stream.clone();
    let times = timed(&stream, 20, || {
        PreparedMask::from_device(device.kernels(), &stream, form, &bounds, &segments)?;
        Ok(())
    })?;
    let us = |times: &[f64]| Summary::of(&times.iter().map(|ms| ms * 1e3).collect::<Vec<_>>());
    let cost = |name: &str, us, floor_us| Cost { name: name.to_owned(), us, floor_us, goal_us: None };
    let (Some(forward), Some(times)) = (us(&forward), us(&times)) else { return Ok(Vec::new()) };
    Ok(vec![
        cost("forward, causal-document 1x131072 32/8", forward, None),
        cost("its mask, prepared", times, Some(PREPARE_SHARE * forward.median)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_better() {
        let us = Summary { median: 10.0, min: 9.0, max: 11.0 };
        let cost = |floor_us, goal_us| Cost { name: String::new(), us, floor_us, goal_us };
        assert_eq!(cost(Some(15.0), Some(12.0)).verdict(), "goal");
        assert_eq!(cost(Some(15.0), Some(8.0)).verdict(), "floor");
        assert_eq!(cost(Some(9.0), None).verdict(), "BELOW");
        assert_eq!(cost(None, None).verdict(), "-");
    }
}
