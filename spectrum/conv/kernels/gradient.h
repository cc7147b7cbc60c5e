// Gradient of the kernels of a pair of planes: for input channel i and output channel o, Σ over pixels of x_i · gy_o.
// A pass over the pixels keeps its sums in registers, and is a function of its own lest they be shared out otherwise:
//
// narrow   segments of up to 4 channels, or 8 where vectors have 16 lanes. A vector of inputs times one of output
//          gradients, the latter turned by r within segments, for several rows of taps: lane l gives the gradient of
//          (input l, output (l + r) mod the segment's size).
// wide     larger segments. Each of a few input channels is broadcast against one or two vectors of output channels, for
//          one row of taps or several.

#pragma once

#include "planes.h"

// First pixels: of the window over x, and of gy. x_step, x_next: floats from one output's window to the next one's, and
// to the next row's.
struct Pair {
  const float *x, *gy;
  int64_t x_pixel, x_row, x_step, x_next, gy_pixel, gy_row, rows, width;
};

constexpr int MOST_SUMS = LANES == 16 ? 28 : 15;  // in registers, beside an operand or two

// ROWS rows of taps for TURNS turns, from the one at `turn` on. sums: [turn][tap][LANES], `step` floats from one turn to the next
template <int COLUMNS, int ROWS, int TURNS>
static __attribute__((noinline)) void add_turns(const Pair& p, const Indices* turn, float* sums, int64_t step) {
  Indices by[TURNS];
  for (int r = 0; r < TURNS; r++) by[r] = turn[r];
  constexpr int taps = ROWS * COLUMNS;
  Vector sum[TURNS][taps];
#pragma GCC unroll 4
  for (int r = 0; r < TURNS; r++)
#pragma GCC unroll 28
    for (int k = 0; k < taps; k++) sum[r][k] = load(sums + r * step + k * LANES);
  for (int64_t h = 0; h < p.rows; h++) {
    const float* row[ROWS];
#pragma GCC unroll 7
    for (int i = 0; i < ROWS; i++) row[i] = p.x + h * p.x_next + i * p.x_row;
    const float* from = p.gy + h * p.gy_row;
    for (int64_t w = 0; w < p.width; w++, from += LANES) {
      Vector gy[TURNS];
#pragma GCC unroll 4
      for (int r = 0; r < TURNS; r++) gy[r] = permute(load(from), by[r]);
#pragma GCC unroll 7
      for (int i = 0; i < ROWS; i++) {
#pragma GCC unroll 7
        for (int c = 0; c < COLUMNS; c++) {
          const Vector x = load(row[i] + c * LANES);
#pragma GCC unroll 4
          for (int r = 0; r < TURNS; r++) sum[r][i * COLUMNS + c] += gy[r] * x;
        }
        row[i] += p.x_step;
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < TURNS; r++)
#pragma GCC unroll 28
    for (int k = 0; k < taps; k++) store(sums + r * step + k * LANES, sum[r][k]);
}

// All rows of taps, as many at a time as the registers hold; LEFT: rows still to be done.
template <int COLUMNS, int TURNS, int LEFT = COLUMNS>
static void add_turn_rows(Pair p, const Indices* turn, float* sums, int64_t step) {
  constexpr int rows = std::min(LEFT, std::max(1, MOST_SUMS / COLUMNS / TURNS));
  add_turns<COLUMNS, rows, TURNS>(p, turn, sums, step);
  p.x += rows * p.x_row;
  if constexpr (LEFT > rows) add_turn_rows<COLUMNS, TURNS, LEFT - rows>(p, turn, sums + rows * COLUMNS * LANES, step);
}

// Adds to sums: [turn][tap][LANES]
template <int COLUMNS>
static void add_narrow(const Pair& p, const Turns& turns, float* sums) {
  constexpr int together = COLUMNS == 1 ? 4 : COLUMNS == 3 && LANES == 16 ? 2 : 1;
  constexpr int64_t step = COLUMNS * COLUMNS * LANES;
  int64_t r = 0;
  for (; r + together <= turns.number; r += together)
    add_turn_rows<COLUMNS, together>(p, turns.by + r, sums + r * step, step);
  for (; r < turns.number; r++) add_turn_rows<COLUMNS, 1>(p, turns.by + r, sums + r * step, step);
}

// ROWS rows of taps of INPUTS inputs. sums: [input][tap][out], `step` floats from one tap to the next.
template <int INPUTS, int COLUMNS, int ROWS, int VECTORS>
static __attribute__((noinline)) void add_products(const Pair& p, float* sums, int64_t step) {
  constexpr int taps = ROWS * COLUMNS, all = COLUMNS * COLUMNS;
  Vector sum[INPUTS][taps][VECTORS];
#pragma GCC unroll 12
  for (int i = 0; i < INPUTS; i++)
#pragma GCC unroll 28
    for (int k = 0; k < taps; k++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) sum[i][k][v] = load(sums + (i * all + k) * step + v * LANES);
  for (int64_t h = 0; h < p.rows; h++) {
    const float *x = p.x + h * p.x_next, *from = p.gy + h * p.gy_row;
    for (int64_t w = 0; w < p.width; w++, x += p.x_step, from += p.gy_pixel) {
      Vector gy[VECTORS];
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) gy[v] = load(from + v * LANES);
#pragma GCC unroll 12
      for (int i = 0; i < INPUTS; i++)
#pragma GCC unroll 28
        for (int k = 0; k < taps; k++) {
          const Vector value = splat(x[k / COLUMNS * p.x_row + k % COLUMNS * p.x_pixel + i]);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; v++) sum[i][k][v] += value * gy[v];
        }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < INPUTS; i++)
#pragma GCC unroll 28
    for (int k = 0; k < taps; k++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) store(sums + (i * all + k) * step + v * LANES, sum[i][k][v]);
}

// A dozen sums or so at a time: as many as the registers hold, and enough to hide the latency.
constexpr int FEW_SUMS = LANES == 16 ? 24 : 14;

template <int INPUTS, int COLUMNS, int VECTORS, int LEFT = COLUMNS>
static void add_rows(Pair p, float* sums, int64_t step) {
  constexpr int rows = std::min(LEFT, std::max(1, FEW_SUMS / (COLUMNS * INPUTS * VECTORS)));
  add_products<INPUTS, COLUMNS, rows, VECTORS>(p, sums, step);
  p.x += rows * p.x_row;
  if constexpr (LEFT > rows)
    add_rows<INPUTS, COLUMNS, VECTORS, LEFT - rows>(p, sums + rows * COLUMNS * step, step);
}

template <int COLUMNS, int VECTORS>
static void add_inputs(Pair p, int64_t in, float* sums, int64_t step) {
  constexpr int together = std::max(1, 12 / (COLUMNS * VECTORS)), all = COLUMNS * COLUMNS;
  int64_t i = 0;
  for (; i + together <= in; i += together, p.x += together)
    add_rows<together, COLUMNS, VECTORS>(p, sums + i * all * step, step);
  for (; i < in; i++, p.x++) add_rows<1, COLUMNS, VECTORS>(p, sums + i * all * step, step);
}

template <int COLUMNS>
static void add_wide(Pair p, int64_t in, int64_t out, float* sums) {
  const int64_t step = vectors(out) * LANES;
  for (int64_t o = 0; o < out; o += 2 * LANES, p.gy += 2 * LANES)
    if (o + LANES < out)
      add_inputs<COLUMNS, 2>(p, in, sums + o, step);
    else
      add_inputs<COLUMNS, 1>(p, in, sums + o, step);
}
