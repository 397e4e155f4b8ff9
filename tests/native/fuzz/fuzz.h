// What every fuzz case is written with: random sizes, and buffers that end exactly where their last number does.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

// A small generator (splitmix64) whose cases follow from their number alone.
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(next() % (high - low + 1)); }
  bool coin() { return next() & 1; }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f * 2 - 1; }
};

[[noreturn]] inline void fail(const char* kernel, const char* what, int64_t value = 0) {
  std::fprintf(stderr, "%s: %s (%lld)\n", kernel, what, static_cast<long long>(value));
  std::abort();
}

// Numbers of a storage type (0 float32, 1 bfloat16, 2 float64) in memory of their own, so that the sanitizer sees the
// first number before or behind them that is touched. Results begin as NaN: one that is left is one not written.
class Buffer {
 public:
  Buffer(int64_t scalar, int64_t count) : scalar_(scalar), count_(count), bytes_(count * size(scalar)), memory_(new char[bytes_]) {
    std::memset(memory_.get(), 0xff, bytes_);
  }
  Buffer(int64_t scalar, int64_t count, Random& chance, float scale = 1, float offset = 0) : Buffer(scalar, count) {
    for (int64_t i = 0; i < count; ++i) set(i, scale * chance.uniform() + offset);
  }

  void* data() { return memory_.get(); }

  void check(const char* kernel, const char* name) const {
    for (int64_t i = 0; i < count_; ++i)
      if (!std::isfinite(get(i))) fail(kernel, name, i);
  }

 private:
  static int64_t size(int64_t scalar) { return scalar == 0 ? 4 : scalar == 1 ? 2 : 8; }

  void set(int64_t i, float value) {
    char* to = memory_.get() + i * size(scalar_);
    if (scalar_ == 2) {
      double wide = value;
      std::memcpy(to, &wide, 8);
    } else {  // the first half of a little-endian float's bytes is what bfloat16 leaves out
      char bytes[4];
      std::memcpy(bytes, &value, 4);
      std::memcpy(to, scalar_ == 1 ? bytes + 2 : bytes, size(scalar_));
    }
  }
  double get(int64_t i) const {
    const char* from = memory_.get() + i * size(scalar_);
    double wide;
    if (scalar_ == 2) return std::memcpy(&wide, from, 8), wide;
    char bytes[4] = {};
    std::memcpy(scalar_ == 1 ? bytes + 2 : bytes, from, size(scalar_));
    float value;
    return std::memcpy(&value, bytes, 4), value;
  }

  int64_t scalar_, count_, bytes_;
  std::unique_ptr<char[]> memory_;
};

// The buffers of one case; they live as long as it.
struct Buffers {
  Random& chance;
  std::vector<std::unique_ptr<Buffer>> held;

  void* input(int64_t scalar, int64_t count, float scale = 1, float offset = 0) {
    held.push_back(std::make_unique<Buffer>(scalar, count, chance, scale, offset));
    return held.back()->data();
  }
  void* maybe(int64_t scalar, int64_t count) { return chance.coin() ? input(scalar, count) : nullptr; }
  void* output(int64_t scalar, int64_t count) {
    held.push_back(std::make_unique<Buffer>(scalar, count));
    return held.back()->data();
  }
  void check(const char* kernel, const char* name) const {
    for (const auto& buffer : held) buffer->check(kernel, name);
  }
};

// The type that sums are kept in: double for double, else float.
inline int64_t accumulator(int64_t scalar) { return scalar == 2 ? 2 : 0; }

// One random case each; they abort at a finding.
void fuzz_selective_scan(Random& chance);
void fuzz_causal_conv1d(Random& chance);
void fuzz_neighborhood_attention(Random& chance);
void fuzz_linear_attention(Random& chance);
void fuzz_softmax_attention(Random& chance);
void fuzz_block_sparse_attention(Random& chance);
void fuzz_shifted_window_attention(Random& chance);
void fuzz_sample_at(Random& chance);
void fuzz_epilogue(Random& chance);
void fuzz_depthwise_conv(Random& chance);
void fuzz_window_layer(Random& chance);
void fuzz_linear_few_rows(Random& chance);
