// What bindings.cpp may call of the CPU backend.
#pragma once

#include <string>
#include <vector>

#include "../kernels/kernel_table.h"

namespace sf {

// impl is "auto" or one of impl_names(); others are refused with the choices.
const Kernels& kernels_for(const std::string& impl);
std::vector<std::string> impl_names();  // slowest first
std::vector<std::string> cpu_features();

void run_forward(const Kernels&, Forward);
void run_backward(const Kernels&, const Backward&);
void run_weight_grad(const Kernels&, WeightGrad);

// Memory that outlives the call that asked for it is kept for the next one: fresh pages cost more than the kernels.
void* pool_take(int64_t bytes);
void pool_give(void* p);
void pool_trim();  // returns what is kept and unused to the system
int64_t pool_held();

int64_t packed_cache_size();
void packed_cache_clear();

}  // namespace sf
