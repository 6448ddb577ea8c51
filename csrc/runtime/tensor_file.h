// A file of tensors in the layout of safetensors: eight bytes with the length of a header, the header as JSON, the
// data. Everything that the header says is checked against the size of the file before a tensor can be reached. A
// checksum (CRC-32) at a fixed place covers the whole file, its own eight digits as zeros.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace sf::runtime {

struct FileTensor {
  enum class Kind { kFloat32, kBFloat16, kBytes };
  Kind kind;
  std::vector<int64_t> shape;
  const char* data;
  int64_t count() const {
    int64_t product = 1;
    for (const int64_t size : shape) product *= size;
    return product;
  }
};

class TensorFile {
 public:
  explicit TensorFile(const std::string& path);  // maps the file
  TensorFile(const void* data, size_t size);     // reads it in place
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;
  ~TensorFile();

  const std::string& model() const { return model_; }  // the description of the model, as JSON
  uint32_t checksum() const { return checksum_; }      // of the whole file
  // The tensor of this name, after a check of its kind and shape. Each may be asked for once.
  const FileTensor& take(const std::string& name, FileTensor::Kind kind, const std::vector<int64_t>& shape);
  const FileTensor& take_bytes(const std::string& name);  // of any number
  // Refuses a file with tensors that nobody took.
  void check_all_taken() const;

 private:
  struct Entry {
    FileTensor tensor;
    bool taken = false;
  };
  void read(const char* data, size_t size);

  void* mapped_ = nullptr;
  size_t mapped_size_ = 0;
  uint32_t checksum_ = 0;
  std::string model_;
  std::map<std::string, Entry> tensors_;
};

// CRC-32 as zlib has it.
uint32_t crc32(uint32_t before, const char* data, size_t size);

}  // namespace sf::runtime
