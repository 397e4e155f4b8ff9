// What every kernel is written with: lanes of float or double, storage types, exp and log, and the argument checks.
//
// The lanes are GCC and Clang vector extensions, so one source compiles to SSE, AVX2, AVX-512 or NEON by -march alone.
// bfloat16 is storage only: it is widened when read and rounded to nearest even when written.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#ifdef __SSE__
#include <immintrin.h>
#endif

#define FOVEATE_EXPORT extern "C" __attribute__((visibility("default")))
// For what loops call: a call would pass lanes through memory.
#define FOVEATE_INLINE inline __attribute__((always_inline))

namespace foveate {

// One register of floats.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Fewer numbers of work than this are not worth waking other threads for.
constexpr int64_t PARALLEL_FROM = 32768;

// Numbers of the scalar types in the arguments of every kernel.
enum Scalar : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT64 = 2 };
// What a kernel returns; the loader turns anything but OK into an error.
enum Status : int { OK = 0, BAD_SIZE = 1, BAD_STRIDE = 2, BAD_POINTER = 3, BAD_SCALAR = 4, OUT_OF_MEMORY = 5 };

struct bfloat16 {
  uint16_t bits;
};

template <class R>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(LANES * 4)));
  typedef int32_t mask __attribute__((vector_size(LANES * 4)));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(LANES * 8)));
  typedef int64_t mask __attribute__((vector_size(LANES * 8)));
};
template <class R>
using vec = typename Lanes<R>::type;
template <class R>
using vec_mask = typename Lanes<R>::mask;

// The type that sums and states are kept in, for each storage type.
template <class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<bfloat16> {
  using type = float;
};
template <class T>
using acc = typename Accumulator<T>::type;

template <class R>
inline vec<R> splat(R value) {
  return vec<R>{} + value;
}
// Compilers make an addition of the above, lest the sign of a zero be lost; this is a load.
template <>
inline vec<float> splat(float value) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(value);
#elif defined(__AVX__)
  return _mm256_set1_ps(value);
#elif defined(__SSE__)
  return _mm_set1_ps(value);
#else
  return vec<float>{} + value;
#endif
}

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(bfloat16 value) {
  uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

template <class T>
inline T narrow(acc<T> value) {
  if constexpr (sizeof(T) == 2) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (value != value) return T{static_cast<uint16_t>((bits >> 16) | 0x40)};
    return T{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    return value;
  }
}

// Read the first `count` of LANES neighbouring numbers; the other lanes are zero.
template <class T>
inline vec<acc<T>> load(const T* from, int count) {
  using R = acc<T>;
  vec<R> lanes;
  if (count == LANES) {
    if constexpr (sizeof(T) != 2) {
      std::memcpy(&lanes, from, sizeof(lanes));
    } else {
      uint16_t narrow __attribute__((vector_size(LANES * 2)));
      std::memcpy(&narrow, from, sizeof(narrow));
      vec_mask<R> bits = __builtin_convertvector(narrow, vec_mask<R>) << 16;
      std::memcpy(&lanes, &bits, sizeof(lanes));
    }
    return lanes;
  }
  R room[LANES] = {};
  for (int i = 0; i < count; ++i) room[i] = widen(from[i]);
  std::memcpy(&lanes, room, sizeof(lanes));
  return lanes;
}

template <class T>
inline void store(T* to, vec<acc<T>> lanes, int count) {
  using R = acc<T>;
  if constexpr (sizeof(T) != 2) {
    if (count == LANES) {
      std::memcpy(to, &lanes, sizeof(lanes));
      return;
    }
  }
  R room[LANES];
  std::memcpy(room, &lanes, sizeof(lanes));
  for (int i = 0; i < count; ++i) to[i] = narrow<T>(room[i]);
}

template <class R>
inline R sum(vec<R> lanes) {
  R room[LANES];
  std::memcpy(room, &lanes, sizeof(lanes));
  for (int half = LANES / 2; half; half /= 2)  // by halves: one addition would wait for the other
    for (int i = 0; i < half; ++i) room[i] += room[i + half];
  return room[0];
}
#ifdef __AVX512F__
template <>
inline float sum<float>(vec<float> lanes) {
  return _mm512_reduce_add_ps(lanes);
}
#endif

template <class R>
inline vec<R> select(vec_mask<R> where, vec<R> yes, vec<R> no) {
  return where ? yes : no;
}

// x between two bounds, NaN for NaN. Compilers make two instructions of each comparison; these are one.
inline vec<float> clamp(vec<float> x, vec<float> low, vec<float> high) {
#if defined(__AVX512F__)
  return _mm512_min_ps(high, _mm512_max_ps(low, x));
#elif defined(__AVX__)
  return _mm256_min_ps(high, _mm256_max_ps(low, x));
#elif defined(__SSE__)
  return _mm_min_ps(high, _mm_max_ps(low, x));
#else
  x = x < low ? low : x;
  return x > high ? high : x;
#endif
}

// 2^x to half a unit in the last place; NaN for NaN. With AVX-512 over the whole range, infinities included; elsewhere
// between 2^-125 and the largest float, which stand for what lies beyond.
FOVEATE_INLINE vec<float> exp2(vec<float> x) {
#if defined(__AVX512DQ__)
  vec<float> whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT);
  vec<float> f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT);  // x - whole, but 0 for infinities
