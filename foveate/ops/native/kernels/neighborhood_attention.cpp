// Neighborhood attention in 1, 2 and 3 dimensions, forward and backward; the definition is _reference in
// foveate/ops/neighborhood_attention.py.
//
// Lanes are neighbouring queries of the last axis, and up to ROWS lines of them along the axis before it share the
// keys that are read. Scores of at most HELD keys are held at once and the softmax goes on from there to the next, so
// memory does not grow with the window. The backward pass makes the weights again, twice: with queries in lanes for
// the gradient of q, and with keys in lanes, reading the tables of who sees whom the other way round, for those of k
// and v. So nothing is scattered, and every gradient is written once.
// SPDX-License-Identifier: Apache-2.0
#include "neighborhood_blocks.h"

namespace foveate {
namespace {

int check(const NeighborhoodArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.heads, a.key_heads, a.width, a.value_width})
    if (size < 1) return BAD_SIZE;
  if (a.heads % a.key_heads) return BAD_SIZE;
  for (const Axis& axis : a.axis) {
    if (axis.window < 1 || axis.dilation < 1 || axis.stride < 1 || axis.size < 1 || axis.size > (1 << 24))
      return BAD_SIZE;
    if (axis.window > axis.size / axis.dilation || axis.stride > axis.window) return BAD_SIZE;
    if (a.bias && (axis.causal || axis.window % 2 == 0)) return BAD_SIZE;
  }
  for (const Place& p : {a.q, a.k, a.v, a.out, a.grad_out})
    for (int64_t stride : {p.batch, p.head, p.t, p.y, p.x})
      if (stride < 0) return BAD_STRIDE;
  if (!a.q_data || !a.k_data || !a.v_data || !a.out_data || !a.lse) return BAD_POINTER;
  if (backward && (!a.grad_out_data || !a.grad_lse || !a.delta || !a.grad_q || !a.grad_k || !a.grad_v))
    return BAD_POINTER;
  if (backward && a.bias && !a.grad_bias) return BAD_POINTER;
  return OK;
}

// log(x) for x >= 2^-125.
inline vec<float> natural_log(vec<float> x) {
  vec_mask<float> bits;
  std::memcpy(&bits, &x, sizeof(bits));
  vec_mask<float> exponent = (bits >> 23) - 127;
  bits = (bits & 0x7fffff) | 0x3f800000;
  vec<float> fraction;
  std::memcpy(&fraction, &bits, sizeof(bits));
  vec<float> y = log1p_unit(fraction - 1) + __builtin_convertvector(exponent, vec<float>) * static_cast<float>(LN_2);
  return select<float>(x != x, x, y);
}

inline vec<double> natural_log(vec<double> x) {
  for (int i = 0; i < LANES; ++i) x[i] = std::log(x[i]);
  return x;
}

template <class T>
Place lse_place(const Problem<T>& p) {
  return contiguous(p.a, p.a.heads, 1);
}

