// Random cases of softmax attention.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/softmax_attention.cpp"

#include "fuzz.h"

void fuzz_softmax_attention(Random& chance) {
  foveate::SoftmaxArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2), a.scale = 0.3;
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 2), a.heads = chance.between(1, 3), a.causal = chance.coin();
  const int64_t longest = chance.between(0, 3) ? 20 : 140;
  a.length = chance.between(1, longest);
  a.keys = a.causal ? a.length + chance.between(0, longest) : chance.between(1, 2 * longest);
  const int64_t widest = chance.between(0, 5) ? 20 : 70;
  a.width = chance.between(1, widest), a.value_width = chance.between(1, widest), a.parts = chance.between(1, 3);

  // A tensor (batch, time, heads, numbers) with heads before or behind time, gaps, or one sample for all.
  auto rows = [&](int64_t times, int64_t numbers, int64_t& batch, int64_t& time, int64_t& head, float scale) {
    const int64_t gap = chance.coin() ? 0 : chance.between(0, 3);
    if (chance.coin())
      head = numbers + gap, time = a.heads * head;
    else
      time = numbers + gap, head = times * time;
    batch = chance.between(0, 3) ? a.heads * times * (numbers + gap) : 0;
    return room.input(a.scalar, (a.batch - 1) * batch + (times - 1) * time + (a.heads - 1) * head + numbers, scale);
  };
  a.q = rows(a.length, a.width, a.q_batch, a.q_time, a.q_head, 3);
  a.k = rows(a.keys, a.width, a.k_batch, a.k_time, a.k_head, 3);
  a.v = rows(a.keys, a.value_width, a.v_batch, a.v_time, a.v_head, 1);
  // A matrix (batch, heads, length, keys) that may be the same along any axis; returns how many numbers it has.
  auto matrix = [&](int64_t& batch, int64_t& head, int64_t& query, int64_t& key) {
    int64_t next = 1, end = 1;
    int64_t* strides[] = {&key, &query, &head, &batch};
    const int64_t sizes[] = {a.keys, a.length, a.heads, a.batch};
    for (int i = 0; i < 4; ++i) {
      *strides[i] = chance.between(0, 3) ? next : 0;
      end += (sizes[i] - 1) * *strides[i], next = *strides[i] ? next * sizes[i] + chance.between(0, 2) : next;
    }
    return end;
  };
  std::vector<uint8_t> mask, pairs;
  auto visible = [&](std::vector<uint8_t>& to, int64_t count) {
    const bool none = !chance.between(0, 9);
    for (int64_t i = 0; i < count; ++i) to.push_back(!none && chance.between(0, 2));
    to.shrink_to_fit();
    return to.data();
  };
  if (chance.coin()) {
    a.mask_key = chance.between(0, 2), a.mask_batch = chance.coin() ? a.keys * a.mask_key : 0;
    a.mask = visible(mask, (a.batch - 1) * a.mask_batch + (a.keys - 1) * a.mask_key + 1);
  }
  if (chance.coin()) a.pairs = visible(pairs, matrix(a.pairs_batch, a.pairs_head, a.pairs_query, a.pairs_key));
  if (chance.coin()) a.bias = room.input(real, matrix(a.bias_batch, a.bias_head, a.bias_query, a.bias_key), 2);
  const int64_t queries = a.batch * a.heads * a.length, keys = a.batch * a.heads * a.keys;
  a.out = room.output(a.scalar, queries * a.value_width), a.lse = room.output(real, queries);
  if (chance.coin()) a.rest = room.output(a.scalar, queries * a.value_width);
  a.grad_out = rows(a.length, a.value_width, a.grad_batch, a.grad_time, a.grad_head, 1);
  a.grad_q = room.output(a.scalar, queries * a.width);
  a.grad_k = room.output(real, a.parts * keys * a.width), a.grad_v = room.output(real, a.parts * keys * a.value_width);
  for (int backward : {0, 1})
    if (int status = foveate_softmax_attention(&a, backward)) fail("softmax_attention", "refused a legal case", status);
  room.check("softmax_attention", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::SoftmaxArguments bad = a;
  int64_t* sizes[] = {&bad.batch,  &bad.heads,  &bad.length,     &bad.keys,       &bad.width,    &bad.value_width,
                      &bad.parts,  &bad.scalar, &bad.q_time,     &bad.k_head,     &bad.v_batch,  &bad.grad_time,
                      &bad.mask_key, &bad.pairs_query, &bad.bias_key};
  *sizes[chance.between(0, 14)] = -chance.between(1, 5);
  if (!foveate_softmax_attention(&bad, chance.coin())) fail("softmax_attention", "took an illegal size");
  bad = a, bad.causal = 1, bad.length = a.keys + 1;
  if (!foveate_softmax_attention(&bad, 0)) fail("softmax_attention", "took more queries than keys");
  bad = a, (chance.coin() ? bad.q : bad.v) = nullptr;
  if (!foveate_softmax_attention(&bad, chance.coin())) fail("softmax_attention", "took a null pointer");
}
