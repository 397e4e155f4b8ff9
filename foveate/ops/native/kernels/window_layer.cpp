// A layer of shifted window attention as a whole: from a grid of tokens through queries, keys and values to projected
// outputs, window by window. What lies between never leaves the second cache level.
//
// Weights are packed once per call into panels of columns that the first level holds, with the bias as one more row: a
// token has a one behind its numbers. Padding is a token of zeros, whose keys and values are the biases.
// SPDX-License-Identifier: Apache-2.0
#include "window_workers.h"

namespace foveate {

// Field for field what foveate/ops/native/window_layer.py fills in.
struct LayerArguments {
  ShiftedArguments windows;              // of its data the bias alone; heads of `width` numbers, dim in all
  int64_t x_batch, x_axis[3];            // strides in numbers; the numbers of a token are neighbours
  const float *x, *in_weight, *in_bias;  // (batch, grid, dim); (3 dim, dim); (3 dim) or null
  const float *out_weight, *out_bias;    // (dim, dim); (dim) or null
  float* y;                              // (batch, grid, dim), contiguous
};

namespace {

constexpr int64_t PANEL = VECTORS<float> * LANES;

int check(const LayerArguments& a) {
  const ShiftedArguments& w = a.windows;
  for (int64_t size : {w.batch, w.heads, w.width})
    if (size < 1) return BAD_SIZE;
  if (w.value_width != w.width || w.by_window || !possible_axes(w)) return BAD_SIZE;
  if (Status bad = possible_biases(w)) return bad;
  for (int64_t stride : {a.x_batch, a.x_axis[0], a.x_axis[1], a.x_axis[2]})
    if (stride < 0) return BAD_STRIDE;
  return a.x && a.in_weight && a.out_weight && a.y ? OK : BAD_POINTER;
}

// A linear map's weights (columns, inner) and biases, transposed, in panels of PANEL columns with inner + 1 rows each.
struct Packed {
  const int64_t columns, inner;
  float* from;
  std::unique_ptr<vec<float>[]> memory;

  Packed(int64_t columns, int64_t inner)
      : columns(columns), inner(inner), memory(make_room<float>({{&from, panels() * (inner + 1) * PANEL}}, {})) {}
  int64_t panels() const { return divided(columns, PANEL); }
  Block<float> panel(int64_t i) const { return {from + i * (inner + 1) * PANEL, PANEL}; }

  // The first `scaled` columns are multiplied by a factor.
  void fill(int64_t number, const float* weight, const float* bias, int64_t scaled = 0, float scale = 1) const {
    const Block<float> to = panel(number);
    const int64_t first = number * PANEL, many = least(PANEL, columns - first);
    for (int64_t n = 0; n < many; n += LANES)
      for (int64_t k = 0; k < inner; k += LANES) {
        const int some = static_cast<int>(least(LANES, inner - k));
        vec<float> square[LANES];
        for (int64_t i = 0; i < LANES; ++i)
          square[i] = n + i < many ? load(weight + (first + n + i) * inner + k, some) : vec<float>{};
        exchange<float, LANES / 2>(square);
        for (int i = 0; i < some; ++i) write(to.at(k + i, n), square[i]);
      }
    for (int64_t n = 0; bias && n < many; ++n) *to.at(inner, n) = bias[first + n];
    for (int64_t k = 0; k <= inner; ++k)
      for (int64_t n = 0; n < least(many, scaled - first); ++n) *to.at(k, n) *= scale;
  }

  // Rows of tokens with a one behind them, to rows of at least `columns`, padded.
  void apply(Block<float> to, Block<float> rows, int64_t many) const {
    for (int64_t i = 0; i < panels(); ++i)
      multiply<false, float>({to.at(0, i * PANEL), to.row}, rows, panel(i), many, inner + 1,
                             least(PANEL, columns - i * PANEL));
  }
};

// One thread's window: its tokens, what they become, and the arguments by which attention reads them here.
struct WindowLayer {
  const LayerArguments& a;
  const Packed &in, &out;
  const int64_t dim, tokens;
  Block<float> x, qkv, o;  // rows of tokens in their order in the window; x and o with a one behind them
  std::unique_ptr<vec<float>[]> memory;
  ShiftedArguments here;
  std::unique_ptr<Token[]> moved;
  std::unique_ptr<WindowForward<float>> attention;
  bool ready;