template <class T>
int forward_task(const Problem<T>& p, int64_t index) {
  using R = acc<T>;
  using V = vec<R>;
  const NeighborhoodArguments& a = p.a;
  const Task<T> task(p, index);
  if (task.empty()) return OK;
  const Area<T> keys(task, p.padded), values(task, p.value_padded);
  const Block<T> block(task);
  if (!keys || !values || !block.memory) return OUT_OF_MEMORY;
  keys.fill({task, static_cast<const T*>(a.k_data), a.k, true}, a.width, p.padded, 0, 1);
  values.fill({task, static_cast<const T*>(a.v_data), a.v, true}, a.value_width, p.value_padded, 0, 1);
  const View<T, const T> q(task, static_cast<const T*>(a.q_data), a.q, false);
  const View<T, T> out(task, static_cast<T*>(a.out_data), a.out, false);
  const View<T, R> lse(task, static_cast<R*>(a.lse), lse_place(p), false);
  const Windows &times = *task.seen[0], &heights = *task.seen[1];
  const R scale = static_cast<R>(a.scale * LOG2_E);
  auto start = [&](const Group<R>& g) {
    if (a.bias) Table<T>{task, g, g.steps, block.bias}.read(0);
  };
  auto work = [&](const Group<R>& g, int64_t t, int64_t y, int rows) {
    const Table<T> bias{task, g, g.steps, block.bias};
    const int64_t height = a.axis[1].window;
    // As many lines of keys at once as leave no line of queries more than HELD of them.
    const int64_t at_once = height * g.steps <= HELD ? height + ROWS * height : g.steps < HELD ? HELD / g.steps : 1;
    V top[ROWS], total[ROWS];
    for (int r = 0; r < rows; ++r) top[r] = splat<R>(NEVER), total[r] = V{};
    for (int64_t i = 0; i < ROWS * p.value_padded; ++i) block.sum_value[i] = V{};
    block.fill(q, g, t, y, rows, a.width, p.padded, scale, block.own);

    auto chunk = [&](int64_t key_t, int64_t from, int64_t to, int64_t first, int64_t end) {
      V *place[ROWS], *room[ROWS];
      const V* begin[ROWS];
      auto each_line = [&](auto run) {
        for (int64_t line = from; line < to; ++line) {
          const Seeing s(heights, y, rows, line);
          if (!s.rows()) continue;
          for (int r = s.first; r < s.end; ++r) {
            const int64_t before = line - (heights.first[y + r] > from ? heights.first[y + r] : from);
            place[r - s.first] = block.scores + r * HELD + before * (end - first);
            if (a.bias) begin[r - s.first] = bias.at(key_t - t, line - y - r);
          }
          run(s, line);
        }
      };
      each_line([&](const Seeing& s, int64_t line) {
        products<R>(s.rows(), block.own + s.first * p.padded, a.width, p.padded, keys.row(key_t, line, g), keys.width,
                    g, first, end, a.bias ? begin : nullptr, place);
      });
      for (int r = 0; r < rows; ++r) {
        const int64_t low = heights.first[y + r] > from ? heights.first[y + r] : from;
        const int64_t high = heights.end[y + r] < to ? heights.end[y + r] : to, count = (high - low) * (end - first);
        if (count <= 0) continue;
        room[r] = block.scores + r * HELD;
        V most = top[r], sum{};
        for (int64_t i = 0; i < count; ++i) most = select<R>(room[r][i] > most, room[r][i], most);
        const V shrink = foveate::exp2(top[r] - most);
        for (int64_t i = 0; i < count; ++i) {
          V weight = foveate::exp2(room[r][i] - most);
          if (!g.even || a.bias) weight = select<R>(room[r][i] <= NEVER, V{}, weight);
          sum += weight;
          room[r][i] = weight;
        }
        total[r] = total[r] * shrink + sum, top[r] = most;
        for (int64_t d = 0; d < p.value_padded; ++d) block.sum_value[r * p.value_padded + d] *= shrink;
      }
      each_line([&](const Seeing& s, int64_t line) {
        weigh<R>(s.rows(), place, values.row(key_t, line, g), values.width, g, first, end, p.value_padded,
                 block.sum_value + s.first * p.value_padded);
      });
    };
    for (int64_t key_t = times.first[t]; key_t < times.end[t]; ++key_t)
      for (int64_t from = heights.first[y], last = heights.end[y + rows - 1]; from < last; from += at_once)
        for (int64_t first = 0; first < g.steps; first += HELD)
          chunk(key_t, from, from + at_once < last ? from + at_once : last, first,
                first + HELD < g.steps ? first + HELD : g.steps);

    for (int r = 0; r < rows; ++r) {
      block.give(out, g, t, y + r, a.value_width, 1 / total[r], block.sum_value + r * p.value_padded);
      const V sums = top[r] * static_cast<R>(LN_2) + natural_log(total[r]);
      for (int i = 0; i < g.count; ++i)
        if (task.has(task.lanes.slot[g.start + i])) *lse.at(t, y + r, g.start + i) = sums[i];
    }
  };
  each_block(task, start, work, [](const Group<R>&) {});
  return OK;
}

