// Shifted window attention, forward and backward; the definition is `reference` in
// foveate/ops/shifted_window_attention.py.
//
// The rows of a window's tokens are read where they lie on the grid and its results written there: nothing is padded,
// rolled or cut. Scores lie with keys in rows and queries in lanes, so that a softmax needs no sums across lanes. Few
// keys are weighed for rows of queries, whose number need not fill lanes; many are taken a tile at a time with a running
// maximum. Backward, a tile's weights are made again from the inputs: nothing else is kept.
// SPDX-License-Identifier: Apache-2.0
#include "window_workers.h"

namespace foveate {
namespace {

int check(const ShiftedArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.heads, a.width, a.value_width, a.slots})
    if (size < 1) return BAD_SIZE;
  if (!possible_axes(a)) return BAD_SIZE;
  if (a.by_window && backward && a.slots != a.windows()) return BAD_SIZE;
  for (const WindowStrides* s : {&a.q, &a.k, &a.v, &a.grad})
    for (int64_t stride : {s->batch, s->axis[0], s->axis[1], s->axis[2], s->head})
      if (stride < 0) return BAD_STRIDE;
  if (Status bad = possible_biases(a)) return bad;
  if (!a.q_data || !a.k_data || !a.v_data) return BAD_POINTER;
  if (!backward) return a.out ? OK : BAD_POINTER;
  if (!a.grad_out || !a.grad_q || !a.grad_k || !a.grad_v) return BAD_POINTER;
  if (!a.bias != !a.grad_bias || !a.pad_k != !a.grad_pad_k || !a.pad_v != !a.grad_pad_v) return BAD_POINTER;
  return OK;
}

template <class T>
struct WindowBackward : WindowReader<T> {
  using typename WindowReader<T>::R;
  using typename WindowReader<T>::V;
  using WindowReader<T>::a, WindowReader<T>::D, WindowReader<T>::E, WindowReader<T>::first, WindowReader<T>::count,
      WindowReader<T>::lanes, WindowReader<T>::scores, WindowReader<T>::most, WindowReader<T>::q, WindowReader<T>::k,
      WindowReader<T>::v, WindowReader<T>::tokens;

  Block<R> g, gt, slopes, dq, dk, dv, dbias;
  R *dpad_k, *dpad_v;
  bool ready;

  WindowBackward(const ShiftedArguments& a, const Biases<R>& biases) : WindowReader<T>(a, biases, true, a) {
    const int64_t queries = this->most_queries;
    g.row = dv.row = E, dq.row = dk.row = D, dbias.row = padded(tokens);
    ready = this->room({{&g.from, queries * E}, {&gt.from, E * queries}, {&slopes.from, tokens * queries},
                        {&dq.from, queries * D}, {&dk.from, tokens * D}, {&dv.from, tokens * E},
                        {&dbias.from, a.bias ? padded(tokens) * dbias.row : 0}, {&dpad_k, D}, {&dpad_v, E}});
  }

  // Weights in place of scores, and gradients of scores in place of those of weights.
  void slope(int64_t keys) {
    for (int64_t n = 0; n < lanes; n += LANES) {
      const V top = read(most + n), base = select<R>(top == NEVER<R>, V{}, top);
      V total{}, dot{};
      for (int64_t j = 0; j < keys; ++j) {
        const V power = weight<R>(read(scores.at(j, n)), base, a.bias);
        total += power, dot += power * read(slopes.at(j, n));
        write(scores.at(j, n), power);
      }
      const V share = select<R>(total == 0, V{}, 1 / total);
      dot *= share;
      for (int64_t j = 0; j < keys; ++j) {
        const V power = read(scores.at(j, n)) * share;
        write(scores.at(j, n), power), write(slopes.at(j, n), power * (read(slopes.at(j, n)) - dot));
      }
    }
  }

  void add_bias(const Group& group) {
    for (int64_t j = 0; j < group.keys; ++j) {
      const R* from = slopes.at(j);
      R* row = dbias.at(group.token[j].number);
      if (group.whole)
        for (int64_t n = 0; n < lanes; n += LANES) write(row + first + n, read(row + first + n) + read(from + n));
      else
        for (int64_t i = 0; i < count; ++i) row[group.token[first + i].number] += from[i];
    }
  }

  void write_rows(void* to, Block<R> rows, const Token* token, int64_t many, int64_t numbers, R scale) const {
    for (int64_t i = 0; i < many; ++i) {
      T* row = static_cast<T*>(to) + this->row_at(token[i], numbers);
      for (int64_t c = 0; c < numbers; c += LANES)
        store(row + c, read(rows.at(i, c)) * scale, static_cast<int>(least(LANES, numbers - c)));
    }
  }
  // Sums of the gradients of padding.
  void add_rows(R* to, Block<R> rows, int64_t from, int64_t end, int64_t numbers, R scale) const {
    for (int64_t i = from; i < end; ++i)
      for (int64_t c = 0; c < numbers; c += LANES) write(to + c, read(to + c) + read(rows.at(i, c)) * scale);
  }

