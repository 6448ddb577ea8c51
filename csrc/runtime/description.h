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
  bool each = false;  // standardized by the mean and deviation of the series at hand
  bool differences = false, time = false;
  Missing missing = Missing::kError;
  int64_t max_length = 0;  // steps that are kept of a series, from its start; 0: all
  bool there() const { return !mean.empty(); }
  bool by_itself() const { return standardize && each; }
  bool needs_whole() const { return by_itself() || time; }
  bool masks() const { return missing == Missing::kMask; }
  int64_t features() const { return static_cast<int64_t>(mean.size()); }
  int64_t own() const { return features() * (masks() ? 2 : 1); }  // of its values and the marks of missing ones
  int64_t width() const { return own() + (differences ? features() : 0) + time; }
};

// Random convolutions of a series and a linear model of them, whose scores are added to the logits.
struct ConvolutionsPart {
  int64_t channels = 0;  // the first features of a step; 0 where the model has no such part
  std::vector<int64_t> dilations, counts;
  bool there() const { return channels > 0; }
};

// How texts become ids, and weighted n-grams, whose rows of logits are added to those of the network.
struct TextPart {
  enum class Unit { kWord, kCharacter, kOther };  // of a token; kOther: programs that have texts turn them into ids
  bool there = false, lowercase = false;
  Unit unit = Unit::kOther;
  int form = 0;            // of Unicode, an index in kForms of description.cpp; 0: none
  int64_t max_length = 0;  // tokens that are kept of a text; 0: all
  int bits = 0;            // ids of n-grams are below 2^bits; 0: there are no n-grams
  double factor = 1;       // the share of the logits that the n-grams have
};

struct Description {
  Dtype dtype = Dtype::kFloat32;
  // The input: numbers, or ids with an embedding.
  int64_t features = 0, vocabulary = 0;
  SeriesPart series;
  ConvolutionsPart convolutions;
  TextPart text;
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
  // Why the model needs whole sequences, as the end of a sentence that begins with it; null if it does not.
  const char* needs_whole() const {
    return directions == 2                   ? "has two directions"
           : pooling == PoolKind::kAttention ? "pools by attention"
           : convolutions.there()            ? "has random convolutions of whole series"
           : text.bits                       ? "has n-grams of whole texts"
           : series.by_itself()              ? "scales each series by its own mean and deviation"
           : series.time                     ? "has the time as a feature, which ends with the series"
                                             : nullptr;
  }
  bool is_streamable() const { return !needs_whole(); }
  int64_t outputs() const { return is_classifier() ? classes : width(); }
};

Description read_description(const std::string& json);

}  // namespace sf::runtime
