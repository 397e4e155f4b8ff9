// The arguments of linear attention, and what its two passes read: places of a unit of work, and decays of a chunk.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <memory>
#include <new>

#include "products.h"

namespace foveate {

constexpr int64_t MOST_BLOCK = 256;

struct LinearArguments {
  int64_t scalar, batch, length, groups, per_group, keys, values;
  int64_t block, every;  // positions of a chunk, chunks between kept states
  int64_t span, slice;   // heads and value columns of a unit
  int64_t constant;      // whether each head has one decay; then decay_batch and decay_time are 0
  // In numbers, not bytes; keys and values are neighbours in memory.
  int64_t q_batch, q_time, q_group, k_batch, k_time, k_group, v_batch, v_time, v_head;
  int64_t decay_batch, decay_time, decay_head, dt_batch, dt_time, dt_head;
  int64_t state_key, state_value;             // inside each of the caller's states
  int64_t out_batch, out_time, out_head;      // of out, grad_out and grad_v
  int64_t grad_batch, grad_time, grad_group;  // of a share of grad_q and grad_k
  const void *q, *k, *v;                      // storage type
  // Accumulator type, all but decay may be null: logarithms; (H, values); (batch, H) states.
  const void *decay, *dt, *skip, *initial;
  const uint8_t* reset;          // (batch, length) or null: nothing passes from before such a position
  void *out, *last, *starts;     // storage type; (batch, H) states or null; (pieces, batch, H) states
  const void *grad_out, *grad_last;  // backward only; as out; (batch, H) states or null
  void *grad_q, *grad_k, *grad_v;    // (shares, batch, length, groups, keys) in accumulator type; as out
  void *grad_decay, *grad_dt;        // (slices, batch, length, H); grad_decay may be null
  void *grad_skip, *grad_initial;    // (batch, H, values); (batch, H) states
};

namespace {

inline int64_t divided(int64_t numbers, int64_t by) { return (numbers + by - 1) / by; }
inline int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
inline int lanes(int64_t behind, int64_t at) { return static_cast<int>(least(behind - at, LANES)); }

// A unit of work: some heads of one group of one sample, and some columns of their values.
struct Unit {
  int64_t b, group, head, heads, column, columns;
  int64_t slice, share;  // which of the head's slices, which of the group's units

  static int64_t spans(const LinearArguments& a) { return divided(a.per_group, a.span); }
  static int64_t slices(const LinearArguments& a) { return divided(a.values, a.slice); }
  static int64_t count(const LinearArguments& a) { return a.batch * a.groups * spans(a) * slices(a); }

  Unit(const LinearArguments& a, int64_t number) {
    slice = number % slices(a), share = number % (spans(a) * slices(a));
    const int64_t first = share / slices(a) * a.span, sample = number / (spans(a) * slices(a));
    group = sample % a.groups, b = sample / a.groups;
    head = group * a.per_group + first, heads = least(a.span, a.per_group - first);
    column = slice * a.slice, columns = least(a.slice, a.values - column);
  }
};

// The decays of one chunk of one head.
template <class R>
struct Decays {
  View<R> rows;            // from j to i at (i, j); 0 behind the diagonal
  const R *enter, *leave;  // from before the chunk to i, from j to its last position
  R through;               // of the whole chunk
  Keep<R> keep;            // the same for a state: a small change where the decay is slow, so that it is rounded once

  void across(double total) {
    through = static_cast<R>(std::exp(total));
    keep = total > -0.5 ? Keep<R>{1, static_cast<R>(std::expm1(total))} : Keep<R>{0, through};
  }
};

// exp for logarithms of decays; below the range of normal numbers exactly 0, which slows no processor down.
template <class R>
inline void exponentials(R* numbers, int64_t count) {
  constexpr R LOWEST = sizeof(R) == 4 ? -86 : -700;
  for (int64_t i = 0; i < count; i += LANES) {
    const vec<R> x = read(numbers + i);
    write(numbers + i, select<R>(x < LOWEST, vec<R>{}, exp<R>(x)));
  }
}

// Rows of blocks, whose numbers behind the last are zeros up to whole registers.
template <class R>
inline void scale_row(R* to, const R* from, int64_t numbers, R by) {
  for (int64_t c = 0; c < numbers; c += LANES) write(to + c, read(from + c) * by);
}

template <class R>
inline R dot(const R* x, const R* y, int64_t numbers) {
  vec<R> total{};
  for (int64_t c = 0; c < numbers; c += LANES) total += read(x + c) * read(y + c);
  return sum<R>(total);
}

// What one thread reads with: the arguments, the unit it is at, and room for a chunk.
template <class T>
struct Reader {
  using R = acc<T>;
  using V = vec<R>;

