// The selective scan (S6), forward and backward; the definition is reference in foveate/ops/selective_scan.py.
//
// Neighbouring channels are lanes. A channel's N states stay in the first-level cache while time runs, and the decays
// exp(delta A), most of the arithmetic, are made where they are used and never stored. The forward pass keeps the states
// before every `block` positions; the backward pass makes the states of one block again, then runs it in reverse. Sums
// over channels (the gradients of B and C) are collected in lanes over CHUNK groups of channels and added up once per position.
// What is computed in which order depends on sizes alone, so results do not change with the number of threads.
// SPDX-License-Identifier: Apache-2.0
#include <memory>
#include <new>
#include <type_traits>

#include "vector.h"

namespace foveate {

// Groups of lanes that share one sum over channels in the backward pass.
constexpr int64_t CHUNK = 8;

struct ScanArguments {
  int64_t scalar, batch, length, groups, per_group, states, block, softplus, variable_B, variable_C;
  // In numbers, not bytes. Channels, and the states of B and C, are neighbours in memory.
  int64_t u_batch, u_time, delta_batch, delta_time, z_batch, z_time, out_batch, out_time;
  int64_t B_batch, B_time, B_group, C_batch, C_time, C_group;
  const void *u, *delta, *z, *B, *C;             // storage type; z may be null; constant B and C as below
  const void *A, *D, *bias, *initial;            // accumulator type, contiguous; all but A may be null
  const uint8_t* reset;                          // (batch, length) or null
  void *out, *last, *starts;                     // forward: storage type; (batch, D, N); (blocks, batch, G, N, P)
  // Backward only. Gradients of u, delta and z are laid out as (batch, length, D), contiguous.
  const void *grad_out, *grad_last;
  void *grad_u, *grad_delta, *grad_z;            // storage type
  void *grad_A, *grad_D, *grad_bias;             // accumulator type: (batch, D, N), (batch, D), (batch, D)
  void *grad_B, *grad_C;                         // variable: (chunks, batch, length, G, N); constant: (batch, D, N)
  void* grad_initial;                            // (batch, D, N)
};

namespace {

int64_t slabs(const ScanArguments& a) { return (a.per_group + LANES - 1) / LANES; }
int64_t chunks(const ScanArguments& a) { return (slabs(a) + CHUNK - 1) / CHUNK; }

int check(const ScanArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.length, a.groups, a.per_group, a.states, a.block})
    if (size < 1) return BAD_SIZE;
  for (int64_t stride : {a.u_batch, a.u_time, a.delta_batch, a.delta_time, a.z_batch, a.z_time, a.out_batch, a.out_time,
                         a.B_batch, a.B_time, a.B_group, a.C_batch, a.C_time, a.C_group})
    if (stride < 0) return BAD_STRIDE;
  if (!a.u || !a.delta || !a.A || !a.B || !a.C || !a.starts) return BAD_POINTER;
  if (!backward && (!a.out || !a.last)) return BAD_POINTER;
  if (backward && (!a.grad_out || !a.grad_last || !a.grad_u || !a.grad_delta || !a.grad_A || !a.grad_B || !a.grad_C ||
                   !a.grad_initial || (a.z && !a.grad_z) || (a.D && !a.grad_D) || (a.bias && !a.grad_bias)))
    return BAD_POINTER;
  return OK;
}

// One group of neighbouring channels of one sample: its inputs, and its constants with lanes innermost.
template <class T>
struct Slab {
  using R = acc<T>;
  using V = vec<R>;

  const ScanArguments& a;
  int64_t b, g, first, channel;  // sample, group, first channel inside the group and in all
  int count;                     // channels in it
  V *A, *A2, *B, *C;             // (states): A, A log2(e); B and C where they are constant
  V D{}, bias{};

