// What may stand behind a map: activations of lanes of floats.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "vector.h"

namespace foveate {

// Their numbers in the arguments of kernels.
enum Function : int64_t { NONE = 0, GELU = 1, GELU_TANH = 2, SILU = 3 };

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

FOVEATE_INLINE vec<float> activate(vec<float> x, int64_t function) {
  switch (function) {
    case GELU:
      return activate<GELU>(x);
    case GELU_TANH:
      return activate<GELU_TANH>(x);
    case SILU:
      return activate<SILU>(x);
    default:
      return x;
  }
}

}  // namespace foveate
