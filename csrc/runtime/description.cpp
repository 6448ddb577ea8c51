// Reads the description of a model. Each part of the JSON is an object with members of its own; all of them are named
// here, once.
#include "description.h"

#include <initializer_list>
#include <limits>

#include "../core/cells.h"
#include "../text/hashed_ngrams.h"
#include "json.h"
#include "refusal.h"

namespace sf::runtime {
namespace {

constexpr size_t kMostDilations = 64;
constexpr int64_t kMostWidth = 1 << 20, kMostHidden = 1 << 16, kMostLayers = 1 << 10, kMostIds = int64_t{1} << 31;
constexpr const char* kPoolings[] = {"last", "mean", "max", "attention"};
constexpr const char* kMissing[] = {"error", "zero", "mean", "forward", "mask"};
constexpr const char* kDtypes[] = {"float32", "bfloat16"};
constexpr const char* kLayouts[] = {"time_channels", "channels_time"};
constexpr const char* kNormals[] = {"data", "series"};
constexpr const char* kTokenizers[] = {"word", "char", "bpe"};
constexpr const char* kForms[] = {"NFC", "NFD", "NFKC", "NFKD"};

// The place of a name in a list, to which a later version may add names.
template <class Names>
int known(const char* what, const Names& names, const Json& value) {
  return index_or_refuse(SEQCLS_UNKNOWN_PART, what, names, words(value, what));
}

// An object whose members are known: those of `needed` are there, and no others than those of `allowed`.
class Part {
 public:
  Part(const Json& value, std::string name, std::initializer_list<const char*> needed,
       std::initializer_list<const char*> allowed = {})
      : value_(value), name_(std::move(name)) {
    if (value.kind != Json::Kind::kObject) fail(name_, ": expected an object but got another value");
    const auto knows = [](std::initializer_list<const char*> names, const std::string& name) {
      for (const char* each : names)
        if (name == each) return true;
      return false;
    };
    for (const auto& member : value.members)
      if (!knows(needed, member.first) && !knows(allowed, member.first))
        refuse(SEQCLS_UNKNOWN_PART, name_, ": this library does not know the part ", quoted(member.first),
               "; a later version of it may");
    for (const char* each : needed)
      if (!value.find(each)) fail(name_, ": expected the part '", each, "' but got none");
  }
  bool has(const char* name) const { return value_.find(name) && value_.find(name)->kind != Json::Kind::kNull; }
  const Json& operator[](const char* name) const { return *value_.find(name); }
  int64_t whole(const char* name, int64_t low, int64_t high) const {
    return runtime::whole((*this)[name], low, high, of(name));
  }
  std::string of(const char* name) const { return name_ + "." + name; }

