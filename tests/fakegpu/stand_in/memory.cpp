// Device memory of the stand-in for CUDA, which is the host's, the copies to and from it, and the counters of calls.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "runtime.h"

namespace {

enum class Kind { none, device, pinned };

struct Block {
    size_t bytes;
    Kind kind;
};

// Never destroyed: libraries call in here while the process ends.
struct State {
    std::mutex mutex;
    std::map<std::string, unsigned long long> counts;
    std::map<char*, Block> blocks;
    std::map<char*, std::string> kept;
    size_t used = 0;
    unsigned long long bytes = 0;
};

State& state() {
    static State* only = new State;
    return *only;
}

using Lock = std::lock_guard<std::mutex>;

cudaError_t allocate(void** pointer, size_t bytes, Kind kind) {
    bytes = bytes ? bytes : 1;
    Lock lock(state().mutex);
    if (kind == Kind::device && state().used + bytes > device_bytes()) return cudaErrorMemoryAllocation;
    void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return cudaErrorMemoryAllocation;
    state().blocks[static_cast<char*>(found)] = {bytes, kind};
    if (kind == Kind::device) state().used += bytes;
    *pointer = found;
    return cudaSuccess;
}

cudaError_t release(void* pointer) {
    Lock lock(state().mutex);
    auto found = state().blocks.find(static_cast<char*>(pointer));
    if (found == state().blocks.end()) return cudaSuccess;
    if (found->second.kind == Kind::device) state().used -= found->second.bytes;
    munmap(pointer, found->second.bytes);
    state().blocks.erase(found);
    return cudaSuccess;
}

// The block that a pointer points into, or end().
std::map<char*, Block>::iterator block_of(const void* pointer) {
    auto address = static_cast<char*>(const_cast<void*>(pointer));
    auto found = state().blocks.upper_bound(address);
    if (found == state().blocks.begin()) return state().blocks.end();
    --found;
    return address < found->first + found->second.bytes ? found : state().blocks.end();
}

Kind kind_of(const void* pointer) {
    Lock lock(state().mutex);
    auto found = block_of(pointer);
    return found == state().blocks.end() ? Kind::none : found->second.kind;
}

cudaError_t copy(void* to, const void* from, size_t bytes) {
    bool to_device = kind_of(to) == Kind::device, from_device = kind_of(from) == Kind::device;
    fakecuda_mark(to_device ? (from_device ? "copy D2D" : "copy H2D") : from_device ? "copy D2H" : "copy H2H");
    memmove(to, from, bytes);
    return cudaSuccess;
}

}  // namespace

// Read once in each process: while another thread changes the environment, getenv may find nothing.
unsigned long long setting(const char* name, unsigned long long otherwise) {
    static std::mutex* mutex = new std::mutex;
    static auto* known = new std::map<std::string, unsigned long long>;
    static pid_t reader = 0;
    Lock lock(*mutex);
    if (reader != getpid()) known->clear();
    reader = getpid();
    auto [found, is_new] = known->try_emplace(name, otherwise);
    const char* text = is_new ? getenv(name) : nullptr;
    if (text) found->second = strtoull(text, nullptr, 10);
    return found->second;
}

unsigned long long device_bytes() {
    return state().bytes ? state().bytes : setting("FAKE_CUDA_BYTES", 80ull << 30);
}

CUresult driver_address_range(CUdeviceptr* base, size_t* bytes, CUdeviceptr pointer) {
    Lock lock(state().mutex);
    auto found = block_of(reinterpret_cast<void*>(pointer));
    if (found == state().blocks.end()) return CUDA_ERROR_NOT_FOUND;
    if (base) *base = reinterpret_cast<CUdeviceptr>(found->first);
    if (bytes) *bytes = found->second.bytes;
    return CUDA_SUCCESS;
}

extern "C" {

// ---- what tests read and set

void fakecuda_mark(const char* name) {
    Lock lock(state().mutex);
    state().counts[name]++;
    static const bool trace = getenv("FAKE_CUDA_TRACE");
    if (trace) fprintf(stderr, "[fakecuda] %s\n", name);
}

unsigned long long fakecuda_count(const char* name) {
    Lock lock(state().mutex);
    return state().counts[name];
}

void fakecuda_reset() {
    Lock lock(state().mutex);
    state().counts.clear();
}

void fakecuda_set_bytes(unsigned long long bytes) { state().bytes = bytes; }

unsigned long long fakecuda_used() { return state().used; }

void fakecuda_keep() {
    Lock lock(state().mutex);
    state().kept.clear();
    for (auto& [address, block] : state().blocks)
        if (block.kind == Kind::device) state().kept[address] = std::string(address, block.bytes);
}

void fakecuda_put_back() {
    Lock lock(state().mutex);
    for (auto& [address, bytes] : state().kept) {
        auto found = state().blocks.find(address);
        if (found != state().blocks.end() && found->second.bytes == bytes.size())
            memcpy(address, bytes.data(), bytes.size());
    }
    state().kept.clear();
}

// ---- memory

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    fakecuda_mark("cudaMalloc");
    return allocate(pointer, bytes, Kind::device);
}

cudaError_t cudaFree(void* pointer) { return release(pointer); }

cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
    fakecuda_mark("cudaHostAlloc");
    return allocate(pointer, bytes, Kind::pinned);
}

cudaError_t cudaFreeHost(void* pointer) { return release(pointer); }

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
    *total_bytes = device_bytes();
    *free_bytes = *total_bytes > state().used ? *total_bytes - state().used : 0;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    memset(attributes, 0, sizeof *attributes);
    Kind kind = kind_of(pointer);
    attributes->type = kind == Kind::device   ? cudaMemoryTypeDevice
                       : kind == Kind::pinned ? cudaMemoryTypeHost
                                              : cudaMemoryTypeUnregistered;
    attributes->device = -2;
    if (kind != Kind::none) cudaGetDevice(&attributes->device);
    attributes->devicePointer = const_cast<void*>(pointer);
    attributes->hostPointer = kind == Kind::pinned ? const_cast<void*>(pointer) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    fakecuda_mark("wait");
    return copy(to, from, bytes);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return copy(to, from, bytes);
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
    return copy(to, from, bytes);
}

cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
    fakecuda_mark("memset");
    memset(to, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** pointer, const void* symbol) {
    *pointer = const_cast<void*>(symbol);
    return cudaSuccess;
}

}  // extern "C"
