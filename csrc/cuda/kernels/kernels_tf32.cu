#include "kernels.cuh"

namespace sf::cuda {

RecurrentKernel kernel_tf32(int cell, Pass pass, Tiling tiling, Regime regime) {
  return find_kernel<Tf32>(cell, pass, tiling, regime);
}

}  // namespace sf::cuda
