// Texts of similar length run together, in a stream that is made for them. A row has the same bits in every batch, so
// that neither the order nor the size of the batches can be seen in the results.
#include "classify.h"

#include <algorithm>
#include <numeric>

#include "normal.h"
#include "../text/utf8.h"
#include "refusal.h"
#include "stream.h"

namespace sf::runtime {
namespace {

constexpr int64_t kMostRows = 64, kMostCells = 1 << 15;  // of a batch: texts, and steps of all of them
constexpr int64_t kPiece = 64;                           // steps for which a stream of a streamable model has memory
constexpr int64_t kMostTexts = 1 << 30;

// The texts of a call as the model reads them.
struct Encoded {
  std::vector<int64_t> ids, starts{0};  // text i has the ids from starts[i] to starts[i + 1]
  std::vector<float> beside;            // (texts, classes)
  int64_t length(int64_t i) const { return starts[static_cast<size_t>(i) + 1] - starts[static_cast<size_t>(i)]; }
};

void check_text(std::string_view text, int64_t index) {
  const char *at = text.data(), *const end = at + text.size();
  while (at < end) {
    const char* const begin = at;
    if (!texts::next_is_valid(at, end))
      refuse(SEQCLS_BAD_ARGUMENT, "texts[", index, "]: expected UTF-8 but got other bytes at ", begin - text.data());
  }
}

Encoded encoded(const Model& model, const seqcls_texts& call) {
  const TextPart& part = model.description.text;
  const int64_t classes = model.description.classes;
  Encoded found;
  std::vector<float> logits(static_cast<size_t>(classes));
  const int64_t* ids = call.ids;
  for (int64_t i = 0; i < call.count; ++i) {
    if (!call.texts[i] && call.sizes[i])
      refuse(SEQCLS_BAD_ARGUMENT, "texts[", i, "]: expected a pointer to the text but got NULL");
    const std::string_view given(call.texts[i] ? call.texts[i] : "", call.sizes[i]);
    check_text(given, i);
    const std::string made =
        call.are_normal ? std::string() : texts::normal(given, static_cast<texts::Form>(part.form), part.lowercase);
    const std::string_view normal = call.are_normal ? given : made;
    if (ids) {
      const int64_t most = part.max_length ? part.max_length : call.lengths[i];
      found.ids.insert(found.ids.end(), ids, ids + std::min(call.lengths[i], most));
      ids += call.lengths[i];
    } else {
      model.texts->add_ids(normal, found.ids);
    }
    found.starts.push_back(static_cast<int64_t>(found.ids.size()));
    model.texts->ngrams(normal, logits.data());
    found.beside.insert(found.beside.end(), logits.begin(), logits.end());
  }
  return found;
}

// Runs some texts, of which the first one is the longest.
seqcls_status run_batch(const std::shared_ptr<const Model>& model, const Encoded& encoded, const int64_t* rows,
                        int64_t count, const seqcls_texts& call) {
  const Description& d = model->description;
  const auto size = static_cast<size_t>(count), classes = static_cast<size_t>(d.classes);
  const int64_t steps = std::max<int64_t>(encoded.length(rows[0]), 1);
  std::vector<int64_t> ids(size * static_cast<size_t>(steps)), lengths(size), found(size);
  std::vector<float> beside(size * classes), logits(size * classes);
  std::vector<double> probabilities(size * classes);
  for (size_t i = 0; i < size; ++i) {
    lengths[i] = encoded.length(rows[i]);
    std::copy_n(encoded.ids.begin() + encoded.starts[static_cast<size_t>(rows[i])], lengths[i],
                ids.begin() + static_cast<int64_t>(i) * steps);
    std::copy_n(encoded.beside.begin() + rows[i] * d.classes, classes,
                beside.begin() + static_cast<int64_t>(i) * d.classes);
  }
  Stream stream(model, count, d.is_streamable() ? std::min(steps, kPiece) : steps);
  seqcls_call inner = {};
  inner.steps = steps;
  inner.ids = ids.data();
  inner.lengths = lengths.data();
  inner.logits = logits.data();
  inner.probabilities = probabilities.data();
  inner.classes = found.data();
  if (const seqcls_status status = stream.run(inner, d.text.bits ? beside.data() : nullptr)) return status;
  for (size_t i = 0; i < size; ++i) {
    if (call.classes) call.classes[rows[i]] = found[i];
    if (call.logits) std::copy_n(&logits[i * classes], classes, call.logits + rows[i] * d.classes);
    if (call.probabilities) std::copy_n(&probabilities[i * classes], classes, call.probabilities + rows[i] * d.classes);
  }
  return SEQCLS_OK;
}

}  // namespace

seqcls_status classify(const std::shared_ptr<const Model>& model, const seqcls_texts& given) {
  seqcls_texts call = given;
  const auto refuse_call = [](const auto&... words) { refuse(SEQCLS_BAD_ARGUMENT, words...); };
  if (!model->texts) refuse_call("model: expected one that was trained on texts but got another");
  if (call.count < 0 || call.count > kMostTexts)
    refuse_call("count: expected 0 to ", kMostTexts, " but got ", call.count);
  if (call.count && (!call.texts || !call.sizes))
    refuse_call(call.texts ? "sizes" : "texts", ": expected a pointer but got NULL");
  if (!call.ids != model->texts->has_tokenizer())
    refuse_call("ids: expected ", call.ids ? "NULL, as the model has a tokenizer, but got a pointer"
                                           : "the ids of the tokens, which are byte pairs, but got NULL");
  if (!call.lengths != !call.ids) refuse_call("lengths: expected a pointer together with ids alone");
  std::vector<int64_t> lengths;  // read once, as another thread may write to them
  if (call.lengths) lengths.assign(call.lengths, call.lengths + call.count), call.lengths = lengths.data();
  for (int64_t i = 0, sum = 0; call.ids && i < call.count; ++i)
    if (call.lengths[i] < 0 || (sum += call.lengths[i]) > kMostSteps)
      refuse_call("lengths: expected numbers from 0 on, together at most ", kMostSteps, ", but got ", call.lengths[i],
                  " at ", i);
  const Encoded texts = encoded(*model, call);
  std::vector<int64_t> order(static_cast<size_t>(call.count));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return texts.length(a) > texts.length(b); });
  for (int64_t begin = 0, rows; begin < call.count; begin += rows) {
    const int64_t* const first = order.data() + begin;
    const int64_t fitting = std::max<int64_t>(kMostCells / std::max<int64_t>(texts.length(*first), 1), 1);
    rows = std::min({fitting, kMostRows, call.count - begin});
    if (const seqcls_status status = run_batch(model, texts, first, rows, call)) return status;
  }
  return SEQCLS_OK;
}

}  // namespace sf::runtime
