// DeviceStream implemented with CUDA, cuBLAS and torch's allocator, and the runner that uses it. cuBLAS is looked up in
// the process, where torch has loaded it, so that the extension neither links with cuBLAS nor needs it without a GPU.
#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>

#include "../../core/cells.h"
#include "../kernels/kernels.h"
#include "runner.h"

namespace sf::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, or the next call would report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// The functions of cuBLAS 12 and 13 that are used, and the constants that they take, with the values in its headers.
struct Cublas {
  using Handle = void*;
  static constexpr int kN = 0, kT = 1;
  static constexpr int kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 14;  // of cudaDataType_t
  static constexpr int kCompute32 = 68, kCompute64 = 70, kCompute32Tf32 = 77;
  static constexpr int kWideSums = 16;  // math mode: no partial sums in 16 bits, and no TF32 unless a call asks for it
  int (*gemm)(Handle, int, int, int64_t, int64_t, int64_t, const void*, const void*, int, int64_t, int64_t, const void*,
              int, int64_t, int64_t, const void*, void*, int, int64_t, int64_t, int64_t, int, int);
  int (*get_math_mode)(Handle, int*);
  int (*set_math_mode)(Handle, int);

  Cublas() {
    // A search in torch's library includes the libraries that it needs, so this finds torch's cuBLAS even where another
    // package has loaded one too.
    void* library = nullptr;
    for (const char* name : {"libtorch_cuda.so", "libcublas.so.13", "libcublas.so.12"})
      if (!library) library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    const auto find = [&](auto& function, const char* name) {
      void* symbol = library ? dlsym(library, name) : nullptr;
      if (!symbol) throw std::runtime_error(std::string("cuBLAS: expected torch to have loaded ") + name);
      function = reinterpret_cast<std::decay_t<decltype(function)>>(symbol);
    };
    find(gemm, "cublasGemmStridedBatchedEx_64");
    find(get_math_mode, "cublasGetMathMode");
    find(set_math_mode, "cublasSetMathMode");
  }
};
const Cublas& cublas() {
  static const Cublas loaded;
  return loaded;
}

int data_type(Dtype d) {
  constexpr int kTypes[] = {Cublas::kFloat, Cublas::kDouble, Cublas::kBFloat16, Cublas::kHalf};
  return kTypes[static_cast<int>(d)];
}

class CudaDeviceStream : public DeviceStream {
 public:
  explicit CudaDeviceStream(const TorchDevice& device) : device_(device), limits_(limits_of(device.index)) {}

  const Limits& limits() const override { return limits_; }
  uint32_t* error_word() override { return device_.error_word; }
  void* take(int64_t bytes) override { return device_.allocate(device_.keep, bytes); }
  void zero(void* data, int64_t bytes) override {
    check(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream()), "clearing memory");
  }

  Sorted sort(const int64_t* keys, int64_t count) override { return device_.sort(device_.keep, keys, count); }

  // cuBLAS stores matrices column by column, so it is asked for C^T = B^T A^T.
  void multiply(const Product& p) override {
    if (p.m == 0 || p.n == 0 || p.batch == 0) return;
    const bool wide = p.in == Dtype::kFloat64;
    const float one = 1, beta = p.accumulate ? 1 : 0;
    const double one64 = 1, beta64 = p.accumulate ? 1 : 0;
    int compute = wide ? Cublas::kCompute64 : Cublas::kCompute32;
    if (p.in == Dtype::kFloat32) compute = p.tf32 ? Cublas::kCompute32Tf32 : Cublas::kCompute32;
    int mode = 0;
    cublas().get_math_mode(device_.cublas, &mode);
    cublas().set_math_mode(device_.cublas, Cublas::kWideSums);
    const int status = cublas().gemm(
        device_.cublas, p.b_transposed ? Cublas::kT : Cublas::kN, p.a_transposed ? Cublas::kT : Cublas::kN, p.n, p.m,
        p.k, wide ? static_cast<const void*>(&one64) : &one, p.b, data_type(p.in), p.b_stride, p.b_batch, p.a,
        data_type(p.in), p.a_stride, p.a_batch, wide ? static_cast<const void*>(&beta64) : &beta, p.c, data_type(p.out),
        p.c_stride, p.c_batch, p.batch, compute, -1);
    cublas().set_math_mode(device_.cublas, mode);
    if (status != 0)
      throw std::runtime_error("cuBLAS refused a product of " + std::to_string(p.m) + " x " + std::to_string(p.k) +
                               " with " + std::to_string(p.k) + " x " + std::to_string(p.n) + ": status " +
                               std::to_string(status));
    after_launch("a product");
  }

  using DeviceStream::launch;
  void launch(const void* kernel, const LaunchShape& shape, void** arguments, Call) override {
    constexpr int kDefaultShared = 48 << 10, kPortableCluster = 8;  // a launch must ask the driver for more than these
    // Ask for all shared memory: another thread may be launching the same kernel and need more of it than this launch.
    if (shape.shared > kDefaultShared)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits_.shared_bytes),
            "asking for shared memory");
    if (shape.cluster > kPortableCluster)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            "asking for large clusters");
    std::array<cudaLaunchAttribute, 2> attributes{};
    unsigned count = 0;
    if (shape.cluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
      ++count;
    }
    if (shape.cooperative) {
      attributes[count].id = cudaLaunchAttributeCooperative;
      attributes[count].val.cooperative = 1;
      ++count;
    }
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = static_cast<size_t>(shape.shared);
    config.stream = stream();
    config.attrs = attributes.data();
    config.numAttrs = count;
    const cudaError_t error = cudaLaunchKernelExC(&config, kernel, arguments);
    if (error == cudaErrorCooperativeLaunchTooLarge || (shape.cluster > 1 && error == cudaErrorInvalidClusterSize)) {
      cudaGetLastError();
      throw TooManyBlocks("the recurrent kernel needs " +
                          std::to_string(shape.cooperative ? shape.blocks : shape.cluster) +
                          " blocks on the device at once, more than it can hold now");
    }
    check(error, "launching a kernel");
    after_launch("a kernel");
  }

 private:
  cudaStream_t stream() const { return static_cast<cudaStream_t>(device_.stream); }
  void after_launch(const char* what) const {
    if (!device_.check_launches) return;
    cudaStreamCaptureStatus capturing{};
    check(cudaStreamIsCapturing(stream(), &capturing), what);
    if (capturing != cudaStreamCaptureStatusNone) return;
    check(cudaStreamSynchronize(stream()), what);
    if (*device_.error_word) throw std::runtime_error(sentence_of(std::exchange(*device_.error_word, 0)));
  }

  TorchDevice device_;
  const Limits& limits_;
};