  WindowLayer(const LayerArguments& a, const Biases<float>& biases, const Packed& in, const Packed& out)
      : a(a), in(in), out(out), dim(a.windows.heads * a.windows.width), tokens(a.windows.tokens()), here(a.windows),
        moved(new (std::nothrow) Token[tokens]) {
    x.row = o.row = padded(dim + 1), qkv.row = padded(3 * dim);
    memory = make_room<float>({{&x.from, tokens * x.row}, {&qkv.from, padded(tokens) * qkv.row}, {&o.from, tokens * o.row}}, {});
    ready = memory && moved;
    if (!ready) return;
    for (int64_t i = 0; i < tokens; ++i) *x.at(i, dim) = *o.at(i, dim) = 1;
    const int64_t own = a.windows.width;
    here.q = here.k = here.v = {0, {0, 0, qkv.row}, own};
    here.q_data = qkv.from, here.k_data = qkv.from + dim, here.v_data = qkv.from + 2 * dim;
    here.pad_k = here.pad_v = nullptr, here.out = o.from;
    here.scale = 1 / LOG2_E;  // the rest is in the weights
    for (WindowAxis& axis : here.axis) axis.size = 1;
    attention.reset(new (std::nothrow) WindowForward<float>(here, biases, a.windows));
    ready = attention && attention->ready;
    if (!ready) return;
    attention->out_row = o.row;
    attention->in_place = own % LANES == 0;
  }

  void run(int64_t unit) {
    const int64_t sample = unit / a.windows.windows(), which = unit % a.windows.windows();
    WindowForward<float>& w = *attention;
    w.take(0, which, 0);
    for (int64_t i = 0; i < tokens; ++i) {
      const Token& t = w.window.found[i];
      const float* from = t.place[0] < 0 ? nullptr : row_of(sample, t);
      if (from) line(from + a.windows.axis[2].window * a.x_axis[2], dim);  // where the next window's rows often lie
      for (int64_t c = 0; c < dim; c += LANES) {
        const int some = static_cast<int>(least(LANES, dim - c));
        store(x.at(i, c), from ? load(from + c, some) : vec<float>{}, some);
      }
    }
    in.apply(qkv, x, tokens);
    for (int g = 0; g < w.window.groups; ++g) attend(w.window.group[g]);
    out.apply(qkv, o, tokens);  // over the queries, which nobody reads any more
    for (int64_t i = 0; i < tokens; ++i) {
      const Token& t = w.window.found[i];
      if (t.place[0] < 0) continue;
      const WindowAxis* axis = a.windows.axis;
      const int64_t place = (t.place[0] * axis[1].size + t.place[1]) * axis[2].size + t.place[2];
      float* to = a.y + (sample * a.windows.places() + place) * dim;
      for (int64_t c = 0; c < dim; c += LANES) store(to + c, read(qkv.at(i, c)), static_cast<int>(least(LANES, dim - c)));
    }
  }

  // All heads of a group, whose rows lie here by their numbers in the window.
  void attend(const Group& group) {
    for (int64_t i = 0; i < group.keys; ++i)
      moved[i] = {group.token[i].number, {0, 0, group.token[i].number}};
    const Group own{moved.get(), group.queries, group.keys, group.whole};
    for (int64_t head = 0; head < a.windows.heads; ++head) attention->h = head, attention->attend(own);
  }

  const float* row_of(int64_t sample, const Token& t) const {
    return a.x + sample * a.x_batch + t.place[0] * a.x_axis[0] + t.place[1] * a.x_axis[1] + t.place[2] * a.x_axis[2];
  }
};

int run(const LayerArguments& a) {
  const int64_t dim = a.windows.heads * a.windows.width;
  const float scale = static_cast<float>(a.windows.scale * LOG2_E);
  const Biases<float> biases(a.windows);
  const Packed in(3 * dim, dim), out(dim, dim);
  if (!biases.made() || !in.memory || !out.memory) return OUT_OF_MEMORY;
  const int64_t units = a.windows.batch * a.windows.windows();
  int status = OK;
#pragma omp parallel if (units > 1 && units * a.windows.tokens() * dim > PARALLEL_FROM)
  {
    WindowLayer worker(a, biases, in, out);
    if (!worker.ready) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < biases.strips(); ++i)
      if (worker.ready) biases.fill(i, worker.attention->strip);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < in.panels(); ++i) in.fill(i, a.in_weight, a.in_bias, dim, scale);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < out.panels(); ++i) out.fill(i, a.out_weight, a.out_bias);
#pragma omp for schedule(guided) nowait
    for (int64_t unit = 0; unit < units; ++unit)
      if (worker.ready) worker.run(unit);
  }
  return status;
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_window_layer(const foveate::LayerArguments* a) {
  using namespace foveate;
  if (int bad = check(*a)) return bad;
  return a->windows.scalar == FLOAT32 ? run(*a) : BAD_SCALAR;
}