// Queries in lanes: the gradients of q and of the bias, and for each query the sum that its softmax's gradient needs.
template <class T>
int backward_queries(const Problem<T>& p, int64_t index) {
  using R = acc<T>;
  using V = vec<R>;
  const NeighborhoodArguments& a = p.a;
  const Task<T> task(p, index);
  if (task.empty()) return OK;
  const Area<T> keys(task, p.padded), values(task, p.value_padded);
  const Block<T> block(task);
  if (!keys || !values || !block.memory) return OUT_OF_MEMORY;
  keys.fill({task, static_cast<const T*>(a.k_data), a.k, true}, a.width, p.padded, 0, 1);
  values.fill({task, static_cast<const T*>(a.v_data), a.v, true}, a.value_width, p.value_padded, 0, 1);
  const View<T, const T> q(task, static_cast<const T*>(a.q_data), a.q, false);
  const View<T, const T> out(task, static_cast<const T*>(a.out_data), a.out, false);
  const View<T, const T> grad_out(task, static_cast<const T*>(a.grad_out_data), a.grad_out, false);
  const View<T, const R> lse(task, static_cast<const R*>(a.lse), lse_place(p), false);
  const View<T, const R> grad_lse(task, static_cast<const R*>(a.grad_lse), lse_place(p), false);
  const View<T, R> delta(task, static_cast<R*>(a.delta), lse_place(p), false);
  const View<T, T> grad_q(task, static_cast<T*>(a.grad_q), contiguous(a, a.heads, a.width), false);
  const Windows &times = *task.seen[0], &heights = *task.seen[1];
  auto start = [&](const Group<R>& g) {
    if (a.bias) Table<T>{task, g, g.steps, block.bias}.read(0);
    if (a.bias) Table<T>{task, g, g.steps, block.grad_bias}.clear();
  };
  auto finish = [&](const Group<R>& g) {
    if (a.bias) Table<T>{task, g, g.steps, block.grad_bias}.add_to(static_cast<R*>(a.grad_bias));
  };
  auto work = [&](const Group<R>& g, int64_t t, int64_t y, int rows) {
    const Table<T> bias{task, g, g.steps, block.bias}, grad_bias{task, g, g.steps, block.grad_bias};
    V logs[ROWS], dots[ROWS];
    block.fill(out, g, t, y, rows, a.value_width, p.value_padded, 1, block.sum_value);
    block.fill(grad_out, g, t, y, rows, a.value_width, p.value_padded, 1, block.own_value);
    block.fill(q, g, t, y, rows, a.width, p.padded, static_cast<R>(a.scale * LOG2_E), block.own);
    for (int r = 0; r < rows; ++r) {
      V dot{}, log{};
      const V *o = block.sum_value + r * p.value_padded, *grad = block.own_value + r * p.value_padded;
      for (int64_t d = 0; d < a.value_width; ++d) dot += o[d] * grad[d];
      for (int i = 0; i < g.count; ++i) {
        const int64_t lane = g.start + i;
        dot[i] -= *grad_lse.at(t, y + r, lane), log[i] = *lse.at(t, y + r, lane) * static_cast<R>(LOG2_E);
        if (task.has(task.lanes.slot[lane])) *delta.at(t, y + r, lane) = dot[i];
      }
      logs[r] = log, dots[r] = dot;
    }
    for (int64_t i = 0; i < ROWS * p.padded; ++i) block.sum[i] = V{};
    for (int64_t key_t = times.first[t]; key_t < times.end[t]; ++key_t)
      for (int64_t line = heights.first[y]; line < heights.end[y + rows - 1]; ++line) {
        const Seeing s(heights, y, rows, line);
        V *score[ROWS], *slope[ROWS];
        const V* begin[ROWS];
        for (int r = 0; r < s.rows(); ++r) {
          score[r] = block.scores + r * HELD, slope[r] = block.slopes + r * HELD;
          if (a.bias) begin[r] = bias.at(key_t - t, line - y - s.first - r);
        }
        for (int64_t first = 0; first < g.steps; first += HELD) {
          const int64_t end = first + HELD < g.steps ? first + HELD : g.steps;
          products<R>(s.rows(), block.own + s.first * p.padded, a.width, p.padded, keys.row(key_t, line, g),
                      keys.width, g, first, end, a.bias ? begin : nullptr, score);
          products<R>(s.rows(), block.own_value + s.first * p.value_padded, a.value_width, p.value_padded,
                      values.row(key_t, line, g), values.width, g, first, end, nullptr, slope);
          for (int r = 0; r < s.rows(); ++r) {
            V* sums = a.bias ? grad_bias.at(key_t - t, line - y - s.first - r) : nullptr;
            for (int64_t i = 0; i < end - first; ++i) {
              V grad = foveate::exp2(score[r][i] - logs[s.first + r]) * (slope[r][i] - dots[s.first + r]);
              if (!g.even || a.bias) grad = select<R>(score[r][i] <= NEVER, V{}, grad);
              slope[r][i] = grad;
              if (sums) sums[first + i] += grad;
            }
          }
          weigh<R>(s.rows(), slope, keys.row(key_t, line, g), keys.width, g, first, end, p.padded,
                   block.sum + s.first * p.padded);
        }
      }
    for (int r = 0; r < rows; ++r)
      block.give(grad_q, g, t, y + r, a.width, splat<R>(static_cast<R>(a.scale)), block.sum + r * p.padded);
  };
  each_block(task, start, work, finish);
  return OK;
}

