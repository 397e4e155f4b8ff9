// Causal linear attention with decays, forward and backward: the definitions are `reference` in
// foveate/ops/linear_attention.py (a constant decay for each head) and _reference in foveate/ops/ssd.py (a decay for each
// position; k, q and v are B, C and x there, and heads of a group share k and q).
//
// Time is cut into chunks. A chunk sees itself through a triangular product and all before it through one state, which
// stays in the cache. Logarithms of decays are only ever added, never subtracted, and a decay from j to i is the product
// of those between them: nothing overflows, nothing cancels. The forward pass keeps the states before every `every`
// chunks; the backward pass makes the others again, then goes back in time with the gradient of the state.
// A unit of work is some heads of one group and some columns of their values, so that there can be as many as threads;
// units that share k and q each leave a share of their gradients, which the caller adds up.
// SPDX-License-Identifier: Apache-2.0
#include <limits>
#include <memory>
#include <new>

#include "products.h"

namespace foveate {

constexpr int64_t MOST_BLOCK = 256;

struct LinearArguments {
  int64_t scalar, batch, length, groups, per_group, keys, values;
  int64_t block, every;     // positions of a chunk, chunks between kept states
  int64_t span, slice;      // heads and columns of a unit
  int64_t constant;         // whether each head has one decay; then decay_batch and decay_time are 0
  // In numbers, not bytes; keys and values are neighbours in memory.
  int64_t q_batch, q_time, q_group, k_batch, k_time, k_group, v_batch, v_time, v_head;
  int64_t decay_batch, decay_time, decay_head, dt_batch, dt_time, dt_head;
  int64_t state_key, state_value;                // inside a state (keys, values) of the caller
  int64_t out_batch, out_time, out_head;         // of out, grad_out and grad_v
  int64_t grad_batch, grad_time, grad_group;     // of a share of grad_q and grad_k
  const void *q, *k, *v;                         // storage type
  const void *decay, *dt, *skip, *initial;       // accumulator type; logarithms; (H, values); (batch, H) states; all but decay may be null
  const uint8_t* reset;                          // (batch, length) or null: nothing passes from before such a position
  void *out, *last, *starts;                     // forward: storage type; (batch, H) states or null; (pieces, batch, H) states
  // Backward only, accumulator type but for grad_out and grad_v.
  const void *grad_out, *grad_last;              // grad_last may be null
  void *grad_q, *grad_k, *grad_v;                // (shares, batch, length, groups, keys) in any order; as out
  void *grad_decay, *grad_dt;                    // (slices, batch, length, H); grad_decay may be null
  void *grad_skip, *grad_initial;                // (batch, H, values); (batch, H) states
};

namespace {

int64_t spans(const LinearArguments& a) { return (a.per_group + a.span - 1) / a.span; }
int64_t slices(const LinearArguments& a) { return (a.values + a.slice - 1) / a.slice; }
int64_t units(const LinearArguments& a) { return a.batch * a.groups * spans(a) * slices(a); }

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

// exp for logarithms of decays; below the range of normal numbers exactly 0, which slows no processor down.
template <class R>
inline vec<R> decay_of(vec<R> x) {
  constexpr R LOWEST = sizeof(R) == 4 ? -86 : -700;
  return select<R>(x < LOWEST, vec<R>{}, exp<R>(x));
}

// The decays of one chunk of one head.
template <class R>
struct Decays {
  const R* rows;  // from j to i at rows[i * step + j]; 0 behind the diagonal
  int64_t step;
  const R *enter, *leave;  // from before the chunk to i, from j to its last position
  R through;               // of the whole chunk
  Keep<R> keep;            // the same for a state: as a small change where the decay is slow, so that it is rounded once
};

template <class R>
Keep<R> kept(double total) {
  return total > -0.5 ? Keep<R>{1, static_cast<R>(std::expm1(total))} : Keep<R>{0, static_cast<R>(std::exp(total))};
}

// What one thread needs, and the unit that it is at. Blocks are (positions or keys or values, padded to registers).
template <class T>
struct Worker {
  using R = acc<T>;
  using V = vec<R>;

