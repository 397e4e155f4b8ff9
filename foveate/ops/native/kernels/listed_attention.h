// Attention to listed keys: the arguments, and what both passes do. For a block of queries the numbers of the keys that
// any of them may see are listed; a tile of its queries walks through tiles of the list and makes their scores.
//
// The list holds sinks and kept blocks, then what the window adds. Which of a tile's queries see a key follows from
// its number and from the part of the list it stands in.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention_tiles.h"

namespace foveate {

// Field for field what foveate/ops/native/block_sparse_attention.py fills in.
struct ListedArguments {
  int64_t scalar, batch, heads, key_heads, length, keys, width, value_width;
  int64_t block_q, block_k, most;       // most: numbers in each row of `indices`
  int64_t causal, window, sinks;        // of block-sparse attention
  int64_t left, right;                  // without blocks: a query sees keys so far from its own; -1: all
  int64_t sigmoid;                      // weights are sigmoids, not a softmax
  int64_t parts;                        // backward: of the query tiles, each with its own grad_k, grad_v and grad_bias
  // In numbers, not bytes; the last axis of q, k, v, grad_out, indices lies in neighbouring numbers.
  int64_t q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head, grad_batch, grad_time, grad_head;
  int64_t mask_batch, mask_key, blocks_batch, blocks_head, blocks_row, blocks_column;
  int64_t indices_batch, indices_head, indices_row, counts_batch, counts_head, counts_row;
  double scale;
  const void *q, *k, *v;            // (batch, length | keys, heads | key_heads, width | value_width), storage type
  const uint8_t *mask, *blocks;     // null, or 1 where visible: (batch, keys), (batch, heads, query and key blocks)
  const int32_t *indices, *counts;  // or: (batch, heads, query blocks, most), (batch, heads, query blocks)
  const void* bias;                 // null, or (heads), accumulator type; sigmoids only
  void* out;                        // (batch, length, heads, value_width)
  void* lse;                        // (batch, heads, length), accumulator type; binary logarithms, -infinity of nothing
  void* rest;                       // null, or as out: what rounding to the storage type took from it
  void* largest;                    // null, or (batch, heads, query blocks, key blocks), accumulator type
  const void *grad_out, *grad_lse;  // as out, strides of its own; null, or as lse, of natural logarithms
  void *grad_q, *grad_k, *grad_v;   // as q; (parts, as k and v) in accumulator type
  void* grad_bias;                  // (parts, batch, heads), accumulator type; sigmoids only
};

namespace {

constexpr int64_t FAR = int64_t{1} << 60;
constexpr int64_t RUN = 32;  // so many neighbouring keys are a tile of their own, for they need no packing

inline int64_t query_blocks(const ListedArguments& a) { return divided(a.length, a.block_q); }

// What one thread reads with: the arguments, the sample, head and queries it is at, their keys, and room for tiles.
template <class T>
struct ListReader {
  using R = acc<T>;
  using V = vec<R>;

  const ListedArguments& a;
  const int64_t D, E;  // widths, padded
  const int64_t columns;  // blocks of keys
  std::unique_ptr<V[]> memory;
  std::unique_ptr<int32_t[]> list, kept;
  int64_t size = 0, near_from = 0;                    // of the list; where the window's part begins
  int64_t right = FAR, near_right = FAR, reach = FAR;  // how far ahead each part is seen, and how far back the last one
  int64_t sinks = 0;                                  // how much of the list is sinks outside of kept blocks
  int64_t b = 0, h = 0, block = 0, first = 0, count = 0;  // sample, head, query block, first query and their number
  int64_t lanes = 0;                                      // the number of queries, padded
  Block<R> q, qt, k, v, scores;

  explicit ListReader(const ListedArguments& a)
      : a(a), D(padded(a.width)), E(padded(a.value_width)), columns(divided(a.keys, a.block_k)) {
    q.row = k.row = D, v.row = E;
    list.reset(new (std::nothrow) int32_t[a.keys]), kept.reset(new (std::nothrow) int32_t[columns]);
  }

  // Make room, cleared, for what both passes need and for `more`; whether there is room.
  bool room(std::initializer_list<std::pair<R**, int64_t>> more) {
    memory = make_room<R>({{&q.from, QUERIES * D},
                           {&qt.from, QUERIES * D},
                           {&k.from, KEYS * D},
                           {&v.from, KEYS * E},
                           {&scores.from, KEYS * QUERIES}},
                          more);
    return memory && list && kept;
  }

