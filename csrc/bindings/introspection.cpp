// The pybind11 module seqcls_fast._C: how the extension was built, which implementations and memory it has, how a layer
// would run on a GPU, and features of texts and of series, which need nothing of torch. The ops are in ops.cpp: torch
// 2.11 refuses its stable ABI and pybind11 in one file.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checks.h"
#include "cpu_runner.h"
#include "../core/cells.h"
#include "../cpu/host/backend.h"
#include "../cuda/plan.h"
#include "../linear/linear_svm.h"
#include "../series/random_convolutions.h"
#include "../text/hashed_ngrams.h"
#include "runner.h"
#if defined(SF_WITH_CUDA)
#include "../cuda/host/runner.h"
#endif

namespace py = pybind11;

namespace sf {
namespace {

// The largest number that plan() takes. plan.h computes in 32 bits where that is enough for numbers up to this one.
constexpr int64_t kMostPlanned = std::numeric_limits<int32_t>::max();

using Clusters = std::map<int, int>;  // by their blocks: how many the device can hold at once, where that was asked

int limit(const py::dict& given, const char* name) {
  if (!given.contains(name)) fail("limits: expected a whole number for '", name, "' but got none");
  const py::object value = given[name];
  int overflow = 0;
  const long long number = PyLong_Check(value.ptr()) ? PyLong_AsLongLongAndOverflow(value.ptr(), &overflow) : 0;
  if (overflow || number < 1 || number > kMostPlanned)
    fail("limits: expected a whole number from 1 to ", kMostPlanned, " for '", name, "' but got ",
         quoted(py::repr(value).cast<std::string>()));
  return static_cast<int>(number);
}

cuda::Limits limits_from(const py::dict& given) {
  cuda::Limits limits;
  limits.architecture = limit(given, "architecture");
  limits.multiprocessors = limit(given, "multiprocessors");
  limits.shared_bytes = limit(given, "shared_bytes");
  limits.cluster = limit(given, "cluster");
  limits.warps = limit(given, "warps");
  for (const auto& [blocks, count] :
       given.contains("active_clusters") ? given["active_clusters"].cast<Clusters>() : Clusters{})
    if (blocks >= 2 && blocks <= 16) limits.active_clusters[blocks] = count;
  return limits;
}

py::dict to_dict(const cuda::Limits& limits) {
  py::dict d;
  d["architecture"] = limits.architecture;
  d["multiprocessors"] = limits.multiprocessors;
  d["shared_bytes"] = limits.shared_bytes;
  d["cluster"] = limits.cluster;
  d["warps"] = limits.warps;
  Clusters clusters;
  for (int blocks = 2; blocks <= 16; ++blocks)
    if (limits.active_clusters[blocks]) clusters[blocks] = limits.active_clusters[blocks];
  if (!clusters.empty()) d["active_clusters"] = clusters;
  return d;
}

// The plan of plan.h for one pass of a layer. regime: a name, or "auto" for the one that a call would get. noisy:
// zoneout or a dropout changes the layer.
py::dict explain_plan(const std::string& cell, int64_t hidden, int64_t batch, const std::string& precision,
                      int directions, bool backward, const std::string& regime, const py::dict& limits, bool noisy) {
  constexpr const char* kPrecisions[] = {"bf16", "fp16", "tf32", "tf32x3"};
  constexpr int kMufu = 2;  // instructions of the special function unit that one sigmoid or tanh takes
  if (hidden < 1 || batch < 1 || hidden > kMostPlanned || batch > kMostPlanned)
    fail("plan: expected hidden and batch from 1 to ", kMostPlanned, " but got ", hidden, ", ", batch);
  if (directions < 1 || directions > kMaxDirections) fail("directions: expected 1 or 2 but got ", directions);
  const int which = index_in("cell", kCellNames, cell);
  cuda::Request request{};
  request.gates = static_cast<int>(kCells[which].gates);
  request.pass = backward ? cuda::Pass::kBackward : cuda::Pass::kForward;
  request.precision = static_cast<cuda::Precision>(index_in("precision", kPrecisions, precision));
  request.hidden = hidden;
  request.batch = batch;
  request.directions = directions;
  const CellInfo& info = kCells[which];
  request.options = cuda::options_of(info.norm, info.resets_first, info.further_count > 0, noisy);
  const cuda::Limits device = limits_from(limits);
  const cuda::Plan plan =
      regime == "auto"
          ? cuda::make_plan(request, device)
          : cuda::fit(request, device, static_cast<cuda::Regime>(index_in("regime", cuda::kRegimes, regime)));
  py::dict d;
  d["regime"] = cuda::kRegimes[static_cast<int>(plan.regime)];
  d["fits"] = cuda::fits(plan);
  d["why"] = plan.why;
  d["splits"] = plan.tiling.splits;
  d["k_tiles"] = plan.tiling.k_tiles;
  d["padded"] = plan.padded;
  d["groups"] = plan.groups;
  d["block_groups"] = plan.block_groups;
  d["blocks"] = plan.blocks;
  d["tiles"] = plan.tiles;
  d["teams"] = plan.teams;
  d["threads"] = plan.threads;
  d["registers"] = plan.registers;
  d["weight_registers"] = cuda::weight_registers(plan.tiling, request.gates, request.precision);
  d["shared_bytes"] = plan.shared_bytes;
  d["mma_cycles"] = cuda::mma_cycles(request, plan);
  d["mufu_cycles"] = cuda::mufu_cycles(request, plan, kMufu * kCells[which].activations[backward]);
  return d;
}

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The features (rows, features) of series (rows, steps, channels); see csrc/series/random_convolutions.h.
Array<float> random_convolutions(const Array<float>& x, const Array<int64_t>& lengths, const Array<int64_t>& dilations,
                                 const Array<int64_t>& counts, const Array<float>& uses, const Array<float>& biases,
                                 int threads) {
  if (x.ndim() != 3 || lengths.ndim() != 1 || lengths.size() != x.shape(0))
    fail("x: expected (rows, steps, channels) with a length for each row but got ", x.ndim(), " dimensions and ",
         lengths.size(), " lengths");
  const int64_t rows = x.shape(0), steps = x.shape(1), channels = x.shape(2), groups = dilations.size();
  for (int64_t r = 0; r < rows; ++r)
    if (lengths.data()[r] < 0 || lengths.data()[r] > steps)
      fail("lengths: expected numbers from 0 to ", steps, " but got ", lengths.data()[r]);
  const series::Convolutions given{channels, groups, dilations.data(), counts.data(), uses.data(), biases.data()};
  constexpr int64_t kMost = int64_t{1} << 20;  // so that no product below overflows
  for (int64_t g = 0; g < groups; ++g)
    if (counts.size() != groups || dilations.data()[g] < 1 || dilations.data()[g] > kMost || counts.data()[g] < 0 ||
        counts.data()[g] > kMost)
      fail("dilations: expected one and a count of biases for each group but got others");
  const int64_t features = series::features_of(given);
  if (uses.size() != groups * series::kKernels * channels || biases.size() != features)
    fail("uses, biases: expected ", groups * series::kKernels * channels, " and ", features, " numbers but got ",
         uses.size(), " and ", biases.size());
  Array<float> out({rows, features});
  float* const found = out.mutable_data();
  {
    const py::gil_scoped_release other_threads_may_run;
    series::transform(given, x.data(), lengths.data(), rows, steps, threads, found);
  }
  return out;
}

// The UTF-8 of a string of Python's. Most strings have theirs at hand; `kept` holds the bytes made for the others,
// which have half of a character of UTF-16.
std::string_view utf8_of(const py::handle& given, std::vector<py::bytes>& kept) {
  if (!PyUnicode_Check(given.ptr())) throw py::type_error("texts: expected strings but got something else");
  Py_ssize_t bytes = 0;
  if (const char* found = PyUnicode_AsUTF8AndSize(given.ptr(), &bytes)) return {found, static_cast<size_t>(bytes)};
  PyErr_Clear();
  PyObject* const made = PyUnicode_AsEncodedString(given.ptr(), "utf-8", "surrogatepass");
  if (!made) throw py::error_already_set();
  kept.push_back(py::reinterpret_steal<py::bytes>(made));
  return {PyBytes_AS_STRING(made), static_cast<size_t>(PyBytes_GET_SIZE(made))};
}

template <class T>
py::bytearray as_bytes(const std::vector<T>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(T)};
}

// Ids and counts of the n-grams of all texts, int32, and how many different ones each text has, int64.
py::tuple hashed_ngrams_of(const py::list& texts, int bits) {
  if (bits < 1 || bits > texts::kMostBits)
    fail("bits: expected a number from 1 to ", texts::kMostBits, " but got ", bits);
  std::vector<std::string_view> given;
  std::vector<py::bytes> kept;
  given.reserve(texts.size());
  for (const py::handle& each : texts) given.push_back(utf8_of(each, kept));
  std::vector<texts::Ngram> found;
  std::vector<int32_t> ids, counts;
  std::vector<int64_t> lengths;
  {
    const py::gil_scoped_release released;
    for (const std::string_view& each : given) {
      const size_t before = found.size();
      texts::hashed_ngrams(each.data(), each.size(), bits, found);
      lengths.push_back(static_cast<int64_t>(found.size() - before));
    }
    for (const texts::Ngram& each : found) {
      ids.push_back(static_cast<int32_t>(each.id));
      counts.push_back(static_cast<int32_t>(each.count));
    }
  }
  return py::make_tuple(as_bytes(ids), as_bytes(counts), as_bytes(lengths));
}

// Fits linear support vector machines, see csrc/linear/linear_svm.h: weights (features, classes), bias (classes,), the
// passes over the rows and the largest violation in the last one.
py::tuple linear_svm(const Array<int64_t>& starts, const Array<int32_t>& ids, const Array<float>& values,
                     const Array<int64_t>& targets, const Array<float>& costs, int64_t features, int64_t classes,
                     int passes, float tolerance, uint64_t seed) {
  const int64_t rows = targets.size(), count = ids.size();
  if (starts.size() != rows + 1 || costs.size() != rows || values.size() != count)
    fail("starts, costs, values: expected ", rows + 1, ", ", rows, " and ", count, " numbers but got ", starts.size(),
         ", ", costs.size(), " and ", values.size());
  if (starts.data()[0] != 0 || starts.data()[rows] != count || !std::is_sorted(starts.data(), starts.data() + rows + 1))
    fail("starts: expected rising numbers from 0 to ", count, " but got others");
  const auto is_below = [](int64_t most) { return [most](int64_t each) { return each >= 0 && each < most; }; };
  if (features < 1 || !std::all_of(ids.data(), ids.data() + count, is_below(features)))
    fail("ids: expected numbers from 0 to below ", features, " but got others");
  if (classes < 1 || !std::all_of(targets.data(), targets.data() + rows, is_below(classes)))
    fail("targets: expected numbers from 0 to below ", classes, " but got others");
  constexpr int64_t kMost = int64_t{1} << 40;  // so that no product overflows
  if (features > kMost / classes) fail("features: expected at most ", kMost, " weights but got more");
  if (!std::all_of(costs.data(), costs.data() + rows, [](float each) { return each >= 0 && std::isfinite(each); }))
    fail("costs: expected finite numbers from 0 on but got others");
  if (!std::all_of(values.data(), values.data() + count, [](float each) { return std::isfinite(each); }))
    fail("values: expected finite numbers but got others");
  Array<float> weights({features, classes}), bias(classes);
  float *const found = weights.mutable_data(), *const found_bias = bias.mutable_data();
  const linear::Rows given{rows, starts.data(), ids.data(), values.data(), targets.data(), costs.data()};
  linear::Done done;
  {
    const py::gil_scoped_release other_threads_may_run;
    done = linear::fit_linear_svm(given, features, classes, {passes, tolerance}, seed, found, found_bias);
  }
  return py::make_tuple(weights, bias, done.passes, done.violation);
}

}  // namespace
}  // namespace sf

