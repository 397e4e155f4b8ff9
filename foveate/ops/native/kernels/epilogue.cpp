// What stands behind a matrix product, in place and in one pass: y = act(y + bias) * times + plus.
//
// A product that writes its biases first reads and writes its result once more, and so does every function behind it;
// here the result is touched once, while it is in the cache.
// SPDX-License-Identifier: Apache-2.0
#include "vector.h"

namespace foveate {

enum Function : int64_t { NONE = 0, GELU = 1, GELU_TANH = 2, SILU = 3 };

struct EpilogueArguments {
  int64_t rows, channels, function;
  int64_t y_row, times_row, plus_row;  // in numbers; channels are neighbours in memory
  float* y;                            // (rows, channels)
  const float* bias;                   // (channels), or null
  const float *times, *plus;           // (rows, channels), or null
};

namespace {

int check(const EpilogueArguments& a) {
  if (a.rows < 1 || a.channels < 1) return BAD_SIZE;
  for (int64_t stride : {a.y_row, a.times_row, a.plus_row})
    if (stride < 0) return BAD_STRIDE;
  if (!a.y) return BAD_POINTER;
  return a.function < NONE || a.function > SILU ? BAD_SCALAR : OK;
}

// x Phi(x), Phi the distribution function of the normal law. Phi - 1/2 is x times a ratio of polynomials in x^2, minimax
// in the absolute error of Phi (5.5e-9) up to where floats round Phi to 0 and 1.
FOVEATE_INLINE vec<float> gelu(vec<float> x) {
  constexpr float END = 5.4f;
  const vec<float> inner = clamp(x, splat(-END), splat(END)), w = inner * inner;
  vec<float> p = splat(2.3386759e-8f), q = splat(1.2165918e-6f);
  p = p * w + 6.3600228e-6f, q = q * w + 7.24002e-5f;
  p = p * w + 1.643217e-4f, q = q * w + 1.8589814e-3f;
  p = p * w + 4.6508512e-3f, q = q * w + 2.8378686e-2f;
  p = p * w + 3.3372227e-2f, q = q * w + 2.5031784e-1f;
  p = p * w + 3.9894223e-1f, q = q * w + 1.0f;
  const vec<float> inside = x * (0.5f + inner * p / q);
  return select<float>(x >= END, x, select<float>(x <= -END, x * 0.0f, inside));
}

template <Function function>
FOVEATE_INLINE vec<float> activate(vec<float> x) {
  if constexpr (function == GELU) return gelu(x);
  // (1 + tanh(z)) / 2 is the logistic function of 2 z.
  if constexpr (function == GELU_TANH) return x * sigmoid<float>(1.5957691f * x * (1.0f + 0.044715f * x * x));
  if constexpr (function == SILU) return x * sigmoid<float>(x);
  return x;
}

template <Function function>
void run_row(const EpilogueArguments& a, int64_t row) {
  float* y = a.y + row * a.y_row;
  const float* times = a.times ? a.times + row * a.times_row : nullptr;
  const float* plus = a.plus ? a.plus + row * a.plus_row : nullptr;
  auto finish = [&](int64_t c, int count) __attribute__((always_inline)) {
    vec<float> value = load(y + c, count);
    if (a.bias) value += load(a.bias + c, count);
    value = activate<function>(value);
    if (times) value *= load(times + c, count);
    if (plus) value += load(plus + c, count);
    store(y + c, value, count);
  };
  int64_t c = 0;
  for (; c + LANES <= a.channels; c += LANES) finish(c, LANES);
  if (c < a.channels) finish(c, static_cast<int>(a.channels - c));
}

template <Function function>
int run(const EpilogueArguments& a) {
#pragma omp parallel for schedule(static) if (a.rows > 1 && a.rows * a.channels > PARALLEL_FROM)
  for (int64_t row = 0; row < a.rows; ++row) run_row<function>(a, row);
  return OK;
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_epilogue(const foveate::EpilogueArguments* a) {
  using namespace foveate;
  if (int bad = check(*a)) return bad;
  switch (a->function) {
    case GELU:
      return run<GELU>(*a);
    case GELU_TANH:
      return run<GELU_TANH>(*a);
    case SILU:
      return run<SILU>(*a);
    default:
      return run<NONE>(*a);
  }
}
