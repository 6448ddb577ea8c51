// Reads the header of a file of tensors. The data are looked at too: a weight that is not finite is an error.
#include "tensor_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "json.h"
#include "refusal.h"

namespace sf::runtime {
namespace {

constexpr char kStart[] = "{\"__metadata__\":{\"crc32\":\"";  // so that the checksum has a fixed place
constexpr size_t kStartSize = sizeof kStart - 1, kCrcAt = 8 + kStartSize, kCrcSize = 8;
constexpr int64_t kMostHeader = 1 << 20, kMostSize = int64_t{1} << 40;

int64_t size_of(FileTensor::Kind kind) {
  return kind == FileTensor::Kind::kFloat32 ? 4 : kind == FileTensor::Kind::kBFloat16 ? 2 : 1;
}
constexpr const char* kKinds[] = {"F32", "BF16", "U8"};

// Eight tables, with which eight bytes are looked up at once.
std::array<std::array<uint32_t, 256>, 8> make_tables() {
  std::array<std::array<uint32_t, 256>, 8> tables;
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    tables[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (size_t k = 1; k < 8; ++k) tables[k][i] = tables[k - 1][i] >> 8 ^ tables[0][tables[k - 1][i] & 0xff];
  return tables;
}

template <class Bits>
bool all_finite(const char* data, int64_t count, Bits exponent) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * static_cast<int64_t>(sizeof bits), sizeof bits);
    finite &= (bits & exponent) != exponent;
  }
  return finite;
}

bool is_finite(const FileTensor& tensor) {
  switch (tensor.kind) {
    case FileTensor::Kind::kFloat32:
      return all_finite<uint32_t>(tensor.data, tensor.count(), 0x7f800000);
    case FileTensor::Kind::kBFloat16:
      return all_finite<uint16_t>(tensor.data, tensor.count(), 0x7f80);
    default:
      return true;
  }
}

[[noreturn]] void not_ours() {
  fail("file: expected one that seqcls_fast.export.to_runtime() wrote, but it is another");
}
[[noreturn]] void changed() { fail("file: expected the file that to_runtime() wrote, but it is truncated or changed"); }

void check_names(const Json& value, std::initializer_list<const char*> names, const std::string& what) {
  if (value.kind != Json::Kind::kObject || value.members.size() != names.size())
    fail(what, ": expected a tensor of safetensors");
  for (const char* name : names)
    if (!value.find(name)) fail(what, ": expected a tensor of safetensors, but it has no ", name);
}

}  // namespace

uint32_t crc32(uint32_t before, const char* data, size_t size) {
  static const auto tables = make_tables();
  uint32_t crc = ~before;
  for (; size >= 8; size -= 8, data += 8) {
    unsigned char byte[8];
    std::memcpy(byte, data, 8);
    const uint32_t low = crc ^ (byte[0] | byte[1] << 8 | byte[2] << 16 | static_cast<uint32_t>(byte[3]) << 24);
    crc = tables[7][low & 0xff] ^ tables[6][low >> 8 & 0xff] ^ tables[5][low >> 16 & 0xff] ^ tables[4][low >> 24] ^
          tables[3][byte[4]] ^ tables[2][byte[5]] ^ tables[1][byte[6]] ^ tables[0][byte[7]];
  }
  for (; size; --size, ++data) crc = crc >> 8 ^ tables[0][(crc ^ static_cast<unsigned char>(*data)) & 0xff];
  return ~crc;
}

TensorFile::TensorFile(const std::string& path) {
  const auto refuse_file = [&](const char* why) {
    refuse(SEQCLS_NO_FILE, "path: expected a file that can be read, but ", quoted(path), ": ", why);
  };
  const int handle = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (handle < 0) refuse_file(std::strerror(errno));
  struct stat about;
  const bool known = ::fstat(handle, &about) == 0;
  const bool regular = known && S_ISREG(about.st_mode);
  const size_t size = regular ? static_cast<size_t>(about.st_size) : 0;
  void* const mapped = size ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, handle, 0) : nullptr;
  const int error = errno;
  ::close(handle);
  if (!regular) refuse_file("it is not a regular file");
  if (mapped == MAP_FAILED) refuse_file(std::strerror(error));
  mapped_ = mapped, mapped_size_ = size;
  try {
    read(static_cast<const char*>(mapped), size);
  } catch (...) {
    if (mapped_) ::munmap(mapped_, mapped_size_);
    throw;
  }
}

TensorFile::TensorFile(const void* data, size_t size) { read(static_cast<const char*>(data), size); }

TensorFile::~TensorFile() {
  if (mapped_) ::munmap(mapped_, mapped_size_);
}

