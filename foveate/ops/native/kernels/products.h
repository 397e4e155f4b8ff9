// Matrix products of blocks that lie in the first two cache levels, and what brings blocks there.
//
// A block is row after row, its rows padded with zeros to whole registers, so that products have no edges but their
// row count. Register tiles of ROWS rows hold as many sums as the processor can keep; each sum is one chain over
// `inner`, so a number does not depend on the size of the block it is computed in.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <type_traits>
#include <utility>

#include "vector.h"

namespace foveate {

constexpr int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// Register tiles: 24 sums of 32 registers, or 12 of 16. A vector of doubles takes two registers.
constexpr int ROWS = 6;
template <class R>
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int VECTORS = sizeof(R) == 4 ? 4 : 2;
#else
constexpr int VECTORS = sizeof(R) == 4 ? 2 : 1;
#endif

// Which part of a product is wanted, where one of the matrices is lower triangular (zeros above its diagonal).
enum class Part {
  WHOLE,
  RESULT,      // the result is: columns behind a tile's rows are left out
  LEFT,        // the left factor is: a row's sum ends with its own index
  LEFT_ACROSS  // the transpose of the left factor is: a row's sum begins with its own index
};

// What becomes of a number x that is there already: base * x + (extra * x + the product).
template <class R>
struct Keep {
  R base, extra;
};

template <class R>
constexpr Keep<R> ADD{0, 1};
template <class R>
constexpr const Keep<R>* OVERWRITE = nullptr;

template <class R>
inline vec<R> read(const R* from) {
  vec<R> lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

template <class R>
inline void write(R* to, vec<R> lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

// Rows of numbers: where the first lies, and how far it is from row to row.
template <class R>
struct View {
  const R* from;
  int64_t row;
  const R* at(int64_t i, int64_t j = 0) const { return from + i * row + j; }
};
template <class R>
struct Block {
  R* from;
  int64_t row;
  R* at(int64_t i, int64_t j = 0) const { return from + i * row + j; }
  operator View<R>() const { return {from, row}; }
};
// A factor, whose R is known from the result.
template <class R>
using Factor = std::common_type_t<View<R>>;

// sums += A B for one tile; A is given across as (inner, rows).
template <bool across, int M, int N, class R>
inline void accumulate(vec<R> (&sums)[M][N], View<R> a, View<R> b, int64_t from, int64_t to) {
  for (int64_t k = from; k < to; ++k) {
    vec<R> right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) right[n] = read(b.at(k, n * LANES));
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<R> left = splat<R>(across ? *a.at(k, m) : *a.at(m, k));
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[m][n] += left * right[n];
    }
  }
}

template <bool across, class R, int M, int N>
void multiply_tile(Block<R> c, View<R> a, View<R> b, int64_t from, int64_t to, const Keep<R>* keep) {
  vec<R> sums[M][N] = {};
  accumulate<across, M, N, R>(sums, a, b, from, to);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      if (keep) {
        const vec<R> there = read<R>(c.at(m, n * LANES));
        sums[m][n] = keep->base * there + (keep->extra * there + sums[m][n]);
      }
      write(c.at(m, n * LANES), sums[m][n]);
    }
}

template <class R, int M, int N>
void two_tile(Block<R> c, const R* scale, View<R> a, View<R> b, int64_t inner, View<R> a2,
              View<R> b2, int64_t to) {
  vec<R> sums[M][N] = {};
  accumulate<false, M, N, R>(sums, a, b, 0, inner);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[m][n] *= scale[m];
  accumulate<false, M, N, R>(sums, a2, b2, 0, to);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) write(c.at(m, n * LANES), sums[m][n]);
}

// The tiles of every height and width, in one table each.
template <bool across, class R, int... I>
constexpr auto tiles(std::integer_sequence<int, I...>) {
  return std::array{&multiply_tile<across, R, I / VECTORS<R> + 1, I % VECTORS<R> + 1>...};
}
template <class R, int... I>
constexpr auto two_tiles(std::integer_sequence<int, I...>) {
  return std::array{&two_tile<R, I / VECTORS<R> + 1, I % VECTORS<R> + 1>...};
}
template <class R>
using Sizes = std::make_integer_sequence<int, ROWS * VECTORS<R>>;

// Run `tile(first row, height, first column, width in registers, place in a table)` over rows and columns.
template <class R, class Tile>
inline void over_tiles(int64_t rows, int64_t columns, bool lower, Tile tile) {
  for (int64_t m = 0; m < rows; m += ROWS) {
    const int64_t height = rows - m < ROWS ? rows - m : ROWS, behind = m + height;
    const int64_t vectors = ((lower && behind < columns ? behind : columns) + LANES - 1) / LANES;
    for (int64_t n = 0; n < vectors; n += VECTORS<R>) {
      const int64_t width = vectors - n < VECTORS<R> ? vectors - n : VECTORS<R>;
      tile(m, behind, n * LANES, (height - 1) * VECTORS<R> + width - 1);
    }
  }
}

