// Shifted window attention, forward and backward; the definition is `reference` in
// foveate/ops/shifted_window_attention.py.
//
// The rows of a window's tokens are read where they lie on the grid and its results written there: nothing is padded,
// rolled or cut. Scores lie with keys in rows and queries in lanes, so that a softmax needs no sums across lanes. Few
// keys are weighed for rows of queries, whose number need not fill lanes; many are taken a tile at a time with a running
// maximum. Backward, a tile's weights are made again from the inputs: nothing else is kept.
// SPDX-License-Identifier: Apache-2.0
#include "shifted_windows.h"

namespace foveate {
namespace {

int check(const ShiftedArguments& a, bool backward) {
  for (int64_t size : {a.batch, a.heads, a.width, a.value_width, a.slots})
    if (size < 1) return BAD_SIZE;
  constexpr int64_t MOST = int64_t{1} << 24;  // places are counted in 32 bits
  int64_t places = 1, tokens = 1;
  for (const WindowAxis& axis : a.axis) {
    if (axis.size < 1 || axis.window < 1 || axis.shift < 0 || axis.shift >= axis.window) return BAD_SIZE;
    if (axis.size > MOST || axis.window > MOST || (a.dilated && axis.shift)) return BAD_SIZE;
    places *= axis.size, tokens *= axis.window;
    if (places > (MOST << 24) || tokens > MOST) return BAD_SIZE;
  }
  if (a.by_window && backward && a.slots != a.windows()) return BAD_SIZE;
  for (const WindowStrides* s : {&a.q, &a.k, &a.v, &a.grad})
    for (int64_t stride : {s->batch, s->axis[0], s->axis[1], s->axis[2], s->head})
      if (stride < 0) return BAD_STRIDE;
  for (int64_t stride : {a.bias_window, a.bias_head, a.bias_query, a.bias_key})
    if (stride < 0) return BAD_STRIDE;
  if (!a.q_data || !a.k_data || !a.v_data) return BAD_POINTER;
  if (!backward) return a.out ? OK : BAD_POINTER;
  if (!a.grad_out || !a.grad_q || !a.grad_k || !a.grad_v) return BAD_POINTER;
  if (!a.bias != !a.grad_bias || !a.pad_k != !a.grad_pad_k || !a.pad_v != !a.grad_pad_v) return BAD_POINTER;
  return OK;
}

// Scores of a tile of keys and queries, and the largest of each query: C = bias + A B.
template <class R, int M, int N>
void score_tile(Block<R> c, View<R> a, View<R> b, int64_t inner, View<R> bias, R* most) {
  vec<R> sums[M][N] = {};
  if (bias.from)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sums[m][n] = read(bias.at(m, n * LANES));
  accumulate<false, M, N, R>(sums, a, b, 0, inner);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    vec<R> largest = read(most + n * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      largest = select<R>(sums[m][n] > largest, sums[m][n], largest);
      write(c.at(m, n * LANES), sums[m][n]);
    }
    write(most + n * LANES, largest);
  }
}
template <class R, int... I>
constexpr auto score_tiles(std::integer_sequence<int, I...>) {
  return std::array{&score_tile<R, I / VECTORS<R> + 1, I % VECTORS<R> + 1>...};
}

// All biases as scores have them: keys in rows, queries in lanes, in units of powers of two.
template <class R>
struct Biases {
  const ShiftedArguments& a;
  const int64_t tokens, row, each;
  std::unique_ptr<R[]> memory;

  explicit Biases(const ShiftedArguments& a)
      : a(a), tokens(a.tokens()), row(padded(tokens)), each(tokens * row),
        memory(a.bias ? new (std::nothrow) R[matrices() * each] : nullptr) {}
  bool made() const { return !a.bias || memory; }
  int64_t matrices() const { return a.bias ? (a.by_window ? a.windows() : 1) * a.heads : 0; }
  View<R> of(int64_t window, int64_t head) const {
    if (!a.bias) return {nullptr, 0};
    return {memory.get() + ((a.by_window ? window : 0) * a.heads + head) * each, row};
  }

