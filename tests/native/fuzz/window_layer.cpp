// Random cases of whole layers of shifted window attention.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/window_layer.cpp"

#include "fuzz.h"

void fuzz_window_layer(Random& chance) {
  foveate::LayerArguments a{};
  foveate::ShiftedArguments& w = a.windows;
  Buffers room{chance, {}};
  w.batch = chance.between(1, 2), w.heads = chance.between(1, 3), w.value_width = w.width = chance.between(1, 34);
  w.slots = 1, w.scale = 0.3, w.masked = chance.coin(), w.dilated = chance.between(0, 3) == 0;
  const int64_t rank = chance.between(1, 3), dim = w.heads * w.width;
  int64_t step = dim + chance.between(0, 3);
  for (int i = 2; i >= 0; --i) {
    foveate::WindowAxis& axis = w.axis[i];
    const bool there = i >= 3 - rank;
    axis.window = there ? chance.between(1, rank == 3 ? 4 : 8) : 1, axis.size = there ? chance.between(1, rank == 3 ? 5 : 12) : 1;
    axis.shift = w.dilated ? 0 : chance.between(0, axis.window - 1);
    a.x_axis[i] = step, step = step * axis.size + chance.between(0, 3);
  }
  a.x_batch = step;
  int64_t last = (w.batch - 1) * a.x_batch + dim;
  for (int i = 0; i < 3; ++i) last += (w.axis[i].size - 1) * a.x_axis[i];
  const int64_t tokens = w.tokens();
  a.x = static_cast<const float*>(room.input(0, last));
  a.in_weight = static_cast<const float*>(room.input(0, 3 * dim * dim)), a.in_bias = static_cast<const float*>(room.maybe(0, 3 * dim));
  a.out_weight = static_cast<const float*>(room.input(0, dim * dim)), a.out_bias = static_cast<const float*>(room.maybe(0, dim));
  w.bias = room.maybe(0, w.heads * tokens * tokens);
  if (chance.coin()) {
    w.bias_head = tokens * tokens, w.bias_query = tokens, w.bias_key = 1;
  } else if (chance.coin()) {
    w.bias_head = 1, w.bias_query = tokens * w.heads, w.bias_key = w.heads;
  } else if (w.bias) {  // rows of a table, of which there are as many as tokens
    w.index_row = tokens + chance.between(0, 2);
    int64_t* index = new int64_t[tokens * w.index_row];
    w.bias = room.input(0, w.heads * tokens), w.bias_index = index;
    for (int64_t i = 0; i < tokens * w.index_row; ++i) index[i] = chance.between(0, tokens - 1);
  }
  a.y = static_cast<float*>(room.output(0, w.batch * w.places() * dim));
  if (int status = foveate_window_layer(&a)) fail("window_layer", "refused a legal case", status);
  room.check("window_layer", "a number that is not finite, at place");
  delete[] w.bias_index;

  // Illegal arguments must be refused before a pointer moves.
  foveate::LayerArguments bad = a;
  int64_t* sizes[] = {&bad.windows.batch, &bad.windows.heads, &bad.windows.width, &bad.windows.axis[1].size,
                      &bad.windows.axis[2].window, &bad.windows.axis[0].shift, &bad.x_batch, &bad.x_axis[2], &bad.windows.bias_key};
  *sizes[chance.between(0, 8)] = -chance.between(1, 5);
  if (!foveate_window_layer(&bad)) fail("window_layer", "took an illegal size");
  bad = a, bad.windows.value_width += 1;
  if (!foveate_window_layer(&bad)) fail("window_layer", "took values of another width");
  bad = a, bad.windows.by_window = 1;
  if (!foveate_window_layer(&bad)) fail("window_layer", "took biases of every window");
  bad = a, bad.windows.bias = nullptr, bad.windows.bias_index = bad.windows.q.axis;
  if (!foveate_window_layer(&bad)) fail("window_layer", "took an index without a table");
  bad = a, bad.windows.scalar = 2;
  if (!foveate_window_layer(&bad)) fail("window_layer", "took another type");
  bad = a;
  const float** pointers[] = {&bad.x, &bad.in_weight, &bad.out_weight};
  if (chance.coin())
    *pointers[chance.between(0, 2)] = nullptr;
  else
    bad.y = nullptr;
  if (!foveate_window_layer(&bad)) fail("window_layer", "took a null pointer");
}
