// Attention to kept blocks of keys, and sigmoid attention to all of them, forward and backward; the definitions are
// `reference` in foveate/ops/block_sparse_attention.py and `_reference` in foveate/ops/sigmoid_attention.py.
//
// Both walk through the same lists of keys. Forward, a softmax has its running maximum; sigmoids simply add up. Backward,
// the weights are made again; the gradients of keys and values are added up over the tiles of queries.
// SPDX-License-Identifier: Apache-2.0
#include "listed_attention.h"

namespace foveate {
namespace {

int check(const ListedArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.heads, a.key_heads, a.length, a.keys, a.width, a.value_width, a.block_q, a.block_k,
                       a.parts})
    if (size < 1) return BAD_SIZE;
  if (a.heads % a.key_heads || a.window < 0 || a.sinks < 0 || a.left < -1 || a.right < -1) return BAD_SIZE;
  if (a.keys > std::numeric_limits<int32_t>::max() || (a.indices && a.most < 1)) return BAD_SIZE;
  if ((a.causal || a.window) && a.length > a.keys) return BAD_SIZE;
  for (int64_t stride :
       {a.q_batch, a.q_time, a.q_head, a.k_batch, a.k_time, a.k_head, a.v_batch, a.v_time, a.v_head, a.grad_batch,
        a.grad_time, a.grad_head, a.mask_batch, a.mask_key, a.blocks_batch, a.blocks_head, a.blocks_row,
        a.blocks_column, a.indices_batch, a.indices_head, a.indices_row, a.counts_batch, a.counts_head, a.counts_row})
    if (stride < 0) return BAD_STRIDE;
  if (!a.q || !a.k || !a.v || !a.out || (!a.lse && !a.sigmoid)) return BAD_POINTER;
  if (!a.indices != !a.counts) return BAD_POINTER;
  if (backward && (!a.grad_out || !a.grad_q || !a.grad_k || !a.grad_v)) return BAD_POINTER;
  return OK;
}

template <class R>
vec<R> bias_of(const ListedArguments& a, int64_t head) {
  return splat(a.bias ? static_cast<const R*>(a.bias)[head] * static_cast<R>(LOG2_E) : R(0));
}

template <class T>
struct ListForward : ListReader<T> {
  using typename ListReader<T>::R;
  using typename ListReader<T>::V;
  using ListReader<T>::a, ListReader<T>::E, ListReader<T>::first, ListReader<T>::count, ListReader<T>::lanes,
      ListReader<T>::scores, ListReader<T>::list;

  Block<R> sums, result;  // outputs, values in rows; the same with queries in rows
  R *top, *total, *factor;
  bool ready;

  explicit ListForward(const ListedArguments& a) : ListReader<T>(a) {
    result.row = E;
    ready = this->room({{&sums.from, E * QUERIES}, {&result.from, QUERIES * E}, {&top, QUERIES}, {&total, QUERIES},
                        {&factor, QUERIES}});
  }

  void soft_tile(int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
    int64_t n = from;
    for (; n + TOGETHER<R> * LANES <= to; n += TOGETHER<R> * LANES)
      soften<R, TOGETHER<R>>({scores.at(0, n), lanes}, many, guarded, top + n, total + n, factor + n);
    for (; n < to; n += LANES) soften<R, 1>({scores.at(0, n), lanes}, many, guarded, top + n, total + n, factor + n);
    weigh<R>({sums.at(0, from), lanes}, factor + from, this->values(place, many), {scores.at(0, from), lanes},
             a.value_width, many, to - from);
  }

  void sigmoid_tile(int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
    const V bias = bias_of<R>(a, this->h);
    for (int64_t r = 0; r < many; ++r)
      for (int64_t n = from; n < to; n += LANES) write(scores.at(r, n), gate<R>(read(scores.at(r, n)), bias, guarded));
    multiply<true, R>({sums.at(0, from), lanes}, this->values(place, many), {scores.at(0, from), lanes}, a.value_width,
                      many, to - from, Part::WHOLE, &ADD<R>);
  }

