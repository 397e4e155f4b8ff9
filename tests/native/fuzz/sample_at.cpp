// Random cases of sampling at points.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/sample_at.cpp"

#include "fuzz.h"

void fuzz_sample_at(Random& chance) {
  foveate::SampleArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2);
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 2), a.heads = chance.between(1, 3);
  a.height = chance.between(1, 9), a.width = chance.between(1, 9);
  a.channels = chance.between(1, chance.between(0, 3) ? 20 : 150), a.points = chance.between(1, 150);

  // A map (batch, heads, height, width, numbers) with heads before or behind its pixels, gaps, or one sample for all.
  auto layout = [&](int64_t numbers, std::initializer_list<std::pair<int64_t*, int64_t>> axes, int64_t& head,
                    int64_t& batch) {
    const bool inner = chance.coin();
    int64_t next = numbers + (chance.coin() ? 0 : chance.between(0, 3)), last = numbers;
    if (inner) head = next, next *= a.heads;
    for (auto& axis : axes) *axis.first = next, last += (axis.second - 1) * next, next *= axis.second;
    if (!inner) head = next, next *= a.heads;
    batch = chance.between(0, 3) ? next : 0;
    return last + (a.heads - 1) * head + (a.batch - 1) * batch;
  };
  a.x = room.input(a.scalar,
                   layout(a.channels, {{&a.x_column, a.width}, {&a.x_row, a.height}}, a.x_head, a.x_batch));
  a.grad_out = room.input(a.scalar, layout(a.channels, {{&a.grad_point, a.points}}, a.grad_head, a.grad_batch));
  // Inside, at the edges, outside, and far away.
  const float scale = chance.between(0, 3) ? 12 : 1e30f, offset = scale > 20 ? 0 : 4;
  a.at = room.input(real, layout(2, {{&a.at_point, a.points}}, a.at_head, a.at_batch), scale, offset);
  const int64_t maps = a.batch * a.heads;
  a.out = room.output(a.scalar, maps * a.points * a.channels);
  a.grad_x = room.input(real, maps * a.height * a.width * a.channels, 0);
  a.grad_at = room.output(real, maps * a.points * 2);
  for (int backward : {0, 1})
    if (int status = foveate_sample_at(&a, backward)) fail("sample_at", "refused a legal case", status);
  room.check("sample_at", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::SampleArguments bad = a;
  int64_t* sizes[] = {&bad.batch,  &bad.heads, &bad.height,   &bad.width,      &bad.channels, &bad.points,
                      &bad.scalar, &bad.x_row, &bad.at_point, &bad.grad_point, &bad.x_batch};
  *sizes[chance.between(0, 10)] = -chance.between(1, 5);
  if (!foveate_sample_at(&bad, chance.coin())) fail("sample_at", "took an illegal size");
  bad = a, (chance.coin() ? bad.x : bad.at) = nullptr;
  if (!foveate_sample_at(&bad, chance.coin())) fail("sample_at", "took a null pointer");
}
