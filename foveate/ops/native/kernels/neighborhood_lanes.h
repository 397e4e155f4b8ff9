// The arithmetic of neighborhood attention: transposing tokens into lanes, and the two products with shifted rows.
//
// A row of tokens is kept as (numbers of a token, positions): at one step of a window, neighbouring lanes read
// neighbouring positions. Up to ROWS lines of queries share what is read of a line of keys.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include "neighborhood_windows.h"

namespace foveate {

// Lines that are computed together.
constexpr int ROWS = 4;
// Steps of a window whose scores are held at once.
constexpr int64_t HELD = 64;
// Numbers of a token are padded to a multiple of this.
constexpr int64_t PADDING = 8;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
// Stands for the score of what is not seen, in powers of two.
constexpr float NEVER = -1e30f;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
// Steps, and numbers of a token, whose sums stay in registers for so many lines.
constexpr int most_steps(int rows) { return smaller(8, (REGISTERS - (REGISTERS == 32 ? 6 : 4)) / rows); }
constexpr int most_numbers(int rows) {
  return rows == 1 ? 8 : rows == 2 ? (REGISTERS == 32 ? 8 : 4) : REGISTERS == 32 ? 4 : 2;
}

template <class R>
inline vec<R> load_all(const R* from) {
  vec<R> lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// The numbers a0 b0 a1 b1 ... of two registers.
template <class V>
inline void interleave(V a, V b, V& low, V& high) {
#if defined(__clang__) || __GNUC__ >= 12
  if constexpr (LANES == 16) {
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (LANES == 8) {
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  }
#else
  V first{}, second{};
  for (int i = 0; i < LANES / 2; ++i) {
    first[2 * i] = a[i], first[2 * i + 1] = b[i];
    second[2 * i] = a[LANES / 2 + i], second[2 * i + 1] = b[LANES / 2 + i];
  }
  low = first, high = second;
#endif
}

// Rows to columns of a square of LANES registers: log2(LANES) perfect shuffles.
template <class V>
inline void transpose(V* square) {
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
    V next[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) interleave(square[i], square[i + LANES / 2], next[2 * i], next[2 * i + 1]);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) square[i] = next[i];
  }
}

// Up to LANES tokens to lanes: to[d * width + i] = scale * tokens[i][d], zero for further lanes and up to `padded`.
template <class T>
void pack(const T* const* tokens, int count, int64_t numbers, int64_t padded, acc<T> scale, acc<T>* to,
          int64_t width) {
  using R = acc<T>;
  for (int64_t d = 0; d < padded; d += LANES, to += LANES * width) {
    vec<R> square[LANES];
    if (count == LANES && numbers - d >= LANES) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = load(tokens[i] + d, LANES) * scale;
    } else {
      const int here = static_cast<int>(numbers - d < LANES ? numbers - d : LANES);
      for (int i = 0; i < LANES; ++i) square[i] = i < count && here > 0 ? load(tokens[i] + d, here) * scale : vec<R>{};
    }
    transpose(square);
    if (padded - d >= LANES) {
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) std::memcpy(to + i * width, &square[i], sizeof(square[i]));
    } else {
      for (int i = 0; d + i < padded; ++i) std::memcpy(to + i * width, &square[i], sizeof(square[i]));
    }
  }
}

// The way back: tokens[i][d] = scale[i] * from[d].
template <class T>
void unpack(const vec<acc<T>>* from, vec<acc<T>> scale, int64_t numbers, T* const* tokens, int count) {
  using R = acc<T>;
  for (int64_t d = 0; d < numbers; d += LANES) {
    vec<R> square[LANES];
    const int here = static_cast<int>(numbers - d < LANES ? numbers - d : LANES);
    for (int i = 0; i < LANES; ++i) square[i] = i < here ? from[d + i] * scale : vec<R>{};
    transpose(square);
    for (int i = 0; i < count; ++i) store(tokens[i] + d, square[i], here);
  }
}

// Two neighbouring registers of a row, from which every lane takes one number.
template <class R>
struct Pair {
#if defined(__AVX512F__) || defined(__AVX2__)
  static constexpr bool in_registers = sizeof(R) == 4;
#else
  static constexpr bool in_registers = false;
#endif
  const R* row;
  vec<R> low, high;

  explicit Pair(const R* row) : row(row), low{}, high{} {
    if constexpr (in_registers) low = load_all(row), high = load_all(row + LANES);
  }

  vec<R> take(vec_mask<R> index) const {
#if defined(__AVX512F__)
    if constexpr (in_registers) return _mm512_permutex2var_ps(low, reinterpret_cast<__m512i>(index), high);
#elif defined(__AVX2__)
    if constexpr (in_registers) {
      const __m256i i = reinterpret_cast<__m256i>(index);
      return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i),
                              _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
    }
#endif
    vec<R> lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = row[index[i]];
    return lanes;
  }
};

// Where the lanes of a group read at steps from, from + 1, ...: plain loads, or a choice and whether the step is seen.
template <class R, int steps>
struct Choice {
  vec_mask<R> index[steps], seen[steps];

  Choice(const Group<R>& g, int64_t from) {
    for (int s = 0; s < steps; ++s) {
      index[s] = g.first + s;
      index[s] = index[s] < 2 * LANES ? index[s] : vec_mask<R>{} + (2 * LANES - 1);
      seen[s] = vec_mask<R>{} + static_cast<whole<R>>(from + s) < g.seen;
    }
  }
};

