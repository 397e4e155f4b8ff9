// Softmax attention, dense and causal, forward and backward; the definition is `reference` in
// foveate/ops/softmax_attention.py.
//
// Forward, a tile of queries walks through tiles of keys with a running maximum (Milakov and Gimelshein, arXiv
// 1805.02867; Dao et al., arXiv 2205.14135): scores stay in the cache, and memory does not grow with their number. Few
// queries before many keys are divided by keys, and the parts are put together afterwards. Backward, the weights are
// made again from the logarithms of the sums; the gradients of keys and values are added up over the tiles of queries.
// SPDX-License-Identifier: Apache-2.0
#include "softmax_attention.h"

namespace foveate {
namespace {

int check(const SoftmaxArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.heads, a.length, a.keys, a.width, a.value_width, a.parts})
    if (size < 1) return BAD_SIZE;
  if (a.causal && a.length > a.keys) return BAD_SIZE;
  for (int64_t stride : {a.q_batch, a.q_time, a.q_head, a.k_batch, a.k_time, a.k_head, a.v_batch, a.v_time, a.v_head,
                         a.grad_batch, a.grad_time, a.grad_head, a.mask_batch, a.mask_key, a.pairs_batch, a.pairs_head,
                         a.pairs_query, a.pairs_key, a.bias_batch, a.bias_head, a.bias_query, a.bias_key})
    if (stride < 0) return BAD_STRIDE;
  if (!a.q || !a.k || !a.v || !a.out || !a.lse) return BAD_POINTER;
  if (backward && (!a.grad_out || !a.grad_q || !a.grad_k || !a.grad_v)) return BAD_POINTER;
  return OK;
}

template <class T>
struct Forward : Reader<T> {
  using typename Reader<T>::R;
  using typename Reader<T>::V;
  using Reader<T>::a, Reader<T>::E, Reader<T>::first, Reader<T>::count, Reader<T>::lanes,
      Reader<T>::scores;

  Block<R> sums, result;  // outputs, values in rows; the same with queries in rows
  R *top, *total, *factor;
  bool ready;

  explicit Forward(const SoftmaxArguments& a) : Reader<T>(a) {
    result.row = E;
    ready = this->room({{&sums.from, E * QUERIES}, {&result.from, QUERIES * E}, {&top, QUERIES}, {&total, QUERIES},
                        {&factor, QUERIES}});
  }

  // Sums, maxima and totals of what a part of the keys gives to a tile of queries.
  void read_part(int64_t part) {
    sums.row = lanes;
    for (int64_t i = 0; i < E * lanes; i += LANES) write(sums.from + i, V{});
    for (int64_t n = 0; n < lanes; n += LANES) write(top + n, splat(NEVER<R>)), write(total + n, V{});
    const int64_t begin = this->place_of(a.keys * part / a.parts), end = this->place_of(a.keys * (part + 1) / a.parts);
    this->over_keys(begin, end, [&](int64_t place, int64_t many, int64_t column) {
      const bool guarded = this->guarded(place, many);
      this->score(this->keys(place, many), place, many, column);
      int64_t n = column;
      for (; n + TOGETHER<R> * LANES <= lanes; n += TOGETHER<R> * LANES)
        soften<R, TOGETHER<R>>({scores.at(0, n), lanes}, many, guarded, top + n, total + n, factor + n);
      for (; n < lanes; n += LANES)
        soften<R, 1>({scores.at(0, n), lanes}, many, guarded, top + n, total + n, factor + n);
      weigh<R>({sums.at(0, column), lanes}, factor + column, this->values(place, many),
               {scores.at(0, column), lanes}, a.value_width, many, count - column);
    });
  }