  // Queries of all heads that are filled in at once: numbers of heads may lie side by side.
  int64_t strips() const { return matrices() / a.heads * divided(tokens, LANES); }
  void fill(int64_t number, Block<R> strip) const {
    const int64_t window = number / divided(tokens, LANES), first = number % divided(tokens, LANES) * LANES;
    for (int64_t head = 0; head < a.heads; ++head) {
      const R* from = static_cast<const R*>(a.bias) + window * a.bias_window + head * a.bias_head;
      for (int64_t i = 0; i < LANES; ++i)
        for (int64_t j = 0; j < tokens; j += LANES) {
          const int some = static_cast<int>(least(LANES, tokens - j));
          const R* numbers = from + (first + i) * a.bias_query + j * a.bias_key;
          R room[LANES] = {};
          if (first + i >= tokens) {
            numbers = room;
          } else if (a.bias_key != 1) {
            for (int n = 0; n < some; ++n) room[n] = numbers[n * a.bias_key];
            numbers = room;
          }
          write(strip.at(i, j), load(numbers, some) * static_cast<R>(LOG2_E));
        }
      turn<R>({memory.get() + (window * a.heads + head) * each + first, row}, strip, LANES, tokens);
    }
  }
};

// What one thread reads with: the arguments, the sample, window and head it is at, and room for tiles.
template <class T>
struct WindowReader {
  using R = acc<T>;
  using V = vec<R>;

  const ShiftedArguments& a;
  const Biases<R>& biases;
  const int64_t tokens, D, E, most_queries, most_keys;  // D, E: widths, padded
  Window window;
  std::unique_ptr<V[]> memory;
  int64_t b = 0, h = 0, first = 0, count = 0, lanes = 0;  // sample, head, first query, number of queries; it, padded
  Block<R> q, qt, k, v, scores, strip;
  R* most;

  WindowReader(const ShiftedArguments& a, const Biases<R>& biases, bool all_keys)
      : a(a), biases(biases), tokens(a.tokens()), D(padded(a.width)), E(padded(a.value_width)),
        most_queries(least(QUERIES, padded(tokens))), most_keys(all_keys ? tokens : least(KEYS, tokens)), window(a) {
    q.row = k.row = D, v.row = E, strip.row = padded(tokens);
  }

  bool room(std::initializer_list<std::pair<R**, int64_t>> more) {
    memory = make_room<R>({{&q.from, most_queries * D},
                           {&qt.from, most_queries * D},
                           {&k.from, tokens * D},
                           {&v.from, tokens * E},
                           {&scores.from, most_keys * most_queries},
                           {&strip.from, std::max<int64_t>(LANES * padded(tokens), most_keys * most_queries)},
                           {&most, most_queries}},
                          more);
    return memory && window.made();
  }

  void take(int64_t sample, int64_t which, int64_t head) { b = sample, h = head, window.take(which); }

  const T* row_of(const void* data, const WindowStrides& s, const Token& t) const {
    return static_cast<const T*>(data) + b * s.batch + h * s.head + t.place[0] * s.axis[0] + t.place[1] * s.axis[1] +
           t.place[2] * s.axis[2];
  }
  // Where a real token's row begins in (batch, grid, heads, numbers).
  int64_t row_at(const Token& t, int64_t numbers) const {
    const int64_t place = (t.place[0] * a.axis[1].size + t.place[1]) * a.axis[2].size + t.place[2];
    return ((b * a.places() + place) * a.heads + h) * numbers;
  }

  // Rows of tokens, times a factor, to a block; padding is what `pad` says, or zeros.
  void gather(Block<R> to, const void* data, const WindowStrides& s, const void* pad, const Token* token, int64_t many,
              int64_t numbers, R factor = 1) const {
    const R* spare = pad ? static_cast<const R*>(pad) + h * numbers : nullptr;
    auto copy = [&](R* row, const auto* from) {
      int64_t c = 0;
      for (; c + LANES <= numbers; c += LANES) write(row + c, load(from + c, LANES) * factor);
      if (c < numbers) write(row + c, load(from + c, static_cast<int>(numbers - c)) * factor);
    };
    for (int64_t i = 0; i < many; ++i) {
      if (token[i].place[0] >= 0)
        copy(to.at(i), row_of(data, s, token[i]));
      else if (spare)
        copy(to.at(i), spare);
      else
        for (int64_t c = 0; c < numbers; c += LANES) write(to.at(i, c), V{});
    }
  }

  void read_keys(const Group& g) {
    gather(k, a.k_data, a.k, a.pad_k, g.token, g.keys, a.width);
    gather(v, a.v_data, a.v, a.pad_v, g.token, g.keys, a.value_width);
  }

  // A tile of a group's queries, scaled so that powers of two of their products are wanted, and transposed.
  void read_queries(const Group& g, int64_t from) {
    first = from, count = least(most_queries, g.queries - first);
    lanes = qt.row = scores.row = padded(count);
    gather(q, a.q_data, a.q, nullptr, g.token + first, count, a.width, static_cast<R>(a.scale * LOG2_E));
    clear(q, count, a.width);
    turn<R>(qt, q, lanes, D);
  }

