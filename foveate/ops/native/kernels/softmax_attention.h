// The arguments of softmax attention, and what both of its passes do: read a tile of queries, walk through the tiles of
// keys that it sees, and make their scores.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention_tiles.h"

namespace foveate {

// Field for field what foveate/ops/native/softmax_attention.py fills in.
struct SoftmaxArguments {
  int64_t scalar, batch, heads, length, keys, width, value_width;
  int64_t causal;  // query i sees keys up to keys - length + i
  int64_t parts;   // forward: of the keys; backward: of the queries, each with its own grad_k and grad_v
  // In numbers, not bytes; the last axis lies in neighbouring numbers.
  int64_t q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head, grad_batch, grad_time, grad_head;
  int64_t mask_batch, mask_key, pairs_batch, pairs_head, pairs_query, pairs_key;
  int64_t bias_batch, bias_head, bias_query, bias_key;
  double scale;
  const void *q, *k, *v;         // (batch, length | keys, heads, width | value_width), storage type
  const uint8_t *mask, *pairs;   // null, or 1 where visible: (batch, keys), (batch, heads, length, keys)
  const void* bias;              // null, or (batch, heads, length, keys), accumulator type
  void *out, *lse;               // (batch, length, heads, value_width); (batch, heads, length) in accumulator type
  void* rest;                    // null, or as out: what rounding to the storage type took from it
  const void* grad_out;          // as out, strides of its own
  void *grad_q, *grad_k, *grad_v;  // as q; (parts, as k and v) in accumulator type
};

namespace {

inline int64_t tiles_of(const SoftmaxArguments& a) { return divided(a.length, QUERIES); }

// What one thread reads with: the arguments, the sample, head and queries it is at, and room for tiles.
template <class T>
struct Reader {
  using R = acc<T>;
  using V = vec<R>;

  const SoftmaxArguments& a;
  const int64_t D, E;  // widths, padded
  std::unique_ptr<V[]> memory;
  std::unique_ptr<int64_t[]> seen;  // with a mask: the visible keys of sample `seen_of`, in order
  int64_t seen_of = -1, seen_count;
  int64_t b = 0, h = 0, first = 0, count = 0;  // sample, head, first query and number of queries
  int64_t lanes = 0;                           // the number of queries, padded
  Block<R> q, qt, k, v, scores, strip, across;

  explicit Reader(const SoftmaxArguments& a)
      : a(a), D(padded(a.width)), E(padded(a.value_width)), seen_count(a.keys) {
    q.row = k.row = D, v.row = E, strip.row = KEYS, across.row = LANES;
    if (a.mask) seen.reset(new (std::nothrow) int64_t[a.keys]);
  }

  // Make room, cleared, for what both passes need and for `more`; whether there is room.
  bool room(std::initializer_list<std::pair<R**, int64_t>> more) {
    memory = make_room<R>({{&q.from, QUERIES * D},
                           {&qt.from, QUERIES * D},
                           {&k.from, KEYS * D},
                           {&v.from, KEYS * E},
                           {&scores.from, KEYS * QUERIES},
                           {&strip.from, LANES * KEYS},
                           {&across.from, KEYS * LANES}},
                          more);
    return memory && (!a.mask || seen);
  }

  const T* k_at(int64_t key) const {
    return static_cast<const T*>(a.k) + b * a.k_batch + key * a.k_time + h * a.k_head;
  }
  const T* v_at(int64_t key) const {
    return static_cast<const T*>(a.v) + b * a.v_batch + key * a.v_time + h * a.v_head;
  }
  // Where row t of this sample and head begins in (batch, time, heads, numbers) and in (batch, heads, length).
  int64_t row_at(int64_t t, int64_t times, int64_t numbers) const { return ((b * times + t) * a.heads + h) * numbers; }
  int64_t lse_at() const { return (b * a.heads + h) * a.length + first; }

  // Go to a head of a sample; tiles of its queries follow.
  void take(int64_t sample, int64_t head) {
    b = sample, h = head;
    if (!a.mask || seen_of == b) return;
    seen_of = b, seen_count = 0;
    for (int64_t key = 0; key < a.keys; ++key)
      if (a.mask[b * a.mask_batch + key * a.mask_key]) seen[seen_count++] = key;
  }

  // Read the queries of a tile, scaled so that powers of two of their products are wanted, and transpose them.
  void read_queries(int64_t tile) {
    first = tile * QUERIES, count = least(QUERIES, a.length - first);
    lanes = qt.row = scores.row = padded(count);
    pack(q, static_cast<const T*>(a.q) + b * a.q_batch + first * a.q_time + h * a.q_head, a.q_time, count, a.width);
    const R scale = static_cast<R>(a.scale * LOG2_E);
    for (int64_t i = 0; i < lanes * D; i += LANES) write(q.from + i, read(q.from + i) * scale);
    turn<R>(qt, q, lanes, D);
  }

  // Visible keys are counted by places. The key at a place; the first place whose key is not before `key`.
  int64_t key_at(int64_t place) const { return a.mask ? seen[place] : place; }
  int64_t place_of(int64_t key) const {
    if (key <= 0) return 0;
    if (!a.mask) return least(key, a.keys);
    return std::lower_bound(seen.get(), seen.get() + seen_count, key) - seen.get();
  }

