// The table of recurrent kernels: each kernels_*.cu instantiates those of one precision that a plan can choose.
#pragma once

#include "../plan.h"
#include "../launch_args.h"

namespace sf::cuda {

using RecurrentKernel = void (*)(Sweep);

// Null where no plan asks for such a kernel. cell: index in SF_CELLS.
RecurrentKernel kernel_bf16(int cell, Pass, Tiling, Regime);
RecurrentKernel kernel_fp16(int cell, Pass, Tiling, Regime);
RecurrentKernel kernel_tf32(int cell, Pass, Tiling, Regime);
RecurrentKernel kernel_tf32x3(int cell, Pass, Tiling, Regime);

}  // namespace sf::cuda
