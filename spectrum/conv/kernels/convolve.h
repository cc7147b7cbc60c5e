// Convolution of planes, with stride 1 or 2. Two inner loops:
//
// narrow   segments of up to 4 channels, or 8 where vectors have 16 lanes. A vector holds whole segments, and an output
//          channel needs the inputs of its own segment only: y[c] = Σ_r turn_r(x)[c] · w_r[c], over the turns r within
//          segments.
// wide     larger segments, one plane each. An input channel is broadcast against vectors of output channels; the taps
//          of a row and the channels of a pixel lie one after another and form one loop.
//
// Both keep TILE neighbouring output pixels in registers, in two rows where a row is too short to hide the processor's
// latency.

#pragma once

#include <type_traits>

#include "planes.h"

// What is written: pixels and rows lie this many floats apart; of `rows` rows columns [begin, end) are made.
struct Result {
  float* data;
  int64_t pixel, row, rows, begin, end;
};

constexpr int AHEAD = 16;  // pixels, by which the cache lines to be written are called for

// A row of inputs, each as turn(x) makes it, into those of ROWS rows of TILE outputs each that `USED` has a bit for.
// weights: [column][LANES] of the first row, `back` floats after those of the second.
template <int COLUMNS, int STRIDE, int USED, int ROWS, int TILE, typename Turn>
static inline __attribute__((always_inline)) void add_row(Vector (&sums)[ROWS][TILE], const float* row, const float* w,
                                                          int64_t back, Turn turned) {
  Vector k[ROWS][COLUMNS];
#pragma GCC unroll 2
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 7
    for (int c = 0; c < COLUMNS; c++)
      if (USED >> r & 1) k[r][c] = load(w - r * back + c * LANES);
#pragma GCC unroll 24
  for (int j = 0; j < (TILE - 1) * STRIDE + COLUMNS; j++) {
    const Vector x = turned(load(row + j * LANES));
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 7
      for (int c = 0; c < COLUMNS; c++)
        if ((USED >> r & 1) && j >= c && (j - c) % STRIDE == 0 && (j - c) / STRIDE < TILE)
          sums[r][(j - c) / STRIDE] += x * k[r][c];
  }
}

// The same for all turns, which follow one another in the weights. SIZE: channels of a segment if the loop is laid out
// for them; else 0.
template <int SIZE, int COLUMNS, int STRIDE, int USED, int R = 0, int ROWS, int TILE>
static inline __attribute__((always_inline)) void add_turns(Vector (&sums)[ROWS][TILE], const float* row, const float* w,
                                                            int64_t back, const Turns& turns) {
  if constexpr (SIZE > 0) {
    __asm__("" : "+r"(row));  // else the compiler keeps a row's vectors for the next turn, which the registers cannot
    add_row<COLUMNS, STRIDE, USED>(sums, row, w, back, [](Vector v) { return turn<SIZE, R>(v); });
    if constexpr (R + 1 < SIZE)
      add_turns<SIZE, COLUMNS, STRIDE, USED, R + 1>(sums, row, w + COLUMNS * LANES, back, turns);
  } else {
    add_row<COLUMNS, STRIDE, USED>(sums, row, w, back, [](Vector v) { return v; });
#pragma GCC unroll 1
    for (int64_t t = 1; t < turns.number; t++)
      add_row<COLUMNS, STRIDE, USED>(sums, row, w + t * COLUMNS * LANES, back,
                                     [by = turns.by[t]](Vector v) { return permute(v, by); });
  }
}

// The rows from `h` on of the result, and the planes that these need.
static inline Planes below(Planes x, int64_t h) {
  x.data += h * x.row();
  return x;
}

static inline Result below(Result y, int64_t h) {
  y.data += h * y.row;
  y.rows -= h;
  return y;
}

// weights: [block][row][turn][column][LANES], of `tap_rows` rows of taps, as many as columns where SIZE is known. `made`: channels of the result from the first block
// on.
template <int SIZE, int COLUMNS, int STRIDE, int ROWS, int TILE>
static void convolve_narrow(const Planes& x, const Turns& turns, int64_t tap_rows, const float* weights, const Result& y,
                            int64_t blocks, int64_t made) {
  const int64_t rows = SIZE ? COLUMNS : tap_rows, number = SIZE ? SIZE : turns.number;  // constants where they can be
  constexpr int64_t together = 8;  // vectors of a pixel, so that whole cache lines are written soon
  const int64_t held = x.channels, plane = x.plane(), row = x.row();
  for (int64_t first = 0; first < blocks; first += together)
    for (int64_t h = 0; h + ROWS <= y.rows; h += ROWS)
      for (int64_t w = y.begin; w < y.end; w += TILE)
        for (int64_t b = first; b < std::min(first + together, blocks); b++) {
          Vector sums[ROWS][TILE] = {};
          const float* from = x.data + b * plane + h * STRIDE * row + w * STRIDE * LANES;
          const int64_t step = number * COLUMNS * LANES;  // weights of a row of taps
          const float* k = weights + b * rows * step;
          if constexpr (ROWS == 1) {
#pragma GCC unroll 1
            for (int64_t i = 0; i < rows; i++)
              add_turns<SIZE, COLUMNS, STRIDE, 1>(sums, from + i * row, k + i * step, 0, turns);
          } else {  // the second row of outputs begins STRIDE rows of inputs later
            const int64_t back = STRIDE * step;
            for (int64_t i = 0; i < std::min<int64_t>(STRIDE, rows); i++)
              add_turns<SIZE, COLUMNS, STRIDE, 1>(sums, from + i * row, k + i * step, back, turns);
            for (int64_t i = STRIDE; i < rows; i++)
              add_turns<SIZE, COLUMNS, STRIDE, 3>(sums, from + i * row, k + i * step, back, turns);
            for (int64_t i = std::max<int64_t>(STRIDE, rows); i < rows + STRIDE; i++)
              add_turns<SIZE, COLUMNS, STRIDE, 2>(sums, from + i * row, k + i * step, back, turns);
          }
          const int64_t left = made - b * held;
#pragma GCC unroll 2
          for (int r = 0; r < ROWS; r++) {
            float* to = y.data + (h + r) * y.row + w * y.pixel + b * held;
            if (b % 2 == 0)
#pragma GCC unroll 16
              for (int t = 0; t < TILE; t++) __builtin_prefetch(to + (t + AHEAD) * y.pixel, 1);
            if (left >= LANES && w + TILE <= y.end) {  // lanes past `held` are made again by the next block
#pragma GCC unroll 16
              for (int t = 0; t < TILE; t++) store(to + t * y.pixel, sums[r][t]);
            } else {
              for (int t = 0; t < TILE; t++)
                if (w + t < y.end) store_some(to + t * y.pixel, sums[r][t], left);
            }
          }
        }
  if constexpr (ROWS > 1)
    if (y.rows % ROWS) {
      const int64_t done = y.rows / ROWS * ROWS;
      convolve_narrow<SIZE, COLUMNS, STRIDE, 1, TILE>(below(x, done * STRIDE), turns, tap_rows, weights, below(y, done), blocks, made);
    }
}

