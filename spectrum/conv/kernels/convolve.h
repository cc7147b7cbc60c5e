// 3×3 convolution, stride 1, of planes. Two inner loops:
//
// narrow   segments of up to 4 channels, or 8 where vectors have 16 lanes. A vector holds whole segments, and an output channel needs the inputs of its own
//          segment only: y[c] = Σ_r turn_r(x)[c] · w_r[c], over the turns r within segments.
// wide     larger segments, one plane each. An input channel is broadcast against vectors of output channels; the three
//          taps of a row and the channels of a pixel lie one after another and form one loop.
//
// Both keep TILE neighbouring output pixels in registers, in two rows where a row is too short to hide the processor's
// latency.

#pragma once

#include <type_traits>

#include "planes.h"

// What is written: pixels `channels` apart, in rows of `width` pixels, of which columns [begin, end) are made.
struct Result {
  float* data;
  int64_t channels, rows, width, begin, end;
};

constexpr int AHEAD = 16;  // pixels, by which the cache lines to be written are called for

// weights: [block][dy][r][dx][LANES]
template <int SIZE, int TILE, int R>
static inline __attribute__((always_inline)) void turns(Vector (&sums)[TILE], const float* row, const float* w) {
  if constexpr (R < SIZE) {
    __asm__("" : "+r"(row));  // else the compiler keeps a row's vectors for the next turn, which the registers cannot
    const Vector w0 = load(w), w1 = load(w + LANES), w2 = load(w + 2 * LANES);
#pragma GCC unroll 16
    for (int j = 0; j < TILE + 2; j++) {
      const Vector x = turn<SIZE, R>(load(row + j * LANES));
      if (j < TILE) sums[j] += x * w0;
      if (j > 0 && j <= TILE) sums[j - 1] += x * w1;
      if (j > 1) sums[j - 2] += x * w2;
    }
    turns<SIZE, TILE, R + 1>(sums, row, w + 3 * LANES);
  }
}

// The rows from `h` on.
static inline Planes below(Planes x, int64_t h) {
  x.data += h * x.row();
  return x;
}

static inline Result below(Result y, int64_t h) {
  y.data += h * y.width * y.channels;
  y.rows -= h;
  return y;
}

// `made`: channels of the result from the first block on.
template <int SIZE, int ROWS, int TILE>
static void convolve_narrow(const Planes& x, const float* weights, const Result& y, int64_t blocks, int64_t made) {
  constexpr int held = LANES / SIZE * SIZE;  // channels in a vector
  constexpr int64_t together = 8;            // vectors of a pixel, so that whole cache lines are written soon
  const int64_t plane = x.plane(), row = x.row(), result_row = y.width * y.channels;
  for (int64_t first = 0; first < blocks; first += together)
    for (int64_t h = 0; h + ROWS <= y.rows; h += ROWS)
      for (int64_t w = y.begin; w < y.end; w += TILE)
        for (int64_t b = first; b < std::min(first + together, blocks); b++) {
          Vector sums[ROWS][TILE] = {};
          const float* from = x.data + b * plane + h * row + w * LANES;
          const float* k = weights + b * 9 * SIZE * LANES;
#pragma GCC unroll 1
          for (int dy = 0; dy < 3; dy++)
#pragma GCC unroll 2
            for (int r = 0; r < ROWS; r++) turns<SIZE, TILE, 0>(sums[r], from + (dy + r) * row, k + dy * 3 * SIZE * LANES);
          const int64_t left = made - b * held;
#pragma GCC unroll 2
          for (int r = 0; r < ROWS; r++) {
            float* to = y.data + h * result_row + r * result_row + w * y.channels + b * held;
            if (b % 2 == 0)
#pragma GCC unroll 16
              for (int t = 0; t < TILE; t++) __builtin_prefetch(to + (t + AHEAD) * y.channels, 1);
            if (left >= LANES && w + TILE <= y.end) {  // lanes past `held` are made again by the next block
#pragma GCC unroll 16
              for (int t = 0; t < TILE; t++) store(to + t * y.channels, sums[r][t]);
            } else {
              for (int t = 0; t < TILE; t++)
                if (w + t < y.end) store_some(to + t * y.channels, sums[r][t], left);
            }
          }
        }
  if constexpr (ROWS > 1)
    if (y.rows % ROWS)
      convolve_narrow<SIZE, 1, TILE>(below(x, y.rows / ROWS * ROWS), weights, below(y, y.rows / ROWS * ROWS), blocks, made);
}

