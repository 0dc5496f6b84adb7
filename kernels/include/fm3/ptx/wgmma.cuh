// Matrix products of a warpgroup (PTX ISA, "wgmma"): 64 x 128 or 64 x 64 accumulators, 16 of the contracted dim per
// instruction.
//
// Accumulator i of thread t (warp w = t / 32, lane l = t % 32) is at row 16 w + l / 4 + 8 ((i >> 1) & 1) and column
// 8 (i >> 2) + 2 (l % 4) + (i & 1).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace fm3 {

// Operand tile in shared memory: panels of 64 columns (128 bytes a row), 128-byte swizzle, at a multiple of 1024 bytes.
// `panel_bytes` is the distance of panels; only operands whose contracted dim runs over rows use it.
__device__ __forceinline__ uint64_t operand(uint32_t shared, uint32_t panel_bytes) {
    constexpr uint64_t kSwizzle128 = 1ull << 62;
    constexpr uint64_t kEightRows = static_cast<uint64_t>(1024 >> 4) << 32;
    const uint32_t low = ((shared & 0x3FFFF) >> 4) | ((panel_bytes >> 4) << 16);
    return kSwizzle128 | kEightRows | low;
}

// `x`, computed anew where it is used: descriptors that a loop does not change would otherwise be kept in registers.
__device__ __forceinline__ uint32_t anew(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

// `operand` moved by `bytes`, which must not leave the 256 KiB window.
__device__ __forceinline__ uint64_t operand_plus(uint64_t operand, uint32_t bytes) {
    return operand + (bytes >> 4);
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until at most `kPending` of the newest groups run.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving ordinary code that touches `registers` across this point.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        asm volatile("" : "+f"(registers[i])::"memory");
    }
}

template <int kCount>
__device__ __forceinline__ void pin(uint32_t (&registers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        asm volatile("" : "+r"(registers[i])::"memory");
    }
}

#define FM3_ACCUMULATORS_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define FM3_OPERANDS_128(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
    "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
    "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
    "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
    "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define FM3_ACCUMULATORS_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FM3_OPERANDS_64(d) \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
    "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
    "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
    "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])

// D (+)= A B with both operands in shared memory. A is contracted over its contiguous dim; B too, or over its rows
// (ROWS 1). `accumulate` 0 drops D. SA, SB, SP: numbers of the operands that follow D.
#define FM3_WGMMA_SHARED(TYPE, COLUMNS, ROWS, SA, SB, SP)                                                   \
    asm volatile(                                                                                           \
        "{\n.reg .pred p;\nsetp.ne.b32 p, " SP ", 0;\n"                                                     \
        "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32." TYPE "." TYPE                               \
        " {" FM3_ACCUMULATORS_##COLUMNS "}, " SA ", " SB ", p, 1, 1, 0, " #ROWS ";\n}"                       \
        : FM3_OPERANDS_##COLUMNS(d)                                                                         \
        : "l"(a), "l"(b), "r"(accumulate))

// D (+)= A B with A in registers and B in shared memory, contracted over the rows of B.
#define FM3_WGMMA_REGISTERS(TYPE)                                                                           \
    asm volatile(                                                                                           \
        "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                       \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {" FM3_ACCUMULATORS_128 "}, "        \
        "{%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"                                                         \
        : FM3_OPERANDS_128(d)                                                                               \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

template <typename Element>
constexpr bool kIsBf16 = std::is_same_v<Element, __nv_bfloat16>;

// 64 x 128, both operands contracted over their contiguous dim.
template <typename Element>
__device__ __forceinline__ void wgmma_shared(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (kIsBf16<Element>) {
        FM3_WGMMA_SHARED("bf16", 128, 0, "%64", "%65", "%66");
    } else {
        FM3_WGMMA_SHARED("f16", 128, 0, "%64", "%65", "%66");
    }
}

// 64 x 64, both operands contracted over their contiguous dim.
template <typename Element>
__device__ __forceinline__ void wgmma_shared(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (kIsBf16<Element>) {
        FM3_WGMMA_SHARED("bf16", 64, 0, "%32", "%33", "%34");
    } else {
        FM3_WGMMA_SHARED("f16", 64, 0, "%32", "%33", "%34");
    }
}

// 64 x 64, B contracted over its rows.
template <typename Element>
__device__ __forceinline__ void wgmma_shared_rows(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (kIsBf16<Element>) {
        FM3_WGMMA_SHARED("bf16", 64, 1, "%32", "%33", "%34");
    } else {
        FM3_WGMMA_SHARED("f16", 64, 1, "%32", "%33", "%34");
    }
}

template <typename Element>
__device__ __forceinline__ void wgmma_registers(float (&d)[64], const uint32_t* a, uint64_t b, int accumulate) {
    if constexpr (kIsBf16<Element>) {
        FM3_WGMMA_REGISTERS("bf16");
    } else {
        FM3_WGMMA_REGISTERS("f16");
    }
}

#undef FM3_WGMMA_SHARED
#undef FM3_WGMMA_REGISTERS
#undef FM3_ACCUMULATORS_128
#undef FM3_OPERANDS_128
#undef FM3_ACCUMULATORS_64
#undef FM3_OPERANDS_64

// Two floats as one register of 16-bit elements, `low` in the low half; rounded to nearest even.
template <typename Element>
__device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t packed;
    if constexpr (kIsBf16<Element>) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    }
    return packed;
}

// The two elements of `pack`, low half first; exact.
template <typename Element>
__device__ __forceinline__ float2 unpack(uint32_t packed) {
    if constexpr (kIsBf16<Element>) {
        return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u)};
    } else {
        return __half22float2(*reinterpret_cast<const __half2*>(&packed));
    }
}

// As `store_matrices`, each matrix transposed.
__device__ __forceinline__ void store_matrices_transposed(
    uint32_t shared, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

// Four 8 x 8 matrices of 16-bit elements from the registers of a warp to 16-byte rows of shared memory.
__device__ __forceinline__ void store_matrices(uint32_t shared, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared), "r"(a), "r"(b),
                 "r"(c), "r"(d)
                 : "memory");
}

// Registers per thread of this warpgroup from here on; all four warps.
template <int kRegisters>
__device__ __forceinline__ void lower_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fm3