  // `fill`: whether the constants are still to be put into the room.
  Slab(const ScanArguments& a, int64_t b, int64_t g, int64_t slab, V* room, bool fill = true)
      : a(a), b(b), g(g), first(slab * LANES), channel(g * a.per_group + first) {
    count = static_cast<int>(a.per_group - first < LANES ? a.per_group - first : LANES);
    A = room, A2 = A + a.states, B = A2 + a.states, C = B + a.states;
    if (a.D) D = load(static_cast<const R*>(a.D) + channel, count);
    if (a.bias) bias = load(static_cast<const R*>(a.bias) + channel, count);
    if (!fill) return;
    columns(static_cast<const R*>(a.A), A);
    for (int64_t n = 0; n < a.states; ++n) A2[n] = A[n] * static_cast<R>(1.4426950408889634);
    if (!a.variable_B) columns(static_cast<const R*>(a.B), B);
    if (!a.variable_C) columns(static_cast<const R*>(a.C), C);
  }

  static int64_t room(const ScanArguments& a) { return 4 * a.states; }

  // Rows (channels, states) to lanes.
  void columns(const R* rows, V* to) const {
    for (int64_t n = 0; n < a.states; ++n) {
      V lanes{};
      for (int i = 0; i < count; ++i) lanes[i] = rows[(channel + i) * a.states + n];
      to[n] = lanes;
    }
  }

  void rows(const V* from, R* to) const {
    for (int64_t n = 0; n < a.states; ++n)
      for (int i = 0; i < count; ++i) to[(channel + i) * a.states + n] = from[n][i];
  }

  V read(const void* base, int64_t batch, int64_t time, int64_t t) const {
    return load(static_cast<const T*>(base) + b * batch + t * time + channel, count);
  }
  // Asks for what will soon be read, or written: rows lie too far apart for processors to foresee them.
  template <int write = 0>
  FOVEATE_INLINE void ask(const void* base, int64_t batch, int64_t time, int64_t t, int64_t behind = 0) const {
    __builtin_prefetch(static_cast<const T*>(base) + b * batch + t * time + channel + behind, write, 2);
  }
  V u(int64_t t) const { return read(a.u, a.u_batch, a.u_time, t); }
  V z(int64_t t) const { return read(a.z, a.z_batch, a.z_time, t); }
  V raw(int64_t t) const { return read(a.delta, a.delta_batch, a.delta_time, t) + bias; }
  V step(V raw) const { return a.softplus ? foveate::softplus<R>(raw) : raw; }
  const T* B_at(int64_t t) const { return static_cast<const T*>(a.B) + b * a.B_batch + t * a.B_time + g * a.B_group; }
  const T* C_at(int64_t t) const { return static_cast<const T*>(a.C) + b * a.C_batch + t * a.C_time + g * a.C_group; }
  bool starts_anew(int64_t t) const { return a.reset && a.reset[b * a.length + t]; }

  // Where the states before block i of these channels stand: N rows, P numbers apart.
  R* start(int64_t i) const {
    int64_t row = (i * a.batch + b) * a.groups + g;
    return static_cast<R*>(a.starts) + row * a.states * a.per_group + first;
  }

  // One step of the recurrence; `decay` receives the decays if they are kept. Returns the output before skip and gate.
  // `states` is a.states, or the same number known to the compiler; whether B and C vary is known to it too.
  template <bool keep, bool vary_B, bool vary_C>
  FOVEATE_INLINE V advance(int64_t states, int64_t t, V dt, V x, const V* before, V* h, V* decay) const {
    const T *Bt = B_at(t), *Ct = C_at(t);
    V dtx = dt * x, even{}, odd{};  // two sums: one would wait for itself
    auto state = [&](int64_t n) __attribute__((always_inline)) {
      V d = foveate::exp2(dt * A2[n]), Bn, Cn;
      if constexpr (vary_B) Bn = splat<R>(widen(Bt[n]));
      else Bn = B[n];
      if constexpr (vary_C) Cn = splat<R>(widen(Ct[n]));
      else Cn = C[n];
      V next = d * before[n] + dtx * Bn;
      h[n] = next;
      if constexpr (keep) decay[n] = d;
      return next * Cn;
    };
    int64_t n = 0;
#pragma GCC unroll 8
    for (; n + 1 < states; n += 2) even += state(n), odd += state(n + 1);
    if (n < states) even += state(n);
    return even + odd;
  }
};

