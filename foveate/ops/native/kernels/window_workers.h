// What reads a window and attends in it, forward: rows of its tokens, scores of tiles, their softmax, and sums of values.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "shifted_windows.h"

namespace foveate {
namespace {

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
    if (a.bias_index) return look_up(first);
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

  // The same from a table, whose rows hold all heads.
  void look_up(int64_t first) const {
    const int64_t queries = least(LANES, tokens - first);
    for (int64_t j = 0; j < tokens; ++j)
      for (int64_t head = 0; head < a.heads; head += LANES) {
        const int some = static_cast<int>(least(LANES, a.heads - head));
        vec<R> square[LANES];
        for (int64_t i = 0; i < LANES; ++i) {
          const R* from = static_cast<const R*>(a.bias) + head;
          square[i] = i < queries ? load(from + a.bias_index[(first + i) * a.index_row + j] * a.heads, some) : vec<R>{};
        }
        exchange<R, LANES / 2>(square);
        for (int h = 0; h < some; ++h)
          write(memory.get() + (head + h) * each + j * row + first, square[h] * static_cast<R>(LOG2_E));
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
  // Where rows of queries, keys and values are read without being brought together first, and the room for others: what
  // is read lies there in the order of a window, whole registers to a row, padded(tokens) rows, scaled.
  bool in_place = false;
  Block<R> k_room, v_room;

  // `grid`: what windows are cut from, where the rows to be read are not those of the grid.
  WindowReader(const ShiftedArguments& a, const Biases<R>& biases, bool all_keys, const ShiftedArguments& grid)
      : a(a), biases(biases), tokens(a.tokens()), D(padded(a.width)), E(padded(a.value_width)),
        most_queries(least(QUERIES, padded(tokens))), most_keys(all_keys ? tokens : least(KEYS, tokens)), window(grid) {
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
    k_room = k, v_room = v;
    return memory && window.made();
  }

  void take(int64_t sample, int64_t which, int64_t head) { b = sample, h = head, window.take(which); }

  const T* row_of(const void* data, const WindowStrides& s, const Token& t) const {
    return static_cast<const T*>(data) + b * s.batch + h * s.head + t.place[0] * s.axis[0] + t.place[1] * s.axis[1] +
           t.place[2] * s.axis[2];
  }
  // Where a real token's row begins in (batch, grid, heads, numbers).
  int64_t row_at(const Token& t, int64_t numbers) const { return (place_of(t) * a.heads + h) * numbers; }
  int64_t place_of(const Token& t) const {
    return b * a.places() + (t.place[0] * a.axis[1].size + t.place[1]) * a.axis[2].size + t.place[2];
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
      if (token[i].place[0] >= 0) {
        const T* from = row_of(data, s, token[i]);
        line(from + s.head, numbers);  // the next head's, which is read next
        copy(to.at(i), from);
      } else if (spare) {
        copy(to.at(i), spare);
      } else {
        for (int64_t c = 0; c < numbers; c += LANES) write(to.at(i, c), V{});
      }
    }
  }

  Block<R> there(const void* data, const WindowStrides& s) const {
    return {const_cast<R*>(static_cast<const R*>(data)) + h * s.head, s.axis[2]};
  }

  void read_keys(const Group& g) {
    if (in_place && g.whole) {
      k = there(a.k_data, a.k), v = there(a.v_data, a.v);
      return;
    }
    k = k_room, v = v_room;
    gather(k, a.k_data, a.k, a.pad_k, g.token, g.keys, a.width);
    gather(v, a.v_data, a.v, a.pad_v, g.token, g.keys, a.value_width);
  }

  // A tile of a group's queries, scaled so that powers of two of their products are wanted, and transposed.
  void read_queries(const Group& g, int64_t from) {
    first = from, count = least(most_queries, g.queries - first);
    lanes = qt.row = scores.row = padded(count);
    if (in_place && g.whole) return turn<R>(qt, {there(a.q_data, a.q).at(first), a.q.axis[2]}, lanes, D);
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
      table[which]({scores.at(m, n), lanes}, {k.at(key + m), k.row}, {qt.at(0, n), lanes}, a.width, own, most + n);
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
  int64_t out_row;  // numbers from one place's results to the next's
  bool ready;

  WindowForward(const ShiftedArguments& a, const Biases<R>& biases) : WindowForward(a, biases, a) {}
  WindowForward(const ShiftedArguments& a, const Biases<R>& biases, const ShiftedArguments& grid)
      : WindowReader<T>(a, biases, false, grid), out_row(a.heads * a.value_width) {
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
          weigh<R>(sums, factor, {v.at(key), v.row}, scores, a.value_width, many, count);
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
      T* to = static_cast<T*>(a.out) + this->place_of(g.token[first + i]) * out_row + this->h * a.value_width;
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

}  // namespace
}  // namespace foveate
