// Causal linear attention with decays, forward and backward: the definitions are `reference` in
// foveate/ops/linear_attention.py (a constant decay for each head) and `reference` in foveate/ops/ssd.py (a decay for
// each position; k, q and v are B, C and x there, and heads of a group share k and q).
//
// Time is cut into chunks. A chunk sees itself through a triangular product and all before it through one state, which
// stays in the cache. Logarithms of decays are only ever added, never subtracted, and a decay from j to i is the
// product of those between them: nothing overflows, nothing cancels. The forward pass keeps the states before every `every`
// chunks; the backward pass makes the others again, then goes back in time with the gradient of the state.
// A unit of work is some heads of one group and some columns of their values, so that there can be as many as threads;
// units that share k and q each leave a share of their gradients, which the caller adds up.
// SPDX-License-Identifier: Apache-2.0
#include "linear_attention.h"

namespace foveate {
namespace {

int check(const LinearArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.length, a.groups, a.per_group, a.keys, a.values, a.block, a.every, a.span, a.slice})
    if (size < 1) return BAD_SIZE;
  if (a.block > MOST_BLOCK || a.span > a.per_group || a.slice > a.values) return BAD_SIZE;
  for (int64_t stride : {a.q_batch, a.q_time, a.q_group, a.k_batch, a.k_time, a.k_group, a.v_batch, a.v_time, a.v_head,
                         a.decay_batch, a.decay_time, a.decay_head, a.dt_batch, a.dt_time, a.dt_head, a.state_key,
                         a.state_value, a.out_batch, a.out_time, a.out_head, a.grad_batch, a.grad_time, a.grad_group})
    if (stride < 0) return BAD_STRIDE;
  if (!a.q || !a.k || !a.v || !a.decay || !a.starts || (!backward && !a.out)) return BAD_POINTER;
  if (backward && (!a.grad_out || !a.grad_q || !a.grad_k || !a.grad_v || (a.dt && !a.grad_dt) ||
                   (a.skip && !a.grad_skip) || (a.initial && !a.grad_initial)))
    return BAD_POINTER;
  return OK;
}

// Asks for the rows of the chunk that comes next, a few at a time, while this one is computed: those to be read, and
// those to be written, which a processor reads first.
template <class T>
struct Ahead {
  const Reader<T>& r;
  const LinearArguments& a;
  Unit unit;
  const T* written;             // where results like v begin
  const T* gradient = nullptr;  // where the gradients of outputs begin, backward
  int64_t from = 0, rows = 0, head = 0, row = 0;

  Ahead(const Reader<T>& r, const void* results)
      : r(r), a(r.a), unit(r.at), written(static_cast<const T*>(results)) {}

  void expect(const Unit& of, int64_t start, int64_t count) { unit = of, from = start, rows = count; }

  void begin(int64_t h) { head = least(h, unit.heads - 1), row = 0; }

  template <int write = 0>
  static void line(const T* numbers, int64_t count) {
    for (int64_t c = 0; c < count; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(numbers + c, write, 2);
  }

  void operator()(int64_t some) {
    for (const int64_t stop = least(rows, row + some); row < stop; ++row) {
      line(r.v_at(unit, head, from + row), unit.columns);
      line<1>(written + r.out_at(unit, head, from + row), unit.columns);
      if (gradient) line(gradient + r.out_at(unit, head, from + row), unit.columns);
      if (head == 0) line(r.q_at(unit, from + row), a.keys), line(r.k_at(unit, from + row), a.keys);
    }
  }
};

template <class T>
struct Forward : Reader<T> {
  using typename Reader<T>::R;
  using typename Reader<T>::V;
  using Reader<T>::a, Reader<T>::at, Reader<T>::D, Reader<T>::E, Reader<T>::Q, Reader<T>::K;
  using Reader<T>::weights, Reader<T>::scaled, Reader<T>::result;

  Block<R> states;  // of every head
  Ahead<T> ahead;

  explicit Forward(const LinearArguments& a) : Reader<T>(a), states{nullptr, padded(a.slice)}, ahead(*this, a.out) {
    this->room({{&states.from, a.span * D * E}});
  }

  Block<R> state(int64_t h) const { return {states.at(h * D), E}; }

