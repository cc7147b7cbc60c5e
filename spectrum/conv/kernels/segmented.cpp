// The spatial half of a segmented convolution: 3×3, stride 1, channels last, float32; forward and backward.
//
// Threads share images and groups of channels; each copies a strip of rows into planes and works on them. Segments of one
// channel need no copy: there threads share bands of rows. The gradient of the input is the convolution of gy with the
// kernels turned round; that of the weights needs gy too, so one pass makes both. Sums over images are taken in an order that depends on the number of threads alone.

#include <vector>

#include "convolve.h"
#include "direct.h"
#include "gradient.h"
#include "interface.h"

// Segments of which a vector holds several, or is filled by one.
constexpr int NARROW = LANES == 16 ? 8 : 4;

static bool is_narrow(const Shape& s) { return s.in_size == s.out_size && s.in_size <= NARROW; }

// run(size) with a narrow segment's size as a constant.
template <int SIZE = 1, typename Run>
static void with_size(int64_t size, Run run) {
  if constexpr (SIZE < NARROW) {
    if (size > SIZE) return with_size<SIZE + 1>(size, run);
  }
  run(std::integral_constant<int, SIZE>());
}

// How the work is cut: blocks of channels (what a vector holds, or a segment), groups of blocks that are copied together,
// strips of rows.
struct Cut {
  int64_t in_block, out_block, blocks, group, groups, strips;
};

static Cut cut(const Shape& s, int operands) {
  constexpr int64_t most_channels = 64, most_floats = 128 * 1024;  // of a group; half a megabyte, what L2 caches hold
  Cut c;
  if (is_narrow(s)) {
    c.in_block = c.out_block = LANES / s.in_size * s.in_size;
    c.blocks = (s.count * s.in_size + c.in_block - 1) / c.in_block;
  } else {
    c.in_block = s.in_size, c.out_block = s.out_size, c.blocks = s.count;
  }
  const int64_t channels = std::max<int64_t>({c.in_block, c.out_block, LANES});
  const int64_t fewest = (c.blocks * channels + most_channels - 1) / most_channels;
  c.group = std::max<int64_t>(1, (c.blocks + fewest - 1) / fewest);
  if (channels == LANES) c.group = std::min((c.group + 1) / 2 * 2, c.blocks);  // whole cache lines
  c.groups = (c.blocks + c.group - 1) / c.group;
  const int64_t height = std::max(s.height, s.out_height), width = std::max(s.width, s.out_width) + 2;
  const int64_t rows = std::max<int64_t>(4, most_floats / operands / (width * channels * c.group) - 2);
  c.strips = std::max<int64_t>(1, (height + rows - 1) / rows);
  return c;
}

static Planes planes_of(const Shape& s, const Cut& c, int64_t block, int64_t width, int64_t out_width, int64_t pad,
                        int64_t rows) {
  return {nullptr, block, is_narrow(s) ? LANES : block, std::max(width + 2 * pad, out_width + 2), rows, c.strips == 1};
}

static int64_t packed_size(const Shape& s, bool turned) {
  if (is_narrow(s)) return cut(s, 1).blocks * 9 * s.in_size * LANES;
  return s.count * 9 * (turned ? s.out_size * vectors(s.in_size) : s.in_size * vectors(s.out_size)) * LANES;
}

// The weights in the order in which the loops read them; `turned`: for the gradient of the input, kernels turned round
// and in and out exchanged.
static Buffer pack(const Shape& s, const float* w, bool turned) {
  Buffer packed(packed_size(s, turned));
  const int64_t in = s.in_size, out = s.out_size;
  if (is_narrow(s)) {
    const int64_t held = LANES / in * in;
    for (int64_t c = 0; c < s.count * in; c++)
      for (int64_t r = 0; r < in; r++) {
        const int64_t i = c % in, other = (i + r) % in;
        const float* kernel = turned ? w + (c - i + other) * s.w_out + i * s.w_in : w + c * s.w_out + other * s.w_in;
        float* to = packed.data + (c / held * 9 * in + r * 3) * LANES + c % held;
        for (int64_t k = 0; k < 9; k++)
          to[(k / 3 * 3 * in + k % 3) * LANES] = kernel[(turned ? 8 - k : k) * s.w_tap];
      }
    return packed;
  }
  const int64_t from = turned ? out : in, step = vectors(turned ? in : out) * LANES;
  for (int64_t s0 = 0; s0 < s.count; s0++)
    for (int64_t o = 0; o < out; o++)
      for (int64_t i = 0; i < in; i++)
        for (int64_t k = 0; k < 9; k++)
          packed.data[turned ? ((s0 * 9 + 8 - k) * from + o) * step + i : ((s0 * 9 + k) * from + i) * step + o] =
              w[(s0 * out + o) * s.w_out + i * s.w_in + k * s.w_tap];
  return packed;
}