// Keys in lanes, and the queries that see them: the gradients of k and v.
template <class T>
int backward_keys(const Problem<T>& p, int64_t index) {
  using R = acc<T>;
  using V = vec<R>;
  const NeighborhoodArguments& a = p.a;
  const Task<T> task(p, index);
  if (task.empty()) return OK;
  const Area<T> queries(task, p.members * p.padded), grads(task, p.members * p.value_padded);
  const Area<T> logs(task, p.members), dots(task, p.members);
  const Block<T> block(task);
  if (!queries || !grads || !logs || !dots || !block.memory) return OUT_OF_MEMORY;
  for (int64_t m = 0; m < p.members; ++m) {
    const View<T, const T> q(task, static_cast<const T*>(a.q_data), a.q, false, m);
    const View<T, const T> grad_out(task, static_cast<const T*>(a.grad_out_data), a.grad_out, false, m);
    queries.fill(q, a.width, p.padded, m * p.padded, static_cast<R>(a.scale * LOG2_E));
    grads.fill(grad_out, a.value_width, p.value_padded, m * p.value_padded, 1);
    logs.fill({task, static_cast<const R*>(a.lse), lse_place(p), false, m}, m, static_cast<R>(LOG2_E));
    dots.fill({task, static_cast<const R*>(a.delta), lse_place(p), false, m}, m, 1);
  }
  const View<T, const T> k(task, static_cast<const T*>(a.k_data), a.k, true);
  const View<T, const T> v(task, static_cast<const T*>(a.v_data), a.v, true);
  const View<T, T> grad_k(task, static_cast<T*>(a.grad_k), contiguous(a, a.key_heads, a.width), true);
  const View<T, T> grad_v(task, static_cast<T*>(a.grad_v), contiguous(a, a.key_heads, a.value_width), true);
  const Windows &times = *task.seen[0], &heights = *task.seen[1];
  auto table = [&](const Group<R>& g, int64_t member) {
    return Table<T>{task, g, g.steps, block.bias + member * Table<T>::room(a)};
  };
  auto start = [&](const Group<R>& g) {
    for (int64_t m = 0; a.bias && m < p.members; ++m) table(g, m).read(m);
  };
  // What one line of queries, of one member of the heads' group, adds to the block's sums.
  auto add = [&](const Group<R>& g, int64_t t, int64_t y, int rows, int64_t query_t, int64_t line, int64_t member) {
    const Seeing s(heights, y, rows, line);
    V *score[ROWS], *slope[ROWS];
    const V* begin[ROWS];
    for (int r = 0; r < s.rows(); ++r) {
      score[r] = block.scores + r * HELD, slope[r] = block.slopes + r * HELD;
      if (a.bias) begin[r] = table(g, member).at(t - query_t, y + s.first + r - line);
    }
    const R* query = queries.row(query_t, line, g, member * p.padded);
    const R* grad_out = grads.row(query_t, line, g, member * p.value_padded);
    const R *log = logs.row(query_t, line, g, member), *dot = dots.row(query_t, line, g, member);
    for (int64_t first = 0; first < g.steps; first += HELD) {
      const int64_t end = first + HELD < g.steps ? first + HELD : g.steps;
      products<R>(s.rows(), block.own + s.first * p.padded, a.width, p.padded, query, queries.width, g, first, end,
                  a.bias ? begin : nullptr, score);
      products<R>(s.rows(), block.own_value + s.first * p.value_padded, a.value_width, p.value_padded, grad_out,
                  grads.width, g, first, end, nullptr, slope);
      for (int64_t i = 0; i < end - first; ++i) {
        const Choice<R, 1> choice(g, first + i);
        const V from_log = Pair<R>(log + first + i).take(choice.index[0]);
        const V from_dot = Pair<R>(dot + first + i).take(choice.index[0]);
        for (int r = 0; r < s.rows(); ++r) {
          V weight = foveate::exp2(score[r][i] - from_log), grad = weight * (slope[r][i] - from_dot);
          if (!g.even || a.bias) {
            const vec_mask<R> hidden = score[r][i] <= NEVER;
            weight = select<R>(hidden, V{}, weight), grad = select<R>(hidden, V{}, grad);
          }
          score[r][i] = weight, slope[r][i] = grad;
        }
      }
      weigh<R>(s.rows(), score, grad_out, grads.width, g, first, end, p.value_padded,
               block.sum_value + s.first * p.value_padded);
      weigh<R>(s.rows(), slope, query, queries.width, g, first, end, p.padded, block.sum + s.first * p.padded);
    }
  };
  auto work = [&](const Group<R>& g, int64_t t, int64_t y, int rows) {
    block.fill(k, g, t, y, rows, a.width, p.padded, 1, block.own);
    block.fill(v, g, t, y, rows, a.value_width, p.value_padded, 1, block.own_value);
    for (int64_t i = 0; i < ROWS * p.padded; ++i) block.sum[i] = V{};
    for (int64_t i = 0; i < ROWS * p.value_padded; ++i) block.sum_value[i] = V{};
    for (int64_t m = 0; m < p.members; ++m)
      for (int64_t query_t = times.first[t]; query_t < times.end[t]; ++query_t)
        for (int64_t line = heights.first[y]; line < heights.end[y + rows - 1]; ++line)
          add(g, t, y, rows, query_t, line, m);
    // The packed queries carry the scale and log2(e).
    for (int r = 0; r < rows; ++r) {
      block.give(grad_k, g, t, y + r, a.width, splat<R>(static_cast<R>(LN_2)), block.sum + r * p.padded);
      block.give(grad_v, g, t, y + r, a.value_width, splat<R>(1), block.sum_value + r * p.value_padded);
    }
  };
  each_block(task, start, work, [](const Group<R>&) {});
  return OK;
}