  void write_result() {
    for (int64_t n = 0; n < count; n += LANES) {
      const V all = read(total + n);
      write(factor + n, select<R>(all == 0, V{}, 1 / all));  // a query that sees nothing gives zeros
    }
    turn<R>(result, sums, a.value_width, lanes);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = this->row_at(first + i, a.value_width);
      const R share = a.sigmoid ? R(1) : factor[i];
      for (int64_t c = 0; c < a.value_width; c += LANES) {
        const int some = static_cast<int>(least(LANES, a.value_width - c));
        T* to = static_cast<T*>(a.out) + at + c;
        const V value = read(result.at(i, c)) * share;
        store(to, value, some);
        if (a.rest) store(static_cast<T*>(a.rest) + at + c, value - load(to, some), some);
      }
      if (!a.sigmoid)
        static_cast<R*>(a.lse)[this->lse_at() + i] =
            total[i] == 0 ? NEVER<R> : top[i] + std::log2(total[i]);
    }
  }

  // The largest weights of kept blocks, from scores that are made once more.
  void find_largest() {
    R* row = static_cast<R*>(a.largest) +
             ((this->b * a.heads + this->h) * query_blocks(a) + this->block) * this->columns;
    for (int64_t i = 0; i < lanes; ++i)  // what weights are to be taken of; none of lanes that see nothing
      factor[i] = i < count && total[i] != 0 ? top[i] + std::log2(total[i]) : -NEVER<R>;
    int64_t of = -1;
    V best = splat(NEVER<R>);
    auto finish = [&] {
      R most = NEVER<R>;
      for (int i = 0; i < LANES; ++i) most = best[i] > most ? best[i] : most;
      if (of >= 0) row[of] = std::max(row[of], std::exp2(most));
      best = splat(NEVER<R>);
    };
    this->over_keys([&](int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
      this->score(this->keys(place, many), place, many, from, to, guarded);
      for (int64_t r = 0; r < many; ++r) {
        if (place + r < this->sinks || place + r >= this->near_from) continue;  // not of a kept block
        if (const int64_t next = list[place + r] / a.block_k; next != of) finish(), of = next;
        for (int64_t n = from; n < to; n += LANES) {
          const V weighed = read(scores.at(r, n)) - read(factor + n);
          best = select<R>(weighed > best, weighed, best);
        }
      }
    });
    finish();
  }

  void run(int64_t sample, int64_t head, int64_t block) {
    this->take(sample, head, block);
    for (int64_t tile = 0; this->read_queries(tile); ++tile) {
      sums.row = lanes;
      for (int64_t i = 0; i < E * lanes; i += LANES) write(sums.from + i, V{});
      for (int64_t n = 0; n < lanes; n += LANES) write(top + n, splat(NEVER<R>)), write(total + n, V{});
      this->over_keys([&](int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
        this->score(this->keys(place, many), place, many, from, to, guarded);
        a.sigmoid ? sigmoid_tile(place, many, from, to, guarded) : soft_tile(place, many, from, to, guarded);
      });
      write_result();
      if (a.largest && !a.sigmoid) find_largest();
    }
  }
};

template <class T>
struct ListBackward : ListReader<T> {
  using typename ListReader<T>::R;
  using typename ListReader<T>::V;
  using ListReader<T>::a, ListReader<T>::D, ListReader<T>::E, ListReader<T>::first, ListReader<T>::count,
      ListReader<T>::lanes, ListReader<T>::scores, ListReader<T>::list;
  using ListReader<T>::q, ListReader<T>::k, ListReader<T>::v;

  Block<R> g, gt, o, ot, slopes, dqt, dq, dk, dv, found;
  R *lse, *delta;
  V of_bias;
  bool ready;

  explicit ListBackward(const ListedArguments& a) : ListReader<T>(a) {
    g.row = o.row = dv.row = E, dq.row = dk.row = D;
    ready = this->room({{&g.from, QUERIES * E}, {&gt.from, E * QUERIES}, {&o.from, QUERIES * E},
                        {&ot.from, E * QUERIES}, {&slopes.from, KEYS * QUERIES}, {&dqt.from, D * QUERIES},
                        {&dq.from, QUERIES * D}, {&dk.from, a.keys * D}, {&dv.from, a.keys * E},
                        {&found.from, KEYS * std::max(D, E)}, {&lse, QUERIES}, {&delta, QUERIES}});
  }