// What a product does between its tiles, unless it is told: nothing.
struct Nothing {
  void operator()() const {}
};

// C = A B, or what `keep` says. A is (rows, inner), given across as (inner, rows); B is (inner, columns), C (rows,
// columns), both padded to whole registers.
template <bool across = false, class R, class Between = Nothing>
void multiply(Block<R> c, Factor<R> a, Factor<R> b, int64_t rows, int64_t inner, int64_t columns,
              Part part = Part::WHOLE, const Keep<R>* keep = nullptr, Between between = {}) {
  static constexpr auto table = tiles<across, R>(Sizes<R>{});
  over_tiles<R>(rows, columns, part == Part::RESULT, [&](int64_t m, int64_t behind, int64_t n, int64_t which) {
    between();
    const int64_t from = part == Part::LEFT_ACROSS ? m : 0, to = part == Part::LEFT && behind < inner ? behind : inner;
    table[which]({c.at(m, n), c.row}, {across ? a.at(0, m) : a.at(m), a.row}, {b.at(0, n), b.row}, from, to, keep);
  });
}

// C = A B, its rows scaled, plus L V with a lower triangular square L.
template <class R, class Between = Nothing>
void multiply_two(Block<R> c, const R* scale, Factor<R> a, Factor<R> b, int64_t inner, Factor<R> left, Factor<R> v,
                  int64_t rows, int64_t columns, Between between = {}) {
  static constexpr auto table = two_tiles<R>(Sizes<R>{});
  over_tiles<R>(rows, columns, false, [&](int64_t m, int64_t behind, int64_t n, int64_t which) {
    between();
    table[which]({c.at(m, n), c.row}, scale + m, {a.at(m), a.row}, {b.at(0, n), b.row}, inner, {left.at(m), left.row},
                 {v.at(0, n), v.row}, behind);
  });
}

// Rows of storage to a block; zeros behind the columns, and in further rows up to a whole number of registers.
template <class T>
void pack(Block<acc<T>> to, const T* from, int64_t from_row, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < padded(rows); ++r)
    for (int64_t c = 0; c < columns; c += LANES) {
      const int count = static_cast<int>(columns - c < LANES ? columns - c : LANES);
      write(to.at(r, c), r < rows ? load(from + r * from_row + c, count) : vec<acc<T>>{});
    }
}

#if defined(__clang__)
#define FOVEATE_SHUFFLE(a, b, where) shuffle_lanes(a, b, where)
template <class V, class M>
inline V shuffle_lanes(V a, V b, M where) {
  V mixed;
  for (int i = 0; i < LANES; ++i) mixed[i] = where[i] < LANES ? a[where[i]] : b[where[i] - LANES];
  return mixed;
}
#else
#define FOVEATE_SHUFFLE(a, b, where) __builtin_shuffle(a, b, where)
#endif

// Lanes of two rows that are `step` apart in a square: those of its upper half and of its lower, once such halves of the
// two are exchanged.
template <class R, int step>
struct Halves {
  vec_mask<R> upper, lower;
  FOVEATE_INLINE Halves() {
    for (int i = 0; i < LANES; ++i) {
      upper[i] = i & step ? LANES + i - step : i;
      lower[i] = i & step ? LANES + i : i + step;
    }
  }
};

// Exchange, in LANES rows of a square, every other square of `step` rows and columns with the one across the diagonal.
template <class R, int step>
inline void exchange(vec<R>* rows) {
  const Halves<R, step> half;
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (i & step) continue;
    vec<R> a = rows[i], b = rows[i + step];
    rows[i] = FOVEATE_SHUFFLE(a, b, half.upper);
    rows[i + step] = FOVEATE_SHUFFLE(a, b, half.lower);
  }
  if constexpr (step > 1) exchange<R, step / 2>(rows);
}

// The sum of each of LANES rows, in the lane of its number, in the first of them; step: LANES / 2.
template <class R, int step>
FOVEATE_INLINE void fold(vec<R>* rows) {
  const Halves<R, step> half;
#pragma GCC unroll 16
  for (int i = 0; i < step; ++i) {
    const vec<R> a = rows[i], b = rows[i + step];
    rows[i] = FOVEATE_SHUFFLE(a, b, half.upper) + FOVEATE_SHUFFLE(a, b, half.lower);
  }
  if constexpr (step > 1) fold<R, step / 2>(rows);
}

// The transpose of a block: (columns, rows) with rows padded to whole registers. Reads padded rows and columns.
template <class R>
void transpose(Block<R> to, Factor<R> from, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t c = 0; c < columns; c += LANES) {
      vec<R> square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = read(from.at(r + i, c));
      exchange<R, LANES / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        if (c + i < columns) write(to.at(c + i, r), square[i]);
    }
}

}  // namespace foveate
