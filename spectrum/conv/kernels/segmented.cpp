// The spatial half of a segmented convolution: channels last, float32; forward and backward.
//
// Threads share images and groups of channels; each copies a strip of rows into planes and works on them. Segments of one
// channel with 3×3 kernels and stride 1 need no copy: there threads share bands of rows. The gradient of the input is a
// convolution of gy with the kernels turned round, one for each remainder of its pixels by the stride; that of the weights
// needs gy too, so one pass makes both. Sums over images are taken in an order that depends on the number of threads
// alone.

#include <vector>

#include "convolve.h"
#include "direct.h"
#include "gradient.h"
#include "interface.h"
#include "parts.h"

static bool is_narrow(const Shape& s) { return s.in_size == s.out_size && s.in_size <= NARROW; }

// run(columns) with the number of taps in a row as a constant: of kernels, and of the parts of one that strides make.
template <typename Run>
static void with_columns(int64_t columns, Run run) {
  switch (columns) {
    case 1: return run(std::integral_constant<int, 1>());
    case 2: return run(std::integral_constant<int, 2>());
    case 3: return run(std::integral_constant<int, 3>());
    case 4: return run(std::integral_constant<int, 4>());
    case 5: return run(std::integral_constant<int, 5>());
    case 7: return run(std::integral_constant<int, 7>());
  }
}

// How the channels are cut: blocks (what a vector holds, or a segment), and groups of blocks that are copied together.
struct Cut {
  int64_t in_block, out_block, blocks, group, groups;
};

static Cut cut(const Shape& s) {
  constexpr int64_t most_channels = 64;  // of a group
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
  return c;
}

// Rows of a strip, of `rows` that there are, so that its planes fit a cache near the core: `floats` for each row, and
// for each of the `more` rows that windows reach beyond.
static int64_t strip_of(int64_t rows, int64_t floats, int64_t more) {
  constexpr int64_t most_floats = 128 * 1024;  // half a megabyte, what L2 caches hold
  const int64_t most = std::max<int64_t>(4, most_floats / std::max<int64_t>(1, floats) - more);
  const int64_t strips = std::max<int64_t>(1, up(rows, most));
  return std::max<int64_t>(1, up(rows, strips));
}

static int64_t packed_size(const Shape& s, const Taps& taps, bool turned) {
  if (is_narrow(s)) return cut(s).blocks * taps.rows * taps.columns * s.in_size * LANES;
  const int64_t each = turned ? s.out_size * vectors(s.in_size) : s.in_size * vectors(s.out_size);
  return s.count * taps.rows * taps.columns * each * LANES;
}

// Threads for work on each weight: waiting for each other costs more than a few weights do.
static int threads_for_weights(const Shape& s, int threads) {
  constexpr int64_t few = 1 << 18;
  return s.count * s.out_size * s.in_size * s.kernel * s.kernel > few ? threads : 1;
}

// The weights of some taps in the order in which the loops read them; `turned`: for the gradient of the input, in and out
// exchanged.
static Buffer pack(const Shape& s, const float* w, const Taps& taps, bool turned, int threads) {
  Buffer packed(packed_size(s, taps, turned));
  const int64_t in = s.in_size, out = s.out_size, number = taps.rows * taps.columns, held = LANES / in;
  const bool narrow = is_narrow(s);
  const int64_t from = turned ? out : in, step = narrow ? LANES : vectors(turned ? in : out) * LANES;
  std::vector<int64_t> read(number), written(number);
  for (int64_t k = 0; k < number; k++) {
    const int64_t row = k / taps.columns, column = k % taps.columns;
    read[k] = ((taps.row + row * taps.row_step) * s.kernel + taps.column + column * taps.column_step) * s.w_tap;
    written[k] = (narrow ? row * taps.columns * in + column : k * from) * step;
  }
  share(s.count, threads_for_weights(s, threads), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t segment = begin; segment < end; segment++) {
      float* block = packed.data + (narrow ? segment / held : segment) * number * from * step;
      for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
          const float* kernel = w + (segment * out + o) * s.w_out + i * s.w_in;
          const int64_t input = turned ? o : i, output = turned ? i : o;
          float* to = block + input * step + output;
          if (narrow) {  // output lane c of turn r has the weight of input c + r
            const int64_t turn = input >= output ? input - output : input - output + in;
            to = block + turn * taps.columns * LANES + segment % held * in + output;
          }
          for (int64_t k = 0; k < number; k++) to[written[k]] = kernel[read[k]];
        }
    }
  });
  return packed;
}

