// What the kernels are called with. Sizes in elements.

#pragma once

#include <cstdint>

// One run of `count` equal segments of a convolution. x: (images, height, width, in_channels) in memory; y likewise; the
// pointers that go with this point at the run's first channels. The weights (count · out_size, in_size, kernel, kernel)
// may lie in any order of which a row of taps is `kernel` steps of a tap. Kernels are square: 1, 3, 5 or 7; stride and
// dilation are 1 or 2; padding is at most dilation · (kernel − 1).
struct Shape {
  int64_t images, height, width, out_height, out_width;
  int64_t in_channels, out_channels;  // of the whole tensors
  int64_t count, in_size, out_size;
  int64_t kernel, stride, dilation, pad_h, pad_w;
  int64_t w_out, w_in, w_tap;  // distances in the weights and their gradient
};

// x, y and what is added are (pixels, channels) in memory.
struct Norm {
  int64_t pixels, channels;
  int32_t relu, threads;
  float eps;
};

// Every function gives 1, or 0 where numbers that are not finite make its own result another than the library's: the
// caller then has the library compute it. The kernels pad with zeros, the library leaves out what lies outside; and zero
// times infinity is not a number.
extern "C" {
// 0 where weights are not finite.
int spectrum_forward(const Shape*, const float* x, const float* w, float* y, int threads);

// gx and gw: null where not wanted. 0 where weights (for gx) or gw are not finite.
int spectrum_backward(const Shape*, const float* x, const float* w, const float* gy, float* gx, float* gw, int threads);

// mean, var (biased) and rstd are written. added: null where nothing is added. 0 where any of these is not finite, or γ or β.
int spectrum_norm_forward(const Norm*, const float* x, const float* added, const float* weight, const float* bias,
                           float* y, float* mean, float* var, float* rstd);

// By statistics that are given. 0 where what they make of γ and β is not finite.
int spectrum_norm_evaluate(const Norm*, const float* x, const float* added, const float* weight, const float* bias,
                            const float* mean, const float* var, float* y);

// y: read with ReLU only. gadded: null where nothing was added, or where its gradient is gy itself. 0 where a coefficient
// of gx is not finite.
int spectrum_norm_backward(const Norm*, const float* x, const float* y, const float* gy, const float* weight,
                            const float* mean, const float* rstd, float* gx, float* gadded, float* gweight, float* gbias);
}