template <int SIZE>
static void narrow_tiles(const Planes& x, const float* w, Result y, int64_t blocks, int64_t made) {
  in_tiles<4, 8>(y.width, [&](auto tile, int64_t begin, int64_t end) {
    y.begin = begin, y.end = end;
    convolve_narrow<SIZE, tile <= 4 ? 2 : 1, tile>(x, w, y, blocks, made);
  });
}

// SIZE: as in convolve_column. One vector of outputs needs many pixels at a time to hide the processor's latency.
template <int SIZE>
static void wide_tiles(const Planes& x, const float* w, Result y, int64_t segments, int64_t out) {
  constexpr int least = SIZE ? 4 : 3, most = SIZE ? 12 : 6;
  in_tiles<least, most>(y.width, [&](auto tile, int64_t begin, int64_t end) {
    y.begin = begin, y.end = end;
    convolve_wide<SIZE, 2 * tile <= most ? 2 : 1, tile>(x, w, y, segments, out);
  });
}

// `blocks` blocks of planes into y, `made` channels of it.
static void convolve(const Shape& s, bool turned, const Planes& x, const float* w, const Result& y, int64_t blocks,
                     int64_t made) {
  const int64_t in = turned ? s.out_size : s.in_size, out = turned ? s.in_size : s.out_size;
  if (is_narrow(s)) return with_size(in, [&](auto size) { narrow_tiles<size>(x, w, y, blocks, made); });
  if (out <= LANES) {
    switch (in) {
      case 5: return wide_tiles<5>(x, w, y, blocks, out);
      case 6: return wide_tiles<6>(x, w, y, blocks, out);
      case 7: return wide_tiles<7>(x, w, y, blocks, out);
      case 8: return wide_tiles<8>(x, w, y, blocks, out);
    }
  }
  wide_tiles<0>(x, w, y, blocks, out);
}

static void add_gradient(const Shape& s, const Pair& p, float* sums) {
  if (!is_narrow(s)) return add_wide(p, s.in_size, s.out_size, sums);
  with_size(s.in_size, [&](auto size) { add_narrow<size>(p, sums); });
}

// Of a run's weights, or their gradient, which lie without gaps.
static bool is_finite(const Shape& s, const float* w) { return all_finite(w, s.count * s.out_size * s.in_size * 9); }

static bool is_direct(const Shape& s) { return s.in_size == 1 && s.out_size == 1 && s.count >= LANES; }

// The nine taps of each vector of channels: [block][tap][LANES].
static Buffer pack_taps(const Shape& s, const float* w, bool turned) {
  Buffer packed(vectors(s.count) * 9 * LANES);
  for (int64_t b = 0; b < vectors(s.count); b++)
    for (int64_t lane = 0; lane < LANES; lane++)
      for (int64_t k = 0; k < 9; k++)
        packed.data[(b * 9 + k) * LANES + lane] =
            w[(first_channel(b, s.count) + lane) * s.w_out + (turned ? 8 - k : k) * s.w_tap];
  return packed;
}

static Image image_of(const float* data, int64_t n, int64_t channels, int64_t height, int64_t width) {
  return {data + n * height * width * channels, channels, height, width};
}

static void forward_direct(const Shape& s, const float* x, const float* w, float* y, int threads) {
  const Buffer taps = pack_taps(s, w, false);
  const int64_t bands = (s.out_height + DIRECT_ROWS - 1) / DIRECT_ROWS;
  share(s.images * bands, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / bands;
      const Padded from{image_of(x, n, s.in_channels, s.height, s.width), s.pad_h, s.pad_w};
      float* to = y + n * s.out_height * s.out_width * s.out_channels;
      convolve_direct(from, taps.data, {to, s.out_channels, s.out_height, s.out_width, 0, 0}, item % bands * DIRECT_ROWS,
                      s.count);
    }
  });
}

