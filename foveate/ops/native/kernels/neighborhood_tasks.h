// How neighborhood attention is cut into tasks, and what a task reads and writes.
//
// A task is a box of positions of a few heads and one residue per axis; it packs what the box sees and writes nothing
// that another task writes. How much is cut depends on sizes alone, so results do not change with the number of
// threads.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "neighborhood_lanes.h"

namespace foveate {

// Strides in numbers, not bytes; the numbers of a token are neighbours.
struct Place {
  int64_t batch, head, t, y, x;
};

struct NeighborhoodArguments {
  int64_t scalar, batch, heads, key_heads, width, value_width;
  Axis axis[3];  // time, height, width; axes that are not there have size 1
  Place q, k, v, out, grad_out;
  double scale;
  const void *q_data, *k_data, *v_data;  // storage type
  const void* bias;                      // accumulator type, (heads, distances of each axis), contiguous, or null
  void *out_data, *lse;                  // lse: accumulator type, (batch, heads, grid), contiguous
  // Backward only. lse and out are read then, gradients of q, k, v are contiguous, heads first.
  const void *grad_out_data, *grad_lse;    // storage type; accumulator type
  void *delta, *grad_q, *grad_k, *grad_v;  // delta: room for as many numbers as lse has
  void* grad_bias;                         // (parts, batch, heads, distances of each axis), zeros, or null
};

// Heads that are laid side by side in lanes.
constexpr int64_t MOST_SLOTS = 16;

// As few heads side by side as fill the lanes well.
inline int64_t slots_for(int64_t size, int64_t instances) {
  int64_t best = 1;
  double filled = 0;
  for (int64_t m = 1; m <= MOST_SLOTS && m <= instances && m * size <= 512 && filled < 0.92; ++m) {
    const int64_t lanes = (m * size + LANES - 1) / LANES * LANES;
    const double share = static_cast<double>(m * size) / lanes;
    if (share > filled + 0.05) filled = share, best = m;
  }
  return best;
}

// How the work of one direction is cut: units, and slabs of each along the first axis that has more than one position.
template <class R>
struct Cut {
  int64_t instances, slots, bundles, units, slabs = 1, each, along;
  Strip<R> lanes;

  Cut(const NeighborhoodArguments& a, Direction direction) {
    instances = a.batch * (direction == QUERIES ? a.heads : a.key_heads);
    slots = slots_for(a.axis[2].size, instances);
    bundles = (instances + slots - 1) / slots;
    units = bundles * a.axis[0].dilation * a.axis[1].dilation;
    lanes = strip<R>(a.axis[2], slots, direction);
    along = a.axis[0].longest() > 1 ? 0 : a.axis[1].longest() > 1 ? 1 : 2;
    // In lines, blocks of lines, or groups of lanes; neighbouring slabs pack a window's width twice.
    const int64_t unit = along == 0 ? 1 : along == 1 ? ROWS : LANES;
    const int64_t extent = along == 2 ? lanes.count : (a.axis[along].longest() + unit - 1) / unit;
    const int64_t least = 2 * ((a.axis[along].window + unit - 1) / unit);
    const int64_t numbers = a.axis[0].longest() * a.axis[1].longest() * lanes.length * (a.width + a.value_width);
    slabs = (8 + units - 1) / units;
    if (numbers >> 20 > slabs) slabs = numbers >> 20;
    if (slabs > extent / least) slabs = extent / least;
    if (slabs < 1) slabs = 1;
    each = (extent + slabs - 1) / slabs * (along == 1 ? ROWS : 1);
  }

  int64_t tasks() const { return units * slabs; }
};

// What all tasks of one direction share.
template <class T>
struct Problem {
  using R = acc<T>;
  const NeighborhoodArguments& a;
  Direction direction;
  Cut<R> cut;
  Windows outer[2][2];  // time and height; residues with fewer and with more positions
  int64_t members, padded, value_padded;

