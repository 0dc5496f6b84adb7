/* What NVSHMEM's host headers need of CUDA and of C, in the place of cuda_runtime.h, stdint.h and so on:
   the same bindings on every machine, without a CUDA toolkit and without a C compiler's headers. x86-64 and
   AArch64 Linux agree on every type here. */
#ifndef FM_CP_HOST_H
#define FM_CP_HOST_H
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
#define bool _Bool
#define NULL ((void *)0)
#define static_assert _Static_assert
#define INT_MAX 2147483647

/* Bodies of inline functions; nothing of it reaches the bindings. */
typedef struct FILE FILE;
extern FILE *stderr;
extern int errno;
int fprintf(FILE *, const char *, ...);
char *strerror(int);
void exit(int);

typedef struct CUstream_st *cudaStream_t;
typedef struct CUmod_st *CUmodule;
typedef struct CUlib_st *CUlibrary;

/* Parameters of calls that are not bound. */
typedef struct { unsigned int x, y, z; } dim3;
typedef struct { double x, y; } double2;
typedef struct { unsigned short x; } half;
typedef struct { unsigned short x; } __nv_bfloat16;
#define __host__
#define __device__
#endif
