// The depthwise convolution of maps whose channels are neighbours in memory, with an activation behind it.
//
// Lanes are channels. The sums of some neighbouring places stay in registers while the filter goes over them: each input
// is read once for every row of the filter, and serves all taps that it lies under. The last places of a row and the last
// channels are computed together with those before them, some a second time, so that no tile and no vector is a part.
// SPDX-License-Identifier: Apache-2.0
#include "activations.h"

namespace foveate {

constexpr int64_t MOST_TAPS = 225;

struct DepthwiseArguments {
  int64_t batch, height, width, channels, rows, columns;  // of x, and of y
  int64_t tall, wide, top, left, stride, function;        // the filter; places of padding above and at the left
  int64_t x_batch, x_row, x_column;                       // in numbers
  const float *x, *weight, *bias;                         // weight (channels, tall, wide); bias (channels) or null
  float* y;                                               // (batch, rows, columns, channels), contiguous
};

namespace {

// Numbers of one strip of rows: what all its channels read stays in the cache of a core.
constexpr int64_t STRIP = 1 << 17;

// What lies beside the map.
constexpr float PADDING[LANES] = {};

int check(const DepthwiseArguments& a) {
  for (int64_t size : {a.batch, a.height, a.width, a.channels, a.rows, a.columns, a.tall, a.wide, a.stride})
    if (size < 1) return BAD_SIZE;
  if (a.tall > MOST_TAPS || a.wide > MOST_TAPS || a.tall * a.wide > MOST_TAPS || a.top < 0 || a.left < 0) return BAD_SIZE;
  for (int64_t stride : {a.x_batch, a.x_row, a.x_column})
    if (stride < 0) return BAD_STRIDE;
  if (!a.x || !a.weight || !a.y) return BAD_POINTER;
  return a.function < NONE || a.function > SILU ? BAD_SCALAR : OK;
}

// Some neighbouring channels of some rows of one sample.
struct Strip {
  const DepthwiseArguments& a;
  const float* x;  // of the sample, at the first channel
  float* y;
  int count;
  vec<float> weight[MOST_TAPS], bias{};

  Strip(const DepthwiseArguments& a, int64_t b, int64_t block) : a(a) {
    int64_t channel = block * LANES;
    if (channel + LANES > a.channels && a.channels >= LANES) channel = a.channels - LANES;
    count = static_cast<int>(a.channels - channel < LANES ? a.channels - channel : LANES);
    x = a.x + b * a.x_batch + channel;
    y = a.y + b * a.rows * a.columns * a.channels + channel;
    const int64_t taps = a.tall * a.wide;
    const float* from = a.weight + channel * taps;
    for (int64_t k = 0; k < taps; ++k) {
      float room[LANES] = {};
      for (int i = 0; i < count; ++i) room[i] = from[i * taps + k];
      std::memcpy(&weight[k], room, sizeof(room));
    }
    if (a.bias) bias = load(a.bias + channel, count);
  }

  // `places` results of a row from a column on. `known` is the filter's width where the compiler knows it, otherwise 0;
  // `inside`: no tap lies beside the map.
  template <int known, int stride, int places, bool inside>
  FOVEATE_INLINE void tile(int64_t row, int64_t column) const {
    vec<float> sums[places];
    for (int p = 0; p < places; ++p) sums[p] = bias;
    const int64_t first = column * stride - a.left;
    for (int64_t dy = 0; dy < a.tall; ++dy) {
      const int64_t iy = row * stride + dy - a.top;
      if (iy < 0 || iy >= a.height) continue;
      const float* from = x + iy * a.x_row;
      if constexpr (known != 0) {
        const vec<float>* taps = weight + dy * known;
        constexpr int reach = (places - 1) * stride + known;
#pragma GCC unroll 32
        for (int i = 0; i < reach; ++i) {
          const float* at = from + (first + i) * a.x_column;
          if (!inside) at = first + i < 0 || first + i >= a.width ? PADDING : at;  // a choice, not a jump
          const vec<float> value = load(at, LANES);
#pragma GCC unroll 8
          for (int p = 0; p < places; ++p)
            if (i - p * stride >= 0 && i - p * stride < known) sums[p] += value * taps[i - p * stride];
        }
      } else {
        for (int64_t dx = 0; dx < a.wide; ++dx)
          for (int p = 0; p < places; ++p) {
            const int64_t ix = first + p * stride + dx;
            if (inside || (ix >= 0 && ix < a.width))
              sums[p] += load(from + ix * a.x_column, count) * weight[dy * a.wide + dx];
          }
      }
    }
    float* to = y + (row * a.columns + column) * a.channels;
    for (int p = 0; p < places; ++p) store(to + p * a.channels, activate(sums[p], a.function), known ? LANES : count);
  }

  template <int known, int stride, int places>
  void rows(int64_t from, int64_t until) const {
    const int64_t last = a.columns - places, wide = known ? known : a.wide;
    for (int64_t row = from; row < until; ++row)
      for (int64_t column = 0;; column = column + places < last ? column + places : last) {
        const int64_t first = column * stride - a.left;
        if (first >= 0 && first + (places - 1) * stride + wide <= a.width)
          tile<known, stride, places, true>(row, column);
        else
          tile<known, stride, places, false>(row, column);
        if (column == last) break;
      }
  }

  template <int known, int stride>
  void rows(int64_t from, int64_t until) const {
    if (a.columns % 7 == 0 && a.columns % 8) return rows<known, stride, 7>(from, until);
    if (a.columns >= 8) return rows<known, stride, 8>(from, until);
    return a.columns >= 4 ? rows<known, stride, 4>(from, until) : rows<known, stride, 1>(from, until);
  }
};

template <int known, int stride>
int run(const DepthwiseArguments& a) {
  const int64_t blocks = (a.channels + LANES - 1) / LANES, row = a.columns * a.channels;
  const int64_t each = row < STRIP ? STRIP / row : 1, strips = (a.rows + each - 1) / each;
  const int64_t units = a.batch * strips * blocks;
#pragma omp parallel for schedule(static) if (units > 1 && a.batch * a.rows * row > PARALLEL_FROM)
  for (int64_t unit = 0; unit < units; ++unit) {
    const int64_t from = unit / blocks % strips * each;
    const Strip strip(a, unit / blocks / strips, unit % blocks);
    strip.rows<known, stride>(from, from + each < a.rows ? from + each : a.rows);
  }
  return OK;
}

template <int stride>
int run(const DepthwiseArguments& a) {
  switch (a.channels < LANES ? 0 : a.wide) {  // parts of a vector take the general way
    case 3:
      return run<3, stride>(a);
    case 5:
      return run<5, stride>(a);
    case 7:
      return run<7, stride>(a);
    default:
      return run<0, stride>(a);
  }
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_depthwise_conv(const foveate::DepthwiseArguments* a) {
  using namespace foveate;
  if (int bad = check(*a)) return bad;
  if (a->stride > 2) return BAD_SIZE;
  return a->stride == 1 ? run<1>(*a) : run<2>(*a);
}