// weights: [segment][dy][dx · channels][out vectors][LANES], `step` floats from one input to the next. SIZE: channels of
// a segment where they are few and known, so that the loop is laid out for them; else 0. `made`: channels of the result
// from the first of these on, those of later segments with them, which write over what is written too much.
template <int SIZE, int ROWS, int TILE, int VECTORS>
static void convolve_column(const Planes& x, int64_t segment, const float* weights, int64_t step, const Result& y,
                            int64_t made) {
  const int64_t size = SIZE ? SIZE : x.channels, row = x.row(), result_row = y.width * y.channels;
  for (int64_t h = 0; h + ROWS <= y.rows; h += ROWS)
    for (int64_t column = y.begin; column < y.end; column += TILE) {
      Vector sums[ROWS][TILE][VECTORS] = {};
      const float* w = weights;
      float* to = y.data + h * result_row + column * y.channels;
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int t = 0; t < TILE; t++) __builtin_prefetch(to + r * result_row + (t + AHEAD) * y.channels, 1);
      for (int dy = 0; dy < 3; dy++) {
        const float* from = x.data + segment * x.plane() + (h + dy) * row + column * size;
        const float* pixel[ROWS][TILE];
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
          for (int t = 0; t < TILE; t++) pixel[r][t] = from + r * row + t * size;
#pragma GCC unroll 4
        for (int64_t q = 0; q < 3 * size; q++, w += step) {
          Vector k[VECTORS];
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; v++) k[v] = load(w + v * LANES);
#pragma GCC unroll 2
          for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int t = 0; t < TILE; t++) {
              const Vector value = splat(SIZE ? from[r * row + t * SIZE + q] : pixel[r][t][q]);
#pragma GCC unroll 4
              for (int v = 0; v < VECTORS; v++) sums[r][t][v] += value * k[v];
            }
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++, to += result_row) {
        if (column + TILE <= y.end && made >= VECTORS * LANES) {
#pragma GCC unroll 16
          for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) store(to + t * y.channels + v * LANES, sums[r][t][v]);
        } else {
          for (int t = 0; t < TILE; t++)
            for (int v = 0; v < VECTORS; v++)
              if (column + t < y.end) store_some(to + t * y.channels + v * LANES, sums[r][t][v], made - v * LANES);
        }
      }
    }
  if constexpr (ROWS > 1)
    if (y.rows % ROWS)
      convolve_column<SIZE, 1, TILE, VECTORS>(below(x, y.rows / ROWS * ROWS), segment, weights, step,
                                              below(y, y.rows / ROWS * ROWS), made);
}

template <int SIZE, int ROWS, int TILE>
static void convolve_wide(const Planes& x, const float* weights, const Result& y, int64_t segments, int64_t out) {
  const int64_t step = vectors(out) * LANES;
  for (int64_t s = 0; s < segments; s++)
    for (int64_t o = 0; o < out; o += 2 * LANES) {
      const float* w = weights + s * 9 * x.channels * step + o;
      const int64_t made = (segments - s) * out - o;
      Result part = y;
      part.data += s * out + o;
      if (SIZE == 0 && o + LANES < out)
        convolve_column<0, ROWS, TILE, 2>(x, s, w, step, part, made);
      else
        convolve_column<SIZE, ROWS, TILE, 1>(x, s, w, step, part, made);
    }
}

// A row in tiles of at most MOST pixels that differ by at most one in width, so that none is half empty:
// run(tile, first column, end) with the tile as a constant.
template <int LEAST, int MOST, typename Run>
static void with_tile(int64_t tile, int64_t begin, int64_t end, Run run) {
  if constexpr (LEAST < MOST) {
    if (tile > LEAST) return with_tile<LEAST + 1, MOST>(tile, begin, end, run);
  }
  run(std::integral_constant<int, LEAST>(), begin, end);
}

template <int LEAST, int MOST, typename Run>
static void in_tiles(int64_t width, Run run) {
  const int64_t tiles = (width + MOST - 1) / MOST, size = (width + tiles - 1) / tiles;
  const int64_t larger = (width - tiles * (size - 1)) * size;
  with_tile<LEAST, MOST>(size, 0, larger, run);
  if (larger < width) with_tile<LEAST, MOST>(size - 1, larger, width, run);
}
