// What a file says of its model, as plain numbers: checked, and within limits that keep every later size in 64 bits.
// A part that is missing here is refused by its name, so that an older library never runs half of a newer model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../core/args.h"

namespace sf::runtime {

enum class PoolKind { kNone, kLast, kMean, kMax, kAttention };

// How the steps of a series become features: as SeriesEncoder in seqcls_fast/toolkit/data/series.py does it.
struct SeriesPart {
  enum class Missing { kError, kZero, kMean, kForward, kMask };
  std::vector<double> mean, scale;  // of the features; empty where the model has no such part
  bool standardize = true;
  Missing missing = Missing::kError;
  int64_t max_length = 0;  // steps that are kept of a series, from its start; 0: all
  bool there() const { return !mean.empty(); }
};

struct Description {
  Dtype dtype = Dtype::kFloat32;
  // The input: numbers, or ids with an embedding.
  int64_t features = 0, vocabulary = 0;
  SeriesPart series;
  std::string text_encoder;  // the tensor that holds what turns texts into ids; empty where there is none
  // The layers.
  int cell = 0;
  int64_t inputs = 0, hidden = 0, projection = 0;  // inputs: of the first layer
  int layers = 0, directions = 0;
  bool bias = true, learnt_states = false;
  double zoneout_h = 0, zoneout_c = 0;
  // A classifier has all of what follows, bare layers none of it.
  PoolKind pooling = PoolKind::kNone;
  int64_t classes = 0;
  double temperature = 1;
  int64_t threshold_class = -1;  // -1: no threshold
  double threshold = 0;

  int64_t out() const { return projection ? projection : hidden; }
  int64_t width() const { return out() * directions; }  // of a step of the last layer's output
  bool is_classifier() const { return pooling != PoolKind::kNone; }
  bool is_streamable() const { return directions == 1 && pooling != PoolKind::kAttention; }
  int64_t outputs() const { return is_classifier() ? classes : width(); }
};

Description read_description(const std::string& json);

}  // namespace sf::runtime