 private:
  const Json& value_;
  std::string name_;
};

void read_input(const Json& value, Description& d) {
  const Part part(value, "model.input", {}, {"features", "vocabulary", "padding"});
  if (part.has("features") == part.has("vocabulary"))
    fail("model.input: expected either features or a vocabulary but got ", part.has("features") ? "both" : "none");
  if (part.has("features")) d.features = part.whole("features", 1, kMostWidth);
  if (part.has("vocabulary")) d.vocabulary = part.whole("vocabulary", 1, kMostIds);
}

void read_encoder(const Json& value, Description& d) {
  const Part part(value, "model.encoder", {"cell", "inputs", "hidden", "layers", "directions", "projection", "bias"},
                  {"zoneout", "learnt_states"});
  d.cell = known("model.encoder.cell", kCellNames, part["cell"]);
  d.inputs = part.whole("inputs", 1, kMostWidth);
  d.hidden = part.whole("hidden", 1, kMostHidden);
  d.layers = static_cast<int>(part.whole("layers", 1, kMostLayers));
  d.directions = static_cast<int>(part.whole("directions", 1, kMaxDirections));
  d.projection = part.whole("projection", 0, d.hidden - 1);
  if (d.projection && !kCells[d.cell].has_c)
    fail("model.encoder.projection: expected 0 for the cell ", kCellNames[d.cell], " but got ", d.projection);
  d.bias = flag(part["bias"], part.of("bias"));
  if (part.has("learnt_states")) d.learnt_states = flag(part["learnt_states"], part.of("learnt_states"));
  if (part.has("zoneout")) {
    constexpr double kMost = 1 - 0x1p-53;
    const Json& rates = part["zoneout"];
    if (rates.items.size() != 2) fail("model.encoder.zoneout: expected two numbers but got ", rates.items.size());
    d.zoneout_h = real(rates.items[0], 0, kMost, part.of("zoneout"));
    d.zoneout_c = real(rates.items[1], 0, kCells[d.cell].has_c ? kMost : 0, part.of("zoneout"));
  }
  const int64_t given = d.series.there() ? d.series.width() : d.features;
  if (!d.vocabulary && d.inputs != given)
    fail("model.encoder.inputs: expected ", given, ", the features of the input, but got ", d.inputs);
}

std::vector<double> read_numbers(const Part& part, const char* name, size_t count, double low) {
  const Json& list = part[name];
  if (list.items.size() != count) fail(part.of(name), ": expected ", count, " numbers but got ", list.items.size());
  std::vector<double> numbers;
  for (const Json& each : list.items)
    numbers.push_back(real(each, low, std::numeric_limits<double>::max(), part.of(name)));
  return numbers;
}

void read_series(const Json& value, Description& d) {
  const Part part(value, "model.series", {"standardize", "missing", "max_length", "mean", "scale"},
                  {"normalize", "differences", "time", "layout"});
  if (!d.features) fail("model.series: expected an input of features but got ids");
  const auto count = static_cast<size_t>(d.features);
  d.series.mean = read_numbers(part, "mean", count, std::numeric_limits<double>::lowest());
  d.series.scale = read_numbers(part, "scale", count, std::numeric_limits<double>::denorm_min());
  d.series.standardize = flag(part["standardize"], part.of("standardize"));
  d.series.missing = static_cast<SeriesPart::Missing>(known("model.series.missing", kMissing, part["missing"]));
  if (part.has("normalize")) d.series.each = known("model.series.normalize", kNormals, part["normalize"]);
  if (part.has("differences")) d.series.differences = flag(part["differences"], part.of("differences"));
  if (part.has("time")) d.series.time = flag(part["time"], part.of("time"));
  if (part.has("layout")) known("model.series.layout", kLayouts, part["layout"]);  // programs with arrays look at it
  if (part.has("max_length")) d.series.max_length = part.whole("max_length", 1, int64_t{1} << 52);
}

void read_convolutions(const Json& value, Description& d) {
  const Part part(value, "model.convolutions", {"channels", "dilations", "counts"});
  if (d.vocabulary) fail("model.convolutions: expected an input of features but got ids");
  const int64_t most = d.series.there() ? d.series.own() : d.features;  // differences and the time are no channels
  d.convolutions.channels = part.whole("channels", d.series.there() ? most : 1, most);
  const auto read = [&](const char* name, std::vector<int64_t>& to) {
    if (part[name].items.empty() || part[name].items.size() > kMostDilations)
      fail(part.of(name), ": expected 1 to ", kMostDilations, " numbers but got ", part[name].items.size());
    for (const Json& each : part[name].items) to.push_back(runtime::whole(each, 1, kMostWidth, part.of(name)));
  };
  read("dilations", d.convolutions.dilations);
  read("counts", d.convolutions.counts);
  if (d.convolutions.dilations.size() != d.convolutions.counts.size())
    fail("model.convolutions.counts: expected ", d.convolutions.dilations.size(), ", one for each dilation, but got ",
         d.convolutions.counts.size());
}

void read_text(const Json& value, Description& d) {
  const Part part(value, "model.text", {"tokenizer", "lowercase", "normalization", "max_length"}, {"ngrams"});
  if (!d.vocabulary) fail("model.text: expected an input of ids but got features");
  d.text.there = true;
  d.text.unit = static_cast<TextPart::Unit>(known("model.text.tokenizer", kTokenizers, part["tokenizer"]));
  d.text.lowercase = flag(part["lowercase"], part.of("lowercase"));
  if (part.has("normalization")) d.text.form = 1 + known("model.text.normalization", kForms, part["normalization"]);
  if (part.has("max_length")) d.text.max_length = part.whole("max_length", 1, int64_t{1} << 52);
  if (!part.has("ngrams")) return;
  const Part ngrams(part["ngrams"], "model.text.ngrams", {"bits", "factor"});
  d.text.bits = static_cast<int>(ngrams.whole("bits", 1, texts::kMostBits));
  d.text.factor = real(ngrams["factor"], -1e30, 1e30, ngrams.of("factor"));
}

void read_classifier(const Part& model, Description& d) {
  d.pooling = static_cast<PoolKind>(1 + known("model.pooling", kPoolings, model["pooling"]));
  const Part head(model["head"], "model.head", {"classes"});
  d.classes = head.whole("classes", 1, kMostWidth);
  if (model.has("labels") && static_cast<int64_t>(model["labels"].items.size()) != d.classes)
    fail("model.labels: expected ", d.classes, ", one for each class, but got ", model["labels"].items.size());
  if (!model.has("decision")) return;
  const Part decision(model["decision"], "model.decision", {"temperature"}, {"threshold"});
  d.temperature = real(decision["temperature"], 1e-30, 1e30, decision.of("temperature"));
  if (!decision.has("threshold")) return;
  const Part threshold(decision["threshold"], "model.decision.threshold", {"class", "value"});
  d.threshold_class = threshold.whole("class", 0, d.classes - 1);
  d.threshold = real(threshold["value"], 0, 1, threshold.of("value"));
}

}  // namespace

Description read_description(const std::string& json) {
  const Json value = parse_json(json.data(), json.size(), "model");
  const Part model(value, "model", {"dtype", "input", "encoder"},
                   {"pooling", "head", "labels", "decision", "series", "convolutions", "text"});
  Description d;
  d.dtype = known("model.dtype", kDtypes, model["dtype"]) ? Dtype::kBFloat16 : Dtype::kFloat32;
  read_input(model["input"], d);
  if (model.has("series")) read_series(model["series"], d);
  read_encoder(model["encoder"], d);
  if (model.has("convolutions")) read_convolutions(model["convolutions"], d);
  if (model.has("text")) read_text(model["text"], d);
  if (model.has("pooling") != model.has("head"))
    fail("model: expected both pooling and head, or neither, but got ", model.has("head") ? "a head" : "pooling");
  if (model.has("pooling"))
    read_classifier(model, d);
  else if (model.has("decision") || model.has("labels") || d.convolutions.there() || d.text.there)
    fail("model: expected a head with labels and a decision but got none");
  return d;
}

}  // namespace sf::runtime
