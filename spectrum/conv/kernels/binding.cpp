// The kernels as differentiable operations of torch, for the eager mode: what convolution.py and batch_norm.py do in Python for torch.compile,
// without Python's tenth of a millisecond a call, which a cold cache makes a quarter.
//
// The kernels themselves are another library, whose addresses `use` takes.

#include <ATen/core/Tensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/le.h>
#include <ATen/ops/native_batch_norm_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "interface.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

namespace {

constexpr auto LAST = at::MemoryFormat::ChannelsLast;

struct {
  decltype(&spectrum_forward) forward;
  decltype(&spectrum_backward) backward;
  decltype(&spectrum_norm_forward) norm_forward;
  decltype(&spectrum_norm_evaluate) norm_evaluate;
  decltype(&spectrum_norm_backward) norm_backward;
} kernels;

void use(at::IntArrayRef addresses) {
  TORCH_CHECK(addresses.size() == 5, "five addresses, as in interface.h");
  kernels.forward = reinterpret_cast<decltype(kernels.forward)>(addresses[0]);
  kernels.backward = reinterpret_cast<decltype(kernels.backward)>(addresses[1]);
  kernels.norm_forward = reinterpret_cast<decltype(kernels.norm_forward)>(addresses[2]);
  kernels.norm_evaluate = reinterpret_cast<decltype(kernels.norm_evaluate)>(addresses[3]);
  kernels.norm_backward = reinterpret_cast<decltype(kernels.norm_backward)>(addresses[4]);
}

// As the kernels read it. A tensor may be marked as negative instead of being so.
Tensor last(const Tensor& tensor) { return tensor.resolve_neg().contiguous(LAST); }

Tensor evenly_laid(const Tensor& given) {
  const Tensor weight = given.resolve_neg();
  const bool even = weight.dim() == 4 && weight.stride(2) == weight.size(3) * weight.stride(3) &&
                    (weight.is_contiguous() || weight.is_contiguous(LAST));
  return even ? weight : weight.contiguous();
}

// Whether a gradient is to be left to operations that torch can follow: a derivative of it is wanted, or it stands for a
// batch of gradients.
bool is_followed(const Tensor& grad) {
  return at::GradMode::is_enabled() ||
         grad.key_set().has_any(c10::DispatchKeySet({c10::DispatchKey::Batched, c10::DispatchKey::FuncTorchBatched}));
}

float* at_element(const Tensor& tensor, int64_t past = 0) { return tensor.data_ptr<float>() + past; }

// What `window` of convolution.py holds.
struct Window {
  int64_t kernel, stride, dilation, pad_h, pad_w;
  explicit Window(at::IntArrayRef w) : kernel(w[0]), stride(w[1]), dilation(w[2]), pad_h(w[3]), pad_w(w[4]) {}
  int64_t outputs(int64_t side, int64_t pad) const { return (side + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1; }
};

// run(shape, elements before the run's first channel of x, first weight, first channel of y) for each run.
template <typename Do>
void for_runs(const Tensor& x, const Tensor& weight, const Tensor& y, at::IntArrayRef sizes, const Window& window,
              Do run) {
  int64_t x_past = 0, w_past = 0, y_past = 0;
  const int64_t taps = window.kernel * window.kernel;
  for (size_t i = 0; i + 2 < sizes.size(); i += 3) {
    const int64_t count = sizes[i], in = sizes[i + 1], out = sizes[i + 2];
    const bool four = weight.dim() == 4;
    const Shape shape{x.size(0), x.size(2), x.size(3), y.size(2), y.size(3), x.size(1), y.size(1), count, in, out,
                      window.kernel, window.stride, window.dilation, window.pad_h, window.pad_w,
                      four ? weight.stride(0) : taps * in, four ? weight.stride(1) : taps, four ? weight.stride(3) : 1};
    run(shape, x_past, w_past, y_past);
    x_past += count * in, y_past += count * out, w_past += taps * count * in * out;
  }
}

// The operation of this name as torch_operation.py has it: where a kernel leaves the work to the library, or torch has to follow.
template <typename Signature>
auto in_python(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

struct Convolution : torch::autograd::Function<Convolution> {
  static Tensor forward(AutogradContext* ctx, const Tensor& given, const Tensor& weight, std::vector<int64_t> sizes,
                        std::vector<int64_t> window) {
    const Tensor x = last(given), w = evenly_laid(weight);
    int64_t channels = 0;
    for (size_t i = 0; i + 2 < sizes.size(); i += 3) channels += sizes[i] * sizes[i + 2];
    const Window steps(window);
    const Tensor y = at::empty({x.size(0), channels, steps.outputs(x.size(2), steps.pad_h),
                                steps.outputs(x.size(3), steps.pad_w)},
                               x.options(), LAST);
    bool made = true;
    if (x.numel() && y.numel())
      for_runs(x, w, y, sizes, steps, [&](const Shape& shape, int64_t x_past, int64_t w_past, int64_t y_past) {
        made = made && kernels.forward(&shape, at_element(x, x_past), at_element(w, w_past), at_element(y, y_past),
                                       at::get_num_threads());
      });
    ctx->save_for_backward({given, weight});
    ctx->saved_data["sizes"] = sizes;
    ctx->saved_data["window"] = window;
    if (made) return y;
    static const auto again =
        in_python<Tensor(const Tensor&, const Tensor&, at::IntArrayRef, at::IntArrayRef)>("spectrum::segmented_conv2d");
    return again.call(given, weight, sizes, window);
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    const tensor_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
    const std::vector<int64_t> window = ctx->saved_data["window"].toIntVector();
    const bool needs_x = ctx->needs_input_grad(0), needs_w = ctx->needs_input_grad(1);
    const auto by_python = [&]() -> tensor_list {
      static const auto again =
          in_python<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, at::IntArrayRef,
                                               at::IntArrayRef, bool, bool)>("spectrum::segmented_conv2d_backward");
      const auto [gx, gw] = again.call(saved[0], saved[1], grads[0], sizes, window, needs_x, needs_w);
      return {needs_x ? gx : Tensor(), needs_w ? gw : Tensor(), Tensor(), Tensor()};
    };
    if (is_followed(grads[0])) return by_python();
    const Tensor x = last(saved[0]), w = evenly_laid(saved[1]), gy = last(grads[0]);
    const bool nothing = x.numel() == 0 || gy.numel() == 0;
    const auto room = [&](const Tensor& like) { return nothing ? at::zeros_like(like) : at::empty_like(like); };
    const Tensor gx = needs_x ? room(x) : Tensor(), gw = needs_w ? room(w) : Tensor();
    bool made = true;
    if (!nothing)
      for_runs(x, w, gy, sizes, Window(window), [&](const Shape& shape, int64_t x_past, int64_t w_past, int64_t y_past) {
        made = made && kernels.backward(&shape, at_element(x, x_past), at_element(w, w_past), at_element(gy, y_past),
                                        needs_x ? at_element(gx, x_past) : nullptr,
                                        needs_w ? at_element(gw, w_past) : nullptr, at::get_num_threads());
      });
    return made ? tensor_list{gx, gw, Tensor(), Tensor()} : by_python();
  }
};

Tensor convolve(const Tensor& x, const Tensor& weight, at::IntArrayRef sizes, at::IntArrayRef window) {
  return Convolution::apply(x, weight, sizes.vec(), window.vec());
}

Norm norm_of(const Tensor& x, double eps, bool relu) {
  return {x.size(0) * x.size(2) * x.size(3), x.size(1), relu, at::get_num_threads(), static_cast<float>(eps)};
}

struct Normalisation : torch::autograd::Function<Normalisation> {
  static tensor_list forward(AutogradContext* ctx, const Tensor& given, const std::optional<Tensor>& added,
                             const Tensor& weight, const Tensor& bias, double eps, bool relu) {
    const Tensor x = last(given), w = weight.resolve_neg().contiguous(), b = bias.resolve_neg().contiguous();
    const Tensor more = added ? last(*added) : Tensor();
    const Tensor y = at::empty_like(x), mean = at::empty_like(w), variance = at::empty_like(w), rstd = at::empty_like(w);
    const Norm norm = norm_of(x, eps, relu);
    tensor_list made{y, mean, variance, rstd};
    if (!kernels.norm_forward(&norm, at_element(x), added ? at_element(more) : nullptr, at_element(w), at_element(b),
                              at_element(y), at_element(mean), at_element(variance), at_element(rstd))) {
      static const auto again =
          in_python<std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const std::optional<Tensor>&, const Tensor&,
                                                               const Tensor&, double, bool)>("spectrum::batch_norm_act");
      std::tie(made[0], made[1], made[2], made[3]) = again.call(given, added, weight, bias, eps, relu);
    }
    // y only where its sign is needed, and never what was added: both may be changed in place afterwards.
    ctx->save_for_backward({given, weight, relu ? made[0] : given, made[1], made[3]});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["relu"] = relu;
    ctx->saved_data["added"] = added.has_value();
    ctx->mark_non_differentiable({made[1], made[2], made[3]});
    ctx->set_materialize_grads(false);
    return made;
  }