  const LinearArguments& a;
  const int64_t P, D, E;  // padded positions of a chunk, keys, columns
  std::unique_ptr<V[]> memory;
  R *q, *k, *kt, *scores, *weights, *v, *scaled, *result, *mask, *factor, *enter, *leave, *tables, *entries, *state;
  R *g, *vt, *inner, *sums, *dq, *dk, *from_state, *open, *cross, *reads, *writes, *past, *grad, *grad_t, *skip;
  int64_t b, g_index, head, heads, column, columns, slice, share;  // sample, group, first head, ...
  int64_t ahead;                                                   // first position of the chunk after this one

  Worker(const LinearArguments& a, bool backward) : a(a), P(padded(a.block)), D(padded(a.keys)), E(padded(a.slice)) {
    const int64_t H = a.span, both = backward ? 1 : 0, wide = D > E ? D : E;
    const std::pair<R**, int64_t> parts[] = {
        {&q, P * D}, {&k, P * D}, {&kt, D * P}, {&scores, P * P}, {&weights, P * P}, {&v, P * E}, {&scaled, P * wide},
        {&result, P * E}, {&mask, P * P}, {&factor, P}, {&enter, P}, {&leave, P}, {&tables, H * (P + LANES)},
        {&entries, H * P}, {&state, H * D * E},
        {&g, both * P * E}, {&vt, both * E * P}, {&inner, both * P * P}, {&sums, both * P * P}, {&dq, both * P * D},
        {&dk, both * P * D}, {&from_state, both * P * D}, {&open, both * P}, {&cross, both * P}, {&reads, both * P},
        {&writes, both * P}, {&past, both * a.every * H * E * D}, {&grad, both * H * D * E},
        {&grad_t, both * H * E * D}, {&skip, both * H * E}};
    int64_t total = 0;
    for (auto& part : parts) total += part.second;
    memory.reset(new (std::nothrow) V[total / LANES]());
    if (!memory) return;
    R* next = reinterpret_cast<R*>(memory.get());
    for (auto& part : parts) *part.first = next, next += part.second;
  }

  void take(int64_t unit) {
    slice = unit % slices(a), unit /= slices(a);
    const int64_t at = unit % spans(a);
    share = at * slices(a) + slice, unit /= spans(a);
    g_index = unit % a.groups, b = unit / a.groups;
    head = g_index * a.per_group + at * a.span, column = slice * a.slice;
    heads = a.per_group - at * a.span < a.span ? a.per_group - at * a.span : a.span;
    columns = a.values - column < a.slice ? a.values - column : a.slice;
    if (a.constant) fill_tables();
  }

  const T* q_at(int64_t t) const { return static_cast<const T*>(a.q) + b * a.q_batch + t * a.q_time + g_index * a.q_group; }
  const T* k_at(int64_t t) const { return static_cast<const T*>(a.k) + b * a.k_batch + t * a.k_time + g_index * a.k_group; }
  const T* v_at(int64_t h, int64_t t) const {
    return static_cast<const T*>(a.v) + b * a.v_batch + t * a.v_time + (head + h) * a.v_head + column;
  }
  int64_t out_at(int64_t h, int64_t t) const { return b * a.out_batch + t * a.out_time + (head + h) * a.out_head + column; }
  R decay(int64_t h, int64_t t) const {
    return static_cast<const R*>(a.decay)[b * a.decay_batch + t * a.decay_time + (head + h) * a.decay_head];
  }
  R dt(int64_t h, int64_t t) const {
    return a.dt ? static_cast<const R*>(a.dt)[b * a.dt_batch + t * a.dt_time + (head + h) * a.dt_head] : R(1);
  }
  // The first number of this unit's part of a caller's state, and of the sums over positions of (slices, batch, L, H).
  int64_t state_at(int64_t h) const {
    return (b * a.groups * a.per_group + head + h) * a.keys * a.values + column * a.state_value;
  }
  int64_t sum_at(int64_t h, int64_t t) const {
    return ((slice * a.batch + b) * a.length + t) * a.groups * a.per_group + head + h;
  }
  V skip_of(int64_t h, int64_t c, int count) const {
    return load(static_cast<const R*>(a.skip) + (head + h) * a.values + column + c, count);
  }
  static int lanes(int64_t behind, int64_t at) { return static_cast<int>(behind - at < LANES ? behind - at : LANES); }

