// Random products of few rows.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/linear_few_rows.cpp"

#include "fuzz.h"

void fuzz_linear_few_rows(Random& chance) {
  foveate::FewRowsArguments a{};
  Buffers room{chance, {}};
  a.rows = chance.between(1, 20), a.inner = 16 * chance.between(1, chance.between(0, 9) ? 5 : 200);
  a.columns = chance.between(1, 30), a.x_row = a.inner + (chance.coin() ? 0 : chance.between(0, 5));
  a.x = static_cast<const float*>(room.input(0, (a.rows - 1) * a.x_row + a.inner));
  a.weight = static_cast<const float*>(room.input(0, a.columns * a.inner));
  a.bias = static_cast<const float*>(room.maybe(0, a.columns));
  a.y = static_cast<float*>(room.output(0, a.rows * a.columns));
  if (int status = foveate_linear_few_rows(&a)) fail("linear_few_rows", "refused a legal case", status);
  room.check("linear_few_rows", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::FewRowsArguments bad = a;
  int64_t* sizes[] = {&bad.rows, &bad.inner, &bad.columns, &bad.x_row};
  *sizes[chance.between(0, 3)] = -chance.between(1, 5);
  if (!foveate_linear_few_rows(&bad)) fail("linear_few_rows", "took an illegal size");
  bad = a, bad.inner += 1;
  if (!foveate_linear_few_rows(&bad)) fail("linear_few_rows", "took a part of a register");
  bad = a, bad.weight = nullptr;
  if (!foveate_linear_few_rows(&bad)) fail("linear_few_rows", "took a null pointer");
}