  void head(int64_t h, int64_t from, int64_t m, bool enters, bool leaves) {
    const Decays<R> d = this->decays(h, from, m);
    const View<R> values = this->read_values(h, from, m, d.leave);
    T* rows = static_cast<T*>(a.out) + this->out_at(at, h, from);
    Block<R> to = result;
    if constexpr (std::is_same_v<T, R>)
      if (!a.skip && at.columns % LANES == 0) to = {rows, a.out_time};
    this->weigh(d, m);
    ahead.begin(h);
    auto between = [&] { ahead(3); };
    multiply_two(to, d.enter, Q, state(h), enters ? a.keys : 0, weights, values, m, at.columns, between);
    if (leaves)
      multiply<true>(state(h), K, scaled, a.keys, m, at.columns, Part::WHOLE, &d.keep, between);
    for (int64_t t = 0; to.from == result.from && t < m; ++t)
      for (int64_t c = 0; c < at.columns; c += LANES) {
        const int count = lanes(at.columns, c);
        V y = read(result.at(t, c));
        if (a.skip) y += this->skip_of(h, c, count) * load(this->v_at(at, h, from + t) + c, count);
        store(rows + t * a.out_time + c, y, count);
      }
  }

  void run(int64_t number) {
    this->take(number);
    for (int64_t i = 0; i < a.span * D * E; ++i) states.from[i] = 0;
    for (int64_t h = 0; a.initial && h < at.heads; ++h) this->read_state(a.initial, h, state(h).from, E, 1);
    for (int64_t from = 0, chunk = 0; from < a.length; from += a.block, ++chunk) {
      const int64_t m = least(a.block, a.length - from), next = from + m;
      if (chunk % a.every == 0)
        for (int64_t h = 0; h < at.heads; ++h)
          this->write_state(static_cast<R*>(a.starts) + this->piece(chunk / a.every), h, state(h).from);
      if (next < a.length)
        ahead.expect(at, next, least(a.block, a.length - next));
      else
        ahead.expect(Unit(a, least(number + 1, Unit::count(a) - 1)), 0, least(a.block, a.length));
      this->read_chunk(from, m, true);
      for (int64_t h = 0; h < at.heads; ++h) head(h, from, m, a.initial || from > 0, a.last || next < a.length);
    }
    for (int64_t h = 0; a.last && h < at.heads; ++h) this->write_state(a.last, h, state(h).from);
  }
};

template <class T>
struct Backward : Reader<T> {
  using typename Reader<T>::R;
  using typename Reader<T>::V;
  using Reader<T>::a, Reader<T>::at, Reader<T>::P, Reader<T>::D, Reader<T>::E, Reader<T>::Q, Reader<T>::K;
  using Reader<T>::weights, Reader<T>::scaled, Reader<T>::result;

  Block<R> g, vt, inner, sums, dq, dk, from_state;
  R *open, *cross, *reads, *writes, *past, *grads, *grads_t, *skips;
  Ahead<T> ahead;

  explicit Backward(const LinearArguments& a) : Reader<T>(a), ahead(*this, a.grad_v) {
    const int64_t states = a.span * D * E;
    g.row = E, vt.row = inner.row = sums.row = P, dq.row = dk.row = from_state.row = D;
    this->room({{&g.from, P * E}, {&vt.from, E * P}, {&inner.from, P * P}, {&sums.from, P * P}, {&dq.from, P * D},
                {&dk.from, P * D}, {&from_state.from, P * D}, {&open, P}, {&cross, P}, {&reads, P}, {&writes, P},
                {&past, least(a.every, divided(a.length, a.block)) * states}, {&grads, states}, {&grads_t, states}, {&skips, a.span * E}});
    ahead.gradient = static_cast<const T*>(a.grad_out);
  }

  // The gradient of a head's state after the chunk, and its transpose; the transposed state before chunk c of a piece.
  Block<R> grad(int64_t h) const { return {grads + h * D * E, E}; }
  Block<R> grad_t(int64_t h) const { return {grads_t + h * E * D, D}; }
  Block<R> past_t(int64_t c, int64_t h) const { return {past + (c * a.span + h) * E * D, D}; }
  // Where sums over columns stand in (slices, batch, length, H).
  int64_t sum_at(int64_t h, int64_t t) const {
    return ((at.slice * a.batch + at.b) * a.length + t) * this->heads() + at.head + h;
  }