  // A caller's states (those of piece `piece` where there are many) to blocks and back.
  void read_state(const void* from, int64_t h, R* to, int64_t row, int64_t lane) const {
    const R* base = static_cast<const R*>(from) + state_at(h);
    for (int64_t i = 0; i < a.keys; ++i)
      for (int64_t j = 0; j < columns; ++j) to[i * row + j * lane] = base[i * a.state_key + j * a.state_value];
  }
  void write_state(void* to, int64_t h, const R* from) const {
    R* base = static_cast<R*>(to) + state_at(h);
    for (int64_t i = 0; i < a.keys; ++i)
      for (int64_t j = 0; j < columns; ++j) base[i * a.state_key + j * a.state_value] = from[i * E + j];
  }
  R* start(int64_t piece) const {
    return static_cast<R*>(a.starts) + piece * a.batch * a.groups * a.per_group * a.keys * a.values;
  }

  // Constant decays, by falling distance from block - 1 to 0 and then nothing: row i of the triangle begins i earlier.
  void fill_tables() {
    for (int64_t h = 0; h < heads; ++h) {
      const R rate = decay(h, 0);
      R *table = tables + h * (P + LANES), *entry = entries + h * P;
      for (int64_t i = 0; i < P + LANES; ++i) table[i] = i < a.block ? rate * static_cast<R>(a.block - 1 - i) : -INFINITY;
      for (int64_t i = 0; i < P; ++i) entry[i] = rate * static_cast<R>(i + 1);
      for (int64_t i = 0; i < P + LANES; i += LANES) write(table + i, decay_of<R>(read(table + i)));
      for (int64_t i = 0; i < P; i += LANES) write(entry + i, decay_of<R>(read(entry + i)));
    }
  }

  Decays<R> decays(int64_t h, int64_t from, int64_t m) {
    const uint8_t* reset = a.reset ? a.reset + b * a.length + from : nullptr;
    bool plain = a.constant;
    for (int64_t t = 0; reset && t < m; ++t) plain = plain && !reset[t];
    if (plain) {
      const R* table = tables + h * (P + LANES);
      const double total = static_cast<double>(decay(h, 0)) * static_cast<double>(m);
      return {table + a.block - 1, -1, entries + h * P, table + a.block - m, static_cast<R>(std::exp(total)), kept<R>(total)};
    }
    double total = 0;
    for (int64_t t = 0; t < m; ++t) {
      factor[t] = reset && reset[t] ? -std::numeric_limits<R>::infinity() : decay(h, from + t);
      total += factor[t];
      enter[t] = static_cast<R>(total);
    }
    double behind = 0;
    for (int64_t t = m - 1; t >= 0; --t) leave[t] = static_cast<R>(behind), behind += factor[t];
    for (int64_t t = 0; t < m; t += LANES)
      for (R* some : {factor, enter, leave}) write(some + t, decay_of<R>(read(some + t)));
    // Row after row: what decays to i decays to i - 1 first. Where nothing measurable is left, nothing is.
    constexpr R LEAST = std::numeric_limits<R>::min() * 16;
    for (int64_t i = 0; i < m; ++i) {
      R* row = mask + i * P;
      for (int64_t j = 0; j < i; j += LANES) {
        V next = read(row - P + j) * factor[i];
        write(row + j, select<R>(next < LEAST, V{}, next));
      }
      for (int64_t j = i; j < padded(i + 1); ++j) row[j] = j == i;
    }
    return {mask, P, enter, leave, static_cast<R>(std::exp(total)), kept<R>(total)};
  }

  // Keys and, where outputs are wanted, queries and their products of a chunk; the same for all heads of the unit.
  void read_chunk(int64_t from, int64_t m, bool with_queries) {
    pack(k, D, k_at(from), a.k_time, m, a.keys);
    if (!with_queries) return;
    pack(q, D, q_at(from), a.q_time, m, a.keys);
    transpose(kt, P, k, D, m, a.keys);
    multiply(scores, P, q, D, kt, P, m, a.keys, m, Part::RESULT);
  }