PYBIND11_MODULE(_C, m) {
  m.doc() = "Introspection of the compiled part of seqcls_fast; the ops are under torch.ops.seqcls_fast.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["compiler"] = __VERSION__;
        info["torch_target"] = "2.11";
        info["csrc_hash"] = SF_CSRC_HASH;
#if defined(SF_WITH_CUDA)
        info["cuda"] = true;
        info["cuda_archs"] = SF_CUDA_ARCHS;
#else
        info["cuda"] = false;
#endif
        return info;
      },
      "How this extension was built.");
  m.def(
      "cells",
      [] {
        py::dict all;
        for (const sf::CellInfo& cell : sf::kCells) {
          py::tuple further(cell.further_count);
          for (int k = 0; k < cell.further_count; ++k) {
            const sf::Further& weight = cell.further[k];
            further[k] = py::make_tuple(weight.name, weight.rows, weight.is_matrix);
          }
          all[cell.name] = py::make_tuple(cell.gates, cell.saved, cell.has_c, further, cell.is_option);
        }
        return all;
      },
      "The table of cells by name, in the order of their index: gates, values saved per unit and step, has a state c, "
      "further weights (name, rows, is a matrix), is an option of another cell.");
  m.def(
      "impls",
      [] {
        std::vector<std::string> names = sf::impl_names();
        for (const auto* plugin : sf::plugins()) names.insert(names.end(), plugin->names.begin(), plugin->names.end());
        return names;
      },
      "The implementations for CPU tensors that this machine can run: ours, slowest first, then those of plugins.");
  m.def("cpu_features", &sf::cpu_features,
        "The features of this CPU, of those that decide which implementations it can run.");
  m.def("cached_packs", &sf::packed_cache_size, "How many packed weights are kept for small inference calls.");
  m.def("clear_packed_cache", &sf::packed_cache_clear, "Forgets all kept packed weights.");
  m.def("pool_held", &sf::pool_held, "Bytes kept for the next call's buffers.");
  m.def(
      "regimes", [] { return std::vector<std::string>(std::begin(sf::cuda::kRegimes), std::end(sf::cuda::kRegimes)); },
      "The implementations on CUDA, in the order in which a plan tries them.");
  m.def("plan", &sf::explain_plan, py::arg("cell"), py::arg("hidden"), py::arg("batch"), py::arg("precision"),
        py::arg("directions"), py::arg("backward"), py::arg("regime"), py::arg("limits"), py::arg("noisy") = false,
        "How a layer would run on a device with these limits; see csrc/cuda/plan.h. Needs no GPU.");
  m.def(
      "known_devices",
      [] {
        py::dict all;
        for (const auto& device : sf::cuda::kDevices) all[device.name] = sf::to_dict(device.limits);
        return all;
      },
      "The limits of devices by name, for plan().");
