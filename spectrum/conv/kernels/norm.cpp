// Batch normalisation with what follows it: y = act(γ · (x − mean) / √(var + ε) + β [+ added]), act the identity or ReLU;
// in training, forward and backward, and in evaluation. Channels last, float32: x, added and y are (pixels, channels) in memory.
//
// One pass over x for its moments, one to write y; backward one for the sums and one to write. The library needs one
// pass more for each of ReLU, the addition, and their gradients.

#include <algorithm>
#include <cmath>
#include <vector>

#include "interface.h"
#include "vector.h"

constexpr int64_t CHUNK = 64;  // pixels whose sums are taken in float32; sums of chunks are float64

// Σ over pixels [begin, end) of the two values that row(pixel, c, n, first, second) adds for channels c … c + n − 1.
template <typename Row>
static void add_sums(int64_t channels, int64_t begin, int64_t end, double* sums, Row row) {
  std::vector<float> chunk(2 * channels + 2 * LANES);
  for (int64_t p = begin; p < end; p += CHUNK) {
    std::fill(chunk.begin(), chunk.end(), 0.f);
    for (int64_t pixel = p; pixel < std::min(p + CHUNK, end); pixel++)
      row(pixel, chunk.data(), chunk.data() + channels);
    for (int64_t c = 0; c < 2 * channels; c++) sums[c] += chunk[c];
  }
}

// Sums of all threads: (2, channels).
template <typename Row>
static std::vector<double> all_sums(const Norm& n, Row row) {
  std::vector<std::vector<double>> parts(n.threads, std::vector<double>(2 * n.channels));
  share(n.pixels, n.threads, [&](int64_t thread, int64_t begin, int64_t end) {
    add_sums(n.channels, begin, end, parts[thread].data(), row);
  });
  for (int t = 1; t < n.threads; t++)
    for (int64_t c = 0; c < 2 * n.channels; c++) parts[0][c] += parts[t][c];
  return parts[0];
}

static inline float relu(float v) { return v < 0 ? 0 : v; }  // not a number stays one

template <bool RELU, bool ADDED>
static void write_y(const Norm& n, const float* x, const float* added, const float* scale, const float* offset, float* y) {
  share(n.pixels, n.threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const float *from = x + p * n.channels, *more = added + (ADDED ? p * n.channels : 0);
      float* to = y + p * n.channels;
#pragma GCC ivdep
      for (int64_t c = 0; c < n.channels; c++) {
        float v = from[c] * scale[c] + offset[c];
        if (ADDED) v += more[c];
        to[c] = RELU ? relu(v) : v;
      }
    }
  });
}

static void write_any(const Norm& n, const float* x, const float* added, const float* scale, const float* offset, float* y) {
  const auto write = n.relu ? (added ? write_y<true, true> : write_y<true, false>)
                            : (added ? write_y<false, true> : write_y<false, false>);
  write(n, x, added, scale, offset, y);
}

// gy unless y ≤ 0; as in torch, what is not a number lets it pass
template <bool RELU>
static inline float through(float gy, float y) {
  return RELU && y <= 0 ? 0 : gy;
}

