/* A CUDA runtime for tests: one GPU that remembers and copies, but computes nothing.
 *
 * ggml's own CUDA code runs on it unchanged, so all that it does with memory can be checked on a machine without a GPU:
 * what it allocates and when, where buffers lie, what is copied.  Kernels are accepted and not run; what they would
 * write stays as it was, zero in the beginning.  Memory is the host's.
 *
 * Beside CUDA's functions: fake_cuda_allocations, fake_cuda_bytes, fake_cuda_copies (device to device), and
 * fake_cuda_others, which lets another process take so many bytes of the GPU.  FAKE_CUDA_BYTES: its size.
 */
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS 4096
#define EXPORT __attribute__((visibility("default")))

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { void *at; size_t size; } blocks[BLOCKS];
static size_t used, others, copies, allocations;
static __thread int current;

static size_t total(void) {
    const char *text = getenv("FAKE_CUDA_BYTES");
    return text ? strtoull(text, NULL, 10) : (size_t)4 << 30;
}

static cudaError_t take(void **out, size_t size, int counted) {
    pthread_mutex_lock(&lock);
    int slot = -1;
    for (int i = 0; i < BLOCKS && slot < 0; i++)
        if (!blocks[i].at) slot = i;
    if (slot < 0 || (counted && used + others + size > total())) {
        pthread_mutex_unlock(&lock);
        return cudaErrorMemoryAllocation;
    }
    if (posix_memalign(out, 512, size ? size : 1)) {
        pthread_mutex_unlock(&lock);
        return cudaErrorMemoryAllocation;
    }
    memset(*out, 0, size);
    if (counted) {
        blocks[slot].at = *out;
        blocks[slot].size = size;
        used += size;
        allocations++;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

EXPORT size_t fake_cuda_allocations(void) { return allocations; }
EXPORT size_t fake_cuda_bytes(void) { return used; }
EXPORT size_t fake_cuda_copies(void) { return copies; }
EXPORT void fake_cuda_others(size_t size) { others = size; }

/* memory */
EXPORT cudaError_t cudaMalloc(void **out, size_t size) { return take(out, size, 1); }
EXPORT cudaError_t cudaMallocManaged(void **out, size_t size, unsigned flags) { (void)flags; return take(out, size, 1); }
EXPORT cudaError_t cudaMallocHost(void **out, size_t size) { return take(out, size, 0); }
EXPORT cudaError_t cudaHostAlloc(void **out, size_t size, unsigned flags) { (void)flags; return take(out, size, 0); }
EXPORT cudaError_t cudaFreeHost(void *at) { free(at); return cudaSuccess; }
EXPORT cudaError_t cudaFree(void *at) {
    if (!at) return cudaSuccess;
    pthread_mutex_lock(&lock);
    cudaError_t result = cudaErrorInvalidValue; /* not the start of a block: what a part of an arena would be */
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].at == at) {
            used -= blocks[i].size;
            blocks[i].at = NULL;
            free(at);
            result = cudaSuccess;
            break;
        }
    pthread_mutex_unlock(&lock);
    return result;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    size_t gone = used + others;
    *all = total();
    *free_bytes = gone > *all ? 0 : *all - gone;
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)stream;
    if (kind == cudaMemcpyDeviceToDevice) copies++;
    memmove(to, from, n);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int a, const void *from, int b, size_t n, cudaStream_t stream) {
    (void)a; (void)b;
    return cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, stream);
}
EXPORT cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
    (void)stream; (void)kind;
    for (size_t i = 0; i < height; i++) memmove((char *)to + i * to_pitch, (const char *)from + i * from_pitch, width);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void *at, int value, size_t n) { memset(at, value, n); return cudaSuccess; }