  // Zeros in rows behind the last, up to a whole number of registers.
  void clear(Block<R> rows, int64_t many, int64_t numbers) const {
    for (int64_t i = many; i < padded(many); ++i)
      for (int64_t c = 0; c < numbers; c += LANES) write(rows.at(i, c), V{});
  }

  // The biases of some keys and the tile's queries.
  View<R> bias_of(const Group& g, int64_t key, int64_t many) {
    const View<R> all = biases.of(window.number, h);
    if (!all.from || g.whole) return all.from ? View<R>{all.at(key, first), all.row} : all;
    for (int64_t j = 0; j < many; ++j) {
      const R* row = all.at(g.token[key + j].number);
      R* to = strip.from + j * lanes;
      for (int64_t i = 0; i < count; ++i) to[i] = row[g.token[first + i].number];
      for (int64_t i = count; i < lanes; ++i) to[i] = 0;
    }
    return {strip.from, lanes};
  }

  // The scores of some keys, and `most` of them and of what was in it.
  void score(const Group& g, int64_t key, int64_t many) {
    static constexpr auto table = score_tiles<R>(Sizes<R>{});
    const View<R> bias = bias_of(g, key, many);
    over_tiles<R>(many, count, false, [&](int64_t m, int64_t, int64_t n, int64_t which) {
      const View<R> own = bias.from ? View<R>{bias.at(m, n), bias.row} : bias;
      table[which]({scores.at(m, n), lanes}, {k.at(key + m), D}, {qt.at(0, n), lanes}, a.width, own, most + n);
    });
  }

  // Weights in place of scores; running maxima and sums, and what earlier sums shrink by.
  void soften_all(int64_t many, R* top, R* total, R* factor) {
    int64_t n = 0;
    for (; n + TOGETHER<R> * LANES <= lanes; n += TOGETHER<R> * LANES)
      soften<R, TOGETHER<R>>({scores.at(0, n), lanes}, many, a.bias, top + n, total + n, factor + n, most + n);
    for (; n < lanes; n += LANES)
      soften<R, 1>({scores.at(0, n), lanes}, many, a.bias, top + n, total + n, factor + n, most + n);
  }
};

template <class T>
struct WindowForward : WindowReader<T> {
  using typename WindowReader<T>::R;
  using typename WindowReader<T>::V;
  using WindowReader<T>::a, WindowReader<T>::E, WindowReader<T>::first, WindowReader<T>::count,
      WindowReader<T>::lanes, WindowReader<T>::scores, WindowReader<T>::most, WindowReader<T>::v;

  Block<R> sums, result;  // outputs, values in rows; the same with queries in rows
  R *top, *total, *factor;
  bool ready;

  WindowForward(const ShiftedArguments& a, const Biases<R>& biases) : WindowReader<T>(a, biases, false) {
    result.row = E;
    ready = this->room({{&sums.from, E * this->most_queries}, {&result.from, this->most_queries * E},
                        {&top, this->most_queries}, {&total, this->most_queries}, {&factor, this->most_queries}});
  }

  void begin() {
    for (int64_t n = 0; n < lanes; n += LANES)
      write(top + n, splat(NEVER<R>)), write(most + n, splat(NEVER<R>)), write(total + n, V{});
  }

  void attend(const Group& g) {
    this->read_keys(g);
    for (int64_t from = 0; from < g.queries; from += this->most_queries) {
      this->read_queries(g, from);
      begin();
      // Rows of queries fill no lanes with nothing, but take whole registers of values.
      if (g.keys <= KEYS && E >= 2 * LANES && count * E <= lanes * a.value_width) {
        this->score(g, 0, g.keys);
        this->soften_all(g.keys, top, total, factor);
        multiply<true, R>(result, scores, v, count, g.keys, a.value_width);
      } else {
        sums.row = lanes;
        for (int64_t i = 0; i < E * lanes; i += LANES) write(sums.from + i, V{});
        for (int64_t key = 0; key < g.keys; key += KEYS) {
          const int64_t many = least(KEYS, g.keys - key);
          this->score(g, key, many);
          this->soften_all(many, top, total, factor);
          weigh<R>(sums, factor, {v.at(key), E}, scores, a.value_width, many, count);
        }
        turn<R>(result, sums, a.value_width, lanes);
      }
      write_result(g);
    }
  }

