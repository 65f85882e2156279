// NCCL over a file in shared memory, for ranks whose device memory is the host's. Numbers are right: sums are made in the
// order of the ranks. A collective is done when its call returns.
//
// Each rank has a slot in the file. It copies what it sends into its own slot, waits for the others, reads their slots,
// and waits again before anybody may write the next message.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

#include "runtime.h"

namespace {

const size_t kHeaderBytes = 4096;
const size_t kSlotBytes = 128u << 20;  // of a sparse file: only what is written takes memory

struct Header {
    std::atomic<int> arrived, round;
};

struct Communicator {
    int size, rank;
    char* file;
    int round = 0;
    std::atomic<bool> aborted{false};

    Header& header() { return *reinterpret_cast<Header*>(file); }
    char* slot(int of_rank) { return file + kHeaderBytes + of_rank * kSlotBytes; }
    char* own_slot() { return slot(rank); }
};

enum class Kind { all_reduce, broadcast, all_gather, reduce, all_to_all, send, receive };

struct Operation {
    Kind kind;
    const void* from;
    void* to;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t reduction;
    int peer;
    Communicator* communicator;
};

thread_local int group_depth = 0;
thread_local std::vector<Operation> in_group;

// False where the communicator was aborted, or FAKE_NCCL_TIMEOUT seconds are over.
bool wait_for_all(Communicator& c) {
    static const double limit = getenv("FAKE_NCCL_TIMEOUT") ? atof(getenv("FAKE_NCCL_TIMEOUT")) : 1e9;
    if (c.size == 1) return true;
    c.round++;
    if (c.header().arrived.fetch_add(1) == c.size - 1) {
        c.header().arrived = 0;
        c.header().round = c.round;
        return true;
    }
    auto began = std::chrono::steady_clock::now();
    while (c.header().round.load() < c.round) {
        std::chrono::duration<double> waited = std::chrono::steady_clock::now() - began;
        if (c.aborted || waited.count() > limit) return false;
        usleep(50);
    }
    return true;
}

size_t bytes_of(ncclDataType_t type) {
    switch (type) {
        case ncclInt32: case ncclUint32: case ncclFloat32: return 4;
        case ncclInt64: case ncclUint64: case ncclFloat64: return 8;
        case ncclFloat16: case ncclBfloat16: return 2;
        default: return 1;
    }
}

template <class T>
void combine(void* into, const void* other, size_t count, ncclRedOp_t reduction) {
    T* a = static_cast<T*>(into);
    const T* b = static_cast<const T*>(other);
    for (size_t i = 0; i < count; i++) {
        switch (reduction) {
            case ncclProd: a[i] = a[i] * b[i]; break;
            case ncclMax: a[i] = std::max(a[i], b[i]); break;
            case ncclMin: a[i] = std::min(a[i], b[i]); break;
            default: a[i] = a[i] + b[i];
        }
    }
}

bool combine(void* into, const void* other, size_t count, ncclDataType_t type, ncclRedOp_t reduction) {
    switch (type) {
        case ncclInt8: combine<signed char>(into, other, count, reduction); return true;
        case ncclUint8: combine<unsigned char>(into, other, count, reduction); return true;
        case ncclInt32: combine<int>(into, other, count, reduction); return true;
        case ncclInt64: combine<long>(into, other, count, reduction); return true;
        case ncclFloat32: combine<float>(into, other, count, reduction); return true;
        case ncclFloat64: combine<double>(into, other, count, reduction); return true;
        default: return false;
    }
}

ncclResult_t reduce(const Operation& o, bool to_all) {
    Communicator& c = *o.communicator;
    size_t width = bytes_of(o.type), most = kSlotBytes / width;
    for (size_t first = 0; first < o.count; first += most) {
        size_t count = std::min(most, o.count - first);
        memcpy(c.own_slot(), static_cast<const char*>(o.from) + first * width, count * width);
        if (!wait_for_all(c)) return ncclRemoteError;
        std::vector<char> sum(c.slot(0), c.slot(0) + count * width);
        for (int rank = 1; rank < c.size; rank++)
            if (!combine(sum.data(), c.slot(rank), count, o.type, o.reduction)) return ncclInvalidArgument;
        if (o.reduction == ncclAvg) {
            if (o.type != ncclFloat32) return ncclInvalidArgument;
            for (size_t i = 0; i < count; i++) reinterpret_cast<float*>(sum.data())[i] /= c.size;
        }
        if (!wait_for_all(c)) return ncclRemoteError;
        if (to_all || c.rank == o.peer) memcpy(static_cast<char*>(o.to) + first * width, sum.data(), count * width);
    }
    return ncclSuccess;
}

ncclResult_t broadcast(const Operation& o) {
    Communicator& c = *o.communicator;
    size_t bytes = o.count * bytes_of(o.type);
    for (size_t first = 0; first < bytes; first += kSlotBytes) {
        size_t part = std::min(kSlotBytes, bytes - first);
        if (c.rank == o.peer) memcpy(c.own_slot(), static_cast<const char*>(o.from) + first, part);
        if (!wait_for_all(c)) return ncclRemoteError;
        memcpy(static_cast<char*>(o.to) + first, c.slot(o.peer), part);
        if (!wait_for_all(c)) return ncclRemoteError;
    }
    return ncclSuccess;
}

ncclResult_t all_gather(const Operation& o) {
    Communicator& c = *o.communicator;
    size_t bytes = o.count * bytes_of(o.type);
    for (size_t first = 0; first < bytes; first += kSlotBytes) {
        size_t part = std::min(kSlotBytes, bytes - first);
        memcpy(c.own_slot(), static_cast<const char*>(o.from) + first, part);
        if (!wait_for_all(c)) return ncclRemoteError;
        for (int rank = 0; rank < c.size; rank++)
            memcpy(static_cast<char*>(o.to) + rank * bytes + first, c.slot(rank), part);
        if (!wait_for_all(c)) return ncclRemoteError;
    }
    return ncclSuccess;
}

ncclResult_t all_to_all(const Operation& o) {
    Communicator& c = *o.communicator;
    size_t bytes = o.count * bytes_of(o.type);
    if (bytes * c.size > kSlotBytes) return ncclInvalidArgument;
    memcpy(c.own_slot(), o.from, bytes * c.size);
    if (!wait_for_all(c)) return ncclRemoteError;
    for (int rank = 0; rank < c.size; rank++)
        memcpy(static_cast<char*>(o.to) + rank * bytes, c.slot(rank) + c.rank * bytes, bytes);
    return wait_for_all(c) ? ncclSuccess : ncclRemoteError;
}

// The sends and receives of one group. A slot begins with a table: where in it the message to each rank lies.
ncclResult_t exchange(const std::vector<Operation>& group) {
    if (group.empty()) return ncclSuccess;
    Communicator& c = *group[0].communicator;
    struct Entry { size_t offset, bytes; };
    auto table = reinterpret_cast<Entry*>(c.own_slot());
    std::fill(table, table + c.size, Entry{0, 0});
    size_t end = 8192;  // behind the table
    for (const Operation& o : group) {
        if (o.kind != Kind::send) continue;
        size_t bytes = o.count * bytes_of(o.type);
        if (end + bytes > kSlotBytes) return ncclInvalidArgument;
        memcpy(c.own_slot() + end, o.from, bytes);
        table[o.peer] = {end, bytes};
        end += bytes;
    }
    if (!wait_for_all(c)) return ncclRemoteError;
    for (const Operation& o : group) {
        if (o.kind != Kind::receive) continue;
        Entry message = reinterpret_cast<Entry*>(c.slot(o.peer))[c.rank];
        if (message.bytes != o.count * bytes_of(o.type)) return ncclInvalidArgument;
        memcpy(o.to, c.slot(o.peer) + message.offset, message.bytes);
    }
    return wait_for_all(c) ? ncclSuccess : ncclRemoteError;
}

ncclResult_t run(const Operation& o) {
    fakecuda_mark("launch");
    switch (o.kind) {
        case Kind::all_reduce: return reduce(o, true);
        case Kind::reduce: return reduce(o, false);
        case Kind::broadcast: return broadcast(o);
        case Kind::all_gather: return all_gather(o);
        case Kind::all_to_all: return all_to_all(o);
        default: return exchange({o});
    }
}

ncclResult_t add(const Operation& operation) {
    if (group_depth == 0) return run(operation);
    return in_group.push_back(operation), ncclSuccess;
}

Communicator* of(ncclComm_t communicator) { return reinterpret_cast<Communicator*>(communicator); }

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* version) { return *version = NCCL_VERSION_CODE, ncclSuccess; }

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    static std::atomic<int> number{0};
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/dev/shm/fakenccl-%d-%d", getpid(), number++);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t* made, int size, ncclUniqueId id, int rank, ncclConfig_t*) {
    int file = open(id.internal, O_RDWR | O_CREAT, 0600);
    size_t bytes = kHeaderBytes + size * kSlotBytes;
    if (file < 0 || ftruncate(file, bytes)) return ncclSystemError;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return ncclSystemError;
    auto communicator = new Communicator{size, rank, static_cast<char*>(memory)};
    *made = reinterpret_cast<ncclComm_t>(communicator);
    if (!wait_for_all(*communicator)) return ncclRemoteError;
    if (rank == 0) unlink(id.internal);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* made, int size, ncclUniqueId id, int rank) {
    return ncclCommInitRankConfig(made, size, id, rank, nullptr);
}
ncclResult_t ncclCommInitRankScalable(ncclComm_t* made, int size, int rank, int, ncclUniqueId* ids, ncclConfig_t* c) {
    return ncclCommInitRankConfig(made, size, ids[0], rank, c);
}