  void attend(const Group& group) {
    this->read_keys(group);
    for (int64_t i = 0; i < group.keys * D; i += LANES) write(dk.from + i, V{});
    for (int64_t i = 0; i < group.keys * E; i += LANES) write(dv.from + i, V{});
    for (int64_t from = 0; from < group.queries; from += this->most_queries) {
      this->read_queries(group, from);
      gt.row = slopes.row = lanes;
      this->gather(g, a.grad_out, a.grad, nullptr, group.token + first, count, a.value_width);
      this->clear(g, count, a.value_width);
      turn<R>(gt, g, lanes, E);
      for (int64_t n = 0; n < lanes; n += LANES) write(most + n, splat(NEVER<R>));
      this->score(group, 0, group.keys);
      multiply<false, R>(slopes, v, gt, group.keys, a.value_width, count);
      slope(group.keys);
      multiply<false, R>(dv, scores, g, group.keys, count, a.value_width, Part::WHOLE, &ADD<R>);
      multiply<false, R>(dk, slopes, q, group.keys, count, a.width, Part::WHOLE, &ADD<R>);
      multiply<true, R>(dq, slopes, k, count, group.keys, a.width);
      write_rows(a.grad_q, dq, group.token + first, count, a.width, static_cast<R>(a.scale));
      if (a.bias) add_bias(group);
    }
    // Queries were scaled by log2(e) as well.
    write_rows(a.grad_k, dk, group.token, group.queries, a.width, static_cast<R>(LN_2));
    write_rows(a.grad_v, dv, group.token, group.queries, a.value_width, 1);
    add_rows(dpad_k, dk, group.queries, group.keys, a.width, static_cast<R>(LN_2));
    add_rows(dpad_v, dv, group.queries, group.keys, a.value_width, 1);
  }

  // All windows of a slot, one after the other.
  void run(int64_t slot, int64_t head) {
    for (int64_t i = 0; a.bias && i < tokens * dbias.row; i += LANES) write(dbias.from + i, V{});
    for (int64_t c = 0; c < D; c += LANES) write(dpad_k + c, V{});
    for (int64_t c = 0; c < E; c += LANES) write(dpad_v + c, V{});
    const int64_t windows = a.windows(), all = a.batch * windows;
    const int64_t begin = a.by_window ? slot : all * slot / a.slots;
    const int64_t end = a.by_window ? all : all * (slot + 1) / a.slots;
    for (int64_t i = begin; i < end; i += a.by_window ? windows : 1) {
      this->take(i / windows, i % windows, head);
      for (int n = 0; n < this->window.groups; ++n) attend(this->window.group[n]);
    }
    const int64_t place = slot * a.heads + head;
    if (a.grad_bias) give_bias(static_cast<R*>(a.grad_bias) + place * tokens * tokens);
    if (a.grad_pad_k) std::memcpy(static_cast<R*>(a.grad_pad_k) + place * a.width, dpad_k, sizeof(R) * a.width);
    if (a.grad_pad_v)
      std::memcpy(static_cast<R*>(a.grad_pad_v) + place * a.value_width, dpad_v, sizeof(R) * a.value_width);
  }

  // Queries in rows, as they are given.
  void give_bias(R* to) {
    for (int64_t n = 0; n < tokens; n += LANES) {
      turn<R>(this->strip, {dbias.at(0, n), dbias.row}, padded(tokens), LANES);
      for (int64_t i = n; i < least(n + LANES, tokens); ++i)
        std::memcpy(to + i * tokens, this->strip.at(i - n), sizeof(R) * tokens);
    }
  }
};

// Whether other threads are worth waking.
inline bool shared_out(const ShiftedArguments& a, int64_t units) {
  const double pairs = static_cast<double>(a.batch * a.heads) * a.windows() * a.tokens() * a.tokens();
  return units > 1 && pairs * (a.width + a.value_width) / 32 > PARALLEL_FROM;
}

template <class T>
int run(const ShiftedArguments& a, bool backward) {
  using Worker = WindowForward<T>;
  const Biases<acc<T>> biases(a);
  if (!biases.made()) return OUT_OF_MEMORY;
  const int64_t units = backward ? a.slots * a.heads : a.batch * a.windows() * a.heads;
  int status = OK;
  auto work = [&](auto& worker, auto each) {
    if (!worker.ready) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < biases.strips(); ++i)
      if (worker.ready) biases.fill(i, worker.strip);
#pragma omp for schedule(guided) nowait
    for (int64_t unit = 0; unit < units; ++unit)
      if (worker.ready) each(worker, unit);
  };
#pragma omp parallel if (shared_out(a, units))
  {
    if (backward) {
      WindowBackward<T> worker(a, biases);
      work(worker, [&](WindowBackward<T>& w, int64_t unit) { w.run(unit / a.heads, unit % a.heads); });
    } else {
      Worker worker(a, biases);
      work(worker, [&](Worker& w, int64_t unit) { w.run(unit); });
    }
  }
  return status;
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_shifted_window_attention(const foveate::ShiftedArguments* a, int backward) {
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
