// A convolution's operand as the inner loops want it: a small copy of a few rows, with zeros around them.
//
// The copy is what makes the loops know no borders, and it stays in the cache near the core. A plane holds the channels
// of one block (what fits a vector, or one segment); pixels lie `pixel` floats apart and rows `pitch` pixels.

#pragma once

#include <algorithm>

#include "vector.h"

struct Planes {
  float* data;
  int64_t channels;  // of a block
  int64_t pixel, pitch, rows;
  bool clean;  // the image is in one strip, and so the zeros around it stay from the first image to the last
  int64_t plane() const { return rows * pitch * pixel; }
  int64_t row() const { return pitch * pixel; }
};

// An image, or a block of its channels: pixels and rows lie this many floats apart.
struct Image {
  const float* data;
  int64_t pixel, row, height, width;
};

// Rows [first, end) of `blocks` neighbouring blocks into planes, from column `left` on; rows outside the image become
// zeros. `used`: channels that there are from the first block on; `readable`: those that may be read, at least as many.
static void fill(const Planes& p, const Image& x, int64_t first, int64_t end, int64_t left, int64_t blocks, int64_t used,
                 int64_t readable) {
  constexpr int64_t ahead = 8;  // pixels, by which cache lines are called for: a part of the channels is no plain stream
  const int64_t plane = p.plane(), rounded = vectors(p.channels) * LANES;
  for (int64_t h = first; h < end; h++) {
    float* row = p.data + (h - first) * p.row() + left * p.pixel;
    if (h < 0 || h >= x.height) {
      if (p.clean) continue;
      for (int64_t b = 0; b < blocks; b++) std::memset(row + b * plane, 0, x.width * p.pixel * sizeof(float));
      continue;
    }
    const float* from = x.data + h * x.row;
    if (p.pixel == LANES) {  // a vector a pixel; what it holds beside its block's channels is never stored
      const int64_t whole = std::min(blocks, readable >= LANES ? (readable - LANES) / p.channels + 1 : 0);
      for (int64_t w = 0; w < x.width; w++, from += x.pixel, row += LANES) {
        for (int64_t b = 0; b < whole; b += 16 / LANES) __builtin_prefetch(from + ahead * x.pixel + b * p.channels);
        for (int64_t b = 0; b < whole; b++) store(row + b * plane, load(from + b * p.channels));
        for (int64_t b = whole; b < blocks; b++)
          std::memcpy(row + b * plane, from + b * p.channels,
                      std::min(p.channels, used - b * p.channels) * sizeof(float));
      }
    } else {
      // Whole vectors: what one writes past its pixel's channels, the next pixel's write over. The last pixels of a row
      // have none behind them that would.
      const int64_t whole = std::min(blocks, readable >= rounded ? (readable - rounded) / p.channels + 1 : 0);
      for (int64_t w = 0; w < x.width; w++, from += x.pixel, row += p.pixel) {
        const int64_t vectored = (x.width - w) * p.channels >= rounded ? whole : 0;
        for (int64_t b = 0; b < vectored; b++)
          for (int64_t c = 0; c < rounded; c += LANES) store(row + b * plane + c, load(from + b * p.channels + c));
        for (int64_t b = vectored; b < blocks; b++)
          for (int64_t c = 0; c < p.channels; c++) row[b * plane + c] = from[b * p.channels + c];
      }
    }
  }
}