// Calls `run` with what its loops should know when they are compiled: the number of states where it is Mamba's (else 0),
// and whether B and C vary.
template <class F>
void specialised(const ScanArguments& a, F run) {
  using Any = std::integral_constant<int64_t, 0>;
  using Sixteen = std::integral_constant<int64_t, 16>;
  if (a.variable_B && a.variable_C) {
    if (a.states == 16) return run(Sixteen{}, std::true_type{}, std::true_type{});
    return run(Any{}, std::true_type{}, std::true_type{});
  }
  if (a.variable_B) return run(Any{}, std::true_type{}, std::false_type{});
  if (a.variable_C) return run(Any{}, std::false_type{}, std::true_type{});
  run(Any{}, std::false_type{}, std::false_type{});
}

// `room` is for the states, which stay in registers where their number is known, and for two numbers of each position of
// a block.
template <class T, int64_t known, bool vary_B, bool vary_C>
void forward_slab(const Slab<T>& s, vec<acc<T>>* room) {
  using R = acc<T>;
  using V = vec<R>;
  const ScanArguments& a = s.a;
  const int64_t N = known ? known : a.states;
  V registers[known ? known : 1];
  V *h = known ? registers : room, *dt = room + a.states, *y = dt + a.block;
  for (int64_t n = 0; n < N; ++n) h[n] = V{};
  if (a.initial) s.columns(static_cast<const R*>(a.initial) + s.b * a.groups * a.per_group * N, h);
  for (int64_t from = 0; from < a.length; from += a.block) {
    R* start = s.start(from / a.block);
    for (int64_t n = 0; n < N; ++n) store(start + n * a.per_group, h[n], s.count);
    const int64_t steps = from + a.block < a.length ? a.block : a.length - from;
    // First what each position needs once, on its own: between the states its long chains of operations would wait.
    for (int64_t k = 0; k < steps; ++k) dt[k] = s.step(s.raw(from + k));
    for (int64_t k = 0; k < steps; ++k) {
      V x = s.u(from + k);
      const int64_t next = from + k + a.block < a.length ? from + k + a.block : from + k;
      s.ask(a.u, a.u_batch, a.u_time, next), s.ask(a.delta, a.delta_batch, a.delta_time, next);
      s.template ask<1>(a.out, a.out_batch, a.out_time, from + k);
      if (a.z) s.ask(a.z, a.z_batch, a.z_time, from + k);
      if (s.starts_anew(from + k))
        for (int64_t n = 0; n < N; ++n) h[n] = V{};
      y[k] = s.template advance<false, vary_B, vary_C>(N, from + k, dt[k], x, h, h, nullptr) + s.D * x;
    }
    for (int64_t k = 0; k < steps; ++k) {
      V open = y[k];
      if (a.z) {
        V z = s.z(from + k);
        open *= z * sigmoid<R>(z);
      }
      store(static_cast<T*>(a.out) + s.b * a.out_batch + (from + k) * a.out_time + s.channel, open, s.count);
    }
  }
  s.rows(h, static_cast<R*>(a.last) + s.b * a.groups * a.per_group * N);
}

template <class T>
int forward(const ScanArguments& a) {
  using V = vec<acc<T>>;
  const int64_t each = slabs(a), units = a.batch * a.groups * each, room = Slab<T>::room(a) + a.states + 2 * a.block;
  int status = OK;
#pragma omp parallel if (units > 1 && units * LANES * a.states * a.length > PARALLEL_FROM)
  {
    std::unique_ptr<V[]> memory(new (std::nothrow) V[room]);
    if (!memory) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit) {
      if (!memory) continue;
      Slab<T> s(a, unit / (a.groups * each), unit / each % a.groups, unit % each, memory.get());
      specialised(a, [&](auto N, auto vary_B, auto vary_C) {
        forward_slab<T, N(), vary_B(), vary_C()>(s, memory.get() + Slab<T>::room(a));
      });
    }
  }
  return status;
}