ncclResult_t ncclCommAbort(ncclComm_t c) { return of(c)->aborted = true, ncclSuccess; }
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommDestroy(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) { return *error = ncclSuccess; }
ncclResult_t ncclCommCount(ncclComm_t c, int* size) { return *size = of(c)->size, ncclSuccess; }
ncclResult_t ncclCommUserRank(ncclComm_t c, int* rank) { return *rank = of(c)->rank, ncclSuccess; }
ncclResult_t ncclCommCuDevice(ncclComm_t, int* device) { return *device = 0, ncclSuccess; }
const char* ncclGetErrorString(ncclResult_t) { return "an error of the stand-in for NCCL"; }
const char* ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGroupStart() { return group_depth++, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
    if (--group_depth) return ncclSuccess;
    std::vector<Operation> group, messages;
    group.swap(in_group);
    for (const Operation& operation : group) {
        if (operation.kind == Kind::send || operation.kind == Kind::receive) messages.push_back(operation);
        else if (ncclResult_t error = run(operation)) return error;
    }
    return exchange(messages);
}

ncclResult_t ncclAllReduce(const void* from, void* to, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c,
                           cudaStream_t) {
    return add({Kind::all_reduce, from, to, n, t, op, 0, of(c)});
}
ncclResult_t ncclReduce(const void* from, void* to, size_t n, ncclDataType_t t, ncclRedOp_t op, int root, ncclComm_t c,
                        cudaStream_t) {
    return add({Kind::reduce, from, to, n, t, op, root, of(c)});
}
ncclResult_t ncclBroadcast(const void* from, void* to, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t) {
    return add({Kind::broadcast, from, to, n, t, ncclSum, root, of(c)});
}
ncclResult_t ncclBcast(void* buffer, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t) {
    return add({Kind::broadcast, buffer, buffer, n, t, ncclSum, root, of(c)});
}
ncclResult_t ncclAllGather(const void* from, void* to, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t) {
    return add({Kind::all_gather, from, to, n, t, ncclSum, 0, of(c)});
}
ncclResult_t ncclAlltoAll(const void* from, void* to, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t) {
    return add({Kind::all_to_all, from, to, n, t, ncclSum, 0, of(c)});
}
ncclResult_t ncclSend(const void* from, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t) {
    return add({Kind::send, from, nullptr, n, t, ncclSum, peer, of(c)});
}
ncclResult_t ncclRecv(void* to, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t) {
    return add({Kind::receive, nullptr, to, n, t, ncclSum, peer, of(c)});
}
ncclResult_t ncclMemAlloc(void** pointer, size_t bytes) {
    return cudaMalloc(pointer, bytes) == cudaSuccess ? ncclSuccess : ncclSystemError;
}

}  // extern "C"
