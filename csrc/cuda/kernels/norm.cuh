// The formulas of layer normalisation, for one value.
#pragma once

#include "precision.cuh"

namespace sf::cuda {

SF_DEVICE float inverse_root(float v) {  // one step of Newton's makes it as exact as a float can be
  const float y = inverse_root_approx(v);
  return y * (1.5f - 0.5f * v * y * y);
}
SF_DEVICE double inverse_root(double v) { return 1.0 / sqrt(v); }
template <class Compute>
SF_DEVICE Compute inverse_deviation(Compute variance) {
  return inverse_root(variance + static_cast<Compute>(kNormEpsilon));
}

// The gradient of a sum, from that of its normalised value v, and the means over the values of its block: of these
// gradients, and of these times the normalised values.
template <class Compute>
SF_DEVICE Compute norm_gradient(Compute d, Compute v, Compute inverse, Compute mean_d, Compute mean_dv) {
  return inverse * (d - mean_d - v * mean_dv);
}

}  // namespace sf::cuda