#if defined(SF_WITH_CUDA)
  m.def(
      "device_limits", [](int device) { return sf::to_dict(sf::cuda::limits_of(device)); },
      "The limits of a CUDA device of this machine.");
#endif
  m.def("hashed_ngrams", &sf::hashed_ngrams_of, py::arg("texts"), py::arg("bits"),
        "The hashed n-grams of texts, see csrc/text/hashed_ngrams.h: ids and counts of all of them as int32, and how "
        "many each text has as int64, each as bytes.");
  m.def("linear_svm", &sf::linear_svm, py::arg("starts"), py::arg("ids"), py::arg("values"), py::arg("targets"),
        py::arg("costs"), py::arg("features"), py::arg("classes"), py::arg("passes"), py::arg("tolerance"),
        py::arg("seed"), "Linear support vector machines of sparse rows; see csrc/linear/linear_svm.h.");
  m.def(
      "register_plugin",
      [](const py::object& plugin) {
        if (!PyCapsule_IsValid(plugin.ptr(), sf::kPluginCapsule))
          throw py::type_error(std::string("plugin: expected a capsule named ") + sf::kPluginCapsule + " but got " +
                               sf::quoted(py::repr(plugin).cast<std::string>()));
        void* const found = PyCapsule_GetPointer(plugin.ptr(), sf::kPluginCapsule);
        sf::plugins().push_back(static_cast<const sf::Plugin*>(found));
      },
      "Adds implementations for CPU tensors; see csrc/bindings/runner.h. They stay for as long as the process runs.");
  static const sf::Exports exports{SF_CSRC_HASH, sf::cpu_runner, sf::pool_take, sf::pool_give};
  m.attr("exports") = py::capsule(&exports, sf::kExportsCapsule);
  m.def("random_convolutions", &sf::random_convolutions, py::arg("x"), py::arg("lengths"), py::arg("dilations"),
        py::arg("counts"), py::arg("uses"), py::arg("biases"), py::arg("threads"),
        "Random convolution features of series; seqcls_fast/convolutions.py draws the arguments.");
  m.def("trim_pool", &sf::pool_trim, "Returns the kept buffers to the system.");
}
