// Random cases of linear attention, with constant and with variable decays.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/linear_attention.cpp"

#include "fuzz.h"

void fuzz_linear_attention(Random& chance) {
  foveate::LinearArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2);
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 2), a.length = chance.between(1, 60);
  a.groups = chance.between(1, 2), a.per_group = chance.between(1, 3);
  a.keys = chance.between(1, chance.between(0, 9) ? 20 : 70);
  a.values = chance.between(1, chance.between(0, 9) ? 20 : 70);
  a.block = chance.between(1, 40), a.every = chance.between(1, 3), a.constant = chance.coin();
  a.span = chance.between(1, a.per_group), a.slice = chance.between(1, a.values);
  const int64_t heads = a.groups * a.per_group;

  // A tensor (batch, time, part, width) with neighbouring numbers in each row, and parts before or behind time.
  auto rows = [&](int64_t type, int64_t parts, int64_t width, int64_t& batch, int64_t& time, int64_t& part, float scale,
                  float offset) {
    const int64_t gap = chance.coin() ? 0 : chance.between(0, 3);
    if (chance.coin())
      part = width + gap, time = parts * part;
    else
      time = width + gap, part = a.length * time;
    batch = parts * a.length * (width + gap);
    const int64_t last = (a.batch - 1) * batch + (a.length - 1) * time + (parts - 1) * part + width;
    return room.input(type, last, scale, offset);
  };
  a.q = rows(a.scalar, a.groups, a.keys, a.q_batch, a.q_time, a.q_group, 1, 0);
  a.k = rows(a.scalar, a.groups, a.keys, a.k_batch, a.k_time, a.k_group, 1, 0);
  a.v = rows(a.scalar, heads, a.values, a.v_batch, a.v_time, a.v_head, 1, 0);
  const float scale = chance.coin() ? 0.5f : 50.0f;
  if (a.constant)
    a.decay = room.input(real, heads, scale, -scale), a.decay_head = 1;
  else
    a.decay = rows(real, heads, 1, a.decay_batch, a.decay_time, a.decay_head, scale, -scale);
  if (chance.coin()) a.dt = rows(real, heads, 1, a.dt_batch, a.dt_time, a.dt_head, 1, 1);
  a.skip = room.maybe(real, heads * a.values);
  const int64_t state = a.batch * heads * a.keys * a.values, whole = a.batch * a.length * heads * a.values;
  chance.coin() ? (a.state_key = a.values, a.state_value = 1) : (a.state_key = 1, a.state_value = a.keys);
  a.initial = room.maybe(real, state);
  std::vector<uint8_t> reset;
  if (chance.coin()) {
    for (int64_t i = 0; i < a.batch * a.length; ++i) reset.push_back(!chance.between(0, 9));
    a.reset = reset.data();
  }
  a.out_time = heads * a.values, a.out_head = a.values, a.out_batch = a.length * a.out_time;
  if (chance.coin()) a.out_time = a.values, a.out_head = a.length * a.values;
  a.out = room.output(a.scalar, whole);
  if (chance.coin()) a.last = room.output(real, state);
  a.starts = room.output(real, ((a.length + a.block - 1) / a.block + a.every - 1) / a.every * state);
  a.grad_out = room.input(a.scalar, whole), a.grad_last = room.maybe(real, state);
  a.grad_v = room.output(a.scalar, whole);
  a.grad_time = a.groups * a.keys, a.grad_group = a.keys, a.grad_batch = a.length * a.grad_time;
  const int64_t slices = (a.values + a.slice - 1) / a.slice, spans = (a.per_group + a.span - 1) / a.span;
  const int64_t shares = slices * spans * a.batch * a.grad_batch, sums = slices * a.batch * a.length * heads;
  a.grad_q = room.output(real, shares), a.grad_k = room.output(real, shares);
  if (chance.coin()) a.grad_decay = room.output(real, sums);
  if (a.dt) a.grad_dt = room.output(real, sums);
  if (a.skip) a.grad_skip = room.output(real, a.batch * heads * a.values);
  if (a.initial) a.grad_initial = room.output(real, state);
  for (int backward : {0, 1})
    if (int status = foveate_linear_attention(&a, backward)) fail("linear_attention", "refused a legal case", status);
  room.check("linear_attention", "a number that is not finite, at place");

  foveate::LinearArguments bad = a;
  int64_t* sizes[] = {&bad.batch, &bad.length, &bad.groups, &bad.per_group, &bad.keys, &bad.values, &bad.block,
                      &bad.every, &bad.span, &bad.slice, &bad.q_time, &bad.state_key, &bad.scalar};
  *sizes[chance.between(0, 12)] = -chance.between(1, 5);
  if (!foveate_linear_attention(&bad, chance.coin())) fail("linear_attention", "took an illegal size");
  bad = a, (chance.coin() ? bad.span : bad.slice) = 1000;
  if (!foveate_linear_attention(&bad, chance.coin())) fail("linear_attention", "took more than there is");
  bad = a, (chance.coin() ? bad.v : bad.decay) = nullptr;
  if (!foveate_linear_attention(&bad, chance.coin())) fail("linear_attention", "took a null pointer");
}