void TensorFile::read(const char* data, size_t size) {
  if (size < kCrcAt + kCrcSize || std::memcmp(data + 8, kStart, kStartSize) != 0) not_ours();
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(data[i]);
  if (length > size - 8) changed();
  if (length > kMostHeader) fail("file: expected a header of at most ", kMostHeader, " bytes but got ", length);
  uint32_t crc = crc32(0, data, kCrcAt);
  crc = crc32(crc, "00000000", kCrcSize);
  crc = crc32(crc, data + kCrcAt + kCrcSize, size - kCrcAt - kCrcSize);
  char digits[kCrcSize + 1];
  std::snprintf(digits, sizeof digits, "%08x", crc);
  if (std::memcmp(digits, data + kCrcAt, kCrcSize) != 0) changed();
  checksum_ = crc;

  const Json header = parse_json(data + 8, static_cast<size_t>(length), "file");
  const Json* const about = header.find("__metadata__");
  if (!about) not_ours();
  for (const auto& [name, value] : about->members) {
    const std::string& text = words(value, "file: " + quoted(name) + " in __metadata__");
    if (name == "format" && text != "seqcls-fast") not_ours();
    if (name == "version" && text != std::to_string(SEQCLS_VERSION))
      refuse(SEQCLS_UNKNOWN_PART, "file: expected version ", SEQCLS_VERSION,
             ", which this library reads, but got version ", quoted(text));
    if (name == "model") model_ = text;
    if (name != "crc32" && name != "format" && name != "version" && name != "model")
      refuse(SEQCLS_UNKNOWN_PART, "file: expected no ", quoted(name),
             " in __metadata__, which this library does not know");
  }
  for (const char* name : {"format", "version", "model"})
    if (!about->find(name)) not_ours();

  struct Range {
    int64_t begin, end;
  };
  std::vector<Range> ranges;
  const char* const start = data + 8 + length;
  const int64_t bytes = static_cast<int64_t>(size - 8 - length);
  for (const auto& [name, value] : header.members) {
    if (name == "__metadata__") continue;
    const std::string what = "file: tensor " + quoted(name);
    check_names(value, {"dtype", "shape", "data_offsets"}, what);
    FileTensor tensor;
    tensor.kind = static_cast<FileTensor::Kind>(
        index_or_refuse(SEQCLS_UNKNOWN_PART, what + ": dtype", kKinds, words(*value.find("dtype"), what)));
    int64_t need = size_of(tensor.kind);
    for (const Json& each : value.find("shape")->items) {
      tensor.shape.push_back(whole(each, 0, kMostSize, what + ": size"));
      if (__builtin_mul_overflow(need, tensor.shape.back(), &need) || need > bytes) changed();
    }
    const std::vector<Json>& offsets = value.find("data_offsets")->items;
    if (offsets.size() != 2) fail(what, ": expected two data_offsets but got ", offsets.size());
    const int64_t begin = whole(offsets[0], 0, bytes, what + ": data_offsets");
    const int64_t end = whole(offsets[1], begin, bytes, what + ": data_offsets");
    if (end - begin != need) fail(what, ": expected ", need, " bytes, as its shape says, but got ", end - begin);
    tensor.data = start + begin;
    if (reinterpret_cast<uintptr_t>(tensor.data) % static_cast<uintptr_t>(size_of(tensor.kind)))
      fail(what, ": expected data aligned to ", size_of(tensor.kind), " bytes");
    ranges.push_back({begin, end});
    tensors_[name].tensor = std::move(tensor);
  }
  // The tensors lie one after another, from the first byte of the data to the last.
  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  int64_t next = 0;
  for (const Range& range : ranges) {
    if (range.begin != next)
      fail("file: expected tensors one after another but got one at byte ", range.begin, " instead of ", next);
    next = range.end;
  }
  if (next != bytes) changed();
  // Only now, as no byte is in two tensors: a hostile header cannot have the same bytes read again and again.
  for (const auto& [name, entry] : tensors_)
    if (!is_finite(entry.tensor))
      fail("file: tensor ", quoted(name), ": expected finite weights but got one that is not");
}

const FileTensor& TensorFile::take(const std::string& name, FileTensor::Kind kind, const std::vector<int64_t>& shape) {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) fail("file: expected a tensor ", quoted(name), " but got none");
  Entry& entry = found->second;
  if (entry.tensor.kind != kind || entry.tensor.shape != shape)
    fail("file: tensor ", quoted(name), ": expected ", kKinds[static_cast<int>(kind)], " ", text(shape), " but got ",
         kKinds[static_cast<int>(entry.tensor.kind)], " ", text(entry.tensor.shape));
  entry.taken = true;
  return entry.tensor;
}

const FileTensor& TensorFile::take_bytes(const std::string& name) {
  const auto found = tensors_.find(name);
  const int64_t count = found == tensors_.end() ? 0 : found->second.tensor.count();
  return take(name, FileTensor::Kind::kBytes, {count});
}

void TensorFile::check_all_taken() const {
  for (const auto& [name, entry] : tensors_)
    if (!entry.taken)
      refuse(SEQCLS_UNKNOWN_PART, "file: expected no tensor ", quoted(name),
             ", which its description does not ask for");
}

}  // namespace sf::runtime
