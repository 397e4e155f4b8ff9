// Random cases of the depthwise convolution.
// SPDX-License-Identifier: Apache-2.0
#include "../../../foveate/ops/native/kernels/depthwise_conv.cpp"

#include "fuzz.h"

void fuzz_depthwise_conv(Random& chance) {
  foveate::DepthwiseArguments a{};
  Buffers room{chance, {}};
  a.batch = chance.between(1, 3), a.channels = chance.between(1, 70);
  a.height = chance.between(1, 20), a.width = chance.between(1, 40);
  a.tall = chance.between(1, 9), a.wide = chance.between(1, 9), a.top = chance.between(0, 5), a.left = chance.between(0, 5);
  a.stride = chance.between(1, 2), a.function = chance.between(0, 3);
  if (a.tall > a.height + 2 * a.top) a.tall = a.height;
  if (a.wide > a.width + 2 * a.left) a.wide = a.width;
  a.rows = (a.height + 2 * a.top - a.tall) / a.stride + 1, a.columns = (a.width + 2 * a.left - a.wide) / a.stride + 1;
  a.x_column = a.channels + chance.between(0, 3), a.x_row = a.width * a.x_column + chance.between(0, 3);
  a.x_batch = a.height * a.x_row + chance.between(0, 3);
  const int64_t last = (a.batch - 1) * a.x_batch + (a.height - 1) * a.x_row + (a.width - 1) * a.x_column;
  a.x = static_cast<const float*>(room.input(0, last + a.channels));
  a.weight = static_cast<const float*>(room.input(0, a.channels * a.tall * a.wide));
  a.bias = static_cast<const float*>(room.maybe(0, a.channels));
  a.y = static_cast<float*>(room.output(0, a.batch * a.rows * a.columns * a.channels));
  if (int status = foveate_depthwise_conv(&a)) fail("depthwise_conv", "refused a legal case", status);
  room.check("depthwise_conv", "a number that is not finite, at place");

  // Illegal arguments must be refused before a pointer moves.
  foveate::DepthwiseArguments bad = a;
  int64_t* sizes[] = {&bad.batch, &bad.height, &bad.width,  &bad.channels, &bad.rows,    &bad.columns, &bad.tall,    &bad.wide,
                      &bad.top,   &bad.left,   &bad.stride, &bad.function, &bad.x_batch, &bad.x_row,   &bad.x_column};
  *sizes[chance.between(0, 14)] = -chance.between(1, 5);
  if (!foveate_depthwise_conv(&bad)) fail("depthwise_conv", "took an illegal size");
  bad = a, bad.stride = 3;
  if (!foveate_depthwise_conv(&bad)) fail("depthwise_conv", "took a stride of 3");
  bad = a, bad.tall = foveate::MOST_TAPS, bad.wide = 2;
  if (!foveate_depthwise_conv(&bad)) fail("depthwise_conv", "took a filter that it has no room for");
  bad = a;
  switch (chance.between(0, 2)) {
    case 0:
      bad.x = nullptr;
      break;
    case 1:
      bad.weight = nullptr;
      break;
    default:
      bad.y = nullptr;
  }
  if (!foveate_depthwise_conv(&bad)) fail("depthwise_conv", "took a null pointer");
}