template <class T>
int run(const NeighborhoodArguments& a, Direction direction, int (*task)(const Problem<T>&, int64_t)) {
  const Problem<T> p(a, direction);
  if (!p.made()) return OUT_OF_MEMORY;
  int64_t work = a.batch * a.heads * (a.width + a.value_width);
  for (const Axis& axis : a.axis) work *= axis.size * axis.window;
  int status = OK;
#pragma omp parallel for schedule(dynamic) if (p.cut.tasks() > 1 && work > PARALLEL_FROM)
  for (int64_t i = 0; i < p.cut.tasks(); ++i)
    if (int bad = task(p, i)) {
#pragma omp atomic write
      status = bad;
    }
  return status;
}

template <class T>
int run(const NeighborhoodArguments& a, bool backward) {
  if (!backward) return run<T>(a, QUERIES, forward_task<T>);
  if (int bad = run<T>(a, QUERIES, backward_queries<T>)) return bad;
  return run<T>(a, KEYS, backward_keys<T>);
}

}  // namespace
}  // namespace foveate

// How many partial sums the gradient of the bias comes in.
FOVEATE_EXPORT int64_t foveate_neighborhood_attention_parts(const foveate::NeighborhoodArguments* a) {
  const int64_t residues = a->axis[0].dilation * a->axis[1].dilation;
  using namespace foveate;
  return residues * (a->scalar == FLOAT64 ? Cut<double>(*a, QUERIES).slabs : Cut<float>(*a, QUERIES).slabs);
}

FOVEATE_EXPORT int foveate_neighborhood_attention(const foveate::NeighborhoodArguments* a, int backward) {
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
