//! The tables of both passes: shapes, masks, who is beside us, what we want.
use fm3_kernels::cuda::BackwardOptions;
use fm3_kernels::shape::Dims;
use serde::Serialize;

use super::masks::Mask;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Pass {
    Forward,
    /// With its first and last steps: delta, the zeroing and conversion of dQ.
    Backward,
}

impl Pass {
    /// Operations for each visible pair and element of a head: 2 products of 2, or 5.
    pub(super) const fn operations(self) -> f64 {
        match self {
            Pass::Forward => 4.0,
            Pass::Backward => 10.0,
        }
    }
}

/// How much longer a backward may take that adds dQ in one order.
const DETERMINISTIC: f64 = 1.15;

/// One line.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub name: String,
    pub pass: Pass,
    pub dims: Dims,
    pub mask: Mask,
    /// Of the backward: dQ is added in one order.
    pub deterministic: bool,
    /// Of the backward: parts that the query heads of each KV head are in.
    pub head_parts: Option<usize>,
    pub peer: Option<Rival>,
    /// Less than this is not good enough.
    pub floor: Target,
    /// What to reach.
    pub goal: Target,
}

/// Whose figure stands beside ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum Rival {
    /// cuDNN through PyTorch's scaled_dot_product_attention: no mask or causal.
    #[serde(rename = "cudnn")]
    Cudnn { causal: bool },
    /// PyTorch's FlexAttention, causal over documents.
    #[serde(rename = "flex")]
    Flex,
    /// Our own backward with dQ in any order.
    #[serde(rename = "any-order")]
    AnyOrder,
    /// Our own backward with all query heads of a KV head together.
    #[serde(rename = "whole-heads")]
    WholeHeads,
}

impl Rival {
    /// For rivals that are ourselves: how they differ from a line's calls, and what they are called.
    pub(super) const fn own(self, line: BackwardOptions) -> Option<(BackwardOptions, &'static str)> {
        match self {
            Rival::Cudnn { .. } | Rival::Flex => None,
            Rival::AnyOrder => Some((
                BackwardOptions { deterministic: false, ..line },
                "the same calls with dQ in any order",
            )),
            Rival::WholeHeads => {
                Some((BackwardOptions { head_parts: None, ..line }, "the same calls with whole KV heads"))
            }
        }
    }
}

/// What a rate must reach; all parts that are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Target {
    /// TFLOP/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tflops: Option<f64>,
    /// Times the peer's rate in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

impl Target {
    const NONE: Self = Self { tflops: None, ratio: None };

    const fn rate(tflops: f64) -> Self {
        Self { tflops: Some(tflops), ratio: None }
    }

    const fn times(ratio: f64) -> Self {
        Self { tflops: None, ratio: Some(ratio) }
    }

    /// What is left of it for calls that may take so many times as long.
    fn slower(self, times: f64) -> Self {
        Self { tflops: self.tflops.map(|rate| rate / times), ratio: self.ratio.map(|ratio| ratio / times) }
    }

