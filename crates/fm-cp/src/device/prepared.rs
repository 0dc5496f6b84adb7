//! What a preparation has on the device: the mask's tables, and where the segments of keys lie.
use std::sync::{Arc, Weak};

use cp_overlap::RankPlan;
use cp_overlap::plan::KeyPlaces;
use fm3_kernels::cuda::{CudaError, KeyTable, PreparedMask, SegmentAt};
use fm3_kernels::mask::KeySegments;
use fm3_kernels::{DType, FlashMask};

use super::{DeviceGroup, raw};
use crate::Error;

/// Elements of a head that the kernels take.
const HEAD_DIM: usize = 128;

/// Uploaded once; calls on any stream read it.
#[derive(Debug)]
pub(crate) struct DevicePrepared {
    pub(super) mask: PreparedMask,
    pub(super) table: KeyTable,
    pub(super) places: KeyPlaces,
    /// The group whose words the table names.
    group: Weak<()>,
}

impl DeviceGroup {
    /// Uploads `mask`, which is this rank's. Waits until it is there.
    pub(crate) fn prepare(&self, plan: &RankPlan, mask: &FlashMask) -> Result<DevicePrepared, Error> {
        check_kernels_take(plan)?;
        let places = plan.key_places()?;
        let rows = plan.segments.iter().map(|segment| segment.rows).collect();
        let segments = KeySegments::new(rows)?;
        let mut table = Vec::with_capacity(plan.segments.len());
        for (segment, place) in plan.segments.iter().zip(&places.segments) {
            let signal = match place {
                Some(_) => {
                    Some(raw::signal(self.session.fabric(), self.session.ready_signal(segment.owner))?)
                }
                None => None,
            };
            // Map 0 is for local keys.
            let (map, slab) = place.map_or((0, 0), |at| (at.length + 1, at.slab));
            table.push(SegmentAt { rows: segment.rows, map, slab, signal });
        }
        let mask = PreparedMask::new(self.attention.kernels(), &self.uploads, mask, &segments)?;
        let table = KeyTable::new(&self.uploads, &table)?;
        self.uploads.synchronize().map_err(|error| raw::driver("cuStreamSynchronize", error))?;
        Ok(DevicePrepared { mask, table, places, group: Arc::downgrade(&self.identity) })
    }

    /// Whether this group prepared it.
    pub(super) fn has_prepared(&self, prepared: &DevicePrepared) -> bool {
        prepared.group.upgrade().is_some_and(|group| Arc::ptr_eq(&group, &self.identity))
    }
}

fn check_kernels_take(plan: &RankPlan) -> Result<(), Error> {
    let (call, dims) = ("CpGroup::prepare", plan.shape.dims());
    if plan.dtype == DType::F32 {
        let rule = "the kernels take bf16 and f16";
        let error = CudaError::Type { call, tensor: "q", got: plan.dtype, rule };
        return Err(fm3_kernels::Error::from(error).into());
    }
    if dims.head_dim != HEAD_DIM {
        let (got, expected) = (dims.head_dim, HEAD_DIM);
        return Err(
            fm3_kernels::Error::Mismatch { call, tensor: "q", axis: "head_dim", got, expected }.into()
        );
    }
    Ok(())
}
