// What the emulated tiles answer: `detectors` alone checks values, `detectors FAULT` does what must end the program.
#include <math.h>

#include <string>

#include "emulated_tiles.h"

namespace {

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 12, 20, 12};
  uint8_t rows[16] = {16, 16, 16, 3, 3, 5};
};

uint16_t half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return static_cast<uint16_t>(bits >> 16);
}
void expect(bool right, const char* what) {
  if (right) return;
  printf("wrong: %s\n", what);
  exit(1);
}

// Sums one product of a row of A with a column of B, whose numbers are those of `left` and `right` in their order.
float product(const float (&left)[32], const float (&right)[32], float start) {
  alignas(64) uint16_t a[16][32] = {}, b[16][32] = {};
  alignas(64) float c[16][16] = {};
  for (int k = 0; k < 32; ++k) a[2][k] = half(left[k]), b[k / 2][2 * 5 + k % 2] = half(right[k]);
  c[2][5] = start;
  _tile_loadd(0, c, 64);
  _tile_loadd(1, a, 64);
  _tile_loadd(2, b, 64);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, c, 64);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) expect(m == 2 || c[m][n] == 0, "a product in another row");
  return c[2][5];
}

void values() {
  const float tiny = 0x1p-127f, least = 0x1p-126f;
  expect(product({2, 3}, {5, 7}, 1) == 32, "a pair of products");
  expect(product({0, 0, 2}, {0, 0, 5}, 1) == 11, "the second pair");
  // Even and odd k have sums of their own, which start at zero: in one sum, or started with the sum in memory, the ones
  // would be lost or kept.
  expect(product({0x1p24f, 1, -0x1p24f}, {1, 1, 1}, 0) == 1, "odd k apart from even k");
  expect(product({0x1p24f, 0, 1, 0, -0x1p24f}, {1, 0, 1, 0, 1}, 0) == 0, "even k in their order");
  expect(product({1, 0, 1}, {1, 0, 1}, 0x1p25f) == 0x1p25f, "the sum in memory is added last");
  expect(product({1, 0, 1, 0, 1, 0, 1}, {1, 0, 1, 0, 1, 0, 1}, 0x1p25f) == 0x1p25f + 4, "and only once");
  expect(product({3}, {0x1p-24f}, 1) == 1 + 0x1p-23f * 2, "to nearest, a tie to even");
  expect(product({tiny}, {1}, 0) == 0 && product({1}, {tiny}, 0) == 0, "a denormal operand is zero");
  expect(product({0}, {0}, tiny) == 0 && product({1}, {1}, tiny) == 1, "a denormal sum is zero");
  expect(product({least}, {0.5f}, 0) == 0 && product({least}, {1}, 0) == least, "a denormal product is zero");
  expect(product({0x1p64f}, {0x1p64f}, 0) == INFINITY, "infinity");
  expect(isnan(product({INFINITY}, {0}, 0)) && isnan(product({0}, {0}, NAN)), "NaN");
}

// Tiles 3, 4 and 5: 3 x 3 sums of 3 x 10 and 10 x 3 values.
void sizes() {
  alignas(64) float c[16][16], after[16][16];
  alignas(64) uint16_t a[16][32], b[16][32];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 32; ++j) a[i][j] = b[i][j] = half(1), c[i][j / 2] = after[i][j / 2] = 7;
  _tile_loadd(3, c, 64);
  _tile_loadd(4, a, 64);
  _tile_loadd(5, b, 64);
  _tile_dpbf16ps(3, 4, 5);
  _tile_stored(3, after, 64);
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) expect(after[m][n] == (m < 3 && n < 3 ? 17 : 7), "a smaller product");
  using namespace emulated_tiles;
  for (int m = 0; m < 16; ++m)
    for (int byte = 0; byte < 64; ++byte)
      expect((m < 3 && byte < 12) || state.tiles[3].data[m][byte] == 0, "a tile is zero beyond its rows and columns");
  _tile_zero(3);
  _tile_stored(3, after, 64);
  expect(after[0][0] == 0 && after[2][2] == 0 && after[2][3] == 7 && after[3][0] == 7, "a tile of zeros");
}

}  // namespace

int main(int count, char** words) {
  const std::string fault = count > 1 ? words[1] : "";
  Config config;
  if (fault == "unconfigured") _tile_zero(0);
  if (fault == "palette") config.palette = 0;
  if (fault == "start") config.start_row = 1;
  if (fault == "reserved") config.reserved[3] = 1;
  if (fault == "beyond") config.rows[8] = 1;
  if (fault == "rows") config.rows[0] = 17;
  if (fault == "bytes") config.row_bytes[0] = 65;
  if (fault == "half") config.rows[7] = 1;
  _tile_loadconfig(&config);
  if (fault == "released") _tile_release(), _tile_zero(0);
  if (fault == "absent") _tile_zero(6);
  if (fault == "same") _tile_dpbf16ps(0, 1, 1);
  if (fault == "fit") _tile_dpbf16ps(0, 1, 4);
  if (!fault.empty()) return 0;  // the fault was not noticed
  values();
  sizes();
  _tile_release();
  printf("right\n");
}
