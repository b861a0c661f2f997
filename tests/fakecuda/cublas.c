/* cuBLAS beside the fake CUDA runtime: every call succeeds and computes nothing. */
#define STUB(name) __attribute__((visibility("default"))) int name(void) { return 0; }
__attribute__((visibility("default"))) int cublasCreate_v2(void **out) { static int handle; *out = &handle; return 0; }
__attribute__((visibility("default"))) const char *cublasGetStatusString(int status) { (void)status; return "fake"; }
STUB(cublasDestroy_v2) STUB(cublasGemmBatchedEx) STUB(cublasGemmEx) STUB(cublasGemmStridedBatchedEx)
STUB(cublasSetMathMode) STUB(cublasSetStream_v2) STUB(cublasSetWorkspace_v2) STUB(cublasSgemmBatched)
STUB(cublasSgemmStridedBatched) STUB(cublasSgemm_v2) STUB(cublasStrsmBatched)
