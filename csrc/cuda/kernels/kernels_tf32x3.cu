#include "kernels.cuh"

namespace sf::cuda {

RecurrentKernel kernel_tf32x3(int cell, Pass pass, Tiling tiling, Regime regime) {
  return find_kernel<Tf32x3>(cell, pass, tiling, regime);
}

}  // namespace sf::cuda
