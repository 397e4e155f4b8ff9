// Random cases of shifted window attention.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/shifted_window_attention.cpp"

#include "fuzz.h"

void fuzz_shifted_window_attention(Random& chance) {
  foveate::ShiftedArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2), a.scale = 0.3;
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 2), a.heads = chance.between(1, 3);
  const int64_t widest = chance.between(0, 5) ? 20 : 70;
  a.width = chance.between(1, widest), a.value_width = chance.between(1, widest);
  const int rank = static_cast<int>(chance.between(1, 3));
  a.dilated = chance.coin(), a.masked = chance.coin(), a.by_window = chance.coin();
  for (int i = 0; i < 3; ++i) {
    foveate::WindowAxis& axis = a.axis[i];
    axis = {1, 1, 0};
    if (i < 3 - rank) continue;
    const int64_t most = rank == 1 ? 150 : rank == 2 ? 10 : 5;
    axis.window = chance.between(1, most), axis.size = chance.between(1, 2 * axis.window + 3);
    axis.shift = a.dilated ? 0 : chance.between(0, axis.window - 1);
  }
  const int64_t places = a.batch * a.places(), windows = a.windows(), n = a.tokens();
  a.slots = a.by_window ? windows : chance.between(1, 4);

  // A tensor (batch, grid, heads, numbers) with heads before or behind the grid, gaps, or one sample for all.
  auto rows = [&](int64_t numbers, foveate::WindowStrides& s, float scale) {
    const bool inner = chance.coin();
    int64_t next = numbers + (chance.coin() ? 0 : chance.between(0, 3));
    if (inner) s.head = next, next *= a.heads;
    for (int i = 2; i >= 0; --i) s.axis[i] = next, next *= a.axis[i].size;
    if (!inner) s.head = next, next *= a.heads;
    s.batch = chance.between(0, 3) ? next : 0;
    int64_t last = (a.batch - 1) * s.batch + (a.heads - 1) * s.head + numbers;
    for (int i = 0; i < 3; ++i) last += (a.axis[i].size - 1) * s.axis[i];
    return room.input(a.scalar, last, scale);
  };
  a.q_data = rows(a.width, a.q, 3), a.k_data = rows(a.width, a.k, 3), a.v_data = rows(a.value_width, a.v, 1);
  a.grad_out = rows(a.value_width, a.grad, 1);
  if (chance.coin()) {  // the same along any axis, or the next number along any
    const int64_t sizes[] = {n, n, a.heads, a.by_window ? windows : 1};
    int64_t* strides[] = {&a.bias_key, &a.bias_query, &a.bias_head, &a.bias_window};
    int64_t next = chance.between(1, 2), end = 1;
    for (int at = chance.coin(), i = 0; i < 4; ++i) {
      const int which = i < 2 ? at ^ i : i;
      *strides[which] = chance.between(0, 3) ? next : 0;
      end += (sizes[which] - 1) * *strides[which], next = *strides[which] ? next * sizes[which] : next;
    }
    a.bias = room.input(real, end, 2), a.grad_bias = room.output(real, a.slots * a.heads * n * n);
  }
  if (chance.coin())
    a.pad_k = room.input(real, a.heads * a.width), a.grad_pad_k = room.output(real, a.slots * a.heads * a.width);
  if (chance.coin())
    a.pad_v = room.input(real, a.heads * a.value_width),
    a.grad_pad_v = room.output(real, a.slots * a.heads * a.value_width);
  a.out = room.output(a.scalar, places * a.heads * a.value_width);
  a.grad_q = room.output(a.scalar, places * a.heads * a.width);
  a.grad_k = room.output(a.scalar, places * a.heads * a.width);
  a.grad_v = room.output(a.scalar, places * a.heads * a.value_width);
  for (int backward : {0, 1})
    if (int status = foveate_shifted_window_attention(&a, backward))
      fail("shifted_window_attention", "refused a legal case", status);
  room.check("shifted_window_attention", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::ShiftedArguments bad = a;
  int64_t* sizes[] = {&bad.batch,        &bad.heads,        &bad.width,     &bad.value_width, &bad.slots,
                      &bad.scalar,       &bad.axis[0].size, &bad.q.axis[1], &bad.axis[2].window,
                      &bad.axis[1].shift, &bad.k.head,      &bad.v.batch,   &bad.grad.axis[2], &bad.bias_query};
  *sizes[chance.between(0, 13)] = -chance.between(1, 5);
  if (!foveate_shifted_window_attention(&bad, chance.coin())) fail("shifted_window_attention", "took an illegal size");
  bad = a, bad.axis[2].shift = bad.axis[2].window;
  if (!foveate_shifted_window_attention(&bad, 0)) fail("shifted_window_attention", "took a shift by a window");
  bad = a, bad.axis[0].window = int64_t{1} << 40;
  if (!foveate_shifted_window_attention(&bad, 0)) fail("shifted_window_attention", "took a window without end");
  bad = a, (chance.coin() ? bad.q_data : bad.v_data) = nullptr;
  if (!foveate_shifted_window_attention(&bad, chance.coin())) fail("shifted_window_attention", "took a null pointer");
}