// What one thread needs for a chunk of slabs: everything of one block of time, lanes innermost.
template <class T>
struct Workspace {
  using V = vec<acc<T>>;
  std::unique_ptr<V[]> memory;
  V *constants, *zero, *h, *decay, *sum_B, *sum_C, *carry, *sum_A, *sum_D, *sum_bias, *x, *raw, *dt, *y, *inward, *step;

  explicit Workspace(const ScanArguments& a) {
    const int64_t N = a.states, K = a.block;
    const int64_t sizes[] = {Slab<T>::room(a) * CHUNK, N, (K + 1) * N, K * N, K * N, K * N, CHUNK * N, CHUNK * N,
                             CHUNK, CHUNK, K, K, K, K, K, K};
    V** parts[] = {&constants, &zero, &h, &decay, &sum_B, &sum_C, &carry, &sum_A, &sum_D, &sum_bias, &x, &raw, &dt, &y,
                    &inward, &step};
    int64_t total = 0;
    for (int64_t size : sizes) total += size;
    memory.reset(new (std::nothrow) V[total]);
    if (!memory) return;
    V* next = memory.get();
    for (int i = 0; i < 16; ++i) *parts[i] = next, next += sizes[i];
    for (int64_t n = 0; n < N; ++n) zero[n] = V{};
  }
};

