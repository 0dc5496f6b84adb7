//! A kernel that calls NVSHMEM pulls the words that the other rank has stored, and no others.
#![expect(unsafe_code, reason = "a kernel is given addresses of the fabric")]
#[path = "../../symm-buffer/tests/processes/mod.rs"]
mod processes;

use fabric_bench::{DeviceSide, Pull};
use fm3_kernels::cuda::{Blocks, KernelSource};
use fm3_kernels::params::{Source, pattern};
use processes::{LONG, expect_success, gpus, join, part, start};
use symm_buffer::{Bytes, Fabric, Span};

/// Half of a region: not a multiple of what a block takes.
const HALF: usize = (1 << 20) + 48;

#[test]
fn pulls_in_a_kernel_bring_the_other_ranks_words() {
    if gpus() == 0 {
        println!("SKIPPED: no GPU to run NVSHMEM's device code on; FM_REQUIRE_GPU=1 makes this a failure");
        return;
    }
    for ranks in [1, 2, 3] {
        expect_success(start("one_rank", ranks, 0, &[]));
    }
}

#[test]
#[ignore = "is started by the other"]
fn one_rank() {
    let Some(part) = part() else { return };
    let world = join(&part, LONG).unwrap();
    let fabric = world.fabric(LONG).unwrap();
    let source = KernelSource::Search;
    let device_side = world.with_session(|session| DeviceSide::load(fabric.context(), session, &source));
    let device_side =
        device_side.unwrap().unwrap().expect("`cargo xtask build-kernels --nvshmem` makes the kernel");
    let region = fabric.alloc(Bytes(2 * HALF), LONG).unwrap();
    let half = |offset| Span { region, offset, len: HALF };
    let words =
        |rank: u32| -> Vec<u32> { (0..).take(HALF / 4).map(|index| pattern(Source(rank), index)).collect() };
    let me = fabric.me();
    fabric.store(half(0), bytemuck::cast_slice(&words(me.0))).unwrap();
    let stream = fabric.stream("pull").unwrap();
    for peer in fabric.world().ranks() {
        for blocks in [1, 7, 200] {
            fabric.store(half(HALF), &vec![0xFF; HALF]).unwrap();
            fabric.barrier(LONG).unwrap();
            let pull = Pull {
                src: fabric.address(half(0)).unwrap(),
                dst: fabric.address(half(HALF)).unwrap(),
                bytes: HALF as u64,
                peer,
            };
            // SAFETY: both halves are symmetric memory of all ranks; first halves do not change any more.
            unsafe { device_side.pull(stream.cuda(), Blocks(blocks), pull) }.unwrap();
            fabric.synchronize(&stream, LONG).unwrap();
            let got: Vec<u32> = bytemuck::pod_collect_to_vec(&fabric.load(half(HALF)).unwrap());
            assert_eq!(got, words(peer.0), "{me} from {peer} with {blocks} blocks");
        }
    }
    fabric.barrier(LONG).unwrap();
    // SAFETY: all pulls are done.
    world.with_session(|session| unsafe { device_side.close(session) }).unwrap().unwrap();
    fabric.free(region, LONG).unwrap();
    drop(stream);
    fabric.close(LONG).unwrap();
    world.finalize(LONG).unwrap();
}