  // Run `tile(first place, number of places, first lane that sees any)` over the places from `begin` to `end`.
  template <class Tile>
  void over_keys(int64_t begin, int64_t end, Tile tile) const {
    int64_t open = end, last = end;
    if (a.causal) {
      const int64_t own = a.keys - a.length + first;  // the last key that the first query sees
      open = std::clamp(place_of(own + 1), begin, end), last = std::clamp(place_of(own + count), begin, end);
    }
    for (int64_t p = begin; p < open; p += KEYS) tile(p, least(KEYS, open - p), 0);
    for (int64_t p = open; p < last; p += CORNER)
      tile(p, least(CORNER, last - p), (key_at(p) - (a.keys - a.length + first)) / LANES * LANES);
  }

  // Rows of keys or values: where they are, or packed where numbers are narrow or masked ones lie between.
  View<R> rows(Block<R> room, const T* base, int64_t row, int64_t place, int64_t many, int64_t numbers) const {
    if (!a.mask) {
      if constexpr (std::is_same_v<T, R>) return {base + place * row, row};
      pack_rows(room, base + place * row, row, many, numbers);
    } else {
      for (int64_t i = 0; i < many; ++i)
        pack_rows({room.at(i), room.row}, base + seen[place + i] * row, row, 1, numbers);
    }
    return room;
  }
  View<R> keys(int64_t place, int64_t many) const { return rows(k, k_at(0), a.k_time, place, many, a.width); }
  View<R> values(int64_t place, int64_t many) const { return rows(v, v_at(0), a.v_time, place, many, a.value_width); }

  // Whether scores of a tile may be -infinity.
  bool guarded(int64_t place, int64_t many) const {
    return a.bias || a.pairs || (a.causal && key_at(place + many - 1) > a.keys - a.length + first);
  }

  // The scores of a tile, in lanes from `column` on: with bias, -infinity where nothing is to be seen.
  void score(View<R> K, int64_t place, int64_t many, int64_t column) {
    int64_t next = place + many;  // rows of the next tile are asked for, six after every six of this one
    auto ahead = [&] {
      for (const int64_t stop = least(next + ROWS, least(place + 2 * many, seen_count)); next < stop; ++next)
        line(k_at(key_at(next)), a.width), line(v_at(key_at(next)), a.value_width);
    };
    multiply<false, R>({scores.at(0, column), lanes}, K, {qt.at(0, column), lanes}, many, a.width, count - column,
                       Part::WHOLE, OVERWRITE<R>, ahead);
    if (a.bias)
      add(place, many, column, a.bias_query, a.bias_key,
          static_cast<const R*>(a.bias) + b * a.bias_batch + h * a.bias_head + first * a.bias_query,
          [](V x) { return x * static_cast<R>(LOG2_E); });
    if (a.pairs)
      add(place, many, column, a.pairs_query, a.pairs_key,
          a.pairs + b * a.pairs_batch + h * a.pairs_head + first * a.pairs_query, [](V x) { return x; });
    if (!a.causal) return;
    V lane;
    for (int i = 0; i < LANES; ++i) lane[i] = static_cast<R>(i);
    for (int64_t r = many; r-- > 0;) {
      const int64_t behind = key_at(place + r) - (a.keys - a.length + first);  // lanes before it do not see the key
      if (behind <= 0) break;
      for (int64_t n = column; n < least(behind, count); n += LANES)
        write(scores.at(r, n), select<R>(lane < static_cast<R>(behind - n), splat(NEVER<R>), read(scores.at(r, n))));
    }
  }

  static V numbers(const R* from, int some) { return load(from, some); }
  static V numbers(const uint8_t* from, int some) {
    R room[LANES] = {};
    for (int i = 0; i < some; ++i) room[i] = from[i] ? R(0) : NEVER<R>;
    V lanes;
    std::memcpy(&lanes, room, sizeof(lanes));
    return lanes;
  }

  // Add a matrix of queries times keys to the scores of a tile, in transposed strips of LANES queries.
  template <class N, class Change>
  void add(int64_t place, int64_t many, int64_t column, int64_t query, int64_t key, const N* from, Change change) {
    for (int64_t n = column; n < count; n += LANES) {
      for (int64_t i = 0; i < LANES; ++i)
        for (int64_t r = 0; r < many; r += LANES) {
          const int some = static_cast<int>(least(LANES, many - r));
          const N* row = from + (n + i) * query;
          N room[LANES] = {};
          if (n + i < count && (key != 1 || a.mask)) {
            for (int j = 0; j < some; ++j) room[j] = row[key_at(place + r + j) * key];
            row = room;
          } else {
            row = n + i < count ? row + place + r : room;
          }
          write(strip.at(i, r), change(numbers(row, some)));
        }
      turn<R>(across, strip, LANES, many);
      for (int64_t r = 0; r < many; ++r) write(scores.at(r, n), read(scores.at(r, n)) + read(across.at(r)));
    }
  }
};

}  // namespace
}  // namespace foveate