  void write_result(const Group& g) {
    for (int64_t n = 0; n < count; n += LANES) {
      const V all = read(total + n);
      write(factor + n, select<R>(all == 0, V{}, 1 / all));
    }
    for (int64_t i = 0; i < count; ++i) {
      T* to = static_cast<T*>(a.out) + this->row_at(g.token[first + i], a.value_width);
      int64_t c = 0;
      for (; c + LANES <= a.value_width; c += LANES) store(to + c, read(result.at(i, c)) * factor[i], LANES);
      if (c < a.value_width)
        store(to + c, read(result.at(i, c)) * factor[i], static_cast<int>(a.value_width - c));
    }
  }

  void run(int64_t unit) {
    this->take(unit / a.heads / a.windows(), unit / a.heads % a.windows(), unit % a.heads);
    for (int i = 0; i < this->window.groups; ++i) attend(this->window.group[i]);
  }
};

template <class T>
struct WindowBackward : WindowReader<T> {
  using typename WindowReader<T>::R;
  using typename WindowReader<T>::V;
  using WindowReader<T>::a, WindowReader<T>::D, WindowReader<T>::E, WindowReader<T>::first, WindowReader<T>::count,
      WindowReader<T>::lanes, WindowReader<T>::scores, WindowReader<T>::most, WindowReader<T>::q, WindowReader<T>::k,
      WindowReader<T>::v, WindowReader<T>::tokens;

  Block<R> g, gt, slopes, dq, dk, dv, dbias;
  R *dpad_k, *dpad_v;
  bool ready;

  WindowBackward(const ShiftedArguments& a, const Biases<R>& biases) : WindowReader<T>(a, biases, true) {
    const int64_t queries = this->most_queries;
    g.row = dv.row = E, dq.row = dk.row = D, dbias.row = padded(tokens);
    ready = this->room({{&g.from, queries * E}, {&gt.from, E * queries}, {&slopes.from, tokens * queries},
                        {&dq.from, queries * D}, {&dk.from, tokens * D}, {&dv.from, tokens * E},
                        {&dbias.from, a.bias ? padded(tokens) * dbias.row : 0}, {&dpad_k, D}, {&dpad_v, E}});
  }

  // Weights in place of scores, and gradients of scores in place of those of weights.
  void slope(int64_t keys) {
    for (int64_t n = 0; n < lanes; n += LANES) {
      const V top = read(most + n), base = select<R>(top == NEVER<R>, V{}, top);
      V total{}, dot{};
      for (int64_t j = 0; j < keys; ++j) {
        const V power = weight<R>(read(scores.at(j, n)), base, a.bias);
        total += power, dot += power * read(slopes.at(j, n));
        write(scores.at(j, n), power);
      }
      const V share = select<R>(total == 0, V{}, 1 / total);
      dot *= share;
      for (int64_t j = 0; j < keys; ++j) {
        const V power = read(scores.at(j, n)) * share;
        write(scores.at(j, n), power), write(slopes.at(j, n), power * (read(slopes.at(j, n)) - dot));
      }
    }
  }

  void add_bias(const Group& group) {
    for (int64_t j = 0; j < group.keys; ++j) {
      const R* from = slopes.at(j);
      R* row = dbias.at(group.token[j].number);
      if (group.whole)
        for (int64_t n = 0; n < lanes; n += LANES) write(row + first + n, read(row + first + n) + read(from + n));
      else
        for (int64_t i = 0; i < count; ++i) row[group.token[first + i].number] += from[i];
    }
  }

  void write_rows(void* to, Block<R> rows, const Token* token, int64_t many, int64_t numbers, R scale) const {
    for (int64_t i = 0; i < many; ++i) {
      T* row = static_cast<T*>(to) + this->row_at(token[i], numbers);
      for (int64_t c = 0; c < numbers; c += LANES)
        store(row + c, read(rows.at(i, c)) * scale, static_cast<int>(least(LANES, numbers - c)));
    }
  }
  // Sums of the gradients of padding.
  void add_rows(R* to, Block<R> rows, int64_t from, int64_t end, int64_t numbers, R scale) const {
    for (int64_t i = from; i < end; ++i)
      for (int64_t c = 0; c < numbers; c += LANES) write(to + c, read(to + c) + read(rows.at(i, c)) * scale);
  }