  int64_t key_head() const { return h / (a.heads / a.key_heads); }
  const T* k_at(int64_t key) const {
    return static_cast<const T*>(a.k) + b * a.k_batch + key * a.k_time + key_head() * a.k_head;
  }
  const T* v_at(int64_t key) const {
    return static_cast<const T*>(a.v) + b * a.v_batch + key * a.v_time + key_head() * a.v_head;
  }
  // Where query t of this sample and head begins in (batch, time, heads, numbers) and in (batch, heads, length).
  int64_t row_at(int64_t t, int64_t numbers) const { return ((b * a.length + t) * a.heads + h) * numbers; }
  int64_t lse_at() const { return (b * a.heads + h) * a.length + first; }
  // The key at which the tile's first query stands.
  int64_t here() const { return a.keys - a.length + first; }

  void push(int64_t from, int64_t to) {
    from = std::max<int64_t>(from, 0), to = least(to, a.keys);
    if (!a.mask) {
      int32_t* next = list.get() + size;
      for (int64_t key = from; key < to; ++key) *next++ = static_cast<int32_t>(key);
      size += std::max<int64_t>(to - from, 0);
      return;
    }
    const uint8_t* mask = a.mask + b * a.mask_batch;
    for (int64_t key = from; key < to; ++key)
      if (mask[key * a.mask_key]) list[size++] = static_cast<int32_t>(key);
  }

  // The kept blocks that begin before `stop`, ascending. Numbers that do not exist or do not ascend are left out: no
  // number may lead out of the memory, and no key may stand twice in the list.
  int64_t keep(int64_t stop) {
    int64_t many = 0;
    if (a.blocks) {
      const uint8_t* row = a.blocks + b * a.blocks_batch + h * a.blocks_head + block * a.blocks_row;
      for (int64_t j = 0, end = least(columns, divided(stop, a.block_k)); j < end; ++j)
        if (row[j * a.blocks_column]) kept[many++] = static_cast<int32_t>(j);
    } else {
      const int32_t* row = a.indices + b * a.indices_batch + h * a.indices_head + block * a.indices_row;
      const int64_t end = a.counts[b * a.counts_batch + h * a.counts_head + block * a.counts_row];
      for (int64_t i = 0, last = -1; i < least(end, a.most) && last * a.block_k < stop; ++i)
        if (row[i] > last && row[i] < columns) kept[many++] = row[i], last = row[i];
    }
    return many;
  }

  // Go to a block of queries and list its keys; tiles of its queries follow.
  void take(int64_t sample, int64_t head, int64_t number) {
    b = sample, h = head, block = number, size = sinks = 0;
    const int64_t begin = block * a.block_q + a.keys - a.length, end = least(begin + a.block_q, a.keys);
    if (!a.blocks && !a.indices) {
      near_from = 0, near_right = a.right < 0 ? FAR : a.right, reach = a.left < 0 ? FAR : a.left + 1;
      return push(a.left < 0 ? 0 : begin - a.left, a.right < 0 ? a.keys : end + a.right);
    }
    right = a.causal ? 0 : FAR, near_right = 0, reach = a.window;
    const int64_t stop = a.causal ? end : a.keys, many = keep(stop);
    auto outside = [&](int64_t from, int64_t to) {  // what no kept block has
      int64_t i = std::lower_bound(kept.get(), kept.get() + many, from / a.block_k) - kept.get();
      while (from < to) {
        const int64_t next = i < many ? kept[i] * a.block_k : to;
        push(from, least(next, to)), from = std::max(from, next + a.block_k), ++i;
      }
    };
    outside(0, least(a.sinks, stop));
    sinks = size;
    for (int64_t i = 0; i < many; ++i) push(kept[i] * a.block_k, least((kept[i] + 1) * a.block_k, stop));
    near_from = size;
    if (a.window) outside(std::max(begin - a.window + 1, a.sinks), end);
  }

  // Read a tile of the block's queries, scaled so that powers of two of their products are wanted, and transpose them;
  // whether there is such a tile.
  bool read_queries(int64_t tile) {
    first = block * a.block_q + tile * QUERIES;
    count = least(QUERIES, least((block + 1) * a.block_q, a.length) - first);
    if (count <= 0) return false;
    lanes = qt.row = scores.row = padded(count);
    pack(q, static_cast<const T*>(a.q) + b * a.q_batch + first * a.q_time + h * a.q_head, a.q_time, count, a.width);
    const R scale = static_cast<R>(a.scale * LOG2_E);
    for (int64_t i = 0; i < lanes * D; i += LANES) write(q.from + i, read(q.from + i) * scale);
    turn<R>(qt, q, lanes, D);
    return true;
  }