  // The gradient of each logarithm in a chunk: of everything that decays across that position. No difference is formed.
  void decay_gradients(int64_t h, int64_t from, int64_t m, R through) {
    for (int64_t t = 0; t < m; ++t) *inner.at(t, t) = open[t] = cross[t] = 0;
    for (int64_t t = m - 1; t > 0; --t) {
      V total{};
      open[t] = 0;
      for (int64_t j = 0; j < t; j += LANES) {
        const V sum = read(open + j) + read(inner.at(t, j)) * read(weights.at(t, j));
        write(open + j, sum), total += sum;
      }
      cross[t] = sum<R>(total);
    }
    R behind = 0, before = 0;
    for (int64_t t = m - 1; t >= 0; --t) behind += reads[t], cross[t] += behind + through;
    for (int64_t t = 0; t < m; ++t) {
      static_cast<R*>(a.grad_decay)[sum_at(h, from + t)] = cross[t] + before;
      before += writes[t];
    }
  }

  void write_values(int64_t h, int64_t from, int64_t m, View<R> G) {
    for (int64_t t = 0; t < m; ++t) {
      const R step = this->dt(h, from + t);
      T* row = static_cast<T*>(a.grad_v) + this->out_at(at, h, from + t);
      V grad_dt{};
      for (int64_t c = 0; c < at.columns; c += LANES) {
        const int count = lanes(at.columns, c);
        V y = read(result.at(t, c)), x{};
        if (a.dt || a.skip) x = load(this->v_at(at, h, from + t) + c, count);
        grad_dt += y * x, y *= step;
        if (a.skip) {
          const V gy = read(G.at(t, c));
          R* sum = skips + h * E + c;
          y += gy * this->skip_of(h, c, count);
          write(sum, read(sum) + gy * x);
        }
        store(row + c, y, count);
      }
      if (a.dt) static_cast<R*>(a.grad_dt)[sum_at(h, from + t)] = sum<R>(grad_dt);
    }
  }

  void head(int64_t h, int64_t from, int64_t m, View<R> before) {
    const Decays<R> d = this->decays(h, from, m);
    const View<R> values = this->read_values(h, from, m, d.leave);
    const T* gradients = static_cast<const T*>(a.grad_out) + this->out_at(at, h, from);
    const View<R> G = this->block(g, gradients, a.out_time, m, at.columns);
    ahead.begin(h);
    auto between = [&] { ahead(1); };
    this->weigh(d, m);
    transpose(vt, values, m, at.columns);
    multiply(inner, G, vt, m, at.columns, m, Part::RESULT);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; j += LANES)
        write(sums.at(i, j), read(sums.at(i, j)) + read(inner.at(i, j)) * read(d.rows.at(i, j)));

    // Keys and values through the state that the chunk leaves, values through the chunk.
    multiply(dk, scaled, grad_t(h), m, at.columns, a.keys, Part::WHOLE, &ADD<R>, between);
    multiply(result, K, grad(h), m, a.keys, at.columns, Part::WHOLE, OVERWRITE<R>, between);
    for (int64_t t = 0; t < m; ++t) {
      scale_row(result.at(t), result.at(t), at.columns, d.leave[t]);
      if (a.grad_decay) writes[t] = dot(result.at(t), values.at(t), at.columns);
    }
    multiply<true>(result, weights, G, m, m, at.columns, Part::LEFT_ACROSS, &ADD<R>, between);
    write_values(h, from, m, G);

    // Queries through the state that the chunk finds; the gradient of that state.
    for (int64_t t = 0; t < m; ++t) scale_row(scaled.at(t), G.at(t), at.columns, d.enter[t]);
    multiply(from_state, scaled, before, m, at.columns, a.keys, Part::WHOLE, OVERWRITE<R>, between);
    for (int64_t t = 0; t < m; ++t) {
      if (a.grad_decay) reads[t] = dot(from_state.at(t), Q.at(t), a.keys);
      for (int64_t c = 0; c < D; c += LANES) write(dq.at(t, c), read(dq.at(t, c)) + read(from_state.at(t, c)));
    }
    if (a.grad_decay) decay_gradients(h, from, m, d.through * dot(before.from, grad_t(h).from, at.columns * D));
    multiply<true>(grad(h), Q, scaled, a.keys, m, at.columns, Part::WHOLE, &d.keep, between);
    transpose(grad_t(h), grad(h), a.keys, at.columns);
  }

