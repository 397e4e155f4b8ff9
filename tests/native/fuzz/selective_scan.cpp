// Random cases of the selective scan.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/selective_scan.cpp"

#include "fuzz.h"

void fuzz_selective_scan(Random& chance) {
  foveate::ScanArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2);
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 3), a.length = chance.between(1, 40);
  a.groups = chance.between(1, 3), a.per_group = chance.between(1, chance.between(0, 9) ? 20 : 300);
  a.states = chance.between(1, 17), a.block = chance.between(1, 20), a.softplus = chance.coin();
  a.variable_B = chance.coin(), a.variable_C = chance.coin();
  const int64_t channels = a.groups * a.per_group;

  // A tensor (batch, time, ...) with `width` neighbouring numbers in each row.
  auto rows = [&](int64_t width, int64_t& batch, int64_t& time, float scale, float offset) {
    time = width + chance.between(0, 3), batch = a.length * time + chance.between(0, 3);
    return room.input(a.scalar, (a.batch - 1) * batch + (a.length - 1) * time + width, scale, offset);
  };
  a.u = rows(channels, a.u_batch, a.u_time, 1, 0);
  a.delta = rows(channels, a.delta_batch, a.delta_time, a.softplus ? 3.0f : 0.1f, a.softplus ? 0.0f : 0.2f);
  if (chance.coin()) a.z = rows(channels, a.z_batch, a.z_time, 3, 0);
  auto map = [&](bool variable, int64_t& batch, int64_t& time, int64_t& group) {
    if (!variable) return room.input(real, channels * a.states);
    group = a.states;
    return rows(a.groups * a.states, batch, time, 1, 0);
  };
  a.B = map(a.variable_B, a.B_batch, a.B_time, a.B_group);
  a.C = map(a.variable_C, a.C_batch, a.C_time, a.C_group);
  a.A = room.input(real, channels * a.states, 1, -1.1f);
  a.D = room.maybe(real, channels), a.bias = room.maybe(real, channels);
  const int64_t states = a.batch * channels * a.states, whole = a.batch * a.length * channels;
  a.initial = room.maybe(real, states);
  std::vector<uint8_t> reset;
  if (chance.coin()) {
    for (int64_t i = 0; i < a.batch * a.length; ++i) reset.push_back(!chance.between(0, 3));
    a.reset = reset.data();
  }
  a.out_time = channels, a.out_batch = a.length * channels;
  a.out = room.output(a.scalar, whole), a.last = room.output(real, states);
  a.starts = room.output(real, (a.length + a.block - 1) / a.block * states);
  a.grad_out = room.input(a.scalar, whole), a.grad_last = room.input(real, states);
  a.grad_u = room.output(a.scalar, whole), a.grad_delta = room.output(a.scalar, whole);
  if (a.z) a.grad_z = room.output(a.scalar, whole);
  a.grad_A = room.output(real, states), a.grad_initial = room.output(real, states);
  if (a.D) a.grad_D = room.output(real, a.batch * channels);
  if (a.bias) a.grad_bias = room.output(real, a.batch * channels);
  const int64_t sums = foveate_selective_scan_chunks(&a) * a.batch * a.length * a.groups * a.states;
  a.grad_B = room.output(real, a.variable_B ? sums : states);
  a.grad_C = room.output(real, a.variable_C ? sums : states);
  for (int backward : {0, 1})
    if (int status = foveate_selective_scan(&a, backward)) fail("selective_scan", "refused a legal case", status);
  room.check("selective_scan", "a number that is not finite, at place");

  foveate::ScanArguments bad = a;
  int64_t* sizes[] = {&bad.batch, &bad.length, &bad.groups, &bad.per_group, &bad.states, &bad.block, &bad.u_time, &bad.scalar};
  *sizes[chance.between(0, 7)] = -chance.between(1, 5);
  if (!foveate_selective_scan(&bad, chance.coin())) fail("selective_scan", "took an illegal size");
  bad = a, (chance.coin() ? bad.u : bad.A) = nullptr;
  if (!foveate_selective_scan(&bad, chance.coin())) fail("selective_scan", "took a null pointer");
}
