// Gradient of the 3×3 kernels of a plane pair: for input channel i and output channel o, Σ over pixels of x_i · gy_o.
//
// A pass takes one vector of input channels and one of output channels, the latter turned by R, and all nine taps: lane l
// gives the gradient of (input l, output (l + R) mod PERIOD). Passes over R = 0 … PERIOD − 1 give all pairs. With narrow
// segments the turns stay within them, so that no product is made in vain.

#pragma once

#include "planes.h"

struct Pair {
  const float *x, *gy;  // first pixels: of the window over x, and of gy
  int64_t x_pixel, x_row, gy_pixel, gy_row, rows, width;
};

// Adds to sums: [tap][LANES]
template <int PERIOD, int R>
static void add_taps(const Pair& p, float* sums) {
  Vector taps[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) taps[k] = load(sums + k * LANES);
  for (int64_t h = 0; h < p.rows; h++) {
    const float* row[3] = {p.x + h * p.x_row, p.x + (h + 1) * p.x_row, p.x + (h + 2) * p.x_row};
    const float* from = p.gy + h * p.gy_row;
    for (int64_t w = 0; w < p.width; w++, from += p.gy_pixel) {
      const Vector gy = turn<PERIOD, R>(load(from));
#pragma GCC unroll 3
      for (int dy = 0; dy < 3; dy++) {
        taps[3 * dy] += gy * load(row[dy]);
        taps[3 * dy + 1] += gy * load(row[dy] + p.x_pixel);
        taps[3 * dy + 2] += gy * load(row[dy] + 2 * p.x_pixel);
        row[dy] += p.x_pixel;
      }
    }
  }
#pragma GCC unroll 9
  for (int k = 0; k < 9; k++) store(sums + k * LANES, taps[k]);
}

// Adds to sums: [turn][tap][LANES]
template <int PERIOD, int R = 0>
static void add_turns(const Pair& p, float* sums) {
  if constexpr (R < PERIOD) {
    add_taps<PERIOD, R>(p, sums);
    add_turns<PERIOD, R + 1>(p, sums + 9 * LANES);
  }
}

template <int PERIOD = LANES>
static void add_gradient(int64_t period, const Pair& p, float* sums) {
  if (period == PERIOD)
    add_turns<PERIOD>(p, sums);
  else if constexpr (PERIOD > 1)
    add_gradient<PERIOD - 1>(period, p, sums);
}
