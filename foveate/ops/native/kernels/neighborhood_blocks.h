// What a task of neighborhood attention computes at a time: a block of lines, its biases, and which of them see a
// line.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "neighborhood_tasks.h"

namespace foveate {

constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

// Where one group's biases, or their gradients, stand: (distances in time, in height, steps), lanes innermost.
template <class T>
struct Table {
  using R = acc<T>;
  const Task<T>& task;
  const Group<R>& g;
  int64_t steps;
  vec<R>* memory;

  static int64_t room(const NeighborhoodArguments& a) {
    return a.axis[0].distances() * a.axis[1].distances() * (a.axis[2].window + a.axis[2].window);
  }

  vec<R>* at(int64_t t, int64_t y) const {  // distances of key from query
    const NeighborhoodArguments& a = task.p.a;
    const int64_t line = (t + a.axis[0].window - 1) * a.axis[1].distances() + y + a.axis[1].window - 1;
    return memory + line * steps;
  }

  // work(lane, number in the heads' table of one instance's head, entry here) for every bias that is used.
  template <class Work>
  void each(Work work) const {
    const NeighborhoodArguments& a = task.p.a;
    const int64_t lines = a.axis[0].distances() * a.axis[1].distances();
    for (int lane = 0; lane < g.count; ++lane)
      for (int64_t s = 0; s < g.seen[lane]; ++s) {
        const int64_t ahead = g.base + g.first[lane] + s - (g.start + lane);  // of the other side
        const int64_t column = (task.p.direction == QUERIES ? ahead : -ahead) + a.axis[2].window - 1;
        for (int64_t line = 0; line < lines; ++line)
          work(lane, line * a.axis[2].distances() + column, line * steps + s);
      }
  }

  void read(int64_t member) const {
    const NeighborhoodArguments& a = task.p.a;
    const int64_t lines = a.axis[0].distances() * a.axis[1].distances(), numbers = lines * a.axis[2].distances();
    for (int64_t i = 0; i < lines * steps; ++i) memory[i] = vec<R>{};
    each([&](int lane, int64_t number, int64_t entry) {
      const int64_t head = task.query_head(task.lanes.slot[g.start + lane], member);
      memory[entry][lane] = static_cast<const R*>(a.bias)[head * numbers + number] * static_cast<R>(LOG2_E);
    });
  }

  void clear() const {
    for (int64_t i = 0; i < task.p.a.axis[0].distances() * task.p.a.axis[1].distances() * steps; ++i)
      memory[i] = vec<R>{};
  }

  void add_to(R* gradients) const {
    const NeighborhoodArguments& a = task.p.a;
    const int64_t numbers = a.axis[0].distances() * a.axis[1].distances() * a.axis[2].distances();
    each([&](int lane, int64_t number, int64_t entry) {
      const int64_t slot = task.lanes.slot[g.start + lane];
      if (!task.has(slot)) return;
      gradients[(task.part * task.p.cut.instances + task.instance(slot)) * numbers + number] += memory[entry][lane];
    });
  }
};

// The lines first .. end - 1 of a block that see one line of the other side.
struct Seeing {
  int first, end;
  Seeing(const Windows& windows, int64_t y, int rows, int64_t line) : first(0), end(0) {
    while (first < rows && windows.end[y + first] <= line) ++first;
    for (end = first; end < rows && windows.first[y + end] <= line;) ++end;
  }
  int rows() const { return end - first; }
};

// Registers for the block of one task that is computed at a time.
template <class T>
struct Block {
  using R = acc<T>;
  using V = vec<R>;
  const Task<T>& task;
  std::unique_ptr<V[]> memory;
  V *own, *own_value, *sum, *sum_value, *scores, *slopes, *bias, *grad_bias;

  explicit Block(const Task<T>& task) : task(task) {
    const NeighborhoodArguments& a = task.p.a;
    const int64_t table = a.bias ? Table<T>::room(a) * task.p.members : 0, wide = ROWS * task.p.padded,
                  value = ROWS * task.p.value_padded;
    const int64_t sizes[] = {wide, value, wide, value, ROWS * HELD, ROWS * HELD, table, a.grad_bias ? table : 0};
    V** parts[] = {&own, &own_value, &sum, &sum_value, &scores, &slopes, &bias, &grad_bias};
    int64_t total = 0;
    for (int64_t size : sizes) total += size;
    memory = room<V>(total);
    V* next = memory.get();
    for (int i = 0; i < 8 && next; ++i) *parts[i] = next, next += sizes[i];
  }

  // Pack `rows` lines of one group; scale 1 but for q.
  void fill(const View<T, const T>& view, const Group<R>& g, int64_t t, int64_t y, int rows, int64_t used,
            int64_t padded, R scale, V* to) const {
    const T* tokens[LANES];
    for (int64_t next = y + ROWS; next < y + 2 * ROWS && next < task.y.end; ++next)
      view.ask_for(t, next, g.start, g.count, used);
    for (int r = 0; r < rows; ++r)
      pack<T>(tokens, view.tokens(t, y + r, g.start, g.count, tokens), used, padded, scale,
              reinterpret_cast<R*>(to + r * padded), LANES);
  }

  void give(const View<T, T>& view, const Group<R>& g, int64_t t, int64_t y, int64_t used, V scale,
            const V* from) const {
    T* tokens[LANES];
    unpack<T>(from, scale, used, tokens, view.tokens(t, y, g.start, g.count, tokens, true));
  }
};

// Call work(group, t, y, rows) for the blocks of a task; start(group) before those of a group, finish(group) after.
template <class T, class Start, class Work, class Finish>
void each_block(const Task<T>& task, Start start, Work work, Finish finish) {
  for (int64_t i = task.groups.begin; i < task.groups.end; ++i) {
    const Group<acc<T>>& g = task.lanes.groups[i];
    start(g);
    // Time runs inside: the next block in time sees mostly the same lines.
    for (int64_t y = task.y.begin; y < task.y.end; y += ROWS)
      for (int64_t t = task.t.begin; t < task.t.end; ++t)
        work(g, t, y, static_cast<int>(task.y.end - y < ROWS ? task.y.end - y : ROWS));
    finish(g);
  }
}

}  // namespace foveate
