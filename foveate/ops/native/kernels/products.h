// Matrix products of blocks that lie in the first two cache levels, and what brings blocks there.
//
// A block is row after row, its rows padded with zeros to whole registers, so that products have no edges but their row
// count. Register tiles of ROWS rows hold as many sums as the processor can keep; each sum is one chain over `inner`, so
// a number does not depend on the size of the block it is computed in.
// SPDX-License-Identifier: Apache-2.0
#pragma once

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
inline vec<R> read(const R* from) {
  vec<R> lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

template <class R>
inline void write(R* to, vec<R> lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

template <bool across, class R, int M, int N>
inline void multiply_tile(R* c, int64_t c_row, const R* a, int64_t a_row, const R* b, int64_t b_row, int64_t from,
                          int64_t to, const Keep<R>* keep) {
  vec<R> sums[M][N] = {};
  for (int64_t k = from; k < to; ++k) {
    vec<R> right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) right[n] = read(b + k * b_row + n * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      vec<R> left = splat<R>(across ? a[k * a_row + m] : a[m * a_row + k]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[m][n] += left * right[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      R* place = c + m * c_row + n * LANES;
      if (keep) {
        vec<R> there = read(place);
        sums[m][n] = keep->base * there + (keep->extra * there + sums[m][n]);
      }
      write(place, sums[m][n]);
    }
}

// One tile of every height and width up to the largest.
template <bool across, class R>
struct Tiles {
  using Run = void (*)(R*, int64_t, const R*, int64_t, const R*, int64_t, int64_t, int64_t, const Keep<R>*);
  template <int... I>
  static Run pick(int rows, int vectors, std::integer_sequence<int, I...>) {
    static constexpr Run all[] = {multiply_tile<across, R, I / VECTORS<R> + 1, I % VECTORS<R> + 1>...};
    return all[(rows - 1) * VECTORS<R> + vectors - 1];
  }
  static Run pick(int rows, int vectors) {
    return pick(rows, vectors, std::make_integer_sequence<int, ROWS * VECTORS<R>>{});
  }
};

// C = A B, or what `keep` says. A is (rows, inner), given across as (inner, rows); B is (inner, columns), C (rows,
// columns), both padded to whole registers and `*_row` numbers from row to row.
struct Nothing {
  void operator()() const {}
};
template <bool across = false, class R, class Between = Nothing>
void multiply(R* c, int64_t c_row, const R* a, int64_t a_row, const R* b, int64_t b_row, int64_t rows, int64_t inner,
              int64_t columns, Part part = Part::WHOLE, const Keep<R>* keep = nullptr, Between between = {}) {
  for (int64_t m = 0; m < rows; m += ROWS) {
    between();
    const int height = static_cast<int>(rows - m < ROWS ? rows - m : ROWS);
    const int64_t behind = m + height;
    const int64_t vectors = (part == Part::RESULT && behind < columns ? behind + LANES - 1 : columns + LANES - 1) / LANES;
    const int64_t from = part == Part::LEFT_ACROSS ? m : 0;
    const int64_t to = part == Part::LEFT && behind < inner ? behind : inner;
    const R* left = across ? a + m : a + m * a_row;
    for (int64_t n = 0; n < vectors; n += VECTORS<R>) {
      const int width = static_cast<int>(vectors - n < VECTORS<R> ? vectors - n : VECTORS<R>);
      auto run = Tiles<across, R>::pick(height, width);
      run(c + m * c_row + n * LANES, c_row, left, a_row, b + n * LANES, b_row, from, to, keep);
    }
  }
}

// Rows of storage to a block; zeros behind the columns, and in further rows up to a whole number of registers.
template <class T>
void pack(acc<T>* to, int64_t to_row, const T* from, int64_t from_row, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < padded(rows); ++r)
    for (int64_t c = 0; c < columns; c += LANES) {
      const int count = static_cast<int>(columns - c < LANES ? columns - c : LANES);
      write(to + r * to_row + c, r < rows ? load(from + r * from_row + c, count) : vec<acc<T>>{});
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

// Exchange, in LANES rows of a square, every other square of `step` rows and columns with the one across the diagonal.
template <class R, int step>
inline void exchange(vec<R>* rows) {
  vec_mask<R> upper, lower;
  for (int i = 0; i < LANES; ++i) {
    upper[i] = i & step ? LANES + i - step : i;
    lower[i] = i & step ? LANES + i : i + step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (i & step) continue;
    vec<R> a = rows[i], b = rows[i + step];
    rows[i] = FOVEATE_SHUFFLE(a, b, upper);
    rows[i + step] = FOVEATE_SHUFFLE(a, b, lower);
  }
  if constexpr (step > 1) exchange<R, step / 2>(rows);
}

// The transpose of a block: (columns, rows) with rows padded to whole registers. Reads padded rows and columns.
template <class R>
void transpose(R* to, int64_t to_row, const R* from, int64_t from_row, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t c = 0; c < columns; c += LANES) {
      vec<R> square[LANES];
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i) square[i] = read(from + (r + i) * from_row + c);
      exchange<R, LANES / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < LANES; ++i)
        if (c + i < columns) write(to + (c + i) * to_row + r, square[i]);
    }
}

}  // namespace foveate
