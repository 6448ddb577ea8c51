// The functions of the CUDA backend that a Runner calls: CudaRunner (runner.cu) on a GPU, SimtRunner (tests/cuda/simt)
// on the CPU. They reach the device through the DeviceStream that they are given.
#pragma once

#include <string>
#include <vector>

#include "device_stream.h"

namespace sf::cuda {

struct Choice {  // the meaning of an implementation's name
  bool forced = false;
  Regime regime = Regime::kStepwise;  // if forced
  bool tf32 = false;                  // float32 products may be rounded to TF32
};

// impl: "auto" or the name of a regime. Throws at any other name.
Choice choice_of(const std::string& impl, bool allow_tf32);
std::vector<std::string> regime_names();

// Throws if the regime is forced and cannot run the layer.
Plan plan_layer(const Layer&, Pass, const Choice&, const Limits&);

void run_forward(const Forward&, const Choice&, DeviceStream&);
void run_backward(const Backward&, const Choice&, DeviceStream&);
void run_weight_grad(const WeightGrad&, const Choice&, DeviceStream&);
void run_sum_rows(const RowSums&, DeviceStream&);

}  // namespace sf::cuda