  Problem(const NeighborhoodArguments& a, Direction direction) : a(a), direction(direction), cut(a, direction) {
    for (int i = 0; i < 2; ++i)
      for (int more = 0; more < 2; ++more)
        outer[i][more] = windows(a.axis[i], a.axis[i].size / a.axis[i].dilation + more, direction);
    members = direction == QUERIES ? 1 : a.heads / a.key_heads;
    padded = (a.width + PADDING - 1) / PADDING * PADDING;
    value_padded = (a.value_width + PADDING - 1) / PADDING * PADDING;
  }

  bool made() const { return cut.lanes && outer[0][0] && outer[0][1] && outer[1][0] && outer[1][1]; }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

template <class T>
struct Task {
  using R = acc<T>;
  const Problem<T>& p;
  const Strip<R>& lanes;
  int64_t part, first_instance, residue[2];
  const Windows* seen[2];
  Range t, y, groups;               // the box
  Range other_t, other_y, other_x;  // what it sees

  Task(const Problem<T>& p, int64_t index) : p(p), lanes(p.cut.lanes) {
    const NeighborhoodArguments& a = p.a;
    const int64_t slab = index % p.cut.slabs, unit = index / p.cut.slabs;
    residue[1] = unit % a.axis[1].dilation, residue[0] = unit / a.axis[1].dilation % a.axis[0].dilation;
    first_instance = unit / (a.axis[0].dilation * a.axis[1].dilation) * p.cut.slots;
    part = (residue[0] * a.axis[1].dilation + residue[1]) * p.cut.slabs + slab;
    int64_t count[2];
    for (int i = 0; i < 2; ++i) {
      count[i] = a.axis[i].length(residue[i]);
      seen[i] = &p.outer[i][count[i] - a.axis[i].size / a.axis[i].dilation];
    }
    t = cut(0, slab, count[0]), y = cut(1, slab, count[1]), groups = cut(2, slab, lanes.count);
    if (empty()) return;
    other_t = {seen[0]->first[t.begin], seen[0]->end[t.end - 1]};
    other_y = {seen[1]->first[y.begin], seen[1]->end[y.end - 1]};
    const Group<R>& last = lanes.groups[groups.end - 1];
    other_x = {lanes.groups[groups.begin].base, lanes.end[last.start + last.count - 1]};
  }

  Range cut(int axis, int64_t slab, int64_t count) const {
    if (axis != p.cut.along) return {0, count};
    const int64_t begin = slab * p.cut.each, end = begin + p.cut.each;
    return {begin, end < count ? end : count};
  }

  bool empty() const { return t.size() < 1 || y.size() < 1 || groups.size() < 1; }
  int64_t time(int64_t local) const { return local * p.a.axis[0].dilation + residue[0]; }
  int64_t height(int64_t local) const { return local * p.a.axis[1].dilation + residue[1]; }
  // The last bundle may have slots without an instance: they repeat the last one and are not written.
  bool has(int64_t slot) const { return first_instance + slot < p.cut.instances; }
  int64_t instance(int64_t slot) const { return has(slot) ? first_instance + slot : p.cut.instances - 1; }
  int64_t batch(int64_t slot) const { return instance(slot) / own_heads(); }
  int64_t own_heads() const { return p.direction == QUERIES ? p.a.heads : p.a.key_heads; }
  // The head of queries or of keys that a slot, and the member of its group, stands for.
  int64_t query_head(int64_t slot, int64_t member) const {
    const int64_t head = instance(slot) % own_heads();
    return p.direction == QUERIES ? head : head * p.members + member;
  }
  int64_t key_head(int64_t slot) const {
    const int64_t head = instance(slot) % own_heads();
    return p.direction == QUERIES ? head * p.a.key_heads / p.a.heads : head;
  }
};

// A tensor as a task reads it, or writes it.
template <class T, class X>
struct View {
  X* base;
  Place place;
  const Task<T>& task;
  int64_t slot[MOST_SLOTS];

  View(const Task<T>& task, X* base, const Place& place, bool of_keys, int64_t member = 0)
      : base(base), place(place), task(task) {
    for (int64_t s = 0; s < task.p.cut.slots; ++s)
      slot[s] = task.batch(s) * place.batch + (of_keys ? task.key_head(s) : task.query_head(s, member)) * place.head;
  }

