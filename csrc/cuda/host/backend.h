// What bindings.cpp may call of the CUDA backend.
#pragma once

#include <string>
#include <vector>

#include "queue.h"

namespace sf::cuda {

struct Choice {  // what an impl's name says
  bool forced = false;
  Regime regime = Regime::kStepwise;  // if forced
  bool tf32 = false;                  // float32 products may be rounded to TF32
};

// impl: "auto" or a regime; another name is refused with the choices.
Choice choice_of(const std::string& impl, bool allow_tf32);
std::vector<std::string> regime_names();

// Refuses a layer that a forced regime cannot run.
Plan plan_layer(const Layer&, Pass, const Choice&, const Limits&);

void run_forward(const Forward&, const Choice&, Queue&);
void run_backward(const Backward&, const Choice&, Queue&);
void run_weight_grad(const WeightGrad&, const Choice&, Queue&);

}  // namespace sf::cuda