  void read_values(int64_t h, int64_t from, int64_t m) {
    pack(v, E, v_at(h, from), a.v_time, m, columns);
    if (!a.dt) return;
    for (int64_t t = 0; t < m; ++t) scale_row(v + t * E, v + t * E, E, dt(h, from + t));
  }

  static void scale_row(R* to, const R* from, int64_t numbers, R by) {
    for (int64_t c = 0; c < numbers; c += LANES) write(to + c, read(from + c) * by);
  }
  static void scale_rows(R* to, const R* from, int64_t row, int64_t m, const R* by) {
    for (int64_t t = 0; t < m; ++t) scale_row(to + t * row, from + t * row, row, by[t]);
  }

  // Ask for a row of the chunk after this one: a cache line each.
  static void fetch(const T* row, int64_t numbers) {
    for (int64_t c = 0; c < numbers; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(row + c, 0, 2);
  }

  int64_t cursor = 0;
  void fetch_next(int64_t h) {
    if (ahead < 0) return;
    for (int r = 0; r < 2; ++r, ++cursor) {
      if (cursor >= a.block || ahead + cursor >= a.length) return;
      fetch(v_at(h, ahead + cursor), columns);
      if (h == 0) fetch(q_at(ahead + cursor), a.keys), fetch(k_at(ahead + cursor), a.keys);
      const T* o = static_cast<const T*>(a.out) + out_at(h, ahead + cursor);
      for (int64_t c = 0; c < columns; c += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(o + c, 1, 2);
    }
  }
  void weigh(const Decays<R>& d, int64_t h, int64_t m) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j <= i; j += LANES)
        write(weights + i * P + j, read(scores + i * P + j) * read(d.rows + i * d.step + j));
    }
  }

  void forward_head(int64_t h, int64_t from, int64_t m, bool enters, bool leaves) {
    const Decays<R> d = decays(h, from, m);
    cursor = 0;
    R* state = this->state + h * D * E;
    read_values(h, from, m);
    weigh(d, h, m);
    if (enters) {
      scale_rows(scaled, q, D, m, d.enter);
      multiply(result, E, scaled, D, state, E, m, a.keys, columns, Part::WHOLE, static_cast<const Keep<R>*>(nullptr), [&] { fetch_next(h); });
    }
    multiply(result, E, weights, P, v, E, m, m, columns, Part::LEFT, enters ? &ADD<R> : nullptr, [&] { fetch_next(h); });
    for (int64_t t = 0; t < m; ++t)
      for (int64_t c = 0; c < columns; c += LANES) {
        const int count = lanes(columns, c);
        V y = read(result + t * E + c);
        if (a.skip) y += skip_of(h, c, count) * load(v_at(h, from + t) + c, count);
        store(static_cast<T*>(a.out) + out_at(h, from + t) + c, y, count);
      }
    if (!leaves) return;
    scale_rows(v, v, E, m, d.leave);
    multiply<true>(state, E, k, D, v, E, a.keys, m, columns, Part::WHOLE, &d.keep, [&] { fetch_next(h); });
  }

  void forward(int64_t unit) {
    take(unit);
    for (int64_t i = 0; i < a.span * D * E; ++i) state[i] = 0;
    for (int64_t h = 0; a.initial && h < heads; ++h) read_state(a.initial, h, state + h * D * E, E, 1);
    for (int64_t from = 0, chunk = 0; from < a.length; from += a.block, ++chunk) {
      const int64_t m = a.length - from < a.block ? a.length - from : a.block;
      for (int64_t h = 0; chunk % a.every == 0 && h < heads; ++h) write_state(start(chunk / a.every), h, state + h * D * E);
      ahead = from + m;
      read_chunk(from, m, true);
      const bool enters = a.initial || from > 0, leaves = a.last || from + m < a.length;
      for (int64_t h = 0; h < heads; ++h) forward_head(h, from, m, enters, leaves);
    }
    for (int64_t h = 0; a.last && h < heads; ++h) write_state(a.last, h, state + h * D * E);
  }