  void write_shares(int64_t from, int64_t m) {
    const int64_t share = at.share * a.batch * a.length * a.groups * a.keys;
    const int64_t base = share + at.b * a.grad_batch + at.group * a.grad_group + from * a.grad_time;
    for (int64_t t = 0; t < m; ++t)
      for (int64_t c = 0; c < a.keys; c += LANES) {
        store(static_cast<R*>(a.grad_q) + base + t * a.grad_time + c, read(dq.at(t, c)), lanes(a.keys, c));
        store(static_cast<R*>(a.grad_k) + base + t * a.grad_time + c, read(dk.at(t, c)), lanes(a.keys, c));
      }
  }

  // The transposed states before the chunks of a piece: the first is kept, the others are made again.
  void make_states(int64_t piece, int64_t chunks) {
    for (int64_t h = 0; h < at.heads; ++h)
      this->read_state(static_cast<const R*>(a.starts) + this->piece(piece), h, past_t(0, h).from, 1, D);
    for (int64_t c = 0; c + 1 < chunks; ++c) {
      const int64_t from = (piece * a.every + c) * a.block;
      this->read_chunk(from, a.block, false);
      for (int64_t h = 0; h < at.heads; ++h) {
        const Decays<R> d = this->decays(h, from, a.block);
        this->read_values(h, from, a.block, d.leave);
        std::memcpy(past_t(c + 1, h).from, past_t(c, h).from, sizeof(R) * E * D);
        multiply<true>(past_t(c + 1, h), scaled, K, at.columns, a.block, a.keys, Part::WHOLE, &d.keep);
      }
    }
  }

  void run(int64_t number) {
    this->take(number);
    for (int64_t i = 0; i < a.span * D * E; ++i) grads[i] = grads_t[i] = 0;
    for (int64_t i = 0; i < a.span * E; ++i) skips[i] = 0;
    for (int64_t h = 0; a.grad_last && h < at.heads; ++h) {
      this->read_state(a.grad_last, h, grad(h).from, E, 1);
      this->read_state(a.grad_last, h, grad_t(h).from, 1, D);
    }
    const int64_t chunks = divided(a.length, a.block);
    for (int64_t piece = (chunks - 1) / a.every; piece >= 0; --piece) {
      const int64_t first = piece * a.every, count = least(a.every, chunks - first);
      make_states(piece, count);
      for (int64_t c = count - 1; c >= 0; --c) {
        const int64_t from = (first + c) * a.block, m = least(a.block, a.length - from);
        ahead.expect(at, from - a.block, from ? a.block : 0);
        this->read_chunk(from, m, true);
        for (int64_t i = 0; i < m * P; ++i) sums.from[i] = 0;
        for (int64_t i = 0; i < m * D; ++i) dq.from[i] = dk.from[i] = 0;
        for (int64_t h = 0; h < at.heads; ++h) head(h, from, m, past_t(c, h));
        multiply(dq, sums, K, m, m, a.keys, Part::LEFT, &ADD<R>);
        multiply<true>(dk, sums, Q, m, m, a.keys, Part::LEFT_ACROSS, &ADD<R>);
        write_shares(from, m);
      }
    }
    for (int64_t h = 0; h < at.heads; ++h) {
      if (a.grad_initial) this->write_state(a.grad_initial, h, grad(h).from);
      for (int64_t c = 0; a.skip && c < at.columns; c += LANES) {
        R* to = static_cast<R*>(a.grad_skip) + (at.b * this->heads() + at.head + h) * a.values + at.column + c;
        store(to, read(skips + h * E + c), lanes(at.columns, c));
      }
    }
  }
};

template <class Worker>
int run(const LinearArguments& a) {
  const int64_t units = Unit::count(a), work = a.batch * a.length * a.groups * a.per_group * (a.keys + a.values);
  int status = OK;
#pragma omp parallel if (units > 1 && work > PARALLEL_FROM)
  {
    Worker worker(a);
    if (!worker.memory) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit)
      if (worker.memory) worker.run(unit);
  }
  return status;
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_linear_attention(const foveate::LinearArguments* a, int backward) {
  using namespace foveate;
  if (int bad = check(*a, backward)) return bad;
  switch (a->scalar) {
    case FLOAT32:
      return backward ? run<Backward<float>>(*a) : run<Forward<float>>(*a);
    case BFLOAT16:
      return backward ? run<Backward<bfloat16>>(*a) : run<Forward<bfloat16>>(*a);
    case FLOAT64:
      return backward ? run<Backward<double>>(*a) : run<Forward<double>>(*a);
    default:
      return BAD_SCALAR;
  }
}