  const LinearArguments& a;
  const int64_t P, D, E;  // positions of a chunk, keys, columns, all padded
  std::unique_ptr<V[]> memory;
  Block<R> q, k, kt, scores, weights, v, scaled, result, mask;
  R *factor, *enter, *leave, *tables, *entries;
  Unit at;
  View<R> Q, K;  // queries and keys of the chunk

  explicit Reader(const LinearArguments& a)
      : a(a), P(padded(a.block)), D(padded(a.keys)), E(padded(a.slice)), at(a, 0) {
    for (auto* block : {&q, &k}) block->row = D;
    for (auto* block : {&kt, &scores, &weights, &mask}) block->row = P;
    for (auto* block : {&v, &scaled, &result}) block->row = E;
  }

  // Make room, cleared, for what every pass needs and for `more`.
  void room(std::initializer_list<std::pair<R**, int64_t>> more) {
    const std::pair<R**, int64_t> own[] = {
        {&q.from, P * D},       {&k.from, P * D},      {&kt.from, D * P},     {&scores.from, P * P},
        {&weights.from, P * P}, {&v.from, P * E},      {&scaled.from, P * E}, {&result.from, P * E},
        {&mask.from, P * P},    {&factor, P},          {&enter, P},           {&leave, P},
        {&tables, a.span * (P + LANES)}, {&entries, a.span * P}};
    int64_t total = 0;
    for (auto& part : own) total += part.second;
    for (auto& part : more) total += part.second;
    memory.reset(new (std::nothrow) V[total / LANES]());
    if (!memory) return;
    R* next = reinterpret_cast<R*>(memory.get());
    for (auto& part : own) *part.first = next, next += part.second;
    for (auto& part : more) *part.first = next, next += part.second;
  }

  void take(int64_t unit) {
    at = Unit(a, unit);
    if (a.constant) fill_tables();
  }

  const T* q_at(const Unit& u, int64_t t) const {
    return static_cast<const T*>(a.q) + u.b * a.q_batch + t * a.q_time + u.group * a.q_group;
  }
  const T* k_at(const Unit& u, int64_t t) const {
    return static_cast<const T*>(a.k) + u.b * a.k_batch + t * a.k_time + u.group * a.k_group;
  }
  const T* v_at(const Unit& u, int64_t h, int64_t t) const {
    return static_cast<const T*>(a.v) + u.b * a.v_batch + t * a.v_time + (u.head + h) * a.v_head + u.column;
  }
  int64_t out_at(const Unit& u, int64_t h, int64_t t) const {
    return u.b * a.out_batch + t * a.out_time + (u.head + h) * a.out_head + u.column;
  }
  R decay(int64_t h, int64_t t) const {
    return static_cast<const R*>(a.decay)[at.b * a.decay_batch + t * a.decay_time + (at.head + h) * a.decay_head];
  }
  R dt(int64_t h, int64_t t) const {
    return a.dt ? static_cast<const R*>(a.dt)[at.b * a.dt_batch + t * a.dt_time + (at.head + h) * a.dt_head] : R(1);
  }
  V skip_of(int64_t h, int64_t c, int count) const {
    return load(static_cast<const R*>(a.skip) + (at.head + h) * a.values + at.column + c, count);
  }
  int64_t heads() const { return a.groups * a.per_group; }
  int64_t piece(int64_t number) const { return number * a.batch * heads() * a.keys * a.values; }

  // A caller's states to blocks and back.
  int64_t state_at(int64_t h) const {
    return (at.b * heads() + at.head + h) * a.keys * a.values + at.column * a.state_value;
  }
  void read_state(const void* from, int64_t h, R* to, int64_t key, int64_t value) const {
    const R* base = static_cast<const R*>(from) + state_at(h);
    for (int64_t i = 0; i < a.keys; ++i)
      for (int64_t j = 0; j < at.columns; ++j) to[i * key + j * value] = base[i * a.state_key + j * a.state_value];
  }
  void write_state(void* to, int64_t h, const R* from) const {
    R* base = static_cast<R*>(to) + state_at(h);
    for (int64_t i = 0; i < a.keys; ++i)
      if (a.state_value == 1)
        std::memcpy(base + i * a.state_key, from + i * E, sizeof(R) * at.columns);
      else
        for (int64_t j = 0; j < at.columns; ++j)
          base[i * a.state_key + j * a.state_value] = from[i * E + j];
  }

