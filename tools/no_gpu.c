/* A CUDA driver, runtime, cuBLAS and cuRAND that say yes to everything and compute nothing. See without_gpu.py. */
#include <stdlib.h>
#include <string.h>
#include <driver_types.h> /* types without prototypes, so that a few macros fit all */

#define YES(name) int name() { return 0; }
#define HANDLE(name) int name(void **handle) { *handle = (void *)1; return 0; }
#define ROOM(name) int name(void **pointer, size_t bytes) { *pointer = calloc(1, bytes + 64); return 0; }

/* driver: an H200 as far as anybody asks */
YES(cuInit)
int cuDriverGetVersion(int *version) { *version = CUDA_RELEASE; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int room, int device) { strncpy(name, "no GPU, compiling for sm_90", room); return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) { *value = what == 75 ? 9 : 0; return 0; }

/* runtime: device memory is the host's, launches are forgotten */
cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return 0; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return 0; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *of, int device) {
    memset(of, 0, sizeof *of);
    of->major = 9, of->warpSize = 32, of->maxThreadsPerBlock = 1024, of->multiProcessorCount = 132;
    of->totalGlobalMem = (size_t)1 << 37;
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device) {
    *value = what == cudaDevAttrComputeCapabilityMajor ? 9 : what == cudaDevAttrComputeCapabilityMinor ? 0 : 1024;
    return 0;
}
cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) { *unused = *total = (size_t)1 << 37; return 0; }
cudaError_t cudaFree(void *pointer) { free(pointer); return 0; }
cudaError_t cudaFreeHost(void *pointer) { free(pointer); return 0; }
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    memcpy(to, from, bytes);
    return 0;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t on) {
    memcpy(to, from, bytes);
    return 0;
}
cudaError_t cudaMemset(void *to, int value, size_t bytes) { memset(to, value, bytes); return 0; }
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t on) { memset(to, value, bytes); return 0; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) { *ms = 1; return 0; }
typedef void (*Callback)(cudaStream_t on, int error, void *data);
cudaError_t cudaStreamAddCallback(cudaStream_t on, Callback call, void *data, unsigned flags) {
    call(on, 0, data);
    return 0;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t on, void (*call)(void *), void *data) { call(data); return 0; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *of, const void *function) {
    memset(of, 0, sizeof *of);
    of->binaryVersion = of->ptxVersion = 90, of->maxThreadsPerBlock = 1024;
    return 0;
}
const char *cudaGetErrorString(cudaError_t error) { return "no error: there is no GPU"; }
const char *cudaGetErrorName(cudaError_t error) { return "none"; }
ROOM(cudaMalloc) ROOM(cudaMallocManaged) ROOM(cudaMallocHost)
HANDLE(cudaStreamCreate) HANDLE(cudaStreamCreateWithFlags) HANDLE(cudaEventCreate) HANDLE(cudaEventCreateWithFlags)
YES(cudaSetDevice) YES(cudaStreamDestroy) YES(cudaStreamSynchronize) YES(cudaStreamWaitEvent) YES(cudaEventDestroy)
YES(cudaEventRecord) YES(cudaEventSynchronize) YES(cudaDeviceSynchronize) YES(cudaDeviceReset) YES(cudaGetLastError)
YES(cudaPeekAtLastError) YES(cudaLaunchKernel) YES(cudaLaunchKernelExC) YES(cudaFuncSetAttribute)
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks) { *blocks = 8; return 0; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 8; return 0; }

/* what nvcc's own code calls when a library is loaded or a kernel launched */
void **__cudaRegisterFatBinary(void *binary) { static void *none; return &none; }
YES(__cudaRegisterFatBinaryEnd) YES(__cudaUnregisterFatBinary) YES(__cudaRegisterFunction) YES(__cudaRegisterVar)
YES(__cudaPushCallConfiguration) YES(__cudaPopCallConfiguration) YES(__cudaLaunchKernel) YES(__cudaGetKernel)
char __cudaInitModule(void **binary) { return 1; }

HANDLE(cublasCreate_v2) HANDLE(curandCreateGenerator)
YES(cublasDestroy_v2) YES(cublasSgemm_v2) YES(cublasDgemm_v2) YES(cublasHgemm) YES(cublasGemmEx) YES(cublasSetStream_v2)
YES(cublasGemmStridedBatchedEx) YES(cublasSgemmStridedBatched) YES(cublasDgemmStridedBatched) YES(cublasSetMathMode)
YES(curandDestroyGenerator) YES(curandSetPseudoRandomGeneratorSeed) YES(curandGenerateUniform)
YES(curandGenerateNormal) YES(curandGenerateUniformDouble) YES(curandGenerateNormalDouble)