  static tensor_list backward(AutogradContext* ctx, const tensor_list& grads) {
    if (!grads[0].defined()) return tensor_list(6);
    const tensor_list saved = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    const bool relu = ctx->saved_data["relu"].toBool(), added = ctx->saved_data["added"].toBool();
    const Tensor &given = saved[0], &weight = saved[1], &mean = saved[3], &rstd = saved[4];
    if (is_followed(grads[0])) {
      const Tensor through = relu ? at::where(at::le(saved[2], 0), 0.0, grads[0]) : grads[0];
      const auto [gx, gweight, gbias] = at::native_batch_norm_backward(through, given, weight, {}, {}, mean, rstd, true,
                                                                       eps, {true, true, true});
      return {gx, added ? through : Tensor(), gweight, gbias, Tensor(), Tensor()};
    }
    const Tensor x = last(given), y = last(saved[2]), gy = last(grads[0]), w = weight.resolve_neg().contiguous();
    const Tensor gx = at::empty_like(x), gadded = added && relu ? at::empty_like(x) : Tensor();
    const Tensor gweight = at::empty_like(w), gbias = at::empty_like(w);
    const Norm norm = norm_of(x, eps, relu);
    if (!kernels.norm_backward(&norm, at_element(x), at_element(y), at_element(gy), at_element(w), at_element(mean),
                               at_element(rstd), at_element(gx), gadded.defined() ? at_element(gadded) : nullptr,
                               at_element(gweight), at_element(gbias))) {
      static const auto again =
          in_python<std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                               const Tensor&, const Tensor&, bool, bool)>(
              "spectrum::batch_norm_act_backward");
      const auto [ex, eadded, eweight, ebias] = again.call(given, saved[2], grads[0], weight, mean, rstd, relu, added);
      return {ex, !added ? Tensor() : relu ? eadded : grads[0], eweight, ebias, Tensor(), Tensor()};
    }
    return {gx, !added ? Tensor() : relu ? gadded : grads[0], gweight, gbias, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> normalise(const Tensor& x, const std::optional<Tensor>& added,
                                                     const Tensor& weight, const Tensor& bias, double eps, bool relu) {
  const tensor_list made = Normalisation::apply(x, added, weight, bias, eps, relu);
  return {made[0], made[1], made[2], made[3]};
}

Tensor evaluate(const Tensor& given, const std::optional<Tensor>& added, const Tensor& weight, const Tensor& bias,
                const Tensor& mean, const Tensor& variance, double eps, bool relu) {
  const Tensor x = last(given), more = added ? last(*added) : Tensor(), y = at::empty_like(x);
  const auto plain = [](const Tensor& tensor) { return tensor.resolve_neg().contiguous(); };
  const Tensor w = plain(weight), b = plain(bias), m = plain(mean), v = plain(variance);
  const Norm norm = norm_of(x, eps, relu);
  if (kernels.norm_evaluate(&norm, at_element(x), added ? at_element(more) : nullptr, at_element(w), at_element(b),
                            at_element(m), at_element(v), at_element(y)))
    return y;
  const Tensor plain_y = at::batch_norm(given, w, b, m, v, false, 0, eps, false);
  const Tensor sum = added ? at::add(plain_y, *added) : plain_y;
  return last(relu ? at::relu(sum) : sum);
}

}  // namespace

TORCH_LIBRARY(spectrum_eager, m) {
  m.def("use(int[] addresses) -> ()", &use);
  m.def("segmented_conv2d(Tensor x, Tensor weight, int[] sizes, int[] window) -> Tensor", &convolve);
  m.def(
      "batch_norm_act(Tensor x, Tensor? added, Tensor weight, Tensor bias, float eps, bool relu) "
      "-> (Tensor, Tensor, Tensor, Tensor)",
      &normalise);
  m.def(
      "batch_norm_act_evaluate(Tensor x, Tensor? added, Tensor weight, Tensor bias, Tensor mean, Tensor variance, "
      "float eps, bool relu) -> Tensor",
      &evaluate);
}
