// The functions by which the host finds a recurrent kernel, one for each precision. Each is defined in a kernels_*.cu
// of its own, which compiles the kernels of that precision that a plan can choose.
#pragma once

#include "../plan.h"
#include "../launch_args.h"

namespace sf::cuda {

using RecurrentKernel = void (*)(LaunchArgs);

// The kernel, or null if no plan can choose it. cell: index in kCells.
RecurrentKernel kernel_bf16(int cell, Pass, Tiling, Regime, Options);
RecurrentKernel kernel_fp16(int cell, Pass, Tiling, Regime, Options);
RecurrentKernel kernel_tf32(int cell, Pass, Tiling, Regime, Options);
RecurrentKernel kernel_tf32x3(int cell, Pass, Tiling, Regime, Options);

}  // namespace sf::cuda
