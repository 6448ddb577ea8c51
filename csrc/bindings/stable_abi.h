// All headers of torch that csrc/ uses: those of the stable ABI as of 2.11, so that one build runs under that release
// and every later one. No file may include both this header and pybind11, which torch 2.11 refuses.
#pragma once

#define TORCH_TARGET_VERSION 0x020b000000000000

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
