// The functions of the CPU backend that csrc/bindings calls, by the file that defines them.
// Kernels, which they take, is the table of functions that each instruction set has.
#pragma once

#include <string>
#include <vector>

#include "../kernels/kernel_table.h"

namespace sf {

// -- isa.cpp
// impl is "auto" or one of impl_names(); for others the error lists the choices.
const Kernels& kernels_for(const std::string& impl);
std::vector<std::string> impl_names();  // slowest first
std::vector<std::string> cpu_features();

// -- run.cpp
void run_forward(const Kernels&, Forward);
void run_backward(const Kernels&, const Backward&);
void run_sum_rows(const Kernels&, const RowSums&);
void run_weight_grad(const Kernels&, WeightGrad);
int64_t packed_size(const Kernels&, const Layer&);  // of the packed weights of all directions, in bytes
void pack_all(const Kernels&, const Layer&, char* to);
int64_t packed_cache_size();  // how many packed weights are kept
void packed_cache_clear();

// -- head.cpp
void run_linear(const Kernels&, const Linear&);
void run_pool_steps(const Kernels&, const PoolSteps&);
void run_softmax(const Kernels&, const Softmax&);

// -- pool.cpp
void* pool_take(int64_t bytes);
void pool_give(void* p);
void pool_trim();     // returns kept memory to the system
int64_t pool_held();  // bytes of kept memory

}  // namespace sf
