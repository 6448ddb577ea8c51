// Fuzzes the runtime's reader of files: changes valid files, puts the right checksum into them, and runs what still
// opens. Built with AddressSanitizer and UBSan by fuzz_runtime.py. A file that leads to a sentence which no file led to
// before becomes a seed of further changes, so that the fuzzer goes deeper without the help of a compiler.
//
//   fuzz_runtime SECONDS SEED KEEP FILE...     KEEP: a folder for the first file of each sentence, or -
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "../../csrc/runtime/seqcls.h"
#include "../../csrc/runtime/tensor_file.h"

namespace {

constexpr size_t kCrcAt = 8 + 26;  // behind {"__metadata__":{"crc32":"
std::mt19937_64 rng;

size_t below(size_t count) { return count ? rng() % count : 0; }

uint64_t header_length(const std::string& file) {
  uint64_t length = 0;
  if (file.size() >= 8) std::memcpy(&length, file.data(), 8);
  return length < file.size() ? length : file.size() < 8 ? 0 : file.size() - 8;
}

void set_header(std::string& file, const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  file.assign(reinterpret_cast<const char*>(&length), 8);
  file += header + data;
}

// The parts of a header that a change may replace: numbers and strings.
std::vector<std::pair<size_t, size_t>> tokens(const std::string& text) {
  std::vector<std::pair<size_t, size_t>> found;
  for (size_t at = kCrcAt; at < text.size();) {
    const size_t end = text.find_first_of("{}[]:,\" \\", at);
    const size_t stop = end == std::string::npos ? text.size() : end;
    if (stop > at) found.emplace_back(at, stop - at);
    at = stop + 1;
  }
  return found;
}

std::string change(std::string file, const std::string& other) {
  static const char* const kOdd[] = {"0",
                                     "-1",
                                     "1",
                                     "2",
                                     "3",
                                     "65536",
                                     "1048576",
                                     "4294967296",
                                     "9223372036854775807",
                                     "1e30",
                                     "1e-9",
                                     "0.5",
                                     "null",
                                     "true",
                                     "[]",
                                     "{}",
                                     "x",
                                     "lstm",
                                     "gru",
                                     "mean",
                                     "last",
                                     "BF16",
                                     "U8",
                                     "attention",
                                     "lstm_peephole",
                                     "rnn_tanh_layer_norm"};
  if (file.size() < 8) return file + std::string(8, '\0');
  std::string header = file.substr(8, header_length(file)),
              data = file.substr(std::min(file.size(), 8 + header.size()));
  switch (below(9)) {
    case 0:  // bytes of the header
      for (size_t n = 1 + below(3); n && !header.empty(); --n) header[below(header.size())] = static_cast<char>(rng());
      break;
    case 1:  // bytes of the data
      for (size_t n = 1 + below(8); n && !data.empty(); --n) data[below(data.size())] = static_cast<char>(rng());
      break;
    case 2:  // a length that is not that of the header
      if (!file.empty()) file[below(std::min<size_t>(8, file.size()))] ^= static_cast<char>(1 + below(255));
      return file;
    case 3:  // a shorter or longer file
      if (below(2))
        data.resize(below(data.size() + 1));
      else
        data.append(below(99), '\0');
      break;
    case 4: {  // a part of the header again, or not at all
      const size_t from = below(header.size() + 1), size = below(std::min<size_t>(200, header.size() - from) + 1);
      const std::string part = header.substr(from, size);
      if (below(2))
        header.erase(from, size);
      else
        header.insert(below(header.size() + 1), part);
      break;
    }
    case 5: {  // a part of another header
      const std::string theirs = other.substr(std::min<size_t>(8, other.size()), header_length(other));
      header.insert(below(header.size() + 1), theirs.substr(below(theirs.size() + 1), below(60)));
      break;
    }
    default: {  // numbers, strings and names
      for (size_t n = 1 + below(3); n; --n) {
        const auto all = tokens(header);
        if (all.empty()) break;
        const auto [at, size] = all[below(all.size())];
        const auto [from, count] = all[below(all.size())];
        header.replace(at, size, below(3) ? std::string(kOdd[below(std::size(kOdd))]) : header.substr(from, count));
      }
    }
  }
  set_header(file, header, data);
  return file;
}

void seal(std::string& file) {
  if (file.size() < kCrcAt + 8) return;
  std::memcpy(file.data() + kCrcAt, "00000000", 8);
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08x", sf::runtime::crc32(0, file.data(), file.size()));
  std::memcpy(file.data() + kCrcAt, digits, 8);
}

// Classifies texts with a model that opened, which is refused where it is none of texts.
std::string classify(seqcls_model* model, const seqcls_info& info) {
  constexpr int64_t kTexts = 4;
  std::vector<std::string> given = {"a b \xe6\x97\xa5 c", "", std::string(1500, 'x'), "E\xcc\x81 \xce\xa3"};
  for (size_t n = below(3); n; --n)
    if (std::string& text = given[below(given.size())]; !text.empty())
      text[below(text.size())] = static_cast<char>(rng());
  std::vector<const char*> texts;
  std::vector<size_t> sizes;
  std::vector<std::vector<char>> kept;  // of the exact sizes
  for (const std::string& text : given) kept.emplace_back(text.begin(), text.end());
  for (const auto& text : kept) texts.push_back(text.data()), sizes.push_back(text.size());
  std::vector<int64_t> ids(kTexts, static_cast<int64_t>(below(4))), lengths(kTexts, 1), classes(kTexts);
  std::vector<double> probabilities(static_cast<size_t>(kTexts * info.outputs));
  seqcls_texts call = {};
  call.count = kTexts;
  call.texts = texts.data();
  call.sizes = sizes.data();
  call.are_normal = below(2);
  call.probabilities = probabilities.data();
  call.classes = classes.data();
  seqcls_status status = seqcls_classify(model, &call);
  call.ids = ids.data();
  call.lengths = lengths.data();
  if (status) status = seqcls_classify(model, &call);  // byte pairs
  return status ? std::string(" texts: ") + seqcls_error() : " texts";
}

// Runs a model that opened. Its numbers may be anything; its calls must stay within their arrays.
std::string use(seqcls_model* model) {
  constexpr int64_t kRows = 3, kSteps = 5;
  seqcls_info info;
  if (seqcls_describe(model, &info)) std::abort();
  const int64_t at_once = info.is_streamable ? 2 : kSteps;  // so that a call has several pieces where it can
  const size_t bytes = seqcls_stream_bytes(model, kRows, at_once);
  if (!bytes || bytes > (size_t{256} << 20)) return "large";
  seqcls_stream* stream;
  if (seqcls_stream_new(model, kRows, at_once, &stream)) return std::string("stream: ") + seqcls_error();
  std::vector<float> x(static_cast<size_t>(kRows * kSteps * info.features), 0.5f);
  std::vector<int64_t> ids(kRows * kSteps, 0), classes(kRows);
  std::vector<float> out(static_cast<size_t>(kRows * (info.is_classifier ? 1 : kSteps) * info.outputs));
  // Arrays on the heap and of the exact size, so that the sanitizers see every step beyond them.
  std::vector<uint8_t> resets(kRows * kSteps);
  for (uint8_t& each : resets) each = below(3) == 0;
  std::vector<int64_t> lengths(kRows, kSteps), rows = {2, 0};
  lengths[0] = static_cast<int64_t>(below(kSteps + 1));
  seqcls_call call = {};
  call.steps = kSteps;
  if (info.vocabulary)
    call.ids = ids.data();
  else
    call.x = x.data();
  if (below(2)) call.lengths = lengths.data();
  if (!info.is_classifier && below(2)) call.resets = resets.data();
  call.out = out.data();
  if (info.is_classifier) call.classes = classes.data();
  const seqcls_status status = seqcls_run(stream, &call);
  const std::string found = status ? seqcls_error() : std::string("ran ") + info.cell + info.dtype;
  if (!status && info.is_classifier)
    for (const int64_t each : classes)
      if (each < 0 || each >= info.outputs) std::abort();
  call.rows = rows.data();
  call.count = static_cast<int64_t>(below(rows.size() + 1));
  if (seqcls_run(stream, &call) != status) std::abort();  // some rows are taken as all rows are
  if (seqcls_reset(stream, static_cast<int64_t>(below(kRows + 1)) - 1)) std::abort();
  const bool steps = info.is_streamable && !info.vocabulary;
  if ((seqcls_step(stream, x.data(), out.data()) == SEQCLS_OK) != (steps && !status)) std::abort();
  const size_t size = seqcls_state_bytes(stream);
  if ((size > 0) != (info.is_streamable != 0)) std::abort();
  std::vector<char> state(size);
  if (size && (seqcls_get_state(stream, 1, state.data(), size) || seqcls_set_state(stream, 2, state.data(), size)))
    std::abort();
  if (size) state[below(size)] ^= static_cast<char>(1 + below(255));
  seqcls_set_state(stream, 0, state.data(), size);  // refused, or a state of other numbers
  if (size && seqcls_run(stream, &call) != status) std::abort();
  seqcls_stream_close(stream);
  return found + classify(model, info);
}

// What became of a file: the sentence without its numbers and quoted words.
std::string outcome(const std::string& file) {
  auto* const copy = static_cast<char*>(std::malloc(file.size() ? file.size() : 1));  // of the exact size
  std::memcpy(copy, file.data(), file.size());
  seqcls_model* model = nullptr;
  const seqcls_status status = seqcls_open_memory(copy, file.size(), "base", &model);
  if ((status == SEQCLS_OK) != (model != nullptr)) std::abort();
  std::string text = status ? seqcls_error() : use(model);
  if (text.empty()) std::abort();  // every error has a sentence
  seqcls_close(model);
  std::free(copy);
  text.resize(std::min(text.find(" but got"), text.size()));
  std::string kind = std::to_string(status);
  bool quoted = false;
  for (const char c : text) {
    if (c == '\'') quoted = !quoted;
    if (!quoted && (c < '0' || c > '9')) kind += c;
  }
  return kind;
}

std::string content(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) return 2;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(arguments[1]));
  rng.seed(std::strtoull(arguments[2], nullptr, 10));
  const std::string keep = arguments[3];
  std::vector<std::string> pool;
  std::set<std::string> seen;
  for (int i = 4; i < count; ++i) {
    pool.push_back(content(arguments[i]));
    seen.insert(outcome(pool.back()));
  }
  size_t tried = 0;
  for (; std::chrono::steady_clock::now() < end; ++tried) {
    std::string file = pool[below(pool.size())];
    for (size_t n = 1 + below(3); n; --n) file = change(std::move(file), pool[below(pool.size())]);
    if (below(20)) seal(file);
    std::string kind = outcome(file);
    if (!seen.insert(kind).second) continue;
    std::printf("%s\n", kind.c_str());
    if (keep != "-") {
      std::ofstream to(keep + "/" + std::to_string(seen.size()) + ".sfm", std::ios::binary);
      to.write(file.data(), static_cast<std::streamsize>(file.size()));
    }
    if (pool.size() < 2000) pool.push_back(std::move(file));
  }
  std::printf("%zu files, %zu outcomes\n", tried, seen.size());
  return 0;
}