static void backward_direct(const Shape& s, const float* x, const float* w, const float* gy, float* gx, float* gw,
                            int threads) {
  const Buffer taps = gx ? pack_taps(s, w, true) : Buffer(0);
  const int64_t bands = (std::max(s.height, s.out_height) + DIRECT_ROWS - 1) / DIRECT_ROWS;
  std::vector<Buffer> sums;
  for (int t = 0; gw && t < threads; t++) sums.emplace_back(vectors(s.count) * 9 * LANES);
  share(s.images * bands, threads, [&](int64_t thread, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / bands, h = item % bands * DIRECT_ROWS;
      const Image image = image_of(x, n, s.in_channels, s.height, s.width);
      const Image grad = image_of(gy, n, s.out_channels, s.out_height, s.out_width);
      float* to = gx + (gx ? n * s.height * s.width * s.in_channels : 0);
      if (gx)
        convolve_direct({grad, 2 - s.pad_h, 2 - s.pad_w}, taps.data, {to, s.in_channels, s.height, s.width, 0, 0}, h,
                        s.count);
      if (gw) add_taps_direct({image, s.pad_h, s.pad_w}, grad, sums[thread].data, h, s.count);
    }
  });
  for (int64_t b = 0; gw && b < vectors(s.count); b++)
    for (int64_t lane = 0; lane < LANES; lane++)
      for (int64_t k = 0; k < 9; k++) {
        float sum = 0;
        for (const Buffer& part : sums) sum += part.data[(b * 9 + k) * LANES + lane];
        gw[(first_channel(b, s.count) + lane) * s.w_out + k * s.w_tap] = sum;
      }
}

extern "C" {

int spectrum_lanes() { return LANES; }

int spectrum_forward(const Shape* shape, const float* x, const float* w, float* y, int threads) {
  const Shape& s = *shape;
  if (!is_finite(s, w)) return 0;
  if (is_direct(s)) {
    forward_direct(s, x, w, y, threads);
    return 1;
  }
  const Cut c = cut(s, 1);
  const Buffer packed = pack(s, w, false);
  const int64_t block_weights = packed_size(s, false) / c.blocks;
  const int64_t strip = (s.out_height + c.strips - 1) / c.strips;
  share(s.images * c.groups, threads, [&](int64_t, int64_t begin, int64_t end) {
    Planes p = planes_of(s, c, c.in_block, s.width, s.out_width, s.pad_w, strip + 2);
    const Buffer copy(p.plane() * c.group + 8 * p.pixel);
    p.data = copy.data;
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / c.groups, first = item % c.groups * c.group;
      const int64_t blocks = std::min(c.group, c.blocks - first);
      const int64_t in_first = first * c.in_block, in_left = s.count * s.in_size - in_first;
      const int64_t out_first = first * c.out_block, out_left = s.count * s.out_size - out_first;
      const Image image{x + n * s.height * s.width * s.in_channels + in_first, s.in_channels, s.height, s.width};
      for (int64_t h = 0; h < s.out_height; h += strip) {
        const int64_t rows = std::min(strip, s.out_height - h);
        fill(p, image, h - s.pad_h, h - s.pad_h + rows + 2, s.pad_w, blocks, std::min(blocks * c.in_block, in_left),
             in_left);
        float* to = y + (n * s.out_height + h) * s.out_width * s.out_channels + out_first;
        convolve(s, false, p, packed.data + first * block_weights, {to, s.out_channels, rows, s.out_width, 0, 0}, blocks,
                 std::min(blocks * c.out_block, out_left));
      }
    }
  });
  return 1;
}