  void read_gradients() {
    const T* from = static_cast<const T*>(a.grad_out) + this->b * a.grad_batch + this->h * a.grad_head;
    gt.row = ot.row = slopes.row = dqt.row = lanes;
    pack(g, from + first * a.grad_time, a.grad_time, count, a.value_width);
    turn<R>(gt, g, lanes, E);
    for (int64_t i = 0; i < D * lanes; i += LANES) write(dqt.from + i, V{});
    if (a.sigmoid) return;
    // Outputs times their gradients, summed in the order of values times gradients: where a query sees one key, their
    // difference is nothing, not its rounding.
    const int64_t at = this->row_at(first, a.value_width), next = a.heads * a.value_width;
    pack(o, static_cast<const T*>(a.out) + at, next, count, a.value_width);
    for (int64_t i = 0; a.rest && i < count; ++i)
      for (int64_t c = 0; c < a.value_width; c += LANES) {
        const T* rest = static_cast<const T*>(a.rest) + at + i * next + c;
        write(o.at(i, c), read(o.at(i, c)) + load(rest, static_cast<int>(least(LANES, a.value_width - c))));
      }
    turn<R>(ot, o, lanes, E);
    for (int64_t n = 0; n < lanes; n += LANES) {
      V dot{};
      for (int64_t e = 0; e < a.value_width; ++e) dot += read(ot.at(e, n)) * read(gt.at(e, n));
      write(delta + n, dot);
    }
    const R* sums = static_cast<const R*>(a.lse) + this->lse_at();
    for (int64_t i = 0; i < lanes; ++i)
      lse[i] = i < count && sums[i] != NEVER<R> ? sums[i] : R(0);
    for (int64_t i = 0; a.grad_lse && i < count; ++i)
      delta[i] -= static_cast<const R*>(a.grad_lse)[this->lse_at() + i];
  }

  // Add A B to the rows of listed keys.
  void add(Block<R> to, int64_t place, int64_t many, View<R> left, View<R> right, int64_t inner, int64_t numbers) {
    if (this->together(place, many))
      return multiply<false, R>({to.at(list[place]), to.row}, left, right, many, inner, numbers, Part::WHOLE, &ADD<R>);
    found.row = to.row;
    multiply<false, R>(found, left, right, many, inner, numbers);
    for (int64_t r = 0; r < many; ++r)
      for (int64_t c = 0; c < numbers; c += LANES)
        write(to.at(list[place + r], c), read(to.at(list[place + r], c)) + read(found.at(r, c)));
  }

  void tile(int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
    const View<R> K = this->keys(place, many), values = this->values(place, many);
    const Block<R> S{scores.at(0, from), lanes}, P{slopes.at(0, from), lanes};
    const int64_t queries = to - from;
    this->score(K, place, many, from, to, guarded);
    multiply<false, R>(P, values, {gt.at(0, from), lanes}, many, a.value_width, queries);
    if (a.sigmoid) {
      const V bias = bias_of<R>(a, this->h);
      for (int64_t r = 0; r < many; ++r)
        for (int64_t n = 0; n < queries; n += LANES) {
          const V share = gate<R>(read(S.at(r, n)), bias, guarded), slope = share * (1 - share) * read(P.at(r, n));
          of_bias += slope, write(S.at(r, n), share), write(P.at(r, n), slope);
        }
    } else {
      for (int64_t r = 0; r < many; ++r)
        for (int64_t n = 0; n < queries; n += LANES) {
          const V power = weight<R>(read(S.at(r, n)), read(lse + from + n), guarded);
          write(S.at(r, n), power), write(P.at(r, n), power * (read(P.at(r, n)) - read(delta + from + n)));
        }
    }
    add(dv, place, many, S, {g.at(from), E}, queries, a.value_width);
    add(dk, place, many, P, {q.at(from), D}, queries, a.width);
    multiply<true, R>({dqt.at(0, from), lanes}, K, P, a.width, many, queries, Part::WHOLE, &ADD<R>);
  }