// How a wide convolution reads: `rows` rows of `columns` taps, the outputs `stride` pixels apart.
struct Steps {
  int64_t rows, columns, stride;
};

// weights: [segment][row][column · channels][out vectors][LANES], `step` floats from one input to the next. PIXEL:
// floats from one output's first input to the next one's, and INPUTS, those of a row of taps, where they are few and known,
// so that the loop is laid out for them (with 3×3 taps and stride 1); else 0. `made`: channels of the result from the first of these on, those of later segments with them, which
// write over what is written too much.
template <int PIXEL, int INPUTS, int ROWS, int TILE, int VECTORS>
static void convolve_column(const Planes& x, const Steps& taps, int64_t segment, const float* weights, int64_t step,
                            const Result& y, int64_t made) {
  const int64_t distance = PIXEL ? PIXEL : taps.stride * x.channels, row = x.row();
  const int64_t next = INPUTS ? row : taps.stride * row, rows = INPUTS ? 3 : taps.rows;
  const int64_t inputs = INPUTS ? INPUTS : taps.columns * x.channels;
  for (int64_t h = 0; h + ROWS <= y.rows; h += ROWS)
    for (int64_t column = y.begin; column < y.end; column += TILE) {
      Vector sums[ROWS][TILE][VECTORS] = {};
      const float* w = weights;
      float* to = y.data + h * y.row + column * y.pixel;
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
        for (int t = 0; t < TILE; t++) __builtin_prefetch(to + r * y.row + (t + AHEAD) * y.pixel, 1);
      for (int64_t dy = 0; dy < rows; dy++) {
        const float* from = x.data + segment * x.plane() + h * next + dy * row + column * distance;
        const float* pixel[ROWS][TILE];
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
          for (int t = 0; t < TILE; t++) pixel[r][t] = from + r * next + t * distance;
#pragma GCC unroll 4
        for (int64_t q = 0; q < inputs; q++, w += step) {
          Vector k[VECTORS];
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; v++) k[v] = load(w + v * LANES);
#pragma GCC unroll 2
          for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
            for (int t = 0; t < TILE; t++) {
              const Vector value = splat(PIXEL ? from[r * next + t * PIXEL + q] : pixel[r][t][q]);
#pragma GCC unroll 4
              for (int v = 0; v < VECTORS; v++) sums[r][t][v] += value * k[v];
            }
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++, to += y.row) {
        if (column + TILE <= y.end && made >= VECTORS * LANES) {
#pragma GCC unroll 16
          for (int t = 0; t < TILE; t++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) store(to + t * y.pixel + v * LANES, sums[r][t][v]);
        } else {
          for (int t = 0; t < TILE; t++)
            for (int v = 0; v < VECTORS; v++)
              if (column + t < y.end) store_some(to + t * y.pixel + v * LANES, sums[r][t][v], made - v * LANES);
        }
      }
    }
  if constexpr (ROWS > 1)
    if (y.rows % ROWS) {
      const int64_t done = y.rows / ROWS * ROWS;
      convolve_column<PIXEL, INPUTS, 1, TILE, VECTORS>(below(x, done * taps.stride), taps, segment, weights, step,
                                               below(y, done), made);
    }
}

template <int PIXEL, int INPUTS, int ROWS, int TILE>
static void convolve_wide(const Planes& x, const Steps& taps, const float* weights, const Result& y, int64_t segments,
                          int64_t out) {
  const int64_t step = vectors(out) * LANES;
  for (int64_t s = 0; s < segments; s++)
    for (int64_t o = 0; o < out; o += 2 * LANES) {
      const float* w = weights + s * taps.rows * taps.columns * x.channels * step + o;
      const int64_t made = (segments - s) * out - o;
      Result part = y;
      part.data += s * out + o;
      if (PIXEL == 0 && o + LANES < out)
        convolve_column<0, 0, ROWS, TILE, 2>(x, taps, s, w, step, part, made);
      else
        convolve_column<PIXEL, INPUTS, ROWS, TILE, 1>(x, taps, s, w, step, part, made);
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