int spectrum_backward(const Shape* shape, const float* x, const float* w, const float* gy, float* gx, float* gw,
                      int threads) {
  const Shape& s = *shape;
  if (gx && !is_finite(s, w)) return 0;
  if (is_direct(s)) {
    backward_direct(s, x, w, gy, gx, gw, threads);
    return !gw || is_finite(s, gw);
  }
  const bool narrow = is_narrow(s);
  const Cut c = cut(s, gw ? 2 : 1);
  const Buffer packed = gx ? pack(s, w, true) : Buffer(0);
  const int64_t block_weights = packed_size(s, true) / c.blocks;
  const int64_t step = vectors(s.out_size) * LANES;
  const int64_t block_sums = 9 * s.in_size * (narrow ? LANES : step);
  const int64_t turned_h = 2 - s.pad_h, turned_w = 2 - s.pad_w;  // padding of the input's gradient
  const int64_t strip = (std::max(s.height, s.out_height) + c.strips - 1) / c.strips;

  std::vector<Buffer> sums;
  for (int t = 0; gw && t < threads; t++) sums.emplace_back(c.blocks * block_sums);
  share(s.images * c.groups, threads, [&](int64_t thread, int64_t begin, int64_t end) {
    Planes px = planes_of(s, c, c.in_block, s.width, s.out_width, s.pad_w, strip + 2);
    Planes pg = planes_of(s, c, c.out_block, s.out_width, s.width, turned_w, strip + 4);  // serves gx and gw
    const Buffer x_copy(gw ? px.plane() * c.group + 8 * px.pixel : 0), gy_copy(pg.plane() * c.group + 8 * pg.pixel);
    px.data = x_copy.data, pg.data = gy_copy.data;
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / c.groups, first = item % c.groups * c.group;
      const int64_t blocks = std::min(c.group, c.blocks - first);
      const int64_t in_first = first * c.in_block, in_left = s.count * s.in_size - in_first;
      const int64_t out_first = first * c.out_block, out_left = s.count * s.out_size - out_first;
      const int64_t used = std::min(blocks * c.in_block, in_left), made = std::min(blocks * c.out_block, out_left);
      const Image image{x + n * s.height * s.width * s.in_channels + in_first, s.in_channels, s.height, s.width};
      const Image grad{gy + n * s.out_height * s.out_width * s.out_channels + out_first, s.out_channels, s.out_height,
                       s.out_width};
      for (int64_t k = 0; k < c.strips; k++) {
        const int64_t y0 = std::min(k * strip, s.out_height), y1 = std::min(y0 + strip, s.out_height);
        const int64_t x0 = std::min(k * strip, s.height), x1 = std::min(x0 + strip, s.height);
        const bool makes_gx = gx && x0 < x1, makes_gw = gw && y0 < y1;
        if (!makes_gx && !makes_gw) continue;
        int64_t row0 = makes_gx ? x0 - turned_h : y0, row1 = makes_gx ? x1 - turned_h + 2 : y1;
        if (makes_gw) row0 = std::min(row0, y0), row1 = std::max(row1, y1);
        fill(pg, grad, row0, row1, turned_w, blocks, made, out_left);
        if (makes_gx) {
          Planes from = pg;
          from.data += (x0 - turned_h - row0) * pg.row();
          float* to = gx + (n * s.height + x0) * s.width * s.in_channels + in_first;
          convolve(s, true, from, packed.data + first * block_weights, {to, s.in_channels, x1 - x0, s.width, 0, 0}, blocks,
                   used);
        }
        if (makes_gw) {
          fill(px, image, y0 - s.pad_h, y1 - s.pad_h + 2, s.pad_w, blocks, used, in_left);
          for (int64_t b = 0; b < blocks; b++)
            add_gradient(s,
                         {px.data + b * px.plane(),
                          pg.data + b * pg.plane() + (y0 - row0) * pg.row() + turned_w * pg.pixel, px.pixel, px.row(),
                          pg.pixel, pg.row(), y1 - y0, s.out_width},
                         sums[thread].data + (first + b) * block_sums);
        }
      }
    }
  });
  if (!gw) return 1;
  const int64_t held = narrow ? c.in_block / s.in_size : 1;  // segments in a block
  for (int64_t segment = 0; segment < s.count; segment++)
    for (int64_t o = 0; o < s.out_size; o++)
      for (int64_t i = 0; i < s.in_size; i++) {
        const int64_t turn = (o - i + s.in_size) % s.in_size, lane = segment % held * s.in_size + i;
        const int64_t at = segment / held * block_sums + (narrow ? turn * 9 * LANES + lane : i * 9 * step + o);
        for (int64_t k = 0; k < 9; k++) {
          float sum = 0;
          for (const Buffer& part : sums) sum += part.data[at + k * (narrow ? LANES : step)];
          gw[(segment * s.out_size + o) * s.w_out + i * s.w_in + k * s.w_tap] = sum;
        }
      }
  return is_finite(s, gw);
}
}
