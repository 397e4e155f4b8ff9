// Random cases of neighborhood attention.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/neighborhood_attention.cpp"

#include "fuzz.h"

void fuzz_neighborhood_attention(Random& chance) {
  foveate::NeighborhoodArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2);
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 2), a.key_heads = chance.between(1, 3), a.heads = a.key_heads * chance.between(1, 2);
  a.width = chance.between(1, 20), a.value_width = chance.between(1, 20), a.scale = 0.3;
  const int64_t rank = chance.between(1, 3), largest[] = {0, 70, 6, 3};
  const bool biased = chance.coin();
  int64_t positions = 1, distances = 1;
  for (int i = 0; i < 3; ++i) {
    foveate::Axis& axis = a.axis[i];
    axis = {1, 1, 1, 1, 0};
    if (i < 3 - rank) continue;
    axis.window = chance.between(2, largest[rank]), axis.dilation = chance.coin() ? 1 : chance.between(1, 3);
    if (biased) axis.window |= 1;
    axis.stride = chance.coin() ? 1 : chance.between(1, axis.window), axis.causal = !biased && !chance.between(0, 3);
    axis.size = axis.window * axis.dilation + chance.between(0, largest[rank]);
    positions *= axis.size, distances *= 2 * axis.window - 1;
  }
  // Tensors (batch, head, time, height, width, numbers), or with the head behind the grid, and gaps anywhere.
  auto place = [&](foveate::Place& p, int64_t heads, int64_t numbers, bool gaps) {
    const bool behind = chance.coin();
    const int64_t sizes[] = {a.batch, heads, a.axis[0].size, a.axis[1].size, a.axis[2].size};
    int64_t* strides[] = {&p.batch, &p.head, &p.t, &p.y, &p.x};
    const int first[] = {4, 3, 2, 1, 0}, second[] = {1, 4, 3, 2, 0};
    int64_t next = numbers, end = numbers;
    for (int i = 0; i < 5; ++i) {
      const int axis = behind ? second[i] : first[i];
      *strides[axis] = next + (gaps ? chance.between(0, 2) : 0);
      end += (sizes[axis] - 1) * *strides[axis], next = sizes[axis] * *strides[axis];
    }
    return end;
  };
  a.q_data = room.input(a.scalar, place(a.q, a.heads, a.width, true), 3);
  a.k_data = room.input(a.scalar, place(a.k, a.key_heads, a.width, true), 3);
  a.v_data = room.input(a.scalar, place(a.v, a.key_heads, a.value_width, true));
  a.out_data = room.output(a.scalar, place(a.out, a.heads, a.value_width, false));
  a.grad_out_data = room.input(a.scalar, place(a.grad_out, a.heads, a.value_width, true));
  const int64_t queries = a.batch * a.heads * positions, keys = a.batch * a.key_heads * positions;
  a.lse = room.output(real, queries), a.grad_lse = room.input(real, queries), a.delta = room.output(real, queries);
  a.grad_q = room.output(a.scalar, queries * a.width);
  a.grad_k = room.output(a.scalar, keys * a.width), a.grad_v = room.output(a.scalar, keys * a.value_width);
  if (biased) {
    a.bias = room.input(real, a.heads * distances, 2);
    const int64_t sums = foveate_neighborhood_attention_parts(&a) * a.batch * a.heads * distances;
    a.grad_bias = room.output(real, sums);
    std::memset(a.grad_bias, 0, sums * (real == 2 ? 8 : 4));
  }
  for (int backward : {0, 1})
    if (int status = foveate_neighborhood_attention(&a, backward))
      fail("neighborhood_attention", "refused a legal case", status);
  room.check("neighborhood_attention", "a number that is not finite, at place");

  foveate::NeighborhoodArguments bad = a;
  foveate::Axis& last = bad.axis[2];
  int64_t* sizes[] = {&bad.batch,   &bad.heads,  &bad.key_heads,   &bad.width,  &bad.value_width, &bad.scalar, &bad.q.x,
                      &last.window, &last.stride, &last.dilation, &last.size, &bad.grad_out.batch};
  *sizes[chance.between(0, 11)] = -chance.between(1, 5);
  if (!foveate_neighborhood_attention(&bad, chance.coin())) fail("neighborhood_attention", "took an illegal size");
  bad = a, last.window = last.size / last.dilation + 1;
  if (!foveate_neighborhood_attention(&bad, chance.coin())) fail("neighborhood_attention", "took too large a window");
  bad = a, bad.heads = a.key_heads * 2 + 1;
  if (a.key_heads > 1 && !foveate_neighborhood_attention(&bad, 0)) fail("neighborhood_attention", "took odd heads");
  bad = a, (chance.coin() ? bad.q_data : bad.v_data) = nullptr;
  if (!foveate_neighborhood_attention(&bad, chance.coin())) fail("neighborhood_attention", "took a null pointer");
}
