// Gradient of the 3×3 kernels of a pair of planes: for input channel i and output channel o, Σ over pixels of x_i · gy_o.
// A pass over the pixels keeps its sums in registers, and is a function of its own lest they be shared out otherwise:
//
// narrow   segments of up to 4 channels, or 8 where vectors have 16 lanes. A vector of inputs times one of output gradients, the latter turned by r within
//          segments, for all nine taps: lane l gives the gradient of (input l, output (l + r) mod SIZE of its segment).
// wide     larger segments. Each of a few input channels is broadcast against one or two vectors of output channels, for
//          one row of taps or all three.

#pragma once

#include "planes.h"

struct Pair {
  const float *x, *gy;  // first pixels: of the window over x, and of gy
  int64_t x_pixel, x_row, gy_pixel, gy_row, rows, width;
};

// Adds to sums: [turn][tap][LANES]
template <int SIZE, int R = 0>
static __attribute__((noinline)) void add_narrow(const Pair& p, float* sums) {
  Vector taps[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) taps[k] = load(sums + k * LANES);
  for (int64_t h = 0; h < p.rows; h++) {
    const float* row[3] = {p.x + h * p.x_row, p.x + (h + 1) * p.x_row, p.x + (h + 2) * p.x_row};
    const float* from = p.gy + h * p.gy_row;
    for (int64_t w = 0; w < p.width; w++, from += LANES) {
      const Vector gy = turn<SIZE, R>(load(from));
#pragma GCC unroll 3
      for (int dy = 0; dy < 3; dy++) {
        taps[3 * dy] += gy * load(row[dy]);
        taps[3 * dy + 1] += gy * load(row[dy] + LANES);
        taps[3 * dy + 2] += gy * load(row[dy] + 2 * LANES);
        row[dy] += LANES;
      }
    }
  }
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) store(sums + k * LANES, taps[k]);
  if constexpr (R + 1 < SIZE) add_narrow<SIZE, R + 1>(p, sums + 9 * LANES);
}

// ROWS rows of taps. sums: [input][tap][out], `step` floats from one tap to the next.
template <int INPUTS, int ROWS, int VECTORS>
static __attribute__((noinline)) void add_products(const Pair& p, float* sums, int64_t step) {
  Vector taps[INPUTS][3 * ROWS][VECTORS];
#pragma GCC unroll 4
  for (int i = 0; i < INPUTS; i++)
#pragma GCC unroll 9
    for (int k = 0; k < 3 * ROWS; k++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) taps[i][k][v] = load(sums + (i * 9 + k) * step + v * LANES);
  for (int64_t h = 0; h < p.rows; h++) {
    const float *x = p.x + h * p.x_row, *from = p.gy + h * p.gy_row;
    for (int64_t w = 0; w < p.width; w++, x += p.x_pixel, from += p.gy_pixel) {
      Vector gy[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) gy[v] = load(from + v * LANES);
#pragma GCC unroll 4
      for (int i = 0; i < INPUTS; i++)
#pragma GCC unroll 9
        for (int k = 0; k < 3 * ROWS; k++) {
          const Vector value = splat(x[k / 3 * p.x_row + k % 3 * p.x_pixel + i]);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; v++) taps[i][k][v] += value * gy[v];
        }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < INPUTS; i++)
#pragma GCC unroll 9
    for (int k = 0; k < 3 * ROWS; k++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) store(sums + (i * 9 + k) * step + v * LANES, taps[i][k][v]);
}

// INPUTS · 3 · ROWS · VECTORS sums, a dozen at most: as many as the registers hold, and enough to hide the latency.
template <int INPUTS, int ROWS, int VECTORS>
static void add_rows(Pair p, float* sums, int64_t step) {
  for (int dy = 0; dy < 3; dy += ROWS, p.x += ROWS * p.x_row)
    add_products<INPUTS, ROWS, VECTORS>(p, sums + dy * 3 * step, step);
}

template <int VECTORS>
static void add_inputs(Pair p, int64_t in, float* sums, int64_t step) {
  constexpr int together = 4 / VECTORS;
  int64_t i = 0;
  for (; i + together <= in; i += together, p.x += together) add_rows<together, 1, VECTORS>(p, sums + i * 9 * step, step);
  for (; i < in; i++, p.x++) add_rows<1, VECTORS == 1 ? 3 : 1, VECTORS>(p, sums + i * 9 * step, step);
}

static void add_wide(Pair p, int64_t in, int64_t out, float* sums) {
  const int64_t step = vectors(out) * LANES;
  for (int64_t o = 0; o < out; o += 2 * LANES, p.gy += 2 * LANES)
    if (o + LANES < out)
      add_inputs<2>(p, in, sums + o, step);
    else
      add_inputs<1>(p, in, sums + o, step);
}