EXPORT cudaError_t cudaMemsetAsync(void *at, int value, size_t n, cudaStream_t stream) {
    (void)stream;
    return cudaMemset(at, value, n);
}
EXPORT cudaError_t cudaHostRegister(void *at, size_t n, unsigned flags) { (void)at; (void)n; (void)flags; return cudaSuccess; }
EXPORT cudaError_t cudaHostUnregister(void *at) { (void)at; return cudaSuccess; }
EXPORT cudaError_t cudaHostGetDevicePointer(void **out, void *at, unsigned flags) { (void)flags; *out = at; return cudaSuccess; }

/* the device */
EXPORT cudaError_t cudaGetDeviceCount(int *n) {
    *n = 1;
    return getenv("FAKE_CUDA_NONE") ? cudaErrorNoDevice : cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *device) { *device = current; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int device) { current = device; return cudaSuccess; }
EXPORT cudaError_t cudaSetDeviceFlags(unsigned flags) { (void)flags; return cudaSuccess; }
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
    (void)device;
    memset(found, 0, sizeof *found);
    strcpy(found->name, "fake GPU of the tests");
    found->totalGlobalMem = total();
    found->major = 9;
    found->multiProcessorCount = 8;
    found->sharedMemPerBlock = 48 << 10;
    found->sharedMemPerBlockOptin = 227 << 10;
    found->warpSize = 32;
    found->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr which, int device) {
    (void)which; (void)device;
    *value = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int n, int device) {
    (void)device;
    strncpy(text, "0000:00:00.0", (size_t)n);
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { (void)a; (void)b; *can = 0; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) { (void)peer; (void)flags; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }
EXPORT const char *cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the fake GPU";
}
EXPORT cudaError_t cudaGetLastError(void) { return cudaSuccess; }
EXPORT cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }

/* streams, events, graphs: nothing is ever in flight */
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) { (void)flags; *out = malloc(1); return cudaSuccess; }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) { free(stream); return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) { (void)stream; return cudaSuccess; }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { (void)stream; (void)event; (void)flags; return cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) { (void)stream; (void)mode; return cudaSuccess; }
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) { (void)stream; *out = malloc(1); return cudaSuccess; }
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *out) {
    (void)stream;
    *out = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) { (void)flags; *out = malloc(1); return cudaSuccess; }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { (void)event; (void)stream; return cudaSuccess; }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) { (void)event; return cudaSuccess; }
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long flags) { (void)graph; (void)flags; *out = malloc(1); return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info) { (void)exec; (void)graph; (void)info; return cudaSuccess; }
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) { (void)exec; (void)stream; return cudaSuccess; }
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) { free(graph); return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { free(exec); return cudaSuccess; }

/* kernels: accepted, not run */
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *kernel) {
    (void)kernel;
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute which, int value) { (void)kernel; (void)which; (void)value; return cudaSuccess; }
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *kernel, int size, size_t shared, unsigned flags) {
    (void)kernel; (void)size; (void)shared; (void)flags;
    *n = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **args) { (void)config; (void)kernel; (void)args; return cudaSuccess; }
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    (void)kernel; (void)grid; (void)block; (void)args; (void)shared; (void)stream;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    (void)kernel; (void)grid; (void)block; (void)args; (void)shared; (void)stream;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *out, const void *kernel) { *out = (cudaKernel_t)kernel; return cudaSuccess; }
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) { (void)grid; (void)block; (void)shared; (void)stream; return 0; }
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    dim3 one = {1, 1, 1};
    *grid = *block = one;
    *shared = 0;
    *(void **)stream = NULL;
    return cudaSuccess;
}
EXPORT void **__cudaRegisterFatBinary(void *binary) { (void)binary; static void *handle; return &handle; }
EXPORT void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
EXPORT void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
EXPORT void __cudaRegisterFunction(void **handle, const char *host, char *device, const char *name, int limit, void *a, void *b, void *c, void *d, int *size) {
    (void)handle; (void)host; (void)device; (void)name; (void)limit; (void)a; (void)b; (void)c; (void)d; (void)size;
}
EXPORT void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int ext, size_t size, int constant, int global) {
    (void)handle; (void)host; (void)device; (void)name; (void)ext; (void)size; (void)constant; (void)global;
}
