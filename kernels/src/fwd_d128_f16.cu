// Attention forward, head dim 128, f16.
#include "fm3/attn/forward.cuh"

extern "C" __device__ const unsigned long long fm3_abi_hash = FM3_ABI_HASH;
extern "C" __device__ const uint32_t fm3_smem_bytes = fm3::offset::kEnd;

extern "C" __global__ void __launch_bounds__(fm3::kForwardThreads, 1)
    fm3_fwd_d128_f16(const __grid_constant__ fm3::ForwardParams p) {
    fm3::forward<__half>(p);
}

extern "C" __global__ void __launch_bounds__(fm3::kForwardThreads, 1)
    fm3_fwd_d128_timed_f16(const __grid_constant__ fm3::ForwardParams p) {
    fm3::forward<__half, true>(p);
}
