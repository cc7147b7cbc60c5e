// A convolution with dilation as convolutions without: with dilation d, outputs meet only those inputs whose places,
// counted in the padded image, leave the same remainder by d. Pixels of one remainder make an image of their own, whose
// pixels and rows lie d times as far apart. With a stride that equals the dilation only one remainder is met, and each
// output meets it; other strides come with dilation 1 only.

#pragma once

#include "interface.h"
#include "planes.h"

// One side of a part. Its pixel i is pixel first + i · step of the image, its output i is output out_first + i · out_step.
struct Side {
  int64_t first, step, size, out_first, out_step, out_size, pad;
};

static int64_t up(int64_t numerator, int64_t denominator) {  // rounded up, of a numerator above −denominator
  return (numerator + denominator - 1) / denominator;
}

// A convolution of dilation 1 within a Shape.
struct Part {
  Side h, w;
  int64_t stride;
};

static int64_t remainders(const Shape& s) { return s.dilation / (s.stride == s.dilation ? s.stride : 1); }

static Side side_of(const Shape& s, int64_t size, int64_t out_size, int64_t pad, int64_t remainder) {
  const int64_t step = s.dilation, out_step = remainders(s), first = ((remainder - pad) % step + step) % step;
  return {first, step, up(size - first, step), remainder, out_step, up(out_size - remainder, out_step),
          (pad - remainder + first) / step};
}

// run(part) for each part.
template <typename Run>
static void each_part(const Shape& s, Run run) {
  const int64_t each = remainders(s);
  for (int64_t i = 0; i < each * each; i++)
    run(Part{side_of(s, s.height, s.out_height, s.pad_h, i / each), side_of(s, s.width, s.out_width, s.pad_w, i % each),
             s.dilation > 1 ? 1 : s.stride});
}

// Floats between pixels, and between rows, of a part of a tensor; and the floats before its first.
struct Grid {
  int64_t pixel, row, first;
};

static Grid grid_of(int64_t channels, int64_t width, int64_t h_first, int64_t w_first, int64_t step) {
  return {channels * step, channels * step * width, (h_first * width + w_first) * channels};
}

static Grid x_grid(const Shape& s, const Part& p) {
  return grid_of(s.in_channels, s.width, p.h.first, p.w.first, p.h.step);
}

static Grid y_grid(const Shape& s, const Part& p) {
  return grid_of(s.out_channels, s.out_width, p.h.out_first, p.w.out_first, p.h.out_step);
}

static Image image_of(const float* data, const Grid& grid, int64_t height, int64_t width) {
  return {data + grid.first, grid.pixel, grid.row, height, width};
}

// The taps of a kernel that one pass uses: (row + i · row_step, column + j · column_step) for i < rows, j < columns.
struct Taps {
  int64_t rows, columns, row, row_step, column, column_step;
};

static Taps all_taps(int64_t kernel) { return {kernel, kernel, 0, 1, 0, 1}; }

// Those by which gy gives every stride-th pixel of gx, from padded place (a, b) on: every stride-th tap, turned round.
static Taps turned_taps(int64_t kernel, int64_t stride, int64_t a, int64_t b) {
  const int64_t rows = up(kernel - a, stride), columns = up(kernel - b, stride);
  if (rows == 0 || columns == 0) return {0, 1, 0, 0, 0, 0};
  return {rows, columns, a + (rows - 1) * stride, -stride, b + (columns - 1) * stride, -stride};
}