  // The first lane that sees the key at a place of the list, and the first one behind it that does not any more.
  int64_t low(int64_t place) const { return list[place] - (place < near_from ? right : near_right) - here(); }
  int64_t high(int64_t place) const { return place < near_from ? FAR : list[place] + reach - here(); }
  bool open(int64_t place) const { return low(place) <= 0 && high(place) >= count; }
  bool together(int64_t place, int64_t many) const { return list[place + many - 1] - list[place] == many - 1; }

  // Run `tile(first place, number of places, first lane, lane behind the last, whether some do not see all)`.
  template <class Tile>
  void over_keys(Tile tile) const {
    for (int64_t p = 0, many; p < size; p += many) {
      const int64_t most = (p < sinks ? sinks : p < near_from ? near_from : size) - p;  // each part ascends
      if (open(p)) {
        many = least(KEYS, most);
        while (!open(p + many - 1)) --many;
        if (!together(p, many) && many >= RUN && together(p, RUN)) {  // as far as they are neighbours
          int64_t run = RUN, apart = many;
          while (apart - run > 1) (together(p, (run + apart) / 2) ? run : apart) = (run + apart) / 2;
          many = run;
        }
        tile(p, many, int64_t{0}, count, false);
      } else {
        many = least(CORNER, most);
        const int64_t from = std::max<int64_t>(low(p), 0) / LANES * LANES, to = least(high(p + many - 1), count);
        if (from < to) tile(p, many, from, to, true);
      }
    }
  }

  // Rows of keys or values: where they are, or packed where numbers are narrow or others lie between.
  View<R> rows(Block<R> room, const T* base, int64_t row, int64_t place, int64_t many, int64_t numbers) const {
    if (together(place, many)) {
      if constexpr (std::is_same_v<T, R>) return {base + list[place] * row, row};
      pack_rows(room, base + list[place] * row, row, many, numbers);
    } else {
      for (int64_t i = 0; i < many; ++i)
        pack_rows({room.at(i), room.row}, base + list[place + i] * row, row, 1, numbers);
    }
    return room;
  }
  View<R> keys(int64_t place, int64_t many) const { return rows(k, k_at(0), a.k_time, place, many, a.width); }
  View<R> values(int64_t place, int64_t many) const { return rows(v, v_at(0), a.v_time, place, many, a.value_width); }

  // The scores of a tile, in lanes between two: -infinity where nothing is to be seen.
  void score(View<R> K, int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
    int64_t next = place + many;  // rows of the next tile are asked for, six after every six of this one
    auto ahead = [&] {
      for (const int64_t stop = least(next + ROWS, least(place + 2 * many, size)); next < stop; ++next)
        line(k_at(list[next]), a.width), line(v_at(list[next]), a.value_width);
    };
    multiply<false, R>({scores.at(0, from), lanes}, K, {qt.at(0, from), lanes}, many, a.width, to - from, Part::WHOLE,
                       OVERWRITE<R>, ahead);
    if (!guarded) return;
    V lane;
    for (int i = 0; i < LANES; ++i) lane[i] = static_cast<R>(i);
    for (int64_t r = 0; r < many; ++r) {
      const int64_t begin = low(place + r), end = high(place + r);
      if (begin <= from && end >= from + padded(to - from)) continue;
      for (int64_t n = from; n < to; n += LANES) {
        const R least_seen = static_cast<R>(std::clamp<int64_t>(begin - n, 0, LANES));
        const R next_hidden = static_cast<R>(std::clamp<int64_t>(end - n, 0, LANES));
        const V some = select<R>(lane < least_seen, splat(NEVER<R>), read(scores.at(r, n)));
        write(scores.at(r, n), select<R>(lane < next_hidden, some, splat(NEVER<R>)));
      }
    }
  }
};

// The sigmoids of a row of a tile, of powers of two, 0 where there is nothing to see.
template <class R>
FOVEATE_INLINE vec<R> gate(vec<R> score, vec<R> bias, bool guarded) {
  const vec<R> share = 1 / (1 + foveate::exp2(-score - bias));
  return guarded ? select<R>(score == NEVER<R>, vec<R>{}, share) : share;
}

}  // namespace
}  // namespace foveate