#else
  constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number in the low bits
  x = clamp(x, splat(-125.0f), splat(127.99999f));
  vec<float> rounded = x + MAGIC, f = x - (rounded - MAGIC);
#endif
  vec<float> p = splat(0.0013264727f);  // f in [-0.5, 0.5]; the polynomial is 1 at 0 and minimax in relative error
  p = p * f + 0.009671513f;
  p = p * f + 0.055507337f;
  p = p * f + 0.24022242f;
  p = p * f + 0.693147f;
  p = p * f + 1.0f;
#if defined(__AVX512DQ__)
  return _mm512_scalef_ps(p, whole);
#else
  vec_mask<float> whole, bits;
  std::memcpy(&whole, &rounded, sizeof(whole));
  std::memcpy(&bits, &p, sizeof(bits));
  bits += whole << 23;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
#endif
}

inline vec<double> exp2(vec<double> x) {
  vec<double> y;
  for (int i = 0; i < LANES; ++i) y[i] = std::exp2(x[i]);
  return y;
}

template <class R>
FOVEATE_INLINE vec<R> exp(vec<R> x) {
  return exp2(x * static_cast<R>(1.4426950408889634));
}

// log(1 + y) for y in [0, 1].
FOVEATE_INLINE vec<float> log1p_unit(vec<float> y) {
  // 2 atanh(s) with s = y / (2 + y) <= 1/3: odd powers of s.
  vec<float> s = y / (2.0f + y), q = s * s;
  vec<float> p = splat(1.0f / 13);
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2.0f * s * (p * q + 1.0f);
}

inline vec<double> log1p_unit(vec<double> y) {
  vec<double> z;
  for (int i = 0; i < LANES; ++i) z[i] = std::log1p(y[i]);
  return z;
}

template <class R>
FOVEATE_INLINE vec<R> absolute(vec<R> x) {
  return select<R>(x < 0, -x, x);
}

// As PyTorch's: log(1 + exp(x)), x itself above 20.
template <class R>
FOVEATE_INLINE vec<R> softplus(vec<R> x) {
  vec<R> zero{};
  vec<R> smooth = select<R>(x > zero, x, zero) + log1p_unit(exp<R>(-absolute<R>(x)));
  return select<R>(x != x, x, select<R>(x > 20, x, smooth));
}

template <class R>
FOVEATE_INLINE vec<R> sigmoid(vec<R> x) {
  return 1 / (1 + exp<R>(-x));
}

// The derivative of softplus, 1 above its threshold.
template <class R>
FOVEATE_INLINE vec<R> softplus_slope(vec<R> x) {
  return select<R>(x > 20, splat<R>(1), sigmoid<R>(x));
}

}  // namespace foveate
