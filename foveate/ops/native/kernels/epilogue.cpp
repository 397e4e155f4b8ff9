// What stands behind a matrix product, in place and in one pass: y = act(y + bias) * times + plus.
//
// A product that writes its biases first reads and writes its result once more, and so does every function behind it;
// here the result is touched once, while it is in the cache.
// SPDX-License-Identifier: Apache-2.0
#include "activations.h"

namespace foveate {

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
