//! What needs bare addresses: probes, pulls from a peer, NVSHMEM's own calls on streams.
#![expect(
    unsafe_code,
    reason = "kernels and copies are given addresses of regions that this program has allocated"
)]
use std::ffi::c_void;

use anyhow::Context;
use fabric_bench::Pull;
use fm3_kernels::cuda::Blocks;
use fm3_kernels::params::{ProbeCopyParams, ProbeEchoParams};
use nvshmem_sys::result::stream::{Completion, Signal, Transfer, put_signal, quiet};
use symm_buffer::nvshmem::cudarc::driver::{CudaStream, sys};
use symm_buffer::nvshmem::{DeviceSource, NvshmemStream};
use symm_buffer::{Bytes, Epoch, Fabric, Pe, RegionId, Span};

use crate::rank::Rank;

/// As the driver says it.
pub(crate) fn driver_version() -> anyhow::Result<String> {
    let mut version = 0;
    // SAFETY: the pointer is to a live int.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

impl Rank {
    fn there(&self, pe: Pe, offset: usize, len: usize) -> anyhow::Result<u64> {
        let span = Span { region: self.region, offset, len };
        Ok(self.fabric.peer_address(pe, span).context("the peer's memory is out of reach")?.0)
    }

    /// Queues a copy to the peer by `blocks` multiprocessors.
    pub(crate) fn copy_by_kernel(
        &self,
        stream: &CudaStream,
        blocks: Blocks,
        bytes: usize,
    ) -> anyhow::Result<()> {
        let (src, dst) = (self.there(self.me(), 0, bytes)?, self.there(self.peer(), self.most, bytes)?);
        let params = ProbeCopyParams { dst, src, bytes: bytes as u64 };
        // SAFETY: both spans were checked, and the region lives until all streams are drained.
        Ok(unsafe { self.probes.copy(stream, blocks, &params) }?)
    }

    /// Queues the kernel that answers each value of my word 1 from `base` on with word 2 of the peer, for the host and its
    /// streams to see.
    pub(crate) fn answer(&self, stream: &CudaStream, base: Epoch, rounds: u64) -> anyhow::Result<()> {
        let params = ProbeEchoParams {
            word: self.fabric.signal_address(self.word(1))?,
            reply: self.fabric.post_address(self.peer(), self.word(2))?.host,
            base: base.0,
            rounds,
            deadline_ns: 20_000_000_000,
        };
        // SAFETY: both words are the fabric's, which outlives the kernel: its stream is drained before the end.
        Ok(unsafe { self.probes.echo(stream, &params) }?)
    }

    /// Lends the peer's memory as a source: a put to myself is then a pull.
    pub(crate) fn with_peer<R>(&self, bytes: usize, body: impl FnOnce(RegionId) -> R) -> anyhow::Result<R> {
        let address = self.there(self.peer(), 0, bytes)?;
        // SAFETY: the span was checked; nobody changes the first half of a region while ranks measure.
        let source = unsafe { DeviceSource::from_raw(address, Bytes(bytes)) };
        // SAFETY: as before; the region lives until all streams are drained.
        Ok(unsafe { self.fabric.lend(&[source], |ids| body(ids[0])) })
    }

    /// Queues a pull from the peer by `blocks` blocks that call NVSHMEM, if there is such a kernel.
    pub(crate) fn get_in_kernel(
        &self,
        stream: &CudaStream,
        blocks: Blocks,
        bytes: usize,
    ) -> anyhow::Result<()> {
        let device_side = self.device_side.as_ref().context("no kernel that calls NVSHMEM")?;
        let mine = |offset| self.there(self.me(), offset, bytes);
        let pull = Pull { src: mine(0)?, dst: mine(self.most)?, bytes: bytes as u64, peer: self.peer() };
        // SAFETY: both spans were checked and are symmetric; nobody changes the first half of a region while ranks
        // measure; the rank is of the world.
        unsafe { device_side.pull(stream, blocks, pull) }
    }

    /// Takes the kernel that calls NVSHMEM from it, when all is measured.
    pub(crate) fn end_device_side(&mut self) -> anyhow::Result<()> {
        let Some(device_side) = self.device_side.take() else { return Ok(()) };
        // SAFETY: each measurement has drained the stream of its pulls.
        self.world.with_session(|session| unsafe { device_side.close(session) })?
    }

    /// Queues NVSHMEM's own put with signal.
    pub(crate) fn put_by_nvshmem(
        &self,
        stream: &NvshmemStream,
        bytes: usize,
        value: Epoch,
    ) -> anyhow::Result<()> {
        let mine = |offset| self.there(self.me(), offset, bytes);
        let copy = Transfer {
            dest: mine(self.most)? as *mut c_void,
            source: mine(0)? as *const c_void,
            bytes,
            pe: i32::try_from(self.peer().0)?,
        };
        let signal = Signal { word: self.fabric.signal_address(self.word(1))? as *mut u64, value: value.0 };
        let on = stream.cuda().cu_stream().cast();
        self.world.with_session(|session| {
            // SAFETY: symmetric memory of this session and a word of it, a rank of the world, a live stream.
            unsafe { put_signal(session.api(), copy, signal, Completion::AtQuiet, on) };
            // SAFETY: as before.
            unsafe { quiet(session.api(), on) };
        })?;
        Ok(())
    }
}
