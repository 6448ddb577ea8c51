// Compiles the recurrent kernels for float16. Each precision has a file of its own,
// so that a build can compile them at the same time.
#include "kernels.cuh"

namespace sf::cuda {

RecurrentKernel kernel_fp16(int cell, Pass pass, Tiling tiling, Regime regime, Options options) {
  return find_kernel<Fp16>(cell, pass, tiling, regime, options);
}

}  // namespace sf::cuda
