// Bilinear sampling of maps at points, forward and backward; the definition is `reference` in foveate/ops/sample_at.py.
//
// The numbers of a pixel are neighbours, so that a point reads up to four rows of them, wherever they lie. Backward,
// every map (or some channels of it) belongs to one thread, which adds to it point by point.
// SPDX-License-Identifier: Apache-2.0
#include "products.h"

namespace foveate {

// Field for field what foveate/ops/native/sample_at.py fills in. Strides in numbers, not bytes.
struct SampleArguments {
  int64_t scalar, batch, heads, height, width, channels, points;
  int64_t x_batch, x_head, x_row, x_column, grad_batch, grad_head, grad_point, at_batch, at_head, at_point;
  const void *x, *at;     // (batch, heads, height, width, channels) in storage type; (batch, heads, points, 2), accumulator
  void* out;              // (batch, heads, points, channels)
  const void* grad_out;   // as out, strides of its own
  void *grad_x, *grad_at;  // contiguous, accumulator type; grad_x: zeros
};

namespace {

int check(const SampleArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.heads, a.height, a.width, a.channels, a.points})
    if (size < 1) return BAD_SIZE;
  for (int64_t stride : {a.x_batch, a.x_head, a.x_row, a.x_column, a.grad_batch, a.grad_head, a.grad_point, a.at_batch,
                         a.at_head, a.at_point})
    if (stride < 0) return BAD_STRIDE;
  if (!a.x || !a.at) return BAD_POINTER;
  if (!backward) return a.out ? OK : BAD_POINTER;
  return a.grad_out && a.grad_x && a.grad_at ? OK : BAD_POINTER;
}

// A pixel that a point reads: its place, its weight, and how that changes along both axes.
template <class R>
struct Corner {
  int64_t row, column;
  R weight, along_x, along_y;
};

// The pixels around a point that lie on the map; how many there are.
template <class R>
FOVEATE_INLINE int corners(const SampleArguments& a, const R* at, Corner<R>* found) {
  const R x = at[0], y = at[1];
  if (!(x >= -1 && y >= -1 && x < static_cast<R>(a.width) && y < static_cast<R>(a.height))) return 0;
  const R left = std::floor(x), top = std::floor(y), right_share = x - left, low_share = y - top;
  const int64_t column = static_cast<int64_t>(left), row = static_cast<int64_t>(top);
  int many = 0;
  for (int low = 0; low < 2; ++low)
    for (int right = 0; right < 2; ++right) {
      if (row + low < 0 || row + low >= a.height || column + right < 0 || column + right >= a.width) continue;
      const R across = right ? right_share : 1 - right_share, down = low ? low_share : 1 - low_share;
      found[many++] = {row + low, column + right, across * down, right ? down : -down, low ? across : -across};
    }
  return many;
}

// A sample's head.
template <class T>
struct Map {
  using R = acc<T>;
  const SampleArguments& a;
  const int64_t b, h;

  Map(const SampleArguments& a, int64_t number) : a(a), b(number / a.heads), h(number % a.heads) {}
  int64_t number() const { return b * a.heads + h; }
  const R* at(int64_t point) const {
    return static_cast<const R*>(a.at) + b * a.at_batch + h * a.at_head + point * a.at_point;
  }
  const T* pixel(const Corner<R>& c) const {
    return static_cast<const T*>(a.x) + b * a.x_batch + h * a.x_head + c.row * a.x_row + c.column * a.x_column;
  }
  const T* grad_out(int64_t point) const {
    return static_cast<const T*>(a.grad_out) + b * a.grad_batch + h * a.grad_head + point * a.grad_point;
  }
};

template <class T>
void read_point(const Map<T>& map, int64_t point, T* to) {
  using R = acc<T>;
  Corner<R> corner[4];
  const T* row[4];
  const int many = corners(map.a, map.at(point), corner);
  for (int i = 0; i < many; ++i) row[i] = map.pixel(corner[i]);
  auto step = [&](int64_t c, int some) {
    vec<R> sum{};
    for (int i = 0; i < many; ++i) sum += load(row[i] + c, some) * corner[i].weight;
    store(to + c, sum, some);
  };
  int64_t c = 0;
  for (; c + LANES <= map.a.channels; c += LANES) step(c, LANES);
  if (c < map.a.channels) step(c, static_cast<int>(map.a.channels - c));
}

