// Runs random cases of every kernel: main [cases of each kernel] [first case]. Built with sanitizers, which do the
// finding; a case is repeated by its number.
// SPDX-License-Identifier: Apache-2.0
#include "fuzz.h"

int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoll(arguments[1]) : 1000, first = count > 2 ? std::atoll(arguments[2]) : 0;
  struct {
    const char* name;
    void (*run)(Random&);
  } kernels[] = {{"selective_scan", fuzz_selective_scan},
                 {"causal_conv1d", fuzz_causal_conv1d},
                 {"neighborhood_attention", fuzz_neighborhood_attention},
                 {"linear_attention", fuzz_linear_attention},
                 {"softmax_attention", fuzz_softmax_attention},
                 {"block_sparse_attention", fuzz_block_sparse_attention},
                 {"shifted_window_attention", fuzz_shifted_window_attention},
                 {"sample_at", fuzz_sample_at},
                 {"epilogue", fuzz_epilogue},
                 {"depthwise_conv", fuzz_depthwise_conv},
                 {"window_layer", fuzz_window_layer},
                 {"linear_few_rows", fuzz_linear_few_rows}};
  for (auto& kernel : kernels) {
    for (int64_t i = first; i < first + cases; ++i) {
      std::fprintf(stdout, "\r%s: case %lld", kernel.name, static_cast<long long>(i));
      Random chance{static_cast<uint64_t>(i)};
      kernel.run(chance);
    }
    std::fprintf(stdout, "\r%s: %lld cases without a finding\n", kernel.name, static_cast<long long>(cases));
    std::fflush(stdout);
  }
  return 0;
}