  void attend(const Group& group) {
    this->read_keys(group);
    for (int64_t i = 0; i < group.keys * D; i += LANES) write(dk.from + i, V{});
    for (int64_t i = 0; i < group.keys * E; i += LANES) write(dv.from + i, V{});
    for (int64_t from = 0; from < group.queries; from += this->most_queries) {
      this->read_queries(group, from);
      gt.row = slopes.row = lanes;
      this->gather(g, a.grad_out, a.grad, nullptr, group.token + first, count, a.value_width);
      this->clear(g, count, a.value_width);
      turn<R>(gt, g, lanes, E);
      for (int64_t n = 0; n < lanes; n += LANES) write(most + n, splat(NEVER<R>));
      this->score(group, 0, group.keys);
      multiply<false, R>(slopes, v, gt, group.keys, a.value_width, count);
      slope(group.keys);
      multiply<false, R>(dv, scores, g, group.keys, count, a.value_width, Part::WHOLE, &ADD<R>);
      multiply<false, R>(dk, slopes, q, group.keys, count, a.width, Part::WHOLE, &ADD<R>);
      multiply<true, R>(dq, slopes, k, count, group.keys, a.width);
      write_rows(a.grad_q, dq, group.token + first, count, a.width, static_cast<R>(a.scale));
      if (a.bias) add_bias(group);
    }
    // Queries were scaled by log2(e) as well.
    write_rows(a.grad_k, dk, group.token, group.queries, a.width, static_cast<R>(LN_2));
    write_rows(a.grad_v, dv, group.token, group.queries, a.value_width, 1);
    add_rows(dpad_k, dk, group.queries, group.keys, a.width, static_cast<R>(LN_2));
    add_rows(dpad_v, dv, group.queries, group.keys, a.value_width, 1);
  }

  // All windows of a slot, one after the other.
  void run(int64_t slot, int64_t head) {
    for (int64_t i = 0; a.bias && i < tokens * dbias.row; i += LANES) write(dbias.from + i, V{});
    for (int64_t c = 0; c < D; c += LANES) write(dpad_k + c, V{});
    for (int64_t c = 0; c < E; c += LANES) write(dpad_v + c, V{});
    const int64_t windows = a.windows(), all = a.batch * windows;
    const int64_t begin = a.by_window ? slot : all * slot / a.slots;
    const int64_t end = a.by_window ? all : all * (slot + 1) / a.slots;
    for (int64_t i = begin; i < end; i += a.by_window ? windows : 1) {
      this->take(i / windows, i % windows, head);
      for (int n = 0; n < this->window.groups; ++n) attend(this->window.group[n]);
    }
    const int64_t place = slot * a.heads + head;
    if (a.grad_bias) give_bias(static_cast<R*>(a.grad_bias) + place * tokens * tokens);
    if (a.grad_pad_k) std::memcpy(static_cast<R*>(a.grad_pad_k) + place * a.width, dpad_k, sizeof(R) * a.width);
    if (a.grad_pad_v)
      std::memcpy(static_cast<R*>(a.grad_pad_v) + place * a.value_width, dpad_v, sizeof(R) * a.value_width);
  }

  // Queries in rows, as they are given.
  void give_bias(R* to) {
    for (int64_t n = 0; n < tokens; n += LANES) {
      turn<R>(this->strip, {dbias.at(0, n), dbias.row}, padded(tokens), LANES);
      for (int64_t i = n; i < least(n + LANES, tokens); ++i)
        std::memcpy(to + i * tokens, this->strip.at(i - n), sizeof(R) * tokens);
    }
  }
};

// Whether other threads are worth waking.
inline bool shared_out(const ShiftedArguments& a, int64_t units) {
  const double pairs = static_cast<double>(a.batch * a.heads) * a.windows() * a.tokens() * a.tokens();
  return units > 1 && pairs * (a.width + a.value_width) / 32 > PARALLEL_FROM;
}

template <class T>
int run(const ShiftedArguments& a, bool backward) {
  using Worker = WindowForward<T>;
  const Biases<acc<T>> biases(a);
  if (!biases.made()) return OUT_OF_MEMORY;
  const int64_t units = backward ? a.slots * a.heads : a.batch * a.windows() * a.heads;
  int status = OK;
  auto work = [&](auto& worker, auto each) {
    if (!worker.ready) {
#pragma omp atomic write
      status = OUT_OF_MEMORY;
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < biases.strips(); ++i)
      if (worker.ready) biases.fill(i, worker.strip);
#pragma omp for schedule(guided) nowait
    for (int64_t unit = 0; unit < units; ++unit)
      if (worker.ready) each(worker, unit);
  };
#pragma omp parallel if (shared_out(a, units))
  {
    if (backward) {
      WindowBackward<T> worker(a, biases);
      work(worker, [&](WindowBackward<T>& w, int64_t unit) { w.run(unit / a.heads, unit % a.heads); });
    } else {
      Worker worker(a, biases);
      work(worker, [&](Worker& w, int64_t unit) { w.run(unit); });
    }
  }
  return status;
}

}  // namespace
}  // namespace foveate

FOVEATE_EXPORT int foveate_shifted_window_attention(const foveate::ShiftedArguments* a, int backward) {
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
