// The arguments of shifted window attention, and the tokens of a window: where they lie, and which see each other.
//
// What a shift brings round the edge of a grid does not see its new neighbours. So a window of tokens falls into
// groups, each of which attends to itself alone: nothing is masked, and what is not seen is not multiplied.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "attention_tiles.h"

namespace foveate {

struct WindowAxis {
  int64_t size, window, shift;
  int64_t count() const { return (size + window - 1) / window; }
  int64_t padded() const { return count() * window; }
};

// Strides in numbers, not bytes; the numbers of a token are neighbours.
struct WindowStrides {
  int64_t batch, axis[3], head;
};

// Field for field what foveate/ops/native/shifted_window_attention.py fills in.
struct ShiftedArguments {
  int64_t scalar, batch, heads, width, value_width;
  WindowAxis axis[3];  // time, height, width; axes that are not there have size 1
  int64_t dilated;     // a window is every so many-th place of the grid, not a block
  int64_t masked;      // padding is seen by nobody; else it is tokens with pad_k and pad_v
  int64_t by_window;   // every window has a bias of its own
  int64_t slots;       // backward: sets of windows, each with its own grad_bias, grad_pad_k and grad_pad_v
  WindowStrides q, k, v, grad;
  int64_t bias_window, bias_head, bias_query, bias_key, index_row;
  double scale;
  const void *q_data, *k_data, *v_data;    // (batch, grid, heads, numbers), storage type
  const void *bias, *pad_k, *pad_v;        // null, or accumulator type: (windows | 1, heads, n, n), (heads, numbers)
  void* out;                               // (batch, grid, heads, value_width)
  const void* grad_out;                    // as out, strides of its own
  void *grad_q, *grad_k, *grad_v;          // as q, k, v; contiguous
  void *grad_bias, *grad_pad_k, *grad_pad_v;  // null, or (slots, ...) as those, contiguous, accumulator type
  const int64_t* bias_index;  // null, or (n, n), forward: rows of the table (entries, heads) that `bias` is then

  int64_t windows() const { return axis[0].count() * axis[1].count() * axis[2].count(); }
  int64_t tokens() const { return axis[0].window * axis[1].window * axis[2].window; }
  int64_t places() const { return axis[0].size * axis[1].size * axis[2].size; }
};

namespace {

// Whether a grid can be cut like this, and counted.
inline bool possible_axes(const ShiftedArguments& a) {
  constexpr int64_t MOST = int64_t{1} << 24;  // places are counted in 32 bits
  int64_t places = 1, tokens = 1;
  for (const WindowAxis& axis : a.axis) {
    if (axis.size < 1 || axis.window < 1 || axis.shift < 0 || axis.shift >= axis.window) return false;
    if (axis.size > MOST || axis.window > MOST || (a.dilated && axis.shift)) return false;
    places *= axis.size, tokens *= axis.window;
    if (places > (MOST << 24) || tokens > MOST) return false;
  }
  return true;
}

// Whether biases can be read like this: all of them, or a table of them.
inline Status possible_biases(const ShiftedArguments& a) {
  for (int64_t stride : {a.bias_window, a.bias_head, a.bias_query, a.bias_key, a.index_row})
    if (stride < 0) return BAD_STRIDE;
  if (!a.bias_index) return OK;
  return !a.bias ? BAD_POINTER : a.by_window || a.grad_bias ? BAD_SIZE : OK;
}

// A token of a window: its number there, and its place on the grid; -1 for padding.
struct Token {
  int32_t number, place[3];
};

// Tokens of a window that see each other: the first `queries` are real, and all of the first `keys` are seen.
struct Group {
  const Token* token;
  int64_t queries, keys;
  bool whole;  // all of the window, in order
};

constexpr int MOST_GROUPS = 8;  // two along each axis

// The groups of a window at a time.
struct Window {
  const ShiftedArguments& a;
  const int64_t tokens;
  std::unique_ptr<Token[]> found, token;
  std::unique_ptr<uint8_t[]> region;
  int64_t number = -1;  // of the window
  Group group[MOST_GROUPS];
  int groups = 0;

  explicit Window(const ShiftedArguments& a)
      : a(a), tokens(a.tokens()), found(new (std::nothrow) Token[tokens]), token(new (std::nothrow) Token[tokens]),
        region(new (std::nothrow) uint8_t[tokens]) {}
  bool made() const { return found && token && region; }

  void take(int64_t which) {
    if (which == number) return;
    number = which;
    int64_t at[3], in[3], real[MOST_GROUPS] = {}, spare[MOST_GROUPS] = {};
    for (int i = 2; i >= 0; --i) at[i] = which % a.axis[i].count(), which /= a.axis[i].count();
    int32_t n = 0;
    for (in[0] = 0; in[0] < a.axis[0].window; ++in[0])
      for (in[1] = 0; in[1] < a.axis[1].window; ++in[1])
        for (in[2] = 0; in[2] < a.axis[2].window; ++in[2], ++n) {
          int side = 0;
          bool there = true;
          for (int i = 0; i < 3; ++i) {
            const WindowAxis& axis = a.axis[i];
            int64_t place = a.dilated ? in[i] * axis.count() + at[i] : at[i] * axis.window + in[i];
            side = side * 2 + (place >= axis.padded() - axis.shift);
            place += axis.shift;
            if (place >= axis.padded()) place -= axis.padded();
            there = there && place < axis.size, found[n].place[i] = static_cast<int32_t>(place);
          }
          found[n].number = n, region[n] = static_cast<uint8_t>(side), ++(there ? real : spare)[side];
          if (!there) found[n].place[0] = -1;
        }
    Token *next[2][MOST_GROUPS], *free = token.get();
    groups = 0;
    for (int side = 0; side < MOST_GROUPS; ++side) {
      const int64_t all = real[side] + spare[side];
      if (real[side]) group[groups++] = {free, real[side], a.masked ? real[side] : all, real[side] == tokens};
      next[1][side] = free, next[0][side] = free + real[side], free += all;
    }
    for (n = 0; n < tokens; ++n) *next[found[n].place[0] >= 0][region[n]]++ = found[n];
  }
};

}  // namespace
}  // namespace foveate