template <int SIZE, int COLUMNS, int STRIDE>
static void narrow_tiles(const Planes& x, const Turns& turns, int64_t rows, const float* w, Result y, int64_t blocks,
                         int64_t made) {
  in_tiles<4, 8>(y.end, [&](auto tile, int64_t begin, int64_t end) {
    y.begin = begin, y.end = end;
    convolve_narrow<SIZE, COLUMNS, STRIDE, tile <= 4 ? 2 : 1, tile>(x, turns, rows, w, y, blocks, made);
  });
}

// PIXEL, INPUTS: as in convolve_column. One vector of outputs needs many pixels at a time to hide the processor's latency.
template <int PIXEL, int INPUTS = 0>
static void wide_tiles(const Planes& x, const Steps& taps, const float* w, Result y, int64_t segments, int64_t out) {
  constexpr int least = PIXEL ? 4 : 3, most = PIXEL ? 12 : 6;
  in_tiles<least, most>(y.end, [&](auto tile, int64_t begin, int64_t end) {
    y.begin = begin, y.end = end;
    convolve_wide<PIXEL, INPUTS, 2 * tile <= most ? 2 : 1, tile>(x, taps, w, y, segments, out);
  });
}

// `blocks` blocks of planes into y, `made` channels of it.
static void convolve(const Shape& s, bool turned, const Steps& taps, const Planes& x, const float* w, const Result& y,
                     int64_t blocks, int64_t made) {
  const int64_t in = turned ? s.out_size : s.in_size, out = turned ? s.in_size : s.out_size;
  if (is_narrow(s))
    return with_columns(taps.columns, [&](auto columns) {
      constexpr int odd = columns % 2 ? 2 : 1;  // no stride meets an even number of taps in a row
      const Turns& turns = turns_of(in);
      if (taps.stride > 1) return narrow_tiles<0, columns, odd>(x, turns, taps.rows, w, y, blocks, made);
      if (columns == 3 && taps.rows == 3)
        return with_size(in, [&](auto size) { narrow_tiles<size, 3, 1>(x, turns, taps.rows, w, y, blocks, made); });
      narrow_tiles<0, columns, 1>(x, turns, taps.rows, w, y, blocks, made);
    });
  if (out <= LANES) {
    const bool plain = taps.rows == 3 && taps.columns == 3 && taps.stride == 1;
    switch (in * taps.stride) {
      case 5: return plain ? wide_tiles<5, 15>(x, taps, w, y, blocks, out) : wide_tiles<5>(x, taps, w, y, blocks, out);
      case 6: return plain ? wide_tiles<6, 18>(x, taps, w, y, blocks, out) : wide_tiles<6>(x, taps, w, y, blocks, out);
      case 7: return plain ? wide_tiles<7, 21>(x, taps, w, y, blocks, out) : wide_tiles<7>(x, taps, w, y, blocks, out);
      case 8: return plain ? wide_tiles<8, 24>(x, taps, w, y, blocks, out) : wide_tiles<8>(x, taps, w, y, blocks, out);
    }
  }
  wide_tiles<0>(x, taps, w, y, blocks, out);
}

static void add_gradient(const Shape& s, const Pair& p, float* sums) {
  with_columns(s.kernel, [&](auto columns) {
    if constexpr (columns % 2) {
      if (is_narrow(s)) return add_narrow<columns>(p, turns_of(s.in_size), sums);
      add_wide<columns>(p, s.in_size, s.out_size, sums);
    }
  });
}

// Of a run's weights, or their gradient, which lie without gaps. No 1×1 kernel reaches outside the image, so there nothing
// is left out by the library, and nothing depends on this.
static bool is_finite(const Shape& s, const float* w) {
  return s.kernel == 1 || all_finite(w, s.count * s.out_size * s.in_size * s.kernel * s.kernel);
}

static bool is_direct(const Shape& s) {
  const bool plain = s.kernel == 3 && (s.stride == 1 || s.dilation > 1);
  return plain && s.in_size == 1 && s.out_size == 1 && s.count >= LANES;
}

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

// Image `n` of x, or of y, from its first pixel of a part on; tensors of `channels` channels.
static Image x_of(const Shape& s, const Part& p, const float* x, int64_t n) {
  return image_of(x + n * s.height * s.width * s.in_channels, x_grid(s, p), p.h.size, p.w.size);
}

static Image y_of(const Shape& s, const Part& p, const float* y, int64_t n) {
  return image_of(y + n * s.out_height * s.out_width * s.out_channels, y_grid(s, p), p.h.out_size, p.w.out_size);
}