  // Where the number or token at local time and height, and at a place of the strip, begins.
  X* at(int64_t t, int64_t y, int64_t lane) const {
    return base + slot[task.lanes.slot[lane]] + task.time(t) * place.t + task.height(y) * place.y +
           task.lanes.place[lane] * place.x;
  }

  // Have these tokens in the cache when they are packed.
  void ask_for(int64_t t, int64_t y, int64_t start, int count, int64_t numbers) const {
    constexpr int64_t line = 64 / sizeof(X);
    for (int i = 0; i < count; ++i) {
      X* token = at(t, y, start + i);
      for (int64_t d = 0; d < numbers; d += line) __builtin_prefetch(token + d, 0, 2);
    }
  }

  // Where `count` lanes from `start` begin; how many there are (without slots that have no instance, if to be
  // written).
  int tokens(int64_t t, int64_t y, int64_t start, int count, X** found, bool written = false) const {
    int many = 0;
    for (; many < count && (!written || task.has(task.lanes.slot[start + many])); ++many)
      found[many] = at(t, y, start + many);
    return many;
  }
};

// Strides of a contiguous tensor (batch, heads, grid, numbers).
inline Place contiguous(const NeighborhoodArguments& a, int64_t heads, int64_t numbers) {
  const int64_t x = numbers, y = x * a.axis[2].size, t = y * a.axis[1].size, head = t * a.axis[0].size;
  return {head * heads, head, t, y, x};
}

// All rows that a task sees, packed: (time, height, numbers, positions along the strip).
template <class T>
struct Area {
  using R = acc<T>;
  std::unique_ptr<vec<R>[]> memory;
  Range t, y, x;
  int64_t numbers, width;

  Area(const Task<T>& task, int64_t numbers) : t(task.other_t), y(task.other_y), x(task.other_x), numbers(numbers) {
    width = (x.size() + LANES - 1) / LANES * LANES + 2 * LANES;
    memory = room<vec<R>>(t.size() * y.size() * numbers * (width / LANES));
  }
  explicit operator bool() const { return static_cast<bool>(memory); }

  R* row(int64_t line_t, int64_t line_y) const {
    return reinterpret_cast<R*>(memory.get()) + ((line_t - t.begin) * y.size() + line_y - y.begin) * numbers * width;
  }
  // Where a group begins to read row `first` of a line.
  const R* row(int64_t line_t, int64_t line_y, const Group<R>& g, int64_t first = 0) const {
    return row(line_t, line_y) + first * width + (g.base - x.begin);
  }

  // Tokens of `used` numbers, padded to `padded`, that become the rows from `first` on.
  void fill(const View<T, const T>& view, int64_t used, int64_t padded, int64_t first, R scale) const {
    const T* tokens[LANES];
    each_row([&](int64_t i, int64_t j, int64_t lane, int count, R* to) {
      if (j + 1 < y.end) view.ask_for(i, j + 1, lane, count, used);
      view.tokens(i, j, lane, count, tokens);
      pack<T>(tokens, count, used, padded, scale, to + first * width, width);
    });
  }

  // One number per position, of the accumulator type: row `first`.
  void fill(const View<T, const R>& view, int64_t first, R scale) const {
    each_row([&](int64_t i, int64_t j, int64_t lane, int count, R* to) {
      for (int n = 0; n < LANES; ++n) to[first * width + n] = n < count ? *view.at(i, j, lane + n) * scale : 0;
    });
  }

  template <class Work>
  void each_row(Work work) const {
    for (int64_t i = t.begin; i < t.end; ++i)
      for (int64_t j = y.begin; j < y.end; ++j) {
        R* to = row(i, j);
        for (int64_t lane = x.begin; lane < x.end; lane += LANES, to += LANES)
          work(i, j, lane, static_cast<int>(x.end - lane < LANES ? x.end - lane : LANES), to);
        // The last registers are read, though nothing of them is used.
        for (int64_t d = 0; d < numbers; ++d)
          std::memset(row(i, j) + (d + 1) * width - 2 * LANES, 0, 2 * LANES * sizeof(R));
      }
  }
};

}  // namespace foveate
