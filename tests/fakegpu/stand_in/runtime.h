// What the parts of the stand-in share: the counters, and zeroed memory in place of the structs behind CUDA's handles.
#pragma once
#include <cuda.h>

#include <cstdlib>

extern "C" {
void fakecuda_mark(const char* name);                    // count one call
unsigned long long fakecuda_count(const char* name);     // calls so far
void fakecuda_reset();                                   // forget all counts
void fakecuda_set_bytes(unsigned long long bytes);       // memory of each GPU from now on
unsigned long long fakecuda_used();                      // bytes that cudaMalloc has given out
void fakecuda_keep();                                    // copy what is in all device memory
void fakecuda_put_back();                                // set it to what it was then: what is captured has not run
}

unsigned long long setting(const char* variable, unsigned long long otherwise);
unsigned long long device_bytes();
CUresult driver_address_range(CUdeviceptr* base, size_t* bytes, CUdeviceptr pointer);

template <class Handle>
Handle new_handle() {
    return reinterpret_cast<Handle>(calloc(1, 256));
}
