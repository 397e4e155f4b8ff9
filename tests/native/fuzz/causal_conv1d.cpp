// Random cases of the causal depthwise convolution.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/causal_conv1d.cpp"

#include "fuzz.h"

void fuzz_causal_conv1d(Random& chance) {
  foveate::ConvArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2);
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 3), a.length = chance.between(1, 40), a.channels = chance.between(1, 50);
  a.taps = chance.between(1, 16), a.silu = chance.coin();
  a.x_time = a.channels + chance.between(0, 3), a.x_batch = a.length * a.x_time + chance.between(0, 3);
  a.x = room.input(a.scalar, (a.batch - 1) * a.x_batch + (a.length - 1) * a.x_time + a.channels);
  if (a.taps > 1 && chance.coin()) {
    const int64_t rows = a.taps - 1;
    a.before_time = a.channels + chance.between(0, 3), a.before_batch = rows * a.before_time + chance.between(0, 3);
    a.before = room.input(a.scalar, (a.batch - 1) * a.before_batch + (rows - 1) * a.before_time + a.channels);
    a.grad_before = room.output(a.scalar, a.batch * rows * a.channels);
  }
  a.weight = room.input(real, a.taps * a.channels);
  a.bias = room.maybe(real, a.channels);
  std::vector<int64_t> documents;
  if (chance.coin()) {
    for (int64_t i = 0; i < a.batch * a.length; ++i) documents.push_back(i % a.length ? documents.back() + !chance.between(0, 3) : 0);
    a.documents = documents.data();
  }
  const int64_t whole = a.batch * a.length * a.channels;
  a.y = room.output(a.scalar, whole);
  a.grad_y = room.input(a.scalar, whole);
  a.grad_x = room.output(a.scalar, whole);
  a.grad_weight = room.output(real, a.batch * a.taps * a.channels);
  if (a.bias) a.grad_bias = room.output(real, a.batch * a.channels);
  for (int backward : {0, 1})
    if (int status = foveate_causal_conv1d(&a, backward)) fail("causal_conv1d", "refused a legal case", status);
  room.check("causal_conv1d", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::ConvArguments bad = a;
  int64_t* sizes[] = {&bad.batch, &bad.length, &bad.channels, &bad.taps, &bad.x_time, &bad.scalar};
  *sizes[chance.between(0, 5)] = -chance.between(1, 5);
  if (!foveate_causal_conv1d(&bad, chance.coin())) fail("causal_conv1d", "took an illegal size");
  bad = a, (chance.coin() ? bad.x : bad.weight) = nullptr;
  if (!foveate_causal_conv1d(&bad, chance.coin())) fail("causal_conv1d", "took a null pointer");
}