// What lanes read of a row: at step s of an even group its neighbours from s on, otherwise what they choose.
template <class R, bool even>
struct Neighbours {
  Pair<R> pair;
  explicit Neighbours(const R* row) : pair(row) {}
  template <int steps>
  vec<R> at(int s, const Choice<R, steps>& choice) const {
    return pair.take(choice.index[s]);
  }
};
template <class R>
struct Neighbours<R, true> {
  const R* row;
  explicit Neighbours(const R* row) : row(row) {}
  template <int steps>
  vec<R> at(int s, const Choice<R, steps>&) const {
    return load_all(row + s);
  }
};

// to[r][a - first] = start[r][a] + sum over d of fixed[r][d] row[d][the position at step a], for `steps` steps from
// `from`; NEVER where a lane does not see so many. Without start: zero. `row` begins at the group's base.
template <class R, bool even, int rows, int steps>
void products_of(const vec<R>* fixed, int64_t numbers, int64_t padded, const R* row, int64_t width, const Group<R>& g,
                 int64_t first, int64_t from, const vec<R>* const* start, vec<R>* const* to) {
  using V = vec<R>;
  V sum[rows][steps];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) sum[r][s] = start ? start[r][from + s] : V{};
  const R* at = row + from;
  const Choice<R, even ? 1 : steps> choice(g, from);
  for (int64_t d = 0; d < numbers; ++d, at += width) {
    const Neighbours<R, even> neighbours(at);
    V line[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) line[r] = fixed[r * padded + d];
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) {
      const V other = neighbours.at(s, choice);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) sum[r][s] += line[r] * other;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) {
      if constexpr (!even) sum[r][s] = select<R>(choice.seen[s], sum[r][s], splat<R>(NEVER));
      to[r][from - first + s] = sum[r][s];
    }
}

// to[r][d] += sum over steps of weights[r][a - first] row[d][the position at step a].
template <class R, bool even, int rows, int steps>
void weigh_of(const vec<R>* const* weights, const R* row, int64_t width, const Group<R>& g, int64_t first,
              int64_t from, int64_t padded, vec<R>* to) {
  using V = vec<R>;
  constexpr int numbers = most_numbers(rows);
  const R* at = row + from;
  const Choice<R, even ? 1 : steps> choice(g, from);
  for (int64_t d = 0; d < padded; d += numbers, at += numbers * width) {
    V sum[rows][numbers];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < numbers; ++i) sum[r][i] = to[r * padded + d + i];
#pragma GCC unroll 1
    for (int s = 0; s < steps; ++s) {
      V weight[rows];
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) weight[r] = weights[r][from - first + s];
#pragma GCC unroll 8
      for (int i = 0; i < numbers; ++i) {
        V other = Neighbours<R, even>(at + i * width).at(s, choice);
        // What is not seen may be NaN, which a weight of zero would not silence.
        if constexpr (!even) other = select<R>(choice.seen[s], other, V{});
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum[r][i] += weight[r] * other;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
      for (int i = 0; i < numbers; ++i) to[r * padded + d + i] = sum[r][i];
  }
}

// Cut steps first .. end - 1 into equal pieces that registers hold, and call work(count as a constant, from).
template <int most, class Work>
inline void in_pieces(int64_t first, int64_t end, int64_t reach, Work work) {
  const int64_t limit = reach < most ? reach : most, pieces = (end - first + limit - 1) / limit;
  const int64_t size = pieces ? (end - first + pieces - 1) / pieces : 1;
  for (int64_t from = first; from < end; from += size) {
    const int64_t count = end - from < size ? end - from : size;
    auto is = [&](auto n) {
      if constexpr (n.value <= most)
        if (count == n.value) work(n, from);
    };
    is(std::integral_constant<int, 1>()), is(std::integral_constant<int, 2>()), is(std::integral_constant<int, 3>());
    is(std::integral_constant<int, 4>()), is(std::integral_constant<int, 5>()), is(std::integral_constant<int, 6>());
    is(std::integral_constant<int, 7>()), is(std::integral_constant<int, 8>());
  }
}

// Call work(even as a constant, rows as a constant).
template <class Work>
inline void by_kind(bool even, int rows, Work work) {
  auto is = [&](auto n) {
    if (rows == n.value) even ? work(std::true_type(), n) : work(std::false_type(), n);
  };
  is(std::integral_constant<int, 1>()), is(std::integral_constant<int, 2>());
  is(std::integral_constant<int, 3>()), is(std::integral_constant<int, 4>());
}

// The two products for any number of lines and steps.
template <class R>
void products(int rows, const vec<R>* fixed, int64_t numbers, int64_t padded, const R* row, int64_t width,
              const Group<R>& g, int64_t first, int64_t end, const vec<R>* const* start, vec<R>* const* to) {
  by_kind(g.even, rows, [&](auto even, auto n) {
    in_pieces<most_steps(n.value)>(first, end, even.value ? HELD : g.reach, [&](auto steps, int64_t from) {
      products_of<R, even.value, n.value, steps.value>(fixed, numbers, padded, row, width, g, first, from, start, to);
    });
  });
}

template <class R>
void weigh(int rows, const vec<R>* const* weights, const R* row, int64_t width, const Group<R>& g, int64_t first,
           int64_t end, int64_t padded, vec<R>* to) {
  by_kind(g.even, rows, [&](auto even, auto n) {
    in_pieces<8>(first, end, even.value ? HELD : g.reach, [&](auto steps, int64_t from) {
      weigh_of<R, even.value, n.value, steps.value>(weights, row, width, g, first, from, padded, to);
    });
  });
}

}  // namespace foveate