static float* written(const Image& image) { return const_cast<float*>(image.data); }

static void forward_direct(const Shape& s, const Part& part, const float* x, const float* w, float* y, int threads) {
  const Buffer taps = pack_taps(s, w, false);
  const int64_t bands = up(part.h.out_size, DIRECT_ROWS);
  share(s.images * bands, threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / bands;
      const Image to = y_of(s, part, y, n);
      convolve_direct({x_of(s, part, x, n), part.h.pad, part.w.pad}, taps.data,
                      {written(to), to.pixel, to.row, to.height, 0, to.width}, item % bands * DIRECT_ROWS, s.count);
    }
  });
}

static void backward_direct(const Shape& s, const Part& part, const float* x, const float* w, const float* gy, float* gx,
                            const std::vector<Buffer>& sums, int threads) {
  const Buffer taps = gx ? pack_taps(s, w, true) : Buffer(0);
  const int64_t bands = up(std::max(part.h.size, part.h.out_size), DIRECT_ROWS);
  share(s.images * bands, threads, [&](int64_t thread, int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; item++) {
      const int64_t n = item / bands, h = item % bands * DIRECT_ROWS;
      const Image grad = y_of(s, part, gy, n);
      if (gx && part.w.size) {
        const Image to = x_of(s, part, gx, n);
        convolve_direct({grad, 2 - part.h.pad, 2 - part.w.pad}, taps.data,
                        {written(to), to.pixel, to.row, to.height, 0, to.width}, h, s.count);
      }
      if (!sums.empty() && grad.width)
        add_taps_direct({x_of(s, part, x, n), part.h.pad, part.w.pad}, grad, sums[thread].data, h, s.count);
    }
  });
}

static void sum_direct(const Shape& s, const std::vector<Buffer>& sums, float* gw) {
  for (int64_t b = 0; b < vectors(s.count); b++)
    for (int64_t lane = 0; lane < LANES; lane++)
      for (int64_t k = 0; k < 9; k++) {
        float sum = 0;
        for (const Buffer& part : sums) sum += part.data[(b * 9 + k) * LANES + lane];
        gw[(first_channel(b, s.count) + lane) * s.w_out + k * s.w_tap] = sum;
      }
}

// Which channels of a run an item of work has: image and group of blocks.
struct Item {
  int64_t image, first, blocks, in_first, in_left, out_first, out_left;
  int64_t used, made;  // channels of the input, of the output
};

static Item item_of(const Shape& s, const Cut& c, int64_t item) {
  Item i;
  i.image = item / c.groups, i.first = item % c.groups * c.group, i.blocks = std::min(c.group, c.blocks - i.first);
  i.in_first = i.first * c.in_block, i.in_left = s.count * s.in_size - i.in_first;
  i.out_first = i.first * c.out_block, i.out_left = s.count * s.out_size - i.out_first;
  i.used = std::min(i.blocks * c.in_block, i.in_left), i.made = std::min(i.blocks * c.out_block, i.out_left);
  return i;
}

static Planes planes_of(const Shape& s, int64_t block, int64_t pitch, int64_t rows, bool clean) {
  return {nullptr, block, is_narrow(s) ? LANES : block, pitch, rows, clean};
}

// Memory for a group's planes: tiles read past the end, at most 8 pixels of stride 2.
static Buffer room_for(Planes& p, int64_t group) {
  Buffer room(p.plane() * group + 16 * p.pixel);
  p.data = room.data;
  return room;
}

static void forward_part(const Shape& s, const Part& part, const float* x, const float* packed, float* y, int threads) {
  const Cut c = cut(s);
  const Taps taps = all_taps(s.kernel);
  const Side &h = part.h, &w = part.w;
  const int64_t pitch = std::max(w.size + w.pad, (w.out_size - 1) * part.stride + s.kernel);
  const int64_t block_weights = packed_size(s, taps, false) / c.blocks;
  const int64_t row = planes_of(s, c.in_block, pitch, 1, true).row() * c.group;
  const int64_t strip = strip_of(h.out_size, part.stride * row, s.kernel / part.stride);
  share(s.images * c.groups, threads, [&](int64_t, int64_t begin, int64_t end) {
    Planes p = planes_of(s, c.in_block, pitch, (strip - 1) * part.stride + s.kernel, strip == h.out_size);
    const Buffer room = room_for(p, c.group);
    for (int64_t item = begin; item < end; item++) {
      const Item i = item_of(s, c, item);
      const Image image = x_of(s, part, x + i.in_first, i.image), to = y_of(s, part, y + i.out_first, i.image);
      for (int64_t first = 0; first < h.out_size; first += strip) {
        const int64_t rows = std::min(strip, h.out_size - first), top = first * part.stride - h.pad;
        fill(p, image, top, top + (rows - 1) * part.stride + s.kernel, w.pad, i.blocks, i.used, i.in_left);
        convolve(s, false, {taps.rows, taps.columns, part.stride}, p, packed + i.first * block_weights,
                 {written(to) + first * to.row, to.pixel, to.row, rows, 0, w.out_size}, i.blocks, i.made);
      }
    }
  });
}

