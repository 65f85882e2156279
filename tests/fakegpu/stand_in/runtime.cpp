// The CUDA runtime without a GPU, beside memory.cpp: kernels are counted and do nothing.
// Streams and events are mere handles, as every call is done when it returns.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "runtime.h"
#undef cudaGetDeviceProperties

namespace {

const int kVersion = CUDART_VERSION;

std::mutex kernels_mutex;
// Never destroyed: libraries call in here while the process ends.
auto& kernels = *new std::map<const void*, std::string>;
thread_local int current_device = 0;
std::atomic<bool> capturing{false};
std::atomic<cudaStream_t> captured_stream{nullptr};

int num_devices() { return static_cast<int>(setting("FAKE_CUDA_DEVICES", 1)); }

// What makes the host wait; refused while a graph is captured, as by CUDA.
cudaError_t wait() {
    fakecuda_mark("wait");
    return capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t launch(const void* kernel) {
    fakecuda_mark("launch");
    static const bool by_name = getenv("FAKE_CUDA_KERNELS");
    if (by_name) {
        std::string name;
        {
            std::lock_guard<std::mutex> lock(kernels_mutex);
            name = "kernel " + kernels[kernel];
        }
        fakecuda_mark(name.c_str());
    }
    return cudaSuccess;
}

struct LaunchConfiguration {
    dim3 grid, block;
    size_t shared;
    void* stream;
};
thread_local LaunchConfiguration configurations[16];
thread_local unsigned num_configurations = 0;

CUresult driver_success() { return CUDA_SUCCESS; }

CUresult driver_context_state(CUdevice, unsigned* flags, int* active) {
    if (flags) *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}

CUresult driver_current_context(CUcontext* context) {
    *context = reinterpret_cast<CUcontext>(1);
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" {

// ---- devices

cudaError_t cudaGetDeviceCount(int* count) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    *count = driver < kVersion ? 0 : num_devices();
    return *count ? cudaSuccess : driver < kVersion ? cudaErrorInsufficientDriver : cudaErrorNoDevice;
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= num_devices()) return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Fake H100");
    p->totalGlobalMem = device_bytes();
    p->major = 9;
    p->multiProcessorCount = 132;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->l2CacheSize = 50 << 20;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->totalConstMem = 65536;
    p->textureAlignment = 512;
    p->concurrentKernels = p->unifiedAddressing = p->canMapHostMemory = 1;
    p->maxBlocksPerMultiProcessor = 32;
    p->pciBusID = device + 1;
    p->uuid.bytes[0] = static_cast<char>(device + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    static const std::map<int, int> values = {
        {cudaDevAttrComputeCapabilityMajor, 9},      {cudaDevAttrComputeCapabilityMinor, 0},
        {cudaDevAttrMultiProcessorCount, 132},       {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxThreadsPerMultiProcessor, 2048}, {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxSharedMemoryPerBlock, 49152}, {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
        {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472}, {cudaDevAttrMaxGridDimX, 2147483647},
        {cudaDevAttrMaxGridDimY, 65535},             {cudaDevAttrMaxGridDimZ, 65535},
        {cudaDevAttrMaxBlockDimX, 1024},             {cudaDevAttrMaxBlockDimY, 1024},
        {cudaDevAttrMaxBlockDimZ, 64},               {cudaDevAttrL2CacheSize, 50 << 20},
        {cudaDevAttrMaxRegistersPerBlock, 65536},    {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
    };
    auto found = values.find(attribute);
    *value = found == values.end() ? 1 : found->second;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* text, int bytes, int device) {
    snprintf(text, bytes, "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
    *can = 1;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = static_cast<int>(setting("FAKE_CUDA_DRIVER", kVersion));
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = kVersion;
    return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in for CUDA"; }
const char* cudaGetErrorName(cudaError_t) { return "fakeError"; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

// ---- streams, events, graphs

cudaError_t cudaStreamCreate(cudaStream_t* s) { return *s = new_handle<cudaStream_t>(), cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return cudaStreamCreate(s); }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* e) { return *e = new_handle<cudaEvent_t>(), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1.0f, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return wait(); }
// A stream beside the captured one may be waited for, as CUDA allows where capture is relaxed.
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    cudaError_t result = wait();
    return stream == captured_stream ? result : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return wait(); }

cudaStreamCaptureStatus capture_status() {
    return capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    *status = capture_status();
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    capturing = true;
    captured_stream = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    capturing = false;
    *graph = new_handle<cudaGraph_t>();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) {
    *graph = new_handle<cudaGraphExec_t>();
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
    fakecuda_mark("graph");
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t, cudaGraphNode_t*, size_t* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t*,
                                     const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
    *status = capture_status();
    if (id) *id = capturing ? 7 : 0;
    return cudaSuccess;
}

// ---- kernels: nvcc registers each by its host function, and pushes a launch's configuration before it

void** __cudaRegisterFatBinary(void*) { return new_handle<void**>(); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    std::lock_guard<std::mutex> lock(kernels_mutex);
    kernels[host] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
    configurations[num_configurations++ % 16] = {grid, block, shared, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    const LaunchConfiguration& top = configurations[--num_configurations % 16];
    *grid = top.grid;
    *block = top.block;
    *shared = top.shared;
    *static_cast<void**>(stream) = top.stream;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) { return launch(kernel); }
cudaError_t cudaLaunchKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t) { return launch(f); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* f, void**) { return launch(f); }
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3, dim3, void**, size_t, cudaStream_t) { return launch(f); }

cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void* data) {
    function(data);
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->numRegs = 32;
    attributes->ptxVersion = attributes->binaryVersion = 90;
    attributes->maxDynamicSharedSizeBytes = 49152;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
    *blocks = 2;
    return cudaSuccess;
}

// ---- the driver, whose functions torch asks for by name

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
    static const std::map<std::string, void*> functions = {
        {"cuDevicePrimaryCtxGetState", reinterpret_cast<void*>(driver_context_state)},
        {"cuMemGetAddressRange", reinterpret_cast<void*>(driver_address_range)},
        {"cuCtxGetCurrent", reinterpret_cast<void*>(driver_current_context)},
    };
    if (result) *result = cudaDriverEntryPointSuccess;
    auto found = functions.find(name);
    *function = found == functions.end() ? reinterpret_cast<void*>(driver_success) : found->second;
    return cudaSuccess;
}

}  // extern "C"
