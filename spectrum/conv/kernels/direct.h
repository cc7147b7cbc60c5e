// Segments of one channel, 3×3, stride 1, read where they lie. A tap of a vector of channels is a vector, at any pixel:
// nothing has to be rearranged, and without the copy into planes each operand goes through the cache once less.
//
// A tile of output pixels, two rows of them where there are registers enough, is kept in registers with all nine taps;
// each vector that is read serves the whole tile.

#pragma once

#include "convolve.h"

constexpr int DIRECT_ROWS = LANES == 16 ? 2 : 1;  // AVX-512 has twice the registers, too
constexpr int DIRECT_TILE = 6;                    // at most
constexpr int64_t DIRECT_TOGETHER = 8;            // vectors of a pixel

// An operand with its surroundings: zeros, `top` rows of them above and `left` columns on the left.
struct Padded {
  Image image;
  int64_t top, left;
};

// Where a vector of channels begins; the last one overlaps the one before where channels are no multiple of LANES.
static inline int64_t first_channel(int64_t block, int64_t channels) { return std::min(block * LANES, channels - LANES); }

// visit(i, j, vector) for each pixel that a tile of outputs at (h, w) meets, row i and column j of its surroundings.
template <bool INSIDE, int ROWS, int TILE, typename Visit>
static inline __attribute__((always_inline)) void each_input(const Padded& x, int64_t h, int64_t w, int64_t c, Visit visit) {
  constexpr int64_t ahead = 8;  // pixels, by which the rows that are new are called for
  const int64_t pixel = x.image.pixel;
#pragma GCC unroll 4
  for (int i = 0; i < ROWS + 2; i++) {
    const int64_t row = h + i - x.top;
    if (row < 0 || row >= x.image.height) continue;
    const float* from = x.image.data + row * x.image.row + (w - x.left) * pixel + c;
    if (i >= 2)
#pragma GCC unroll 8
      for (int j = 0; j < TILE; j++) __builtin_prefetch(from + (j + ahead) * pixel);
#pragma GCC unroll 8
    for (int j = 0; j < TILE + 2; j++)
      if (INSIDE || (w + j >= x.left && w + j < x.left + x.image.width)) visit(i, j, load(from + j * pixel));
  }
}

// Rows [h, h + ROWS) of the result, columns [y.begin, y.end), a multiple of TILE; all of its channels.
template <int ROWS, int TILE>
static void convolve_rows(const Padded& x, const float* taps, const Result& y, int64_t h, int64_t channels) {
  for (int64_t first = 0; first < vectors(channels); first += DIRECT_TOGETHER)
    for (int64_t w = y.begin; w < y.end; w += TILE)
      for (int64_t b = first; b < std::min(first + DIRECT_TOGETHER, vectors(channels)); b++) {
        const int64_t c = first_channel(b, channels);
        Vector k[9], sums[ROWS][TILE] = {};
#pragma GCC unroll 9
        for (int i = 0; i < 9; i++) k[i] = load(taps + (b * 9 + i) * LANES);
        const auto add = [&](int i, int j, Vector v) __attribute__((always_inline)) {
#pragma GCC unroll 2
          for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int dx = 0; dx < 3; dx++)
              if (i >= r && i - r < 3 && j >= dx && j - dx < TILE) sums[r][j - dx] += v * k[(i - r) * 3 + dx];
        };
        if (w >= x.left && w + TILE + 2 <= x.left + x.image.width)
          each_input<true, ROWS, TILE>(x, h, w, c, add);
        else
          each_input<false, ROWS, TILE>(x, h, w, c, add);
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
          for (int t = 0; t < TILE; t++)
            store(y.data + (h + r) * y.row + (w + t) * y.pixel + c, sums[r][t]);
      }
}

// The gradient of the taps from rows [h, h + ROWS) of gy, columns [begin, end); added to sums, which lie as the taps do.
template <int ROWS, int TILE>
static void add_taps_of_rows(const Padded& x, const Image& gy, float* sums, int64_t h, int64_t begin, int64_t end,
                             int64_t channels) {
  for (int64_t b = 0; b < vectors(channels); b++) {
    const int64_t c = first_channel(b, channels);
    Vector k[9] = {};  // of these rows alone, so that few are summed in float32 one after another
    for (int64_t w = begin; w < end; w += TILE) {
      Vector g[ROWS][TILE];
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int t = 0; t < TILE; t++) g[r][t] = load(gy.data + (h + r) * gy.row + (w + t) * gy.pixel + c);
      const auto add = [&](int i, int j, Vector v) __attribute__((always_inline)) {
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
          for (int dx = 0; dx < 3; dx++)
            if (i >= r && i - r < 3 && j >= dx && j - dx < TILE) k[(i - r) * 3 + dx] += v * g[r][j - dx];
      };
      if (w >= x.left && w + TILE + 2 <= x.left + x.image.width)
        each_input<true, ROWS, TILE>(x, h, w, c, add);
      else
        each_input<false, ROWS, TILE>(x, h, w, c, add);
    }
    float* to = sums + b * 9 * LANES;
#pragma GCC unroll 9
    for (int i = 0; i < 9; i++) store(to + i * LANES, load(to + i * LANES) + k[i]);
  }
}

// run(rows, tile, begin, end) over a band of at most DIRECT_ROWS rows that begins at `h`, the first two as constants.
template <typename Run>
static void in_direct_tiles(int64_t h, int64_t height, int64_t width, Run run) {
  in_tiles<1, DIRECT_TILE>(width, [&](auto tile, int64_t begin, int64_t end) {
    if (h + DIRECT_ROWS <= height)
      run(std::integral_constant<int, DIRECT_ROWS>(), tile, begin, end);
    else if (h < height)
      run(std::integral_constant<int, 1>(), tile, begin, end);
  });
}

static void convolve_direct(const Padded& x, const float* taps, Result y, int64_t h, int64_t channels) {
  in_direct_tiles(h, y.rows, y.end, [&](auto rows, auto tile, int64_t begin, int64_t end) {
    y.begin = begin, y.end = end;
    convolve_rows<rows, tile>(x, taps, y, h, channels);
  });
}

static void add_taps_direct(const Padded& x, const Image& gy, float* sums, int64_t h, int64_t channels) {
  in_direct_tiles(h, gy.height, gy.width, [&](auto rows, auto tile, int64_t begin, int64_t end) {
    add_taps_of_rows<rows, tile>(x, gy, sums, h, begin, end, channels);
  });
}