class CudaRunner : public Runner {
 public:
  CudaRunner(const TorchDevice& device, const Choice& choice) : choice_(choice), stream_(device) {}
  Dtype buffer_dtype(Dtype storage) const override { return storage; }
  void forward(const Forward& f) override { run_forward(f, choice_, stream_); }
  void backward(const Backward& b) override { run_backward(b, choice_, stream_); }
  void weight_grad(const WeightGrad& g) override { run_weight_grad(g, choice_, stream_); }
  void sum_rows(const RowSums& s) override { run_sum_rows(s, stream_); }

 private:
  Choice choice_;
  CudaDeviceStream stream_;
};

// Asks the driver how many clusters of each size run at once, and sets the size of the largest, for the kernel that
// takes most registers and shared memory: no other needs more of a multiprocessor.
void ask_for_clusters(Limits& limits) {
  const auto* kernel =
      reinterpret_cast<const void*>(kernel_bf16(kCell_lstm, Pass::kForward, {4, 8}, Regime::kCluster, Options::kNone));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for large clusters");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_bytes),
        "asking for shared memory");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16);
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = static_cast<size_t>(limits.shared_bytes);
  int largest = 1;
  check(cudaOccupancyMaxPotentialClusterSize(&largest, kernel, &config), "asking for the largest cluster");
  limits.cluster = 1;
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  config.attrs = &size;
  config.numAttrs = 1;
  for (int blocks = 2; blocks <= std::min(largest, 16); ++blocks) {
    size.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    int active = 0;
    if (cudaOccupancyMaxActiveClusters(&active, kernel, &config) != cudaSuccess) cudaGetLastError();
    if (active == 0) break;
    limits.active_clusters[blocks] = active;
    limits.cluster = blocks;
  }
}

// Makes a device the current one, and the one before it again when the object goes.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the current device");
    check(cudaSetDevice(device), "making a device the current one");
  }
  CurrentDevice(const CurrentDevice&) = delete;
  ~CurrentDevice() { cudaSetDevice(before_); }

 private:
  int before_ = 0;
};

Limits read_limits(int device) {
  const CurrentDevice current(device);  // attributes of kernels, and how many run at once, are those of this device
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "asking the device for its limits");
    return value;
  };
  Limits limits;
  limits.architecture =
      10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  cudaFuncAttributes found{};
  const auto* any = reinterpret_cast<const void*>(
      kernel_bf16(kCell_lstm, Pass::kForward, kGated[0], Regime::kOnchip, Options::kNone));
  if (cudaFuncGetAttributes(&found, any) != cudaSuccess) {
    cudaGetLastError();
    throw std::runtime_error("the device has compute capability " + std::to_string(limits.architecture / 10) + "." +
                             std::to_string(limits.architecture % 10) + ", but seqcls_fast was built for " +
                             SF_CUDA_ARCHS + " alone");
  }
  limits.cluster = 1;
  if (limits.architecture == 90) ask_for_clusters(limits);  // clusters are compiled for 9.0 alone
  return limits;
}

}  // namespace

const Limits& limits_of(int device) {
  constexpr int kMaxDevices = 64;
  static std::array<Limits, kMaxDevices> all;
  static std::array<std::once_flag, kMaxDevices> once;
  if (device < 0 || device >= kMaxDevices) throw std::runtime_error("expected at most 64 CUDA devices");
  std::call_once(once[device], [&] { all[device] = read_limits(device); });
  return all[device];
}

std::unique_ptr<Runner> make_runner(const TorchDevice& device, const std::string& impl, bool allow_tf32) {
  return std::make_unique<CudaRunner>(device, choice_of(impl, allow_tf32));
}

}  // namespace sf::cuda