  void write_result() {
    for (int64_t n = 0; n < count; n += LANES) {
      const V all = read(total + n);
      write(factor + n, select<R>(all == 0, V{}, 1 / all));  // a query that sees nothing gives zeros
    }
    turn<R>(result, sums, a.value_width, lanes);
    R* lse = static_cast<R*>(a.lse) + this->lse_at();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = this->row_at(first + i, a.length, a.value_width);
      for (int64_t c = 0; c < a.value_width; c += LANES) {
        const int some = static_cast<int>(least(LANES, a.value_width - c));
        T* to = static_cast<T*>(a.out) + at + c;
        const V value = read(result.at(i, c)) * factor[i];
        store(to, value, some);
        if (a.rest) store(static_cast<T*>(a.rest) + at + c, value - load(to, some), some);
      }
      lse[i] = total[i] == 0 ? R(0) : top[i] + std::log2(total[i]);
    }
  }

  // What read_part leaves, kept until all parts are there.
  int64_t kept() const { return (E + 2) * QUERIES; }
  void keep(R* to) const {
    std::memcpy(to, sums.from, sizeof(R) * E * lanes);
    std::memcpy(to + E * lanes, top, sizeof(R) * lanes);
    std::memcpy(to + (E + 1) * lanes, total, sizeof(R) * lanes);
  }
  // Put the parts together.
  void join(const R* from) {
    sums.row = lanes;
    for (int64_t n = 0; n < count; n += LANES) {
      V most = splat(NEVER<R>), all{};
      auto at = [&](int64_t part, int64_t row) { return read(from + part * kept() + row * lanes + n); };
      for (int64_t part = 0; part < a.parts; ++part) {
        const V own = at(part, E);
        most = select<R>(own > most, own, most);
      }
      for (int64_t e = 0; e < a.value_width; ++e) write(sums.at(e, n), V{});
      const V base = select<R>(most == NEVER<R>, V{}, most);
      for (int64_t part = 0; part < a.parts; ++part) {
        const V share = weight<R>(at(part, E), base, true);
        all += at(part, E + 1) * share;
        for (int64_t e = 0; e < a.value_width; ++e) write(sums.at(e, n), read(sums.at(e, n)) + at(part, e) * share);
      }
      write(top + n, most), write(total + n, all);
    }
  }
};

template <class T>
struct Backward : Reader<T> {
  using typename Reader<T>::R;
  using typename Reader<T>::V;
  using Reader<T>::a, Reader<T>::D, Reader<T>::E, Reader<T>::first, Reader<T>::count, Reader<T>::lanes,
      Reader<T>::scores;
  using Reader<T>::q, Reader<T>::k, Reader<T>::v;

  Block<R> g, gt, o, ot, slopes, dqt, dq, dk, dv;
  R *lse, *delta;
  bool ready;

  explicit Backward(const SoftmaxArguments& a) : Reader<T>(a) {
    g.row = o.row = dv.row = E, dq.row = dk.row = D;
    ready = this->room({{&g.from, QUERIES * E}, {&gt.from, E * QUERIES}, {&o.from, QUERIES * E},
                        {&ot.from, E * QUERIES}, {&slopes.from, KEYS * QUERIES}, {&dqt.from, D * QUERIES},
                        {&dq.from, QUERIES * D}, {&dk.from, a.keys * D}, {&dv.from, a.keys * E}, {&lse, QUERIES},
                        {&delta, QUERIES}});
  }

  void read_gradients() {
    const T* from = static_cast<const T*>(a.grad_out) + this->b * a.grad_batch + this->h * a.grad_head;
    gt.row = ot.row = slopes.row = dqt.row = lanes;
    pack(g, from + first * a.grad_time, a.grad_time, count, a.value_width);
    turn<R>(gt, g, lanes, E);
    // Outputs times their gradients, summed in the order of values times gradients: where a query sees one key, their
    // difference is nothing, not its rounding.
    const int64_t at = this->row_at(first, a.length, a.value_width), next = a.heads * a.value_width;
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
    for (int64_t i = 0; i < lanes; ++i) lse[i] = i < count ? static_cast<const R*>(a.lse)[this->lse_at() + i] : R(0);
  }

  void tile(int64_t place, int64_t many, int64_t column) {
    const bool guarded = this->guarded(place, many);
    const View<R> K = this->keys(place, many), values = this->values(place, many);
    const Block<R> S{scores.at(0, column), lanes}, P{slopes.at(0, column), lanes};
    const int64_t queries = count - column;
    this->score(K, place, many, column);
    multiply<false, R>(P, values, {gt.at(0, column), lanes}, many, a.value_width, queries);
    for (int64_t r = 0; r < many; ++r)
      for (int64_t n = 0; n < queries; n += LANES) {
        const V power = weight<R>(read(S.at(r, n)), read(lse + column + n), guarded);
        write(S.at(r, n), power), write(P.at(r, n), power * (read(P.at(r, n)) - read(delta + column + n)));
      }
    multiply<false, R>({dv.at(place), E}, S, {g.at(column), E}, many, queries, a.value_width, Part::WHOLE, &ADD<R>);
    multiply<false, R>({dk.at(place), D}, P, {q.at(column), D}, many, queries, a.width, Part::WHOLE, &ADD<R>);
    multiply<true, R>({dqt.at(0, column), lanes}, K, P, a.width, many, queries, Part::WHOLE, &ADD<R>);
  }