// What gy gives of gx: every stride-th pixel, from padded place (a, b) on.
struct Share {
  int64_t a, b;
  Taps taps;
  Buffer packed;
};

// Places u of a side with 0 ≤ stride · u + a − pad < size: from the first to the last but one.
static int64_t first_place(const Side& side, int64_t stride, int64_t a) { return up(side.pad - a, stride); }
static int64_t end_place(const Side& side, int64_t stride, int64_t a) { return up(side.size + side.pad - a, stride); }

// gx's rows whose places are in [u0, u1). pg holds gy from row `top` on, with `left` columns before it.
static void add_share(const Shape& s, const Part& part, const Cut& c, const Share& share, const Item& i, const Planes& pg,
                      int64_t top, int64_t left, int64_t u0, int64_t u1, const Image& to) {
  const Side &h = part.h, &w = part.w;
  const int64_t stride = part.stride, row = std::max(u0, first_place(h, stride, share.a));
  const int64_t rows = std::min(u1, end_place(h, stride, share.a)) - row, column = first_place(w, stride, share.b);
  const int64_t columns = end_place(w, stride, share.b) - column;
  if (rows <= 0 || columns <= 0) return;
  Planes from = pg;
  const int64_t reach = std::max<int64_t>(share.taps.rows, 1) - 1;
  from.data += (row - reach - top) * pg.row() + (left + column - share.taps.columns + 1) * pg.pixel;
  float* first = written(to) + (stride * row + share.a - h.pad) * to.row + (stride * column + share.b - w.pad) * to.pixel;
  convolve(s, true, {share.taps.rows, share.taps.columns, 1}, from,
           share.packed.data + i.first * (packed_size(s, share.taps, true) / c.blocks),
           {first, stride * to.pixel, stride * to.row, rows, 0, columns}, i.blocks, i.used);
}

static void backward_part(const Shape& s, const Part& part, const float* x, const std::vector<Share>& shares,
                          const float* gy, float* gx, const std::vector<Buffer>& sums, int64_t block_sums, int threads) {
  const Cut c = cut(s);
  const Side &h = part.h, &w = part.w;
  const int64_t stride = part.stride, reach = up(s.kernel, stride) - 1;  // rows and columns of gy before a place
  const int64_t places = std::max(h.out_size, end_place(h, stride, 0));
  const int64_t x_pitch = std::max(w.size + w.pad, (w.out_size - 1) * stride + s.kernel);
  const int64_t pitch = reach + std::max(w.out_size, end_place(w, stride, 0));
  const bool makes_gw = !sums.empty();
  int64_t row = planes_of(s, c.out_block, pitch, 1, true).row();
  if (makes_gw) row += stride * planes_of(s, c.in_block, x_pitch, 1, true).row();
  const int64_t strip = strip_of(places, row * c.group, reach);
  share(s.images * c.groups, threads, [&](int64_t thread, int64_t begin, int64_t end) {
    const bool whole = strip == places;
    Planes px = planes_of(s, c.in_block, x_pitch, makes_gw ? (strip - 1) * stride + s.kernel : 0, whole);
    Planes pg = planes_of(s, c.out_block, pitch, strip + reach, whole);
    const Buffer x_room = room_for(px, c.group), gy_room = room_for(pg, c.group);
    for (int64_t item = begin; item < end; item++) {
      const Item i = item_of(s, c, item);
      const Image image = x_of(s, part, x + i.in_first, i.image), grad = y_of(s, part, gy + i.out_first, i.image);
      for (int64_t u0 = 0; u0 < places; u0 += strip) {
        const int64_t u1 = std::min(u0 + strip, places), top = u0 - reach;
        fill(pg, grad, top, u1, reach, i.blocks, i.made, i.out_left);
        for (const Share& each : shares)
          add_share(s, part, c, each, i, pg, top, reach, u0, u1, x_of(s, part, gx + i.in_first, i.image));
        const int64_t rows = std::min(u1, h.out_size) - u0;
        if (!makes_gw || rows <= 0) continue;
        const int64_t x_top = u0 * stride - h.pad;
        fill(px, image, x_top, x_top + (rows - 1) * stride + s.kernel, w.pad, i.blocks, i.used, i.in_left);
        for (int64_t b = 0; b < i.blocks; b++)
          add_gradient(s,
                       {px.data + b * px.plane(), pg.data + b * pg.plane() + reach * pg.row() + reach * pg.pixel, px.pixel,
                        px.row(), stride * px.pixel, stride * px.row(), pg.pixel, pg.row(), rows,
                        w.out_size},
                       sums[thread].data + (i.first + b) * block_sums);
      }
    }
  });
}