  void write_rows(void* to, int64_t sample, int64_t head, int64_t part, Block<R> from, int64_t numbers, R scale) {
    R* base = static_cast<R*>(to) + (part * a.batch + sample) * a.keys * a.key_heads * numbers + head * numbers;
    for (int64_t key = 0; key < a.keys; ++key)
      for (int64_t c = 0; c < numbers; c += LANES)
        store(base + key * a.key_heads * numbers + c, read(from.at(key, c)) * scale,
              static_cast<int>(least(LANES, numbers - c)));
  }

  // The gradients of every parts-th block's queries in all heads that share one of keys, and this part's of the keys.
  void run(int64_t sample, int64_t key_head, int64_t part) {
    const int64_t group = a.heads / a.key_heads;
    for (int64_t i = 0; i < a.keys * D; i += LANES) write(dk.from + i, V{});
    for (int64_t i = 0; i < a.keys * E; i += LANES) write(dv.from + i, V{});
    for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
      of_bias = V{};
      for (int64_t block = part; block < query_blocks(a); block += a.parts) {
        this->take(sample, head, block);
        for (int64_t number = 0; this->read_queries(number); ++number) {
          read_gradients();
          this->over_keys([&](int64_t place, int64_t many, int64_t from, int64_t to, bool guarded) {
            tile(place, many, from, to, guarded);
          });
          turn<R>(dq, dqt, a.width, lanes);
          for (int64_t i = 0; i < count; ++i) {
            T* row = static_cast<T*>(a.grad_q) + this->row_at(first + i, a.width);
            for (int64_t c = 0; c < a.width; c += LANES)
              store(row + c, read(dq.at(i, c)) * static_cast<R>(a.scale), static_cast<int>(least(LANES, a.width - c)));
          }
        }
      }
      if (a.grad_bias)
        static_cast<R*>(a.grad_bias)[(part * a.batch + sample) * a.heads + head] = foveate::sum<R>(of_bias);
    }
    write_rows(a.grad_k, sample, key_head, part, dk, a.width, static_cast<R>(LN_2));  // queries hold log2(e) as well
    write_rows(a.grad_v, sample, key_head, part, dv, a.value_width, 1);
  }
};

// Run `worker.run(sample, head, number)` over all of them, on several threads where other threads are worth waking.
template <class Worker>
int run_all(const ListedArguments& a, int64_t heads, int64_t numbers) {
  const int64_t units = a.batch * heads * numbers;
  const double each = a.indices ? static_cast<double>(a.most) * a.block_k : static_cast<double>(a.keys);
  const double work = static_cast<double>(a.batch * a.heads) * a.length * each * (a.width + a.value_width);
  int status = OK;
#pragma omp parallel if (units > 1 && work / 32 > PARALLEL_FROM)
  {
    Worker worker(a);
    if (!worker.ready) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(dynamic) nowait
    for (int64_t unit = 0; unit < units; ++unit)  // later blocks see more: they are begun first
      if (worker.ready) worker.run(unit / numbers / heads, unit / numbers % heads, numbers - 1 - unit % numbers);
  }
  return status;
}

template <class T>
int run(const ListedArguments& a, bool backward) {
  using R = acc<T>;
  if (!backward && a.largest)
    std::fill_n(static_cast<R*>(a.largest), a.batch * a.heads * query_blocks(a) * divided(a.keys, a.block_k), R(0));
  if (backward) return run_all<ListBackward<T>>(a, a.key_heads, a.parts);
  return run_all<ListForward<T>>(a, a.heads, query_blocks(a));
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_block_sparse_attention(const foveate::ListedArguments* a, int backward) {
  using namespace foveate;
  if (int bad = check(*a, backward)) return bad;
  switch (a->scalar) {
    case FLOAT32:
      return run<float>(*a, backward);
    case BFLOAT16:
      return run<bfloat16>(*a, backward);
    case FLOAT64:
      return run<double>(*a, backward);
    default:
      return BAD_SCALAR;
  }
}
