// Who sees whom in neighborhood attention: windows along one axis, their inverse, and lanes along the last axis.
//
// The rule is that of foveate/ops/neighborhood_windows.py. Along an axis a query sees an interval of keys, and because
// both ends of the interval grow with the query, a key is seen by an interval of queries: the backward pass reads the
// same tables the other way round.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <new>
#include <type_traits>

#include "vector.h"

namespace foveate {

// The direction of a table: what each query sees, or what each key is seen by.
enum Direction : int { QUERIES = 0, KEYS = 1 };

// The whole number that is as wide as R.
template <class R>
using whole = std::conditional_t<sizeof(R) == 4, int32_t, int64_t>;

// Memory that may not be had: `memory` is null then.
template <class X>
std::unique_ptr<X[]> room(int64_t count) {
  return std::unique_ptr<X[]>(new (std::nothrow) X[count > 0 ? count : 1]);
}

struct Axis {
  int64_t size, window, dilation, stride, causal;

  // How many positions `residue` has: those that are `residue` modulo the dilation see only each other.
  int64_t length(int64_t residue) const { return (size - residue + dilation - 1) / dilation; }
  int64_t longest() const { return length(0); }
  int64_t distances() const { return 2 * window - 1; }
};

// first[i] .. end[i] - 1 are the positions of the other side that belong to position i; both never decrease.
struct Windows {
  std::unique_ptr<int32_t[]> first, end;
  explicit operator bool() const { return first && end; }
};

// All `count` positions of one residue, from either side.
inline Windows windows(const Axis& axis, int64_t count, Direction direction) {
  Windows seen{room<int32_t>(count), room<int32_t>(count)};
  if (!seen) return seen;
  const int64_t w = axis.window, s = axis.stride, left = w / 2, right = w / 2 + w % 2 - 1;
  for (int64_t p = 0; p < count; ++p) {
    int64_t leader = p / s * s + (axis.causal ? s - 1 : s / 2), first;
    if (leader > count - 1) leader = count - 1;
    if (axis.causal) {
      first = leader - w + 1 > 0 ? leader - w + 1 : 0;
    } else {
      const int64_t centre = leader < left ? left : leader > count - 1 - right ? count - 1 - right : leader;
      first = centre - left;
    }
    seen.first[p] = static_cast<int32_t>(first);
    seen.end[p] = static_cast<int32_t>(axis.causal ? p + 1 : first + w);
  }
  if (direction == QUERIES) return seen;
  Windows by{room<int32_t>(count), room<int32_t>(count)};
  if (!by) return by;
  int64_t first = 0, end = 0;
  for (int64_t key = 0; key < count; ++key) {
    while (seen.end[first] <= key) ++first;
    while (end < count && seen.first[end] <= key) ++end;
    by.first[key] = static_cast<int32_t>(first), by.end[key] = static_cast<int32_t>(end);
  }
  return by;
}

// Neighbouring lanes of the last axis that are computed together.
//
// At step a, lane i meets position base + first[i] + a of the other side if a < seen[i]. Where the group is even,
// first[i] is i and all lanes have `steps` steps: plain loads do. Elsewhere lanes choose from two neighbouring
// registers, which reach `reach` steps at a time.
template <class R>
struct Group {
  vec_mask<R> first, seen;
  int64_t start, base, steps, reach;
  int count;
  bool even;
};

// The last axis in lanes: several heads (slots), and in each all residues, one after the other, so that lanes are full
// however short a row is. A position sees only its own slot and residue, as if at an edge.
template <class R>
struct Strip {
  std::unique_ptr<int32_t[]> slot, place, first, end;  // place: the index along the axis in memory
  std::unique_ptr<Group<R>[]> groups;
  int64_t length = 0, count = 0;
  explicit operator bool() const { return slot && place && first && end && groups; }
};

template <class R>
Strip<R> strip(const Axis& axis, int64_t slots, Direction direction) {
  Strip<R> s;
  s.length = slots * axis.size;
  s.slot = room<int32_t>(s.length), s.place = room<int32_t>(s.length);
  s.first = room<int32_t>(s.length), s.end = room<int32_t>(s.length);
  s.groups = room<Group<R>>(s.length);
  if (!s) return s;
  int64_t at = 0;
  for (int64_t slot = 0; slot < slots; ++slot)
    for (int64_t residue = 0; residue < axis.dilation; ++residue) {
      const int64_t count = axis.length(residue), begin = at;
      Windows w = windows(axis, count, direction);
      if (!w) return Strip<R>{};
      for (int64_t p = 0; p < count; ++p, ++at) {
        s.slot[at] = static_cast<int32_t>(slot), s.place[at] = static_cast<int32_t>(p * axis.dilation + residue);
        s.first[at] = static_cast<int32_t>(begin + w.first[p]), s.end[at] = static_cast<int32_t>(begin + w.end[p]);
      }
    }
  for (int64_t start = 0; start < s.length; start += s.groups[s.count++].count) {
    Group<R>& g = s.groups[s.count];
    g.start = start, g.base = s.first[start], g.steps = 0, g.count = 0, g.even = true;
    // Two registers must reach every lane for a few steps.
    for (int64_t i = start; i < s.length && g.count < LANES && s.first[i] - g.base <= 2 * LANES - 4; ++i) ++g.count;
    for (int i = 0; i < LANES; ++i) {
      const int64_t lane = start + (i < g.count ? i : g.count - 1), seen = s.end[lane] - s.first[lane];
      g.first[i] = static_cast<whole<R>>(s.first[lane] - g.base), g.seen[i] = static_cast<whole<R>>(seen);
      if (seen > g.steps) g.steps = seen;
    }
    for (int i = 0; i < g.count; ++i) g.even = g.even && g.first[i] == i && g.seen[i] == g.steps;
    g.reach = 2 * LANES - g.first[LANES - 1];
  }
  return s;
}

}  // namespace foveate