// The threads' sums into the gradient of the weights.
static void sum_up(const Shape& s, const std::vector<Buffer>& sums, int64_t block_sums, float* gw, int threads) {
  const bool narrow = is_narrow(s);
  const int64_t step = narrow ? LANES : vectors(s.out_size) * LANES, taps = s.kernel * s.kernel;
  const int64_t held = narrow ? LANES / s.in_size : 1;  // segments in a block
  share(s.count, threads_for_weights(s, threads), [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t segment = begin; segment < end; segment++)
      for (int64_t o = 0; o < s.out_size; o++)
        for (int64_t i = 0; i < s.in_size; i++) {
          const int64_t turn = o >= i ? o - i : o - i + s.in_size, lane = segment % held * s.in_size + i;
          const int64_t at = segment / held * block_sums + (narrow ? turn * taps * LANES + lane : i * taps * step + o);
          float* to = gw + (segment * s.out_size + o) * s.w_out + i * s.w_in;
          for (int64_t k = 0; k < taps; k++) {
            float sum = 0;
            for (const Buffer& part : sums) sum += part.data[at + k * step];
            to[k * s.w_tap] = sum;
          }
        }
  });
}

extern "C" {

int spectrum_lanes() { return LANES; }

int spectrum_forward(const Shape* shape, const float* x, const float* w, float* y, int threads) {
  const Shape& s = *shape;
  if (!is_finite(s, w)) return 0;
  const bool direct = is_direct(s);
  const Buffer packed = direct ? Buffer(0) : pack(s, w, all_taps(s.kernel), false, threads);
  each_part(s, [&](const Part& part) {
    if (part.h.out_size == 0 || part.w.out_size == 0) return;
    if (direct) return forward_direct(s, part, x, w, y, threads);
    forward_part(s, part, x, packed.data, y, threads);
  });
  return 1;
}

int spectrum_backward(const Shape* shape, const float* x, const float* w, const float* gy, float* gx, float* gw,
                      int threads) {
  const Shape& s = *shape;
  if (gx && !is_finite(s, w)) return 0;
  const bool direct = is_direct(s);
  const int64_t step = is_narrow(s) ? LANES : vectors(s.out_size) * LANES;
  const int64_t block_sums = s.kernel * s.kernel * s.in_size * step;
  const int64_t all_sums = direct ? vectors(s.count) * 9 * LANES : cut(s).blocks * block_sums;
  std::vector<Buffer> sums;
  for (int t = 0; gw && t < threads; t++) sums.emplace_back(all_sums);
  std::vector<Share> shares;
  const int64_t stride = s.dilation > 1 ? 1 : s.stride;
  for (int64_t k = 0; gx && !direct && k < stride * stride; k++) {
    const Taps taps = turned_taps(s.kernel, stride, k / stride, k % stride);
    shares.push_back({k / stride, k % stride, taps, pack(s, w, taps, true, threads)});
  }
  if (gx && s.stride > 1 && s.dilation > 1)  // most pixels meet no output
    for (int64_t pixel = 0; pixel < s.images * s.height * s.width; pixel++)
      std::memset(gx + pixel * s.in_channels, 0, s.count * s.in_size * sizeof(float));
  each_part(s, [&](const Part& part) {
    if (direct) return backward_direct(s, part, x, w, gy, gx, sums, threads);
    backward_part(s, part, x, shares, gy, gx, sums, block_sums, threads);
  });
  if (!gw) return 1;
  if (direct)
    sum_direct(s, sums, gw);
  else
    sum_up(s, sums, block_sums, gw, threads);
  return is_finite(s, gw);
}
}
