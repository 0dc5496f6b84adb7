//! The figures of one run, as `--json` writes them, and the bounds they must keep.
use std::io::Write;
use std::path::Path;

use fm3_kernels::DType;
use serde::Serialize;

use crate::input::BadInput;

/// Everything that `--json FILE` holds. Errors are relative to the f64 reference: ||x - ref|| / ||ref||.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Every error is within [`Bounds`].
    pub ok: bool,
    /// How much was compared with the reference.
    pub checked: Checked,
    /// Ranks.
    pub ranks: usize,
    /// Rows of a sequence.
    pub seq_len: usize,
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads_q: usize,
    /// KV heads.
    pub heads_kv: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// The mask as the user wrote it.
    pub mask: String,
    /// Visible pairs / all pairs.
    pub density: f64,
    /// The sharding as the user wrote it.
    pub sharding: String,
    /// Element type.
    pub dtype: DType,
    /// Documents of the whole batch.
    pub documents: usize,
    /// Forward pass.
    pub forward: Forward,
    /// Backward pass.
    pub backward: Backward,
    /// Most visible pairs of a rank / mean over ranks; 1 is perfect.
    pub imbalance: f64,
}

/// Figures of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Forward {
    /// Relative error of O.
    pub o_rel_err: f64,
    /// Largest absolute difference of LSE.
    pub lse_max_err: f64,
    /// Traffic and time.
    #[serde(flatten)]
    pub cost: Cost,
}

/// Figures of the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Backward {
    /// Relative error of dQ.
    pub dq_rel_err: f64,
    /// Relative error of dK.
    pub dk_rel_err: f64,
    /// Relative error of dV.
    pub dv_rel_err: f64,
    /// Traffic and time.
    #[serde(flatten)]
    pub cost: Cost,
}

/// What a pass costs; sums and maxima are over ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Cost {
    /// Wall time of the slowest rank.
    pub seconds: f64,
    /// Longest time that a rank's compute stream was blocked in waits.
    pub exposed_seconds: f64,
    /// Bytes that all ranks sent.
    pub bytes_sent: u64,
    /// Bytes that all ranks would send if the mask were ignored.
    pub bytes_mask_blind: u64,
}

/// How much was compared with the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Checked {
    /// Every row and column.
    Complete,
    /// Random rows and columns of each head.
    Sampled,
}

impl Checked {
    /// Complete up to this many visible pairs x heads: about 10 s of f64 arithmetic on two cores.
    pub(crate) const COMPLETE_UP_TO: u64 = 60_000_000;
    /// Above it, so many random rows and columns of each head.
    pub(crate) const SAMPLES_PER_HEAD: usize = 256;

    /// Which check a problem gets.
    pub(crate) fn for_pairs(visible_pairs_times_heads: u64) -> Self {
        if visible_pairs_times_heads <= Self::COMPLETE_UP_TO { Self::Complete } else { Self::Sampled }
    }
}

/// Largest relative errors that count as right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Bounds {
    /// Of O.
    pub output: f64,
    /// Of dQ, dK, dV.
    pub gradient: f64,
}

impl Bounds {
    /// Bounds of an element type. f16 rounds by 2^-11 (4.9e-4), bf16 by 2^-8 (3.9e-3) at worst.
    pub(crate) const fn of(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Self { output: 2e-6, gradient: 2e-6 },
            DType::F16 => Self { output: 2e-3, gradient: 3e-3 },
            DType::Bf16 => Self { output: 5e-3, gradient: 8e-3 },
        }
    }

    /// Whether all errors are within; NaN is not.
    pub(crate) fn hold(&self, forward: &Forward, backward: &Backward) -> bool {
        let gradients = [backward.dq_rel_err, backward.dk_rel_err, backward.dv_rel_err];
        forward.o_rel_err <= self.output
            && forward.lse_max_err.is_finite()
            && gradients.iter().all(|&error| error <= self.gradient)
    }
}