template <bool RELU>
static int backward(const Norm& n, const float* x, const float* y, const float* gy, const float* weight, const float* mean,
                     const float* rstd, float* gx, float* gadded, float* gweight, float* gbias) {
  const int64_t C = n.channels;
  const std::vector<double> sums = all_sums(n, [=](int64_t p, float* plain, float* scaled) {
    const float *xs = x + p * C, *ys = y + (RELU ? p * C : 0), *gs = gy + p * C;
#pragma GCC ivdep
    for (int64_t c = 0; c < C; c++) {
      const float g = through<RELU>(gs[c], RELU ? ys[c] : 0);
      plain[c] += g;
      scaled[c] += g * (xs[c] - mean[c]);
    }
  });
  // gx = a · g + b · (x − mean) + d
  std::vector<float> a(C), b(C), d(C);
  for (int64_t c = 0; c < C; c++) {
    const double r = rstd[c], projected = sums[C + c] * r;
    gweight[c] = projected, gbias[c] = sums[c];
    a[c] = weight[c] * r;
    b[c] = -weight[c] * r * r * projected / n.pixels;
    d[c] = -weight[c] * r * sums[c] / n.pixels;
  }
  const float *as = a.data(), *bs = b.data(), *ds = d.data();
  if (!all_finite(as, C) || !all_finite(bs, C) || !all_finite(ds, C)) return 0;
  share(n.pixels, n.threads, [&](int64_t, int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; p++) {
      const float *xs = x + p * C, *ys = y + (RELU ? p * C : 0), *gs = gy + p * C;
      float *to = gx + p * C, *more = gadded + (gadded ? p * C : 0);
      if (gadded)
#pragma GCC ivdep
        for (int64_t c = 0; c < C; c++) more[c] = through<RELU>(gs[c], RELU ? ys[c] : 0);
#pragma GCC ivdep
      for (int64_t c = 0; c < C; c++)
        to[c] = as[c] * through<RELU>(gs[c], RELU ? ys[c] : 0) + bs[c] * (xs[c] - mean[c]) + ds[c];
    }
  });
  return 1;
}

extern "C" {

int spectrum_norm_forward(const Norm* norm, const float* x, const float* added, const float* weight, const float* bias,
                           float* y, float* mean, float* var, float* rstd) {
  const Norm& n = *norm;
  const int64_t C = n.channels;
  // Moments about a value near the mean, so that a large mean does not drown a small variance.
  std::vector<float> near(C);
  const int64_t few = std::min(CHUNK, n.pixels);
  for (int64_t p = 0; p < few; p++)
    for (int64_t c = 0; c < C; c++) near[c] += x[p * C + c] / few;
  const float* about = near.data();
  const std::vector<double> sums = all_sums(n, [=](int64_t p, float* plain, float* squared) {
    const float* from = x + p * C;
#pragma GCC ivdep
    for (int64_t c = 0; c < C; c++) {
      const float v = from[c] - about[c];
      plain[c] += v;
      squared[c] += v * v;
    }
  });
  std::vector<float> scale(C), offset(C);
  for (int64_t c = 0; c < C; c++) {
    const double shift = sums[c] / n.pixels, variance = std::max(sums[C + c] / n.pixels - shift * shift, 0.0);
    const double m = about[c] + shift, r = 1 / std::sqrt(variance + n.eps);
    mean[c] = m, var[c] = variance, rstd[c] = r;
    scale[c] = weight[c] * r, offset[c] = bias[c] - m * weight[c] * r;
  }
  for (const float* each : {mean, var, rstd, scale.data(), offset.data()})
    if (!all_finite(each, C)) return 0;
  write_any(n, x, added, scale.data(), offset.data(), y);
  return 1;
}

int spectrum_norm_evaluate(const Norm* norm, const float* x, const float* added, const float* weight, const float* bias,
                            const float* mean, const float* var, float* y) {
  const Norm& n = *norm;
  std::vector<float> scale(n.channels), offset(n.channels);
  for (int64_t c = 0; c < n.channels; c++) {
    const double a = weight[c] / std::sqrt(double(var[c]) + n.eps);
    scale[c] = a, offset[c] = bias[c] - mean[c] * a;
  }
  if (!all_finite(scale.data(), n.channels) || !all_finite(offset.data(), n.channels)) return 0;
  write_any(n, x, added, scale.data(), offset.data(), y);
  return 1;
}

int spectrum_norm_backward(const Norm* norm, const float* x, const float* y, const float* gy, const float* weight,
                           const float* mean, const float* rstd, float* gx, float* gadded, float* gweight, float* gbias) {
  return (norm->relu ? backward<true> : backward<false>)(*norm, x, y, gy, weight, mean, rstd, gx, gadded, gweight, gbias);
}
}