  // The gradient of each logarithm in a chunk: of everything that decays across that position. No difference is formed.
  void sum_decays(int64_t h, int64_t from, int64_t m, R through) {
    for (int64_t t = 0; t < m; ++t) inner[t * P + t] = open[t] = cross[t] = 0;
    for (int64_t t = m - 1; t > 0; --t) {
      V total{};
      open[t] = 0;
      for (int64_t j = 0; j < t; j += LANES) {
        V sum = read(open + j) + read(inner + t * P + j) * read(weights + t * P + j);
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

  static R dot(const R* x, const R* y, int64_t numbers) {
    V total{};
    for (int64_t c = 0; c < numbers; c += LANES) total += read(x + c) * read(y + c);
    return sum<R>(total);
  }

  void backward_head(int64_t h, int64_t from, int64_t m, const R* past_t) {
    const Decays<R> d = decays(h, from, m);
    R *grad = this->grad + h * D * E, *grad_t = this->grad_t + h * E * D;
    read_values(h, from, m);
    weigh(d, h, m);
    pack(g, E, static_cast<const T*>(a.grad_out) + out_at(h, from), a.out_time, m, columns);
    transpose(vt, P, v, E, m, columns);
    multiply(inner, P, g, E, vt, P, m, columns, m, Part::RESULT);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; j += LANES)
        write(sums + i * P + j, read(sums + i * P + j) + read(inner + i * P + j) * read(d.rows + i * d.step + j));

    // Values: through the chunk, and through the state that it leaves.
    multiply(result, E, k, D, grad, E, m, a.keys, columns);
    for (int64_t t = 0; t < m; ++t) {
      scale_row(result + t * E, result + t * E, E, d.leave[t]);
      writes[t] = a.grad_decay ? dot(result + t * E, v + t * E, E) : R(0);
    }
    multiply<true>(result, E, weights, P, g, E, m, m, columns, Part::LEFT_ACROSS, &ADD<R>);
    for (int64_t t = 0; t < m; ++t) {
      const R step = dt(h, from + t);
      V grad_dt{};
      for (int64_t c = 0; c < columns; c += LANES) {
        const int count = lanes(columns, c);
        V y = read(result + t * E + c), gy = read(g + t * E + c), x = load(v_at(h, from + t) + c, count);
        grad_dt += y * x, y *= step;
        if (a.skip) {
          y += gy * skip_of(h, c, count);
          R* sum = skip + h * E + c;
          write(sum, read(sum) + gy * x);
        }
        store(static_cast<T*>(a.grad_v) + out_at(h, from + t) + c, y, count);
      }
      if (a.dt) static_cast<R*>(a.grad_dt)[sum_at(h, from + t)] = sum<R>(grad_dt);
    }

    // Keys through the state that the chunk leaves, queries through the one that it finds.
    scale_rows(scaled, v, E, m, d.leave);
    multiply(dk, D, scaled, E, grad_t, D, m, columns, a.keys, Part::WHOLE, &ADD<R>);
    scale_rows(scaled, g, E, m, d.enter);
    multiply(from_state, D, scaled, E, past_t, D, m, columns, a.keys);
    for (int64_t t = 0; t < m; ++t) {
      reads[t] = a.grad_decay ? dot(from_state + t * D, q + t * D, D) : R(0);
      for (int64_t c = 0; c < D; c += LANES) write(dq + t * D + c, read(dq + t * D + c) + read(from_state + t * D + c));
    }
    if (a.grad_decay) sum_decays(h, from, m, d.through * dot(past_t, grad_t, columns * D));
    multiply<true>(grad, E, q, D, scaled, E, a.keys, m, columns, Part::WHOLE, &d.keep);
    transpose(grad_t, D, grad, E, a.keys, columns);
  }

  void write_shares(int64_t from, int64_t m) {
    const int64_t base = share * a.batch * a.length * a.groups * a.keys + b * a.grad_batch + g_index * a.grad_group;
    for (int64_t t = 0; t < m; ++t)
      for (int64_t c = 0; c < a.keys; c += LANES) {
        const int64_t place = base + (from + t) * a.grad_time + c;
        store(static_cast<R*>(a.grad_q) + place, read(dq + t * D + c), lanes(a.keys, c));
        store(static_cast<R*>(a.grad_k) + place, read(dk + t * D + c), lanes(a.keys, c));
      }
  }

  // The transposed states before the chunks of a piece: the first is kept, the others are made again.
  void make_states(int64_t piece, int64_t chunks) {
    for (int64_t h = 0; h < heads; ++h) read_state(start(piece), h, past + h * E * D, 1, D);
    for (int64_t c = 0; c + 1 < chunks; ++c) {
      const int64_t from = (piece * a.every + c) * a.block;
      read_chunk(from, a.block, false);
      for (int64_t h = 0; h < heads; ++h) {
        const Decays<R> d = decays(h, from, a.block);
        const R* before = past + (c * a.span + h) * E * D;
        R* after = past + ((c + 1) * a.span + h) * E * D;
        std::memcpy(after, before, sizeof(R) * E * D);
        read_values(h, from, a.block);
        scale_rows(scaled, v, E, a.block, d.leave);
        multiply<true>(after, D, scaled, E, k, D, columns, a.block, a.keys, Part::WHOLE, &d.keep);
      }
    }
  }

  void backward(int64_t unit) {
    take(unit);
    for (int64_t i = 0; i < a.span * D * E; ++i) grad[i] = grad_t[i] = 0;
    for (int64_t i = 0; i < a.span * E; ++i) skip[i] = 0;
    for (int64_t h = 0; a.grad_last && h < heads; ++h) {
      read_state(a.grad_last, h, grad + h * D * E, E, 1);
      read_state(a.grad_last, h, grad_t + h * E * D, 1, D);
    }
    const int64_t chunks = (a.length + a.block - 1) / a.block;
    for (int64_t piece = (chunks - 1) / a.every; piece >= 0; --piece) {
      const int64_t first = piece * a.every, count = chunks - first < a.every ? chunks - first : a.every;
      make_states(piece, count);
      for (int64_t c = count - 1; c >= 0; --c) {
        const int64_t from = (first + c) * a.block, m = a.length - from < a.block ? a.length - from : a.block;
        ahead = from - a.block;
        read_chunk(from, m, true);
        for (int64_t i = 0; i < m * P; ++i) sums[i] = 0;
        for (int64_t i = 0; i < m * D; ++i) dq[i] = dk[i] = 0;
        for (int64_t h = 0; h < heads; ++h) backward_head(h, from, m, past + (c * a.span + h) * E * D);
        multiply(dq, D, sums, P, k, D, m, m, a.keys, Part::LEFT, &ADD<R>);
        multiply<true>(dk, D, sums, P, q, D, m, m, a.keys, Part::LEFT_ACROSS, &ADD<R>);
        write_shares(from, m);
      }
    }
    for (int64_t h = 0; h < heads; ++h) {
      if (a.grad_initial) write_state(a.grad_initial, h, grad + h * D * E);
      for (int64_t c = 0; a.skip && c < columns; c += LANES) {
        R* to = static_cast<R*>(a.grad_skip) + (b * a.groups * a.per_group + head + h) * a.values + column + c;
        store(to, read(skip + h * E + c), lanes(columns, c));
      }
    }
  }
};

template <class T>
int run(const LinearArguments& a, bool backward) {
  const int64_t work = a.batch * a.length * a.groups * a.per_group * (a.keys + a.values);
  int status = OK;
#pragma omp parallel if (units(a) > 1 && work > PARALLEL_FROM)
  {
    Worker<T> worker(a, backward);
    if (!worker.memory) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units(a); ++unit)
      if (worker.memory) backward ? worker.backward(unit) : worker.forward(unit);
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
      return run<float>(*a, backward);
    case BFLOAT16:
      return run<bfloat16>(*a, backward);
    case FLOAT64:
      return run<double>(*a, backward);
    default:
      return BAD_SCALAR;
  }
}
