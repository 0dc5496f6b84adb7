//! The plan checker over random problems: [`cp_overlap::plan::check`] on the plans of all ranks.
use cp_overlap::CpPlan;
use cp_overlap::plan::check;
use rayon::prelude::*;

use super::Part;
use super::case::{Case, Limits};

const LIMITS: Limits = Limits { ranks: 12, rows: 3000, kv_heads: 6 };

/// Plans and checks problems of consecutive seeds.
pub(super) fn run(problems: u64) -> Part {
    let outcomes: Vec<Result<usize, String>> = (0..problems).into_par_iter().map(one).collect();
    let stages: usize = outcomes.iter().flatten().sum();
    let figures = format!("{problems} problems, {stages} stages, transfers and reduces");
    Part::new("plans checked", figures, outcomes.into_iter().map(|outcome| outcome.map(drop)))
}

/// How much there was to check.
pub(super) fn one(seed: u64) -> Result<usize, String> {
    let wrong =
        |error: cp_overlap::Error| format!("plan of seed {seed}: {error}; replay: --plan-seed {seed}");
    let problem = Case::random(seed, LIMITS).problem().map_err(wrong)?;
    let plan = CpPlan::build(&problem).map_err(wrong)?;
    check(&plan, &problem).map_err(wrong)?;
    let passes = plan.ranks.iter().flat_map(|rank| [&rank.forward, &rank.backward]);
    Ok(passes.map(|pass| pass.stages.len() + pass.pushes.len()).sum())
}
