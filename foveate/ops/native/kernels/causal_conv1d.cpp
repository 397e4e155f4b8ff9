// The short causal depthwise convolution, forward and backward; the definition is reference in foveate/ops/causal_conv1d.py.
//
// Lanes are neighbouring channels and time runs inside. The backward pass goes forward in time as well: an output reaches
// the K inputs up to its own, so K open sums of input gradients are kept, and the oldest is finished at every position.
// SPDX-License-Identifier: Apache-2.0
#include "vector.h"

namespace foveate {

constexpr int64_t MOST_TAPS = 16;

struct ConvArguments {
  int64_t scalar, batch, length, channels, taps, silu;
  int64_t x_batch, x_time, before_batch, before_time;  // in numbers; channels are neighbours in memory
  const void *x, *before;                              // storage type; before (batch, taps - 1, channels) may be null
  const void *weight, *bias;                           // accumulator type: (taps, channels), (channels) or null
  const int64_t* documents;                            // (batch, length) or null
  void* y;                                             // forward: (batch, length, channels), contiguous
  const void* grad_y;                                  // backward: the same
  void *grad_x, *grad_before;                          // (batch, length, channels), (batch, taps - 1, channels)
  void *grad_weight, *grad_bias;                       // (batch, taps, channels), (batch, channels)
};

namespace {

int check(const ConvArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.length, a.channels, a.taps})
    if (size < 1) return BAD_SIZE;
  if (a.taps > MOST_TAPS) return BAD_SIZE;
  for (int64_t stride : {a.x_batch, a.x_time, a.before_batch, a.before_time})
    if (stride < 0) return BAD_STRIDE;
  if (!a.x || !a.weight || (!backward && !a.y)) return BAD_POINTER;
  if (backward && (!a.grad_y || !a.grad_x || !a.grad_weight || (a.bias && !a.grad_bias) || (a.before && !a.grad_before)))
    return BAD_POINTER;
  return OK;
}

// Some neighbouring channels of one sample.
template <class T>
struct Strip {
  using R = acc<T>;
  using V = vec<R>;

  const ConvArguments& a;
  int64_t b, channel;
  int count;
  V weight[MOST_TAPS], bias{};

  Strip(const ConvArguments& a, int64_t unit) : a(a) {
    const int64_t each = (a.channels + LANES - 1) / LANES;
    b = unit / each, channel = unit % each * LANES;
    count = static_cast<int>(a.channels - channel < LANES ? a.channels - channel : LANES);
    for (int64_t k = 0; k < a.taps; ++k) weight[k] = load(static_cast<const R*>(a.weight) + k * a.channels + channel, count);
    if (a.bias) bias = load(static_cast<const R*>(a.bias) + channel, count);
  }

  // The input at t >= 1 - taps; what lies before the sequence is zero unless it is given.
  V x(int64_t t) const {
    if (t >= 0) return load(static_cast<const T*>(a.x) + b * a.x_batch + t * a.x_time + channel, count);
    if (!a.before) return V{};
    const int64_t row = t + a.taps - 1;
    return load(static_cast<const T*>(a.before) + b * a.before_batch + row * a.before_time + channel, count);
  }

  // Whether position t may see position s <= t: what lies before the sequence belongs to its first document.
  template <bool packed>
  bool sees(int64_t t, int64_t s) const {
    if constexpr (!packed) return true;
    const int64_t* row = a.documents + b * a.length;
    return row[t] == (s < 0 ? 0 : row[s]);
  }

  // The sum before the activation, from a window that holds the last `taps` inputs, latest last.
  template <bool packed>
  V response(int64_t taps, int64_t t, const V* window) const {
    V sum = bias;
    for (int64_t k = 0; k < taps; ++k)
      if (sees<packed>(t, t - taps + 1 + k)) sum += weight[k] * window[k];
    return sum;
  }

  int64_t place(int64_t t, int64_t rows) const { return (b * rows + t) * a.channels + channel; }
};

// Drop the oldest of n and put another behind.
template <class V>
inline void push(V* ring, int64_t n, V latest) {
  for (int64_t k = 1; k < n; ++k) ring[k - 1] = ring[k];
  ring[n - 1] = latest;
}