    /// Whether a rate is enough; none when nothing is asked for, or the peer was not measured.
    pub(super) fn reached(self, tflops: f64, peer: Option<f64>) -> Option<bool> {
        let rate = self.tflops.map(|wanted| Some(tflops >= wanted));
        let ratio = self.ratio.map(|wanted| peer.map(|peer| tflops >= wanted * peer));
        match (rate, ratio) {
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(rate), Some(ratio)) => Some(rate? && ratio?),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ratio = self.ratio.map(|ratio| format!("{ratio:.2} x"));
        let parts: Vec<String> =
            self.tflops.map(|rate| format!("{rate:.0}")).into_iter().chain(ratio).collect();
        f.write_str(if parts.is_empty() { "-" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

impl Case {
    /// Of backward calls.
    pub(super) fn options(&self) -> BackwardOptions {
        let Self { deterministic, head_parts, .. } = *self;
        BackwardOptions { deterministic, head_parts, ..BackwardOptions::default() }
    }

    /// The same backward with dQ in one order, and targets for it; a line that is so already stays as it is.
    pub(super) fn in_one_order(self) -> Self {
        if self.deterministic {
            return self;
        }
        let [floor, goal] = [self.floor, self.goal].map(|target| target.slower(DETERMINISTIC));
        Self { deterministic: true, floor, goal, ..self }
    }
}

/// All lines of a pass.
pub(super) fn all(pass: Pass) -> Vec<Case> {
    let mut cases = match pass {
        Pass::Forward => against_cudnn(),
        Pass::Backward => backward_against_cudnn(),
    };
    cases.extend(masked(pass));
    cases.extend(shares(pass));
    let mut flex = case(pass, "causal-document", [1, 32768, 32768], [16, 16], named("causal-document"));
    let [floor, goal] = if pass == Pass::Forward { [1.7, 2.0] } else { [1.6, 1.8] };
    (flex.peer, flex.floor, flex.goal) = (Some(Rival::Flex), Target::times(floor), Target::times(goal));
    cases.push(flex);
    if pass == Pass::Backward {
        cases.push(order_against_none());
        cases.extend(parts_against_whole());
    }
    cases
}

/// Full and causal at training shapes; causal at the shapes of NVIDIA's published H200 figures.
fn against_cudnn() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, causal, floor, goal) in [("full", false, 1.0, 1.07), ("causal", true, 1.08, 1.16)] {
        for ([batch, seq], heads) in [([2, 8192], [16, 16]), ([1, 32768], [32, 8])] {
            let mut one = case(Pass::Forward, name, [batch, seq, seq], heads, named(name));
            (one.peer, one.floor, one.goal) =
                (Some(Rival::Cudnn { causal }), Target::times(floor), Target::times(goal));
            if !causal && seq == 8192 {
                one.goal.tflops = Some(710.0);
            }
            cases.push(one);
        }
    }
    for (seq, goal) in [(2048, 484.0), (4096, 591.0), (8192, 644.0), (16384, 673.0), (32768, 688.0)] {
        let mut one = case(Pass::Forward, "causal", [1, seq, seq], [64, 8], named("causal"));
        (one.peer, one.floor, one.goal) =
            (Some(Rival::Cudnn { causal: true }), Target::times(1.0), Target::rate(goal));
        cases.push(one);
    }
    cases
}

/// Full and causal; at 32768 with as many KV heads the floors are the original's rates.
fn backward_against_cudnn() -> Vec<Case> {
    let times = |floor, goal| [Target::times(floor), Target::times(goal)];
    let rates = |floor, goal| [Target::rate(floor), Target::rate(goal)];
    let lines = [
        ("full", [2, 8192], [16, 16], times(1.08, 1.18)),
        ("causal", [2, 8192], [16, 16], times(1.05, 1.15)),
        ("full", [1, 32768], [16, 16], rates(610.0, 660.0)),
        ("causal", [1, 32768], [16, 16], rates(600.0, 645.0)),
        ("full", [1, 32768], [32, 8], times(1.08, 1.18)),
        ("causal", [1, 32768], [32, 8], times(1.08, 1.18)),
    ];
    lines
        .map(|(name, [batch, seq], heads, [floor, goal])| {
            let mut one = case(Pass::Backward, name, [batch, seq, seq], heads, named(name));
            one.peer = Some(Rival::Cudnn { causal: name == "causal" });
            (one.floor, one.goal) = (floor, goal);
            one
        })
        .to_vec()
}

/// dQ in one order beside dQ in any, turn by turn in one run.
fn order_against_none() -> Case {
    let name = "causal deterministic";
    let one = case(Pass::Backward, name, [2, 8192, 8192], [16, 16], named("causal"));
    let floor = Target::times(1.0).slower(DETERMINISTIC);
    Case { deterministic: true, peer: Some(Rival::AnyOrder), floor, ..one }
}

/// Heads in parts beside whole ones, where KV heads and keys are few: 128, 64 and 32 tiles for 132 multiprocessors.
fn parts_against_whole() -> Vec<Case> {
    let lines = [(2048, [64, 8], 4), (8192, [64, 1], 8), (4096, [16, 1], 16)];
    lines
        .map(|(seq, heads, parts)| {
            let name = format!("causal in {parts} parts");
            let one = case(Pass::Backward, &name, [1, seq, seq], heads, named("causal"));
            Case { head_parts: Some(parts), peer: Some(Rival::WholeHeads), ..one }
        })
        .to_vec()
}

/// Masks over packed documents; the floors are the original's rates, of both passes.
fn masked(pass: Pass) -> Vec<Case> {
    let lines = [
        ("causal-document", "causal-document", [545.0, 610.0], [476.0, 535.0]),
        ("sliding 4096", "sliding-window:window=4096", [634.0, 690.0], [530.0, 595.0]),
        ("document", "document", [589.0, 650.0], [531.0, 590.0]),
        ("share-question", "share-question", [589.0, 650.0], [485.0, 545.0]),
        ("prefix-lm-document", "prefix-lm-document", [540.0, 600.0], [477.0, 535.0]),
        (
            "global-sliding",
            "global-sliding-window:global=16,left=2048,right=2048",
            [499.0, 560.0],
            [478.0, 535.0],
        ),
        ("causal-blockwise", "causal-blockwise", [523.0, 590.0], [527.0, 575.0]),
    ];
    lines
        .map(|(name, mask, forward, backward)| {
            let mut one = case(pass, name, [1, 32768, 32768], [32, 8], named(mask));
            let [floor, goal] = if pass == Pass::Forward { forward } else { backward };
            (one.floor, one.goal) = (Target::rate(floor), Target::rate(goal));
            one
        })
        .to_vec()
}

/// Rank 0 of 2, causal, two chunks a rank: keys in two segments.
fn shares(pass: Pass) -> Vec<Case> {
    let lines = [
        (8192, [630.0, 660.0], [600.0, 620.0]),
        (32768, [630.0, 685.0], [615.0, 645.0]),
        (65536, [630.0, 670.0], [615.0, 645.0]),
    ];
    lines
        .map(|(rows, forward, backward)| {
            let mut one = case(pass, "rank 0 of 2, causal", [1, rows, 2 * rows], [16, 16], Mask::CausalShare);
            let [floor, goal] = if pass == Pass::Forward { forward } else { backward };
            (one.floor, one.goal) = (Target::rate(floor), Target::rate(goal));
            one
        })
        .to_vec()
}

/// A line without a peer and without targets.
pub(super) fn case(pass: Pass, name: &str, sizes: [usize; 3], heads: [usize; 2], mask: Mask) -> Case {
    let ([batch, seq_q, seq_k], [heads_q, heads_kv]) = (sizes, heads);
    let rows = if seq_q == seq_k { seq_q.to_string() } else { format!("{seq_q}:{seq_k}") };
    Case {
        name: format!("{name} {batch}x{rows} {heads_q}/{heads_kv}"),
        pass,
        dims: Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim: 128 },
        mask,
        deterministic: false,
        head_parts: None,
        peer: None,
        floor: Target::NONE,
        goal: Target::NONE,
    }
}

pub(super) fn named(name: &str) -> Mask {
    Mask::Named(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_a_name_of_its_own_and_a_shape_that_exists() {
        for (pass, count) in [(Pass::Forward, 4 + 5 + 7 + 3 + 1), (Pass::Backward, 6 + 7 + 3 + 1 + 1 + 3)] {
            let cases = all(pass);
            assert_eq!(cases.len(), count);
            for (index, case) in cases.iter().enumerate() {
                assert!(fm3_kernels::Shape::new(case.dims).is_ok() && case.pass == pass);
                let twins = cases[..index].iter().filter(|other| other.name == case.name);
                assert_eq!(twins.count(), 0, "{}", case.name);
            }
        }
    }

    #[test]
    fn an_order_of_dq_may_take_15_percent_longer() {
        let cases = all(Pass::Backward);
        let pair: Vec<&Case> = cases.iter().filter(|case| case.deterministic).collect();
        assert_eq!(pair.len(), 1);
        let (floor, peer) = (pair[0].floor, Some(500.0));
        assert_eq!((pair[0].peer, floor.to_string()), (Some(Rival::AnyOrder), "0.87 x".to_owned()));
        assert_eq!(
            [500.0 / 1.16, 500.0 / 1.14].map(|rate| floor.reached(rate, peer)),
            [Some(false), Some(true)]
        );
        for case in cases.into_iter().filter(|case| case.head_parts.is_none()) {
            let (name, before, after) = (case.name.clone(), case.floor, case.clone().in_one_order());
            let again = after.clone().in_one_order();
            assert!(after.deterministic && after.name == name && again.floor == after.floor);
            let times = if case.deterministic { 1.0 } else { 1.15 };
            for (before, after) in [(before.tflops, after.floor.tflops), (before.ratio, after.floor.ratio)] {
                assert_eq!(before.map(|rate| rate / times), after, "{name}");
            }
        }
    }

    #[test]
    fn a_target_needs_all_that_it_names() {
        let both = Target { tflops: Some(700.0), ratio: Some(1.1) };
        assert_eq!(both.reached(710.0, Some(600.0)), Some(true));
        assert_eq!(both.reached(690.0, Some(600.0)), Some(false));
        assert_eq!(both.reached(710.0, Some(690.0)), Some(false));
        assert_eq!(both.reached(710.0, None), None);
        assert_eq!(Target::rate(5.0).reached(6.0, None), Some(true));
        assert_eq!(Target::NONE.reached(6.0, Some(1.0)), None);
        assert_eq!([both.to_string(), Target::NONE.to_string()], ["700, 1.10 x", "-"]);
    }
}