// The gradients of one block of one slab; `from` is its first position, `n_steps` its length, `i` the slab's place.
template <class T, int64_t known, bool vary_B, bool vary_C>
void backward_block(const Slab<T>& s, const Workspace<T>& w, int64_t i, int64_t from, int64_t steps) {
  using R = acc<T>;
  using V = vec<R>;
  const ScanArguments& a = s.a;
  const int64_t N = known ? known : a.states, D = a.groups * a.per_group;
  const R* start = s.start(from / a.block);
  for (int64_t n = 0; n < N; ++n) w.h[n] = load(start + n * a.per_group, s.count);
  for (int64_t k = 0; k < steps; ++k) {
    w.x[k] = s.u(from + k), w.raw[k] = s.raw(from + k), w.dt[k] = s.step(w.raw[k]);
  }
  for (int64_t k = 0; k < steps; ++k) {
    const bool anew = s.starts_anew(from + k);
    const V* before = anew ? w.zero : w.h + k * N;
    V* decay = w.decay + k * N;
    const int64_t sample = a.length * D;  // gradients are laid out alike
    s.ask(a.grad_out, sample, D, from + k);
    s.template ask<1>(a.grad_u, sample, D, from + k), s.template ask<1>(a.grad_delta, sample, D, from + k);
    if (a.z) s.ask(a.z, a.z_batch, a.z_time, from + k), s.template ask<1>(a.grad_z, sample, D, from + k);
    w.y[k] = s.template advance<true, vary_B, vary_C>(N, from + k, w.dt[k], w.x[k], before, w.h + (k + 1) * N, decay);
    if (anew)
      for (int64_t n = 0; n < N; ++n) decay[n] = V{};
  }
  // As in the forward pass, what stands alone is apart from the recurrence: y becomes the gradient of what the gate takes.
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t t = from + k, place = (s.b * a.length + t) * D + s.channel;
    V gy = load(static_cast<const T*>(a.grad_out) + place, s.count);
    if (a.z) {
      V z = s.z(t), open = sigmoid<R>(z), y = w.y[k] + s.D * w.x[k];
      store(static_cast<T*>(a.grad_z) + place, gy * y * open * (1 + z * (1 - open)), s.count);
      gy *= z * open;
    }
    if (a.D) w.sum_D[i] += gy * w.x[k];
    w.y[k] = gy;
  }
  V *carry = w.carry + i * N, *sum_A = w.sum_A + i * N;
  for (int64_t k = steps - 1; k >= 0; --k) {
    const T *Bt = s.B_at(from + k), *Ct = s.C_at(from + k);
    const V *h = w.h + (k + 1) * N, *before = w.h + k * N, *decay = w.decay + k * N;
    V *sum_B = w.sum_B + (vary_B ? k * N : 0), *sum_C = w.sum_C + (vary_C ? k * N : 0);
    s.ask(a.u, a.u_batch, a.u_time, from + k, LANES);  // of the slab that comes next
    s.ask(a.delta, a.delta_batch, a.delta_time, from + k, LANES);
    const V gy = w.y[k], dt = w.dt[k], dtx = dt * w.x[k];
    V inward[2] = {}, step[2] = {};
    auto state = [&](int64_t n, int half) __attribute__((always_inline)) {
      V Bn, Cn;
      if constexpr (vary_B) Bn = splat<R>(widen(Bt[n]));
      else Bn = s.B[n];
      if constexpr (vary_C) Cn = splat<R>(widen(Ct[n]));
      else Cn = s.C[n];
      V g = carry[n] + gy * Cn;
      sum_C[n] += gy * h[n];
      sum_B[n] += g * dtx;
      inward[half] += g * Bn;
      V back = g * decay[n];
      carry[n] = back;
      back *= before[n];
      step[half] += back * s.A[n];
      sum_A[n] += back * dt;
    };
    int64_t n = 0;
#pragma GCC unroll 8
    for (; n + 1 < N; n += 2) state(n, 0), state(n + 1, 1);
    if (n < N) state(n, 0);
    w.inward[k] = inward[0] + inward[1], w.step[k] = step[0] + step[1];
  }
  for (int64_t k = 0; k < steps; ++k) {
    const int64_t place = (s.b * a.length + from + k) * D + s.channel;
    store(static_cast<T*>(a.grad_u) + place, w.y[k] * s.D + w.inward[k] * w.dt[k], s.count);
    V step = w.step[k] + w.inward[k] * w.x[k];
    if (a.softplus) step *= softplus_slope<R>(w.raw[k]);
    store(static_cast<T*>(a.grad_delta) + place, step, s.count);
    w.sum_bias[i] += step;
  }
}

// Write a chunk's sums over its channels at the positions of a block: (length, G, N) inside (chunks, batch, ...).
template <class T>
void write_sums(const ScanArguments& a, const vec<acc<T>>* sums, void* to, int64_t chunk, int64_t b, int64_t g,
                int64_t from, int64_t steps) {
  auto* base = static_cast<acc<T>*>(to) + (((chunk * a.batch + b) * a.length + from) * a.groups + g) * a.states;
  for (int64_t k = 0; k < steps; ++k)
    for (int64_t n = 0; n < a.states; ++n) base[k * a.groups * a.states + n] = sum<acc<T>>(sums[k * a.states + n]);
}