// The gradient of a point: how its weights change, by what its pixels give to the result.
template <class T>
void turn_point(const Map<T>& map, int64_t point, acc<T>* to) {
  using R = acc<T>;
  Corner<R> corner[4];
  const int many = corners(map.a, map.at(point), corner);
  R grad_x = 0, grad_y = 0;
  for (int i = 0; i < many; ++i) {
    const T *row = map.pixel(corner[i]), *grad = map.grad_out(point);
    vec<R> dot{};
    int64_t c = 0;
    for (; c + LANES <= map.a.channels; c += LANES) dot += load(row + c, LANES) * load(grad + c, LANES);
    if (const int some = static_cast<int>(map.a.channels - c)) dot += load(row + c, some) * load(grad + c, some);
    const R all = sum<R>(dot);
    grad_x += all * corner[i].along_x, grad_y += all * corner[i].along_y;
  }
  to[0] = grad_x, to[1] = grad_y;
}

// What a point's result gives to some channels of its pixels.
template <class T>
void give_point(const Map<T>& map, int64_t point, int64_t from, int64_t end) {
  using R = acc<T>;
  Corner<R> corner[4];
  const int many = corners(map.a, map.at(point), corner);
  const T* grad = map.grad_out(point);
  for (int i = 0; i < many; ++i) {
    const int64_t place = (map.number() * map.a.height + corner[i].row) * map.a.width + corner[i].column;
    R* to = static_cast<R*>(map.a.grad_x) + place * map.a.channels;
    auto step = [&](int64_t c, int some) {
      store(to + c, load(to + c, some) + load(grad + c, some) * corner[i].weight, some);
    };
    int64_t c = from;
    for (; c + LANES <= end; c += LANES) step(c, LANES);
    if (c < end) step(c, static_cast<int>(end - c));
  }
}

constexpr int64_t TOGETHER_POINTS = 64, TOGETHER_CHANNELS = 64;

template <class T>
int run(const SampleArguments& a, bool backward) {
  using R = acc<T>;
  const int64_t maps = a.batch * a.heads, stretches = (a.points + TOGETHER_POINTS - 1) / TOGETHER_POINTS;
  const int64_t parts = (a.channels + TOGETHER_CHANNELS - 1) / TOGETHER_CHANNELS;
  const bool shared_out = maps * a.points * a.channels > PARALLEL_FROM;
  auto each = [&](int64_t unit, auto work) {
    const Map<T> map(a, unit / stretches);
    const int64_t first = unit % stretches * TOGETHER_POINTS, end = first + TOGETHER_POINTS;
    for (int64_t p = first; p < (end < a.points ? end : a.points); ++p) work(map, p, map.number() * a.points + p);
  };
#pragma omp parallel if (shared_out)
  {
#pragma omp for schedule(static) nowait
    for (int64_t unit = 0; unit < maps * stretches; ++unit)
      each(unit, [&](const Map<T>& map, int64_t point, int64_t place) {
        if (backward)
          turn_point(map, point, static_cast<R*>(a.grad_at) + place * 2);
        else
          read_point(map, point, static_cast<T*>(a.out) + place * a.channels);
      });
#pragma omp for schedule(dynamic) nowait
    for (int64_t unit = 0; unit < (backward ? maps * parts : 0); ++unit) {
      const int64_t first = unit % parts * TOGETHER_CHANNELS, end = first + TOGETHER_CHANNELS;
      for (int64_t p = 0; p < a.points; ++p)
        give_point(Map<T>(a, unit / parts), p, first, end < a.channels ? end : a.channels);
    }
  }
  return OK;
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_sample_at(const foveate::SampleArguments* a, int backward) {
  using namespace foveate;
  if (int bad = check(*a, backward)) return bad;
  switch (a->scalar) {
    case FLOAT32:
      return run<float>(*a, backward);
    case BFLOAT16:
      return run<bfloat16>(*a, backward);
    case FLOAT64:
      return run<double>(*a, backward);
    default:
      return BAD_SCALAR;
  }
}