  // Constant decays, by falling distance from block - 1 to 0 and then nothing: row i of the triangle begins i earlier.
  void fill_tables() {
    for (int64_t h = 0; h < at.heads; ++h) {
      const R rate = decay(h, 0);
      R *table = tables + h * (P + LANES), *entry = entries + h * P;
      for (int64_t i = 0; i < P + LANES; ++i)
        table[i] = i < a.block ? rate * static_cast<R>(a.block - 1 - i) : -std::numeric_limits<R>::infinity();
      for (int64_t i = 0; i < P; ++i) entry[i] = rate * static_cast<R>(i + 1);
      exponentials(table, P + LANES), exponentials(entry, P);
    }
  }

  Decays<R> decays(int64_t h, int64_t from, int64_t m) {
    const uint8_t* reset = a.reset ? a.reset + at.b * a.length + from : nullptr;
    bool plain = a.constant;
    for (int64_t t = 0; reset && t < m; ++t) plain = plain && !reset[t];
    Decays<R> d;
    if (plain) {
      const R* table = tables + h * (P + LANES) + a.block;
      d.rows = {table - 1, -1}, d.enter = entries + h * P, d.leave = table - m;
      d.across(static_cast<double>(decay(h, 0)) * static_cast<double>(m));
      return d;
    }
    double total = 0, behind = 0;
    for (int64_t t = 0; t < m; ++t) {
      factor[t] = reset && reset[t] ? -std::numeric_limits<R>::infinity() : decay(h, from + t);
      total += factor[t], enter[t] = static_cast<R>(total);
    }
    for (int64_t t = m - 1; t >= 0; --t) leave[t] = static_cast<R>(behind), behind += factor[t];
    for (R* some : {factor, enter, leave}) exponentials(some, m);
    // Row after row: what decays to i decays to i - 1 first. Where nothing measurable is left, nothing is.
    constexpr R LEAST = std::numeric_limits<R>::min() * 16;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < i; j += LANES) {
        const V next = read(mask.at(i - 1, j)) * factor[i];
        write(mask.at(i, j), select<R>(next < LEAST, V{}, next));
      }
      for (int64_t j = i; j < padded(i + 1); ++j) *mask.at(i, j) = j == i;
    }
    d.rows = mask, d.enter = enter, d.leave = leave;
    d.across(total);
    return d;
  }

  // Rows of storage as a block: themselves where they are one already.
  View<R> block(Block<R> room, const T* from, int64_t from_row, int64_t m, int64_t columns) const {
    if constexpr (std::is_same_v<T, R>)
      if (from_row == columns && columns == room.row && m % LANES == 0) return {from, from_row};
    pack(room, from, from_row, m, columns);
    return room;
  }

  // Keys and, where outputs are wanted, queries and their products of a chunk; the same for all heads of the unit.
  void read_chunk(int64_t from, int64_t m, bool with_queries) {
    K = block(k, k_at(at, from), a.k_time, m, a.keys);
    if (!with_queries) return;
    Q = block(q, q_at(at, from), a.q_time, m, a.keys);
    transpose(kt, K, m, a.keys);
    multiply(scores, Q, kt, m, a.keys, m, Part::RESULT);
  }

  // Values with their weights, and the same as far as they leave the chunk.
  View<R> read_values(int64_t h, int64_t from, int64_t m, const R* leave) {
    const T* rows = v_at(at, h, from);
    const View<R> values = a.dt ? View<R>(v) : block(v, rows, a.v_time, m, at.columns);
    if (a.dt) {
      pack(v, rows, a.v_time, m, at.columns);
      for (int64_t t = 0; t < m; ++t) scale_row(v.at(t), v.at(t), at.columns, dt(h, from + t));
    }
    for (int64_t t = 0; t < m; ++t) scale_row(scaled.at(t), values.at(t), at.columns, leave[t]);
    return values;
  }

  void weigh(const Decays<R>& d, int64_t m) {
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; j += LANES) write(weights.at(i, j), read(scores.at(i, j)) * read(d.rows.at(i, j)));
  }
};

}  // namespace
}  // namespace foveate