impl Report {
    /// One line: right or wrong, what was run, how much was compared.
    pub(crate) fn verdict(&self) -> String {
        let ok = if self.ok { "ok" } else { "WRONG" };
        let checked = match self.checked {
            Checked::Complete => "every row and column compared".to_owned(),
            Checked::Sampled => format!("{} rows and columns per head compared", Checked::SAMPLES_PER_HEAD),
        };
        let Self { ranks, batch, seq_len, documents, mask, sharding, dtype, .. } = self;
        let density = 100.0 * self.density;
        let run = format!("{ranks} ranks, {sharding}, {batch} x {seq_len} rows, {documents} documents");
        format!(
            "{ok}: {run}, {mask} ({density:.1} % visible), {dtype}, imbalance {:.2}; {checked}",
            self.imbalance
        )
    }

    /// Writes the figures to `path` as a whole: first to a file beside it, which then takes its name.
    ///
    /// # Errors
    /// [`BadInput`] when the folder cannot be written to.
    pub(crate) fn write(&self, path: &Path) -> Result<(), BadInput> {
        let refused = |error: &dyn std::fmt::Display| BadInput(format!("--json {}: {error}", path.display()));
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|e| refused(&e))?;
        serde_json::to_writer_pretty(&mut file, self).map_err(|e| refused(&e))?;
        file.write_all(b"\n").map_err(|e| refused(&e))?;
        file.persist(path).map_err(|e| refused(&e.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Cost = Cost { seconds: 0.5, exposed_seconds: 0.25, bytes_sent: 7, bytes_mask_blind: 9 };
    const FORWARD: Forward = Forward { o_rel_err: 1e-3, lse_max_err: 1e-6, cost: COST };
    const BACKWARD: Backward = Backward { dq_rel_err: 1e-3, dk_rel_err: 2e-3, dv_rel_err: 3e-3, cost: COST };

    fn report() -> Report {
        Report {
            ok: true,
            checked: Checked::Complete,
            ranks: 4,
            seq_len: 8192,
            batch: 1,
            heads_q: 8,
            heads_kv: 2,
            head_dim: 64,
            mask: "causal".to_owned(),
            density: 0.5,
            sharding: "dual-chunk".to_owned(),
            dtype: DType::Bf16,
            documents: 3,
            forward: FORWARD,
            backward: BACKWARD,
            imbalance: 1.0,
        }
    }

    #[test]
    fn the_file_has_exactly_the_documented_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        report().write(&path).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let cost = serde_json::json!({ "seconds": 0.5, "exposed_seconds": 0.25, "bytes_sent": 7, "bytes_mask_blind": 9 });
        let mut wanted = serde_json::json!({
            "ok": true, "checked": "complete", "ranks": 4, "seq_len": 8192, "batch": 1, "heads_q": 8, "heads_kv": 2,
            "head_dim": 64, "mask": "causal", "density": 0.5, "sharding": "dual-chunk", "dtype": "bf16",
            "documents": 3, "imbalance": 1.0,
            "forward": { "o_rel_err": 1e-3, "lse_max_err": 1e-6 },
            "backward": { "dq_rel_err": 1e-3, "dk_rel_err": 2e-3, "dv_rel_err": 3e-3 },
        });
        for pass in ["forward", "backward"] {
            wanted[pass].as_object_mut().unwrap().extend(cost.as_object().unwrap().clone());
        }
        assert_eq!(read, wanted);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = report().write(&folder.path().join("absent/report.json")).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }

    #[test]
    fn one_error_above_its_bound_or_nan_is_not_ok() {
        let bounds = Bounds::of(DType::F16);
        assert!(bounds.hold(&FORWARD, &BACKWARD));
        assert!(!bounds.hold(&Forward { o_rel_err: 2.1e-3, ..FORWARD }, &BACKWARD));
        assert!(!bounds.hold(&Forward { lse_max_err: f64::NAN, ..FORWARD }, &BACKWARD));
        assert!(!bounds.hold(&FORWARD, &Backward { dv_rel_err: 3.1e-3, ..BACKWARD }));
        assert!(!bounds.hold(&FORWARD, &Backward { dk_rel_err: f64::NAN, ..BACKWARD }));
    }

    #[test]
    fn the_check_is_complete_up_to_the_limit() {
        assert_eq!(Checked::for_pairs(60_000_000), Checked::Complete);
        assert_eq!(Checked::for_pairs(60_000_001), Checked::Sampled);
    }
}
