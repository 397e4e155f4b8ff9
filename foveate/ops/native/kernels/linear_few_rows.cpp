// y = x W^T + b for few rows of x: every number is a sum along two rows as they lie in memory, so that the weights are
// read once and never packed, which takes libraries as long as the product of few rows itself.
//
// Some rows of W at a time stay in the first cache level, and all of x, from the second, passes by them.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "products.h"

namespace foveate {

struct FewRowsArguments {
  int64_t rows, inner, columns, x_row;  // inner is a multiple of LANES; x_row in numbers, which are neighbours in a row
  const float *x, *weight, *bias;       // (rows, inner); (columns, inner), contiguous; (columns) or null
  float* y;                             // (rows, columns), contiguous
};

namespace {

// Rows of W at a time, and rows of x beside them: as many sums as the processor can keep.
constexpr int WEIGHTS = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MOST_ROWS = 6;
#else
constexpr int MOST_ROWS = 2;
#endif
// Sums are folded LANES at a time.
constexpr int SUMS = (MOST_ROWS * WEIGHTS + LANES - 1) / LANES * LANES;

int check(const FewRowsArguments& a) {
  if (a.rows < 1 || a.inner < 1 || a.inner % LANES || a.columns < 1) return BAD_SIZE;
  if (a.x_row < 0) return BAD_STRIDE;
  return a.x && a.weight && a.y ? OK : BAD_POINTER;
}

// Neighbouring columns of y, whose rows of W are multiplied together.
typedef float Columns __attribute__((vector_size(WEIGHTS * 4)));

// Rows of W and their biases; where the last of them are missing, others stand there, and are not stored.
struct Weights {
  const float* row[WEIGHTS];
  Columns bias;
  int64_t column;
  int many;
};

// M rows of x times WEIGHTS rows of W; `next` is read ahead.
template <int M>
FOVEATE_INLINE void tile(const FewRowsArguments& a, int64_t row, const Weights& w, const float* next) {
  const float* x = a.x + row * a.x_row;
  vec<float> sums[SUMS] = {};
  for (int64_t k = 0; k < a.inner; k += LANES) {
    vec<float> right[WEIGHTS];
#pragma GCC unroll 4
    for (int n = 0; n < WEIGHTS; ++n) right[n] = read(w.row[n] + k);
    if (next) __builtin_prefetch(next + k);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const vec<float> left = read(x + m * a.x_row + k);
#pragma GCC unroll 4
      for (int n = 0; n < WEIGHTS; ++n) sums[m * WEIGHTS + n] += left * right[n];
    }
  }
  Columns found[SUMS / WEIGHTS];
#pragma GCC unroll 6
  for (int first = 0; first < M * WEIGHTS; first += LANES) {
    fold<float, LANES / 2>(sums + first);
    std::memcpy(found + first / WEIGHTS, sums + first, sizeof(vec<float>));
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const Columns y = found[m] + w.bias;
    float* to = a.y + (row + m) * a.columns + w.column;
    if (w.many == WEIGHTS)
      std::memcpy(to, &y, sizeof(y));
    else
      for (int n = 0; n < w.many; ++n) to[n] = y[n];
  }
}

// WEIGHTS columns of y. Rows are cut into tiles that are nearly of one height.
void run_columns(const FewRowsArguments& a, int64_t group) {
  const int64_t column = group * WEIGHTS, tiles = (a.rows + MOST_ROWS - 1) / MOST_ROWS;
  Weights w{{}, {}, column, static_cast<int>(std::min<int64_t>(WEIGHTS, a.columns - column))};
  for (int n = 0; n < WEIGHTS; ++n) {
    const int64_t own = column + std::min(n, w.many - 1);
    w.row[n] = a.weight + own * a.inner;
    if (a.bias) w.bias[n] = a.bias[own];
  }
  const int64_t height = a.rows / tiles, higher = a.rows % tiles;  // so many have a row more
  for (int64_t t = 0, row = 0, many; t < tiles; ++t, row += many) {
    many = height + (t < higher);
    const int64_t ahead = column + WEIGHTS + t;
    const float* next = t < WEIGHTS && ahead < a.columns ? a.weight + ahead * a.inner : nullptr;
    switch (many) {
      case 1:
        tile<1>(a, row, w, next);
        break;
      case 2:
        tile<2>(a, row, w, next);
        break;
#if defined(__AVX512F__) || defined(__aarch64__)
      case 3:
        tile<3>(a, row, w, next);
        break;
      case 4:
        tile<4>(a, row, w, next);
        break;
      case 5:
        tile<5>(a, row, w, next);
        break;
      default:
        tile<6>(a, row, w, next);
#endif
    }
  }
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_linear_few_rows(const foveate::FewRowsArguments* a) {
  using namespace foveate;
  if (int bad = check(*a)) return bad;
  const int64_t groups = (a->columns + WEIGHTS - 1) / WEIGHTS;
#pragma omp parallel for schedule(static) if (groups > 1 && a->columns * a->inner > PARALLEL_FROM)
  for (int64_t group = 0; group < groups; ++group) run_columns(*a, group);
  return OK;
}