// `known` is the number of taps where the compiler knows it, which keeps the window in registers; otherwise 0.
template <class T, int64_t known, bool packed>
void forward_strip(const Strip<T>& s) {
  using R = acc<T>;
  const ConvArguments& a = s.a;
  const int64_t K = known ? known : a.taps;
  vec<R> window[known ? known : MOST_TAPS];
  for (int64_t k = 0; k < K; ++k) window[k] = k ? s.x(k - K) : vec<R>{};
  for (int64_t t = 0; t < a.length; ++t) {
    push(window, K, s.x(t));
    vec<R> y = s.template response<packed>(K, t, window);
    if (a.silu) y *= sigmoid<R>(y);
    store(static_cast<T*>(a.y) + s.place(t, a.length), y, s.count);
  }
}

template <class T, int64_t known, bool packed>
void backward_strip(const Strip<T>& s) {
  using R = acc<T>;
  using V = vec<R>;
  const ConvArguments& a = s.a;
  const int64_t K = known ? known : a.taps;
  constexpr int64_t MOST = known ? known : MOST_TAPS;
  V window[MOST], open[MOST] = {}, grad_weight[MOST] = {}, grad_bias{};
  for (int64_t k = 0; k < K; ++k) window[k] = k ? s.x(k - K) : V{};
  auto finish = [&](int64_t t, V gradient) {
    if (t >= 0)
      store(static_cast<T*>(a.grad_x) + s.place(t, a.length), gradient, s.count);
    else if (a.grad_before)
      store(static_cast<T*>(a.grad_before) + s.place(t + K - 1, K - 1), gradient, s.count);
  };
  for (int64_t t = 0; t < a.length; ++t) {
    push(window, K, s.x(t));
    V g = load(static_cast<const T*>(a.grad_y) + s.place(t, a.length), s.count);
    if (a.silu) {
      V before = s.template response<packed>(K, t, window), open_gate = sigmoid<R>(before);
      g *= open_gate * (1 + before * (1 - open_gate));
    }
    grad_bias += g;
    push(open, K, V{});
    for (int64_t k = 0; k < K; ++k) {
      if (!s.template sees<packed>(t, t - K + 1 + k)) continue;
      grad_weight[k] += g * window[k];
      open[k] += g * s.weight[k];
    }
    finish(t - K + 1, open[0]);
  }
  // Inputs whose later outputs would lie behind the end; with fewer positions than taps, some from before the start.
  for (int64_t k = 1; k < K; ++k) finish(a.length - K + k, open[k]);
  for (int64_t k = 0; k < K; ++k) store(static_cast<R*>(a.grad_weight) + s.place(k, K), grad_weight[k], s.count);
  if (a.grad_bias) store(static_cast<R*>(a.grad_bias) + s.place(0, 1), grad_bias, s.count);
}

template <class T, int64_t known, bool packed>
int run(const ConvArguments& a, bool backward) {
  const int64_t units = a.batch * ((a.channels + LANES - 1) / LANES);
#pragma omp parallel for schedule(static) if (units > 1 && a.batch * a.length * a.channels > PARALLEL_FROM)
  for (int64_t unit = 0; unit < units; ++unit) {
    Strip<T> strip(a, unit);
    backward ? backward_strip<T, known, packed>(strip) : forward_strip<T, known, packed>(strip);
  }
  return OK;
}

template <class T>
int run(const ConvArguments& a, bool backward) {
  if (a.documents) return run<T, 0, true>(a, backward);
  return a.taps == 4 ? run<T, 4, false>(a, backward) : run<T, 0, false>(a, backward);
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_causal_conv1d(const foveate::ConvArguments* a, int backward) {
  using namespace foveate;
  if (int bad = check(*a, backward)) return bad;
  switch (a->scalar) {
    case FLOAT32:
      return run<float>(*a, backward);
    case BFLOAT16:
      return run<bfloat16>(*a, backward);
    case FLOAT64:
      return run<double>(*a, backward);
    default:
      return BAD_SCALAR;
  }
}
