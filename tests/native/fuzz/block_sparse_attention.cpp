// Random cases of block-sparse attention, and of sigmoid attention without blocks.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/block_sparse_attention.cpp"

#include "fuzz.h"

void fuzz_block_sparse_attention(Random& chance) {
  foveate::ListedArguments a{};
  Buffers room{chance, {}};
  a.scalar = chance.between(0, 2), a.scale = 0.3, a.sigmoid = chance.coin();
  const int64_t real = accumulator(a.scalar);
  a.batch = chance.between(1, 2), a.key_heads = chance.between(1, 2), a.heads = a.key_heads * chance.between(1, 3);
  a.causal = chance.coin(), a.window = chance.coin() ? 0 : chance.between(0, 40);
  a.sinks = chance.coin() ? 0 : chance.between(0, 40);
  const int64_t longest = chance.between(0, 3) ? 20 : 140;
  a.length = chance.between(1, longest);
  a.keys = a.causal || a.window ? a.length + chance.between(0, longest) : chance.between(1, 2 * longest);
  const int64_t widest = chance.between(0, 5) ? 20 : 70;
  a.width = chance.between(1, widest), a.value_width = chance.between(1, widest), a.parts = chance.between(1, 3);
  a.block_q = chance.between(1, chance.coin() ? 10 : 100), a.block_k = chance.between(1, chance.coin() ? 4 : 80);
  a.left = chance.between(-1, 30), a.right = chance.between(-1, 30), a.most = chance.between(1, 9);
  const int64_t rows_of_blocks = foveate::query_blocks(a), columns = foveate::divided(a.keys, a.block_k);

  // A tensor (batch, time, heads, numbers) with heads before or behind time, gaps, or one sample for all.
  auto rows = [&](int64_t times, int64_t heads, int64_t numbers, int64_t& batch, int64_t& time, int64_t& head,
                  float scale) {
    const int64_t gap = chance.coin() ? 0 : chance.between(0, 3);
    if (chance.coin())
      head = numbers + gap, time = heads * head;
    else
      time = numbers + gap, head = times * time;
    batch = chance.between(0, 3) ? heads * times * (numbers + gap) : 0;
    return room.input(a.scalar, (a.batch - 1) * batch + (times - 1) * time + (heads - 1) * head + numbers, scale);
  };
  a.q = rows(a.length, a.heads, a.width, a.q_batch, a.q_time, a.q_head, 3);
  a.k = rows(a.keys, a.key_heads, a.width, a.k_batch, a.k_time, a.k_head, 3);
  a.v = rows(a.keys, a.key_heads, a.value_width, a.v_batch, a.v_time, a.v_head, 1);
  std::vector<uint8_t> mask, blocks;
  std::vector<int32_t> indices, counts;
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
  // (batch, heads, rows, last) that may be the same for all samples or heads.
  auto strided = [&](int64_t last, int64_t& batch, int64_t& head, int64_t& row) {
    row = last + chance.between(0, 2), head = chance.coin() ? rows_of_blocks * row : 0;
    batch = chance.coin() ? a.heads * rows_of_blocks * row : 0;
    return (a.batch - 1) * batch + (a.heads - 1) * head + (rows_of_blocks - 1) * row + last;
  };
  const int64_t form = chance.between(0, a.sigmoid ? 2 : 1);  // a mask, lists, or neither
  if (form == 0) {
    a.blocks_column = 1;
    a.blocks = visible(blocks, strided(columns, a.blocks_batch, a.blocks_head, a.blocks_row));
  } else if (form == 1) {
    // Ascending as a rule, else any numbers: wrong ones must be passed over.
    const bool wild = !chance.between(0, 3);
    const int64_t many = strided(a.most, a.indices_batch, a.indices_head, a.indices_row);
    for (int64_t i = 0, last = 0; i < many; ++i) {
      last = i % a.indices_row ? last + chance.between(1, 3) : chance.between(0, 2);
      indices.push_back(static_cast<int32_t>(wild ? chance.between(-1000000, 1000000) : last));
    }
    for (int64_t i = 0, end = strided(1, a.counts_batch, a.counts_head, a.counts_row); i < end; ++i)
      counts.push_back(static_cast<int32_t>(wild ? chance.between(-9, 99) : chance.between(0, a.most)));
    indices.shrink_to_fit(), counts.shrink_to_fit();
    a.indices = indices.data(), a.counts = counts.data();
  }
  if (a.sigmoid && chance.coin()) a.bias = room.input(real, a.heads, 2);
  const int64_t queries = a.batch * a.heads * a.length, keys = a.batch * a.key_heads * a.keys;
  a.out = room.output(a.scalar, queries * a.value_width);
  std::vector<double> sums(queries);  // which may be -infinity
  if (!a.sigmoid) a.lse = sums.data();
  if (!a.sigmoid && chance.coin()) a.rest = room.output(a.scalar, queries * a.value_width);
  if (!a.sigmoid && chance.coin()) a.largest = room.output(real, a.batch * a.heads * rows_of_blocks * columns);
  if (!a.sigmoid && chance.coin()) a.grad_lse = room.input(real, queries);
  a.grad_out = rows(a.length, a.heads, a.value_width, a.grad_batch, a.grad_time, a.grad_head, 1);
  a.grad_q = room.output(a.scalar, queries * a.width);
  a.grad_k = room.output(real, a.parts * keys * a.width), a.grad_v = room.output(real, a.parts * keys * a.value_width);
  if (a.sigmoid && chance.coin()) a.grad_bias = room.output(real, a.parts * a.batch * a.heads);
  for (int backward : {0, 1})
    if (int status = foveate_block_sparse_attention(&a, backward))
      fail("block_sparse_attention", "refused a legal case", status);
  room.check("block_sparse_attention", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::ListedArguments bad = a;
  int64_t* sizes[] = {&bad.batch,     &bad.heads,   &bad.key_heads, &bad.length, &bad.keys,      &bad.width,
                      &bad.block_q,   &bad.block_k, &bad.parts,     &bad.scalar, &bad.window,    &bad.sinks,
                      &bad.q_time,    &bad.k_head,  &bad.v_batch,   &bad.grad_time, &bad.mask_key, &bad.blocks_row,
                      &bad.indices_head, &bad.counts_batch};
  *sizes[chance.between(0, 19)] = -chance.between(1, 5);
  if (!foveate_block_sparse_attention(&bad, chance.coin())) fail("block_sparse_attention", "took an illegal size");
  bad = a, bad.key_heads = a.heads + 1;
  if (!foveate_block_sparse_attention(&bad, 0)) fail("block_sparse_attention", "took heads that do not divide");
  bad = a, bad.causal = 1, bad.length = a.keys + 1;
  if (!foveate_block_sparse_attention(&bad, 0)) fail("block_sparse_attention", "took more queries than keys");
  bad = a, (chance.coin() ? bad.q : bad.v) = nullptr;
  if (!foveate_block_sparse_attention(&bad, chance.coin())) fail("block_sparse_attention", "took a null pointer");
}
