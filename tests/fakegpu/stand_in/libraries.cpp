// cuBLAS and cuDNN without a GPU: handles are made, and what would compute is counted as a launch.
#include <cublasLt.h>
#include <cublas_v2.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include <cstring>

#include "runtime.h"

#define CREATES(result, function, Handle) \
    result function(Handle* handle) {     \
        *handle = new_handle<Handle>();   \
        return result(0);                 \
    }

extern "C" {

// ---- cuBLAS

CREATES(cublasStatus_t, cublasCreate_v2, cublasHandle_t)
CREATES(cublasStatus_t, cublasLtMatmulPreferenceCreate, cublasLtMatmulPreference_t)

cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion() { return 130101; }

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t* results,
                                              int* count) {
    memset(results, 0, sizeof *results);
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* handle, cublasComputeType_t, cudaDataType_t) {
    *handle = new_handle<cublasLtMatmulDesc_t>();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* handle, cudaDataType, uint64_t, uint64_t, int64_t) {
    *handle = new_handle<cublasLtMatrixLayout_t>();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*, cublasLtMatrixLayout_t,
                              const void*, cublasLtMatrixLayout_t, const void*, const void*, cublasLtMatrixLayout_t,
                              void*, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
    fakecuda_mark("launch");
    return CUBLAS_STATUS_SUCCESS;
}

// ---- cuDNN

CREATES(cudnnStatus_t, cudnnCreate, cudnnHandle_t)
CREATES(cudnnStatus_t, cudnnCreateTensorDescriptor, cudnnTensorDescriptor_t)
CREATES(cudnnStatus_t, cudnnCreateFilterDescriptor, cudnnFilterDescriptor_t)
CREATES(cudnnStatus_t, cudnnCreateConvolutionDescriptor, cudnnConvolutionDescriptor_t)
CREATES(cudnnStatus_t, cudnnCreateActivationDescriptor, cudnnActivationDescriptor_t)
CREATES(cudnnStatus_t, cudnnCreateDropoutDescriptor, cudnnDropoutDescriptor_t)
CREATES(cudnnStatus_t, cudnnCreatePoolingDescriptor, cudnnPoolingDescriptor_t)

size_t cudnnGetVersion() { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion() { return CUDART_VERSION; }
const char* cudnnGetErrorString(cudnnStatus_t) { return "an error of the stand-in for cuDNN"; }

void cudnnGetLastErrorString(char* message, size_t bytes) {
    if (bytes) message[0] = 0;
}

cudnnStatus_t cudnnGetProperty(libraryPropertyType type, int* value) {
    *value = type == MAJOR_VERSION ? CUDNN_MAJOR : type == MINOR_VERSION ? CUDNN_MINOR : CUDNN_PATCHLEVEL;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t* descriptor) {
    *descriptor = new_handle<cudnnBackendDescriptor_t>();
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t wanted, int64_t* count, void* out) {
    bool is_engine = name == CUDNN_ATTR_ENGINEHEUR_RESULTS || name == CUDNN_ATTR_ENGINECFG_ENGINE;
    bool is_number = type == CUDNN_TYPE_INT64 && wanted > 0 && out;
    if (!is_engine && is_number) *static_cast<int64_t*>(out) = 0;
    if (count) *count = is_engine || is_number;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t) {
    fakecuda_mark("launch");
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnActivationDescriptor_t, size_t* bytes) {
    *bytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t, cudnnBatchNormMode_t, cudnnBatchNormOps_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t,
    const cudnnTensorDescriptor_t, const cudnnTensorDescriptor_t, const cudnnActivationDescriptor_t, size_t* bytes) {
    *bytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(cudnnHandle_t, cudnnBatchNormMode_t,
                                                                    cudnnBatchNormOps_t,
                                                                    const cudnnActivationDescriptor_t,
                                                                    const cudnnTensorDescriptor_t, size_t* bytes) {
    *bytes = 0;
    return CUDNN_STATUS_SUCCESS;
}

}  // extern "C"
