// Attention backward, head dim 128, f16: the passes before and after, the kernel, and its other forms.
#include "fm3/attn/backward.cuh"
#include "fm3/attn/backward_passes.cuh"

extern "C" __device__ const unsigned long long fm3_abi_hash = FM3_ABI_HASH;
extern "C" __device__ const uint32_t fm3_smem_bytes = fm3::backward::offset::kEnd;

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_prepare_f16(const __grid_constant__ fm3::BackwardPrepareParams p) {
    fm3::backward::prepare<__half>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_f16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__half>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_finish_f16(const __grid_constant__ fm3::BackwardFinishParams p) {
    fm3::backward::finish<__half>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_part_f16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__half, fm3::backward::Part>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_slots_f16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__half, fm3::backward::SlotsPart>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_ordered_f16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__half, fm3::backward::OrderedPart>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_ordered_slots_f16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__half, fm3::backward::OrderedSlotsPart>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kOrderThreads)
    fm3_bwd_order_f16(const __grid_constant__ fm3::BackwardOrderParams p) {
    fm3::backward::order(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_finish_part_f16(const __grid_constant__ fm3::BackwardFinishParams p) {
    fm3::backward::finish<__half, true>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_split_f16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__half, fm3::backward::Split>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_sum_f16(const __grid_constant__ fm3::BackwardSumParams p) {
    fm3::backward::sum_parts<__half>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_sum_f32_f16(const __grid_constant__ fm3::BackwardSumParams p) {
    fm3::backward::sum_parts<float>(p);
}
