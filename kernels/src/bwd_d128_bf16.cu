// Attention backward, head dim 128, bf16: the passes before and after, the kernel, and its other forms.
#include "fm3/attn/backward.cuh"
#include "fm3/attn/backward_passes.cuh"

extern "C" __device__ const unsigned long long fm3_abi_hash = FM3_ABI_HASH;
extern "C" __device__ const uint32_t fm3_smem_bytes = fm3::backward::offset::kEnd;

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_prepare_bf16(const __grid_constant__ fm3::BackwardPrepareParams p) {
    fm3::backward::prepare<__nv_bfloat16>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_bf16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__nv_bfloat16>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_finish_bf16(const __grid_constant__ fm3::BackwardFinishParams p) {
    fm3::backward::finish<__nv_bfloat16>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_part_bf16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__nv_bfloat16, fm3::backward::Part>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_slots_bf16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__nv_bfloat16, fm3::backward::SlotsPart>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_ordered_bf16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__nv_bfloat16, fm3::backward::OrderedPart>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_ordered_slots_bf16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__nv_bfloat16, fm3::backward::OrderedSlotsPart>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kOrderThreads)
    fm3_bwd_order_bf16(const __grid_constant__ fm3::BackwardOrderParams p) {
    fm3::backward::order(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_finish_part_bf16(const __grid_constant__ fm3::BackwardFinishParams p) {
    fm3::backward::finish<__nv_bfloat16, true>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kThreads, 1)
    fm3_bwd_d128_split_bf16(const __grid_constant__ fm3::BackwardParams p) {
    fm3::backward::run<__nv_bfloat16, fm3::backward::Split>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_sum_bf16(const __grid_constant__ fm3::BackwardSumParams p) {
    fm3::backward::sum_parts<__nv_bfloat16>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::backward::kPassThreads)
    fm3_bwd_sum_f32_bf16(const __grid_constant__ fm3::BackwardSumParams p) {
    fm3::backward::sum_parts<float>(p);
}