template <class T>
void backward_chunk(const ScanArguments& a, const Workspace<T>& w, int64_t b, int64_t g, int64_t chunk) {
  using R = acc<T>;
  using V = vec<R>;
  const int64_t N = a.states, K = a.block, D = a.groups * a.per_group, sample = b * D * N;
  const int64_t begin = chunk * CHUNK, end = begin + CHUNK < slabs(a) ? begin + CHUNK : slabs(a), count = end - begin;
  auto slab = [&](int64_t i, bool fill = false) {
    return Slab<T>(a, b, g, begin + i, w.constants + i * Slab<T>::room(a), fill);
  };
  for (int64_t i = 0; i < count; ++i) {
    Slab<T> s = slab(i, true);
    s.columns(static_cast<const R*>(a.grad_last) + sample, w.carry + i * N);
    for (int64_t n = 0; n < N; ++n) w.sum_A[i * N + n] = V{};
    w.sum_D[i] = w.sum_bias[i] = V{};
  }
  const bool constant = !a.variable_B || !a.variable_C;
  // Constant B and C have a sum over time for each channel: slab by slab, not over the chunk.
  for (int64_t i = 0; i < (constant ? count : 1); ++i) {
    const int64_t first = constant ? i : 0, behind = constant ? i + 1 : count;
    for (int64_t n = 0; n < N; ++n) w.sum_B[n] = w.sum_C[n] = V{};
    for (int64_t from = (a.length - 1) / K * K; from >= 0; from -= K) {
      const int64_t steps = from + K < a.length ? K : a.length - from;
      for (int64_t j = 0; j < steps * N; ++j) {
        if (a.variable_B) w.sum_B[j] = V{};
        if (a.variable_C) w.sum_C[j] = V{};
      }
      for (int64_t j = first; j < behind; ++j)
        specialised(a, [&](auto N, auto vary_B, auto vary_C) {
          backward_block<T, N(), vary_B(), vary_C()>(slab(j), w, j, from, steps);
        });
      // With one of them constant the other's sum is over one slab at a time: as many chunks as slabs.
      const int64_t place = constant ? begin + i : chunk;
      if (a.variable_B) write_sums<T>(a, w.sum_B, a.grad_B, place, b, g, from, steps);
      if (a.variable_C) write_sums<T>(a, w.sum_C, a.grad_C, place, b, g, from, steps);
    }
    if (!a.variable_B) slab(i).rows(w.sum_B, static_cast<R*>(a.grad_B) + sample);
    if (!a.variable_C) slab(i).rows(w.sum_C, static_cast<R*>(a.grad_C) + sample);
  }
  for (int64_t i = 0; i < count; ++i) {
    Slab<T> s = slab(i);
    s.rows(w.carry + i * N, static_cast<R*>(a.grad_initial) + sample);
    s.rows(w.sum_A + i * N, static_cast<R*>(a.grad_A) + sample);
    if (a.grad_D) store(static_cast<R*>(a.grad_D) + b * D + s.channel, w.sum_D[i], s.count);
    if (a.grad_bias) store(static_cast<R*>(a.grad_bias) + b * D + s.channel, w.sum_bias[i], s.count);
  }
}

template <class T>
int backward(const ScanArguments& a) {
  const int64_t each = chunks(a), units = a.batch * a.groups * each;
  int status = OK;
#pragma omp parallel if (units > 1 && a.batch * a.groups * a.per_group * a.states * a.length > PARALLEL_FROM)
  {
    Workspace<T> w(a);
    if (!w.memory) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static)
    for (int64_t unit = 0; unit < units; ++unit)
      if (w.memory) backward_chunk<T>(a, w, unit / (a.groups * each), unit / each % a.groups, unit % each);
  }
  return status;
}

}  // namespace
}  // namespace foveate

// How many partial sums over channels the gradients of variable B and C come in.
FOVEATE_EXPORT int64_t foveate_selective_scan_chunks(const foveate::ScanArguments* a) {
  return a->variable_B && a->variable_C ? foveate::chunks(*a) : foveate::slabs(*a);
}

FOVEATE_EXPORT int foveate_selective_scan(const foveate::ScanArguments* a, int backward) {
  using namespace foveate;
  if (int bad = check(*a, backward)) return bad;
  switch (a->scalar) {
    case FLOAT32:
      return backward ? foveate::backward<float>(*a) : forward<float>(*a);
    case BFLOAT16:
      return backward ? foveate::backward<bfloat16>(*a) : forward<bfloat16>(*a);
    case FLOAT64:
      return backward ? foveate::backward<double>(*a) : forward<double>(*a);
    default:
      return BAD_SCALAR;
  }
}
