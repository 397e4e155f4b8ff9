// Random cases of what stands behind a matrix product.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/epilogue.cpp"

#include "fuzz.h"

void fuzz_epilogue(Random& chance) {
  foveate::EpilogueArguments a{};
  Buffers room{chance, {}};
  a.rows = chance.between(1, chance.between(0, 9) ? 20 : 900), a.channels = chance.between(1, 150);
  a.function = chance.between(0, 3);
  auto layout = [&](int64_t& row) {
    row = a.channels + (chance.coin() ? 0 : chance.between(0, 5));
    return (a.rows - 1) * row + a.channels;
  };
  a.y = static_cast<float*>(room.input(0, layout(a.y_row), 8));
  a.bias = static_cast<const float*>(room.maybe(0, a.channels));
  if (chance.coin()) a.plus = static_cast<const float*>(room.input(0, layout(a.plus_row)));
  switch (chance.between(0, 2)) {
    case 0:
      break;
    case 1:  // one row of factors for all
      a.times = static_cast<const float*>(room.input(0, a.channels));
      break;
    default:
      a.times = static_cast<const float*>(room.input(0, layout(a.times_row)));
  }
  if (int status = foveate_epilogue(&a)) fail("epilogue", "refused a legal case", status);
  room.check("epilogue", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::EpilogueArguments bad = a;
  int64_t* sizes[] = {&bad.rows, &bad.channels, &bad.function, &bad.y_row, &bad.times_row, &bad.plus_row};
  *sizes[chance.between(0, 5)] = -chance.between(1, 5);
  if (!foveate_epilogue(&bad)) fail("epilogue", "took an illegal size");
  bad = a, bad.y = nullptr;
  if (!foveate_epilogue(&bad)) fail("epilogue", "took a null pointer");
}
