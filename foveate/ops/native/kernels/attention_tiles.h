// What every attention by tiles is made of: rows of keys as they are or packed, the running softmax of a tile of scores,
// and the sums that it weighs.
//
// Scores lie with keys in rows and queries in lanes. So keys and values are read where they are, number by number;
// the softmax's maxima and sums stay in lanes; and only the queries of a tile are ever transposed.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <new>

#include "products.h"

namespace foveate {
namespace {

constexpr int64_t QUERIES = 64;  // of a tile
constexpr int64_t KEYS = 96;     // of a tile
constexpr int64_t CORNER = 16;   // keys of a tile where causality cuts through it
constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

static_assert(QUERIES % LANES == 0 && CORNER % LANES == 0 && KEYS % CORNER == 0);

template <class R>
constexpr R NEVER = -std::numeric_limits<R>::infinity();

inline int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
inline int64_t divided(int64_t numbers, int64_t by) { return (numbers + by - 1) / by; }

// Cleared room for blocks of these sizes, each a multiple of LANES; null if there is none.
template <class R>
std::unique_ptr<vec<R>[]> make_room(std::initializer_list<std::pair<R**, int64_t>> own,
                                    std::initializer_list<std::pair<R**, int64_t>> more) {
  int64_t total = 0;
  for (const auto* parts : {&own, &more})
    for (auto& part : *parts) total += part.second;
  std::unique_ptr<vec<R>[]> memory(new (std::nothrow) vec<R>[total / LANES]());
  R* next = reinterpret_cast<R*>(memory.get());
  for (const auto* parts : {&own, &more})
    for (auto& part : *parts) *part.first = next, next += memory ? part.second : 0;
  return memory;
}

// Not inlined: compilers take long over it where a vector of doubles has several registers.
template <class R>
__attribute__((noinline)) void turn(Block<R> to, Factor<R> from, int64_t rows, int64_t columns) {
  transpose<R>(to, from, rows, columns);
}

// Rows of narrow numbers, or of numbers that do not lie one behind the other, to a block.
template <class T>
inline void pack_rows(Block<acc<T>> to, const T* from, int64_t row, int64_t many, int64_t numbers) {
  for (int64_t i = 0; i < many; ++i)
    for (int64_t c = 0; c < numbers; c += LANES)
      write(to.at(i, c), load(from + i * row + c, static_cast<int>(least(LANES, numbers - c))));
}

// Ask for a row that is read soon.
template <class T>
inline void line(const T* row, int64_t numbers) {
  for (int64_t c = 0; c < numbers; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c, 0, 2);
}

// 2^scores of a row of a tile, 0 where there is nothing to see.
template <class R>
FOVEATE_INLINE vec<R> weight(vec<R> score, vec<R> base, bool guarded) {
  const vec<R> power = foveate::exp2(score - base);
  return guarded ? select<R>(score == NEVER<R>, vec<R>{}, power) : power;
}

// C = C times factors of its columns, plus A^T B.
template <class R, int M, int N>
void weigh_tile(Block<R> c, const R* factor, View<R> a, View<R> b, int64_t inner) {
  vec<R> sums[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[m][n] = read<R>(c.at(m, n * LANES)) * read(factor + n * LANES);
  accumulate<true, M, N, R>(sums, a, b, 0, inner);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) write(c.at(m, n * LANES), sums[m][n]);
}
template <class R, int... I>
constexpr auto weigh_tiles(std::integer_sequence<int, I...>) {
  return std::array{&weigh_tile<R, I / VECTORS<R> + 1, I % VECTORS<R> + 1>...};
}
template <class R>
void weigh(Block<R> c, const R* factor, Factor<R> a, Factor<R> b, int64_t rows, int64_t inner, int64_t columns) {
  static constexpr auto table = weigh_tiles<R>(Sizes<R>{});
  over_tiles<R>(rows, columns, false, [&](int64_t m, int64_t, int64_t n, int64_t which) {
    table[which]({c.at(m, n), c.row}, factor + n, {a.at(0, m), a.row}, {b.at(0, n), b.row}, inner);
  });
}

// Vectors of queries whose softmax is made together, so that nothing waits; a double's exponential is a call anyway.
template <class R>
constexpr int TOGETHER = sizeof(R) == 4 ? 4 : 1;

// The softmax of N vectors of queries over the keys of one more tile: their weights in place of scores, the running
// maxima and sums, and what earlier sums shrink by. `known`: the maxima with this tile's scores, or null.
template <class R, int N>
void soften(Block<R> scores, int64_t many, bool guarded, R* top, R* total, R* factor, const R* known = nullptr) {
  vec<R> most[N], base[N], sums[N] = {};
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) most[n] = read((known ? known : top) + n * LANES);
  for (int64_t r = 0; r < (known ? 0 : many); ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const vec<R> score = read(scores.at(r, n * LANES));
      most[n] = select<R>(score > most[n], score, most[n]);
    }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    base[n] = select<R>(most[n] == NEVER<R>, vec<R>{}, most[n]);  // nothing seen yet: no difference of infinities
    write(factor + n * LANES, foveate::exp2(read(top + n * LANES) - base[n])), write(top + n * LANES, most[n]);
  }
  for (int64_t r = 0; r < many; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const vec<R> power = weight<R>(read(scores.at(r, n * LANES)), base[n], guarded);
      sums[n] += power, write(scores.at(r, n * LANES), power);
    }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
    write(total + n * LANES, read(total + n * LANES) * read(factor + n * LANES) + sums[n]);
}

}  // namespace
}  // namespace foveate
