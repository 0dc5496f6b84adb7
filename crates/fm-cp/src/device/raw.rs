//! Addresses of the group's symmetric memory, and of the caller's tensors, as what kernels and puts take.
//!
//! One argument is behind all of it. A group's words and regions stay where they are until every rank has come to a
//! collective that frees them, and that begins with all streams of the group drained; a group that is dropped without
//! one gives no memory back. Kernels of the group are launched on its streams only, between two puts of their call, so
//! they are over when the streams are drained.
#![expect(unsafe_code, reason = "symmetric memory and the sources of puts are bare addresses")]
use std::sync::Arc;

use cp_overlap::exec::{self, Handle, SourceTensor, Sources};
use cp_overlap::plan::RemoteKeys;
use cp_overlap::{RankPlan, Session};
use fm3_kernels::DType;
use fm3_kernels::cuda::cudarc::driver::{CudaContext, CudaStream};
use fm3_kernels::cuda::{AbortWord, CudaError, DeviceView, KeyExtents, KeyMap, KeyStrides, KeyView, Signal};
use symm_buffer::nvshmem::{DeviceSource, NvshmemFabric, NvshmemStream};
use symm_buffer::{Bytes, RegionId, SignalId, Span};

use super::launch::Launch;
use crate::Error;

/// A stream beside those of callers.
pub(super) fn new_stream(context: &Arc<CudaContext>) -> Result<Arc<CudaStream>, Error> {
    context.new_stream().map_err(|error| driver("cuStreamCreate", error))
}

/// The driver's answer as this crate's error.
pub(super) fn driver(call: &'static str, error: fm3_kernels::cuda::cudarc::driver::DriverError) -> Error {
    let (code, text) = (error.0 as u32, error.to_string());
    fm3_kernels::Error::from(CudaError::Driver { call, code, text }).into()
}

/// A word of the group, for tables of calls of the same group.
pub(super) fn signal(fabric: &NvshmemFabric, id: SignalId) -> Result<Signal, Error> {
    let address = fabric.signal_address(id)?;
    // SAFETY: the word is in the group's memory; its writer posts it in stream order behind the copies that it stands for.
    Ok(unsafe { Signal::new(address) }?)
}

/// The word that ends kernels when the group has given up.
pub(super) fn abort_word(fabric: &NvshmemFabric) -> Result<AbortWord, Error> {
    // SAFETY: the word is in memory of the host that the group has registered with the device, and stays so as long as
    // the group's streams have work.
    Ok(unsafe { AbortWord::foreign(fabric.abort_address()) }?)
}

/// What remote keys are made of.
#[derive(Clone, Copy)]
pub(super) struct HeadForm {
    pub(super) dtype: DType,
    pub(super) head_dim: usize,
}

/// Remote segments of one length in a half of the gather buffer.
pub(super) fn remote_keys(
    fabric: &NvshmemFabric,
    half: Span,
    keys: &RemoteKeys,
    form: HeadForm,
) -> Result<KeyMap<'static>, Error> {
    let RemoteKeys { rows, heads_per_group, groups, group_stride, slab_stride, slabs, .. } = *keys;
    let HeadForm { dtype, head_dim } = form;
    let extents = KeyExtents { rows, heads_per_group, groups, slabs, head_dim };
    let strides = KeyStrides {
        rows: heads_per_group * head_dim,
        heads: head_dim,
        groups: group_stride,
        slabs: slab_stride,
    };
    let elements =
        (slabs - 1) * slab_stride + (groups - 1) * group_stride + rows * heads_per_group * head_dim;
    let view = |Bytes(offset): Bytes| {
        // Only a tensor that is inside the half has an address.
        let span = Span { region: half.region, offset: half.offset + offset, len: elements * dtype.size() };
        if offset + span.len > half.len {
            let region_len = Bytes(half.len);
            return Err(Error::from(symm_buffer::Error::OutOfRange { call: "forward", span, region_len }));
        }
        let address = fabric.address(span)?;
        // SAFETY: all elements are in the half, which is the group's memory. Peers write rows of this use before they
        // post the segment's word, for which the kernel waits, and those of the use after next when this rank has posted
        // that its kernel is over.
        Ok(unsafe { KeyView::from_raw(address, dtype, extents, strides) }?)
    };
    Ok(KeyMap { k: view(keys.k)?, v: view(keys.v)? })
}

/// Enqueues a call whose puts read K and V in place. `stream` is the views' own, which the caller has checked.
pub(super) fn enqueue(
    session: &mut Session<NvshmemFabric>,
    (plan, options): (&RankPlan, u64),
    stream: &Arc<NvshmemStream>,
    launch: &mut Launch<'_>,
) -> Result<Handle<NvshmemFabric>, cp_overlap::Error> {
    let (k, v) = (launch.call.k, launch.call.v);
    let source = |view: &DeviceView<'_>| {
        let len = Bytes(view.reach() * view.dtype().size());
        // SAFETY: the view's maker has checked, or promised, that so much is there and stays as it is until work that is
        // enqueued on its stream while the view lives has run; the puts are between two points of that stream.
        unsafe { DeviceSource::from_raw(view.address(), len) }
    };
    let fabric = session.fabric().clone();
    let call = |regions: &[RegionId]| {
        let tensor =
            |memory: RegionId, view: &DeviceView<'_>| SourceTensor { memory, strides: view.strides() };
        let sources = Sources { k: tensor(regions[0], k), v: tensor(regions[1], v) };
        session.enqueue(exec::ForwardCall { plan, options, sources, stream }, launch)
    };
    // SAFETY: the session makes the stream of the views go on only behind the puts (rule S5); when it fails it has waited
    // for them, or for a device that does nothing any more until the deadline.
    unsafe { fabric.lend(&[source(k), source(v)], call) }
}