  void write_rows(void* to, int64_t part, Block<R> from, int64_t numbers, R scale) {
    R* base = static_cast<R*>(to) + part * a.batch * a.keys * a.heads * numbers;
    int64_t place = 0;
    for (int64_t key = 0; key < a.keys; ++key) {
      R* row = base + this->row_at(key, a.keys, numbers);
      const bool there = place < this->seen_count && this->key_at(place) == key;
      for (int64_t c = 0; c < numbers; c += LANES)
        store(row + c, there ? read(from.at(place, c)) * scale : V{}, static_cast<int>(least(LANES, numbers - c)));
      place += there;
    }
  }

  // The gradients of every parts-th tile's queries, and this part's of all keys and values.
  void run(int64_t sample, int64_t head, int64_t part) {
    this->take(sample, head);
    for (int64_t i = 0; i < a.keys * D; i += LANES) write(dk.from + i, V{});
    for (int64_t i = 0; i < a.keys * E; i += LANES) write(dv.from + i, V{});
    for (int64_t at = part; at < tiles_of(a); at += a.parts) {
      this->read_queries(at);
      read_gradients();
      for (int64_t i = 0; i < D * lanes; i += LANES) write(dqt.from + i, V{});
      this->over_keys(0, this->seen_count, [&](int64_t p, int64_t many, int64_t column) { tile(p, many, column); });
      turn<R>(dq, dqt, a.width, lanes);
      for (int64_t i = 0; i < count; ++i) {
        T* row = static_cast<T*>(a.grad_q) + this->row_at(first + i, a.length, a.width);
        for (int64_t c = 0; c < a.width; c += LANES)
          store(row + c, read(dq.at(i, c)) * static_cast<R>(a.scale), static_cast<int>(least(LANES, a.width - c)));
      }
    }
    write_rows(a.grad_k, part, dk, a.width, static_cast<R>(LN_2));  // queries were scaled by log2(e) as well
    write_rows(a.grad_v, part, dv, a.value_width, 1);
  }
};

// Whether other threads are worth waking.
inline bool shared_out(const SoftmaxArguments& a, int64_t units) {
  const double work = static_cast<double>(a.batch * a.heads) * a.length * a.keys * (a.width + a.value_width);
  return units > 1 && work / 32 > PARALLEL_FROM;
}

template <class T>
int forward(const SoftmaxArguments& a) {
  using R = acc<T>;
  const int64_t tiles = tiles_of(a), whole = a.batch * a.heads * tiles, units = whole * a.parts;
  std::unique_ptr<R[]> parts;
  const int64_t kept = (padded(a.value_width) + 2) * QUERIES;
  if (a.parts > 1) parts.reset(new (std::nothrow) R[units * kept]);
  if (a.parts > 1 && !parts) return OUT_OF_MEMORY;
  int status = OK;
#pragma omp parallel if (shared_out(a, units))
  {
    Forward<T> worker(a);
    if (!worker.ready) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
    auto take = [&](int64_t number) {  // later tiles see more: they are begun first
      worker.take(number / tiles / a.heads, number / tiles % a.heads);
      worker.read_queries(tiles - 1 - number % tiles);
    };
#pragma omp for schedule(dynamic) nowait
    for (int64_t unit = 0; unit < units; ++unit) {
      if (!worker.ready) continue;
      take(unit / a.parts);
      worker.read_part(unit % a.parts);
      a.parts > 1 ? worker.keep(parts.get() + unit * kept) : worker.write_result();
    }
    if (a.parts > 1) {
#pragma omp barrier
#pragma omp for schedule(static) nowait
      for (int64_t number = 0; number < whole; ++number) {
        if (!worker.ready) continue;
        take(number);
        worker.join(parts.get() + number * a.parts * kept);
        worker.write_result();
      }
    }
  }
  return status;
}

template <class T>
int backward(const SoftmaxArguments& a) {
  const int64_t units = a.batch * a.heads * a.parts;
  int status = OK;
#pragma omp parallel if (shared_out(a, units))
  {
    Backward<T> worker(a);
    if (!worker.ready) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(dynamic) nowait
    for (int64_t unit = 0; unit < units; ++unit)
      if (worker.ready) worker.run(unit / a.parts / a.heads, unit / a.parts % a.heads, unit % a.parts);
  }
  return status;
}

template <class T>
int run(const SoftmaxArguments& a, bool back) {
  return back ? backward<T>(a) : forward<T>(a);
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_softmax_attention(const foveate::SoftmaxArguments* a, int backward) {
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
