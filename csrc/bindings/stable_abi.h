// torch as csrc/ sees it: the stable ABI alone, as of 2.11, so that one build runs under every later release. Nothing
// else of ours includes a header of torch, and no file includes both this one and pybind11, which torch 2.11 refuses.
#pragma once

#define TORCH_TARGET_VERSION 0x020b000000000000

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
