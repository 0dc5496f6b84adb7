// A pull by NVSHMEM's own device code, beside which the fabric's copies are measured. Attention does not use it.
#include <cstdint>

#include <nvshmem.h>
#include <nvshmemx.h>

#include "fm3/generated/params.h"

extern "C" __device__ const unsigned long long fm3_abi_hash = FM3_ABI_HASH;
// Of the device library that is linked in: major << 16 | minor << 8 | patch.
extern "C" __device__ const uint32_t fm3_nvshmem_version =
    NVSHMEM_VENDOR_MAJOR_VERSION << 16 | NVSHMEM_VENDOR_MINOR_VERSION << 8 | NVSHMEM_VENDOR_PATCH_VERSION;

// `bytes` from the memory of rank `pe`, a share for each block, in units of 16 bytes. Both addresses are of this rank's
// symmetric memory.
extern "C" __global__ void __launch_bounds__(1024)
    fm3_nvshmem_get(uint64_t dst, uint64_t src, uint64_t bytes, int32_t pe) {
    constexpr uint64_t kUnit = 16;
    const uint64_t units = bytes / kUnit;
    const uint64_t begin = units * blockIdx.x / gridDim.x * kUnit;
    const uint64_t end = units * (blockIdx.x + 1) / gridDim.x * kUnit;
    nvshmemx_getmem_block(reinterpret_cast<char*>(dst) + begin, reinterpret_cast<const char*>(src) + begin, end - begin,
                          pe);
}
