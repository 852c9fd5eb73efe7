// The pooling operator for CUDA, compiled at run time (NVRTC) by cuda.py, and by the tests for the
// host: no header is needed, and nothing but the functions under "device" differs between the two.
//
// A lane of a warp owns one channel (or one pair of 16-bit channels) of one sequence in one
// direction, a "column"; its neighbours own the neighbouring channels, so that every access of a
// warp is one contiguous row. A block is a group of LANES columns and some warps. Each warp takes a
// slice of a few steps (see Cut); the slices of a block are a tile. A warp loads its slice whole,
// to keep that many loads in flight (without `fence` the assembler would move loads down to their
// uses), and finds what it does to the state, c -> factor * c + addend. The block hands the state
// through its slices in shared memory, and every warp finishes its slice from its own state: all is
// read once.
//
// With columns enough to fill the GPU a block walks over all tiles of its group. With fewer, each
// tile has a block of its own, and `Relay` hands the state on between blocks.
//
// Layout: gates (T + |shift|, B, D, G, H) in the order z, f, o, i; h and cells (T, B, D, H);
// c (D, B, H).
//
// The convolution's windows, at the end, are moved by lanes that know nothing of each other.

typedef long long i64;
typedef unsigned long long u64;

// ---- device: 16-bit storage as raw bits, in float32 arithmetic

struct half16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

#ifdef __CUDA_ARCH__
__device__ inline float half_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ inline unsigned short float_to_half(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ inline unsigned float_bits(float x) { return __float_as_uint(x); }
__device__ inline float bits_float(unsigned x) { return __uint_as_float(x); }
__device__ inline i64 double_bits(double x) { return __double_as_longlong(x); }
__device__ inline double bits_double(i64 x) { return __longlong_as_double(x); }
// A barrier of the block, which loads stay before. It gives 0, but the compiler does not know: what
// is made of `after(zero, x)` stays behind.
__device__ inline unsigned fence() {
  unsigned zero;
  asm volatile(
      "{ .reg .pred never; setp.gt.u32 never, %1, 31; bar.red.popc.u32 %0, 0, never; }"
      : "=r"(zero)
      : "r"(threadIdx.x)
      : "memory");
  return zero;
}
// How many blocks of the largest size a multiprocessor is to hold, see Cut::resident.
#define BOUNDS(T, RELAYED, blocks, pairs) \
  __launch_bounds__(LANES* Cut<T, RELAYED>::SLICES, Cut<T, RELAYED>::resident(blocks, pairs))
__device__ inline void barrier() { __syncthreads(); }
__device__ inline void idle() {}
template <typename T, int N> __device__ inline T* shared() {
  __shared__ T memory[N];
  return memory;
}
#endif

__device__ inline float load(const float* p) { return *p; }
__device__ inline double load(const double* p) { return *p; }
__device__ inline float load(const half16* p) { return half_to_float(p->bits); }
__device__ inline float load(const bfloat16* p) { return bits_float((unsigned)p->bits << 16); }
__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(double* p, double x) { *p = x; }
__device__ inline void store(half16* p, float x) { p->bits = float_to_half(x); }
__device__ inline void store(bfloat16* p, float x) {
#if __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
  unsigned bits = float_bits(x);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  p->bits = nan ? 0x7fc0 : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
#endif
}

// Two neighbouring channels of 16 bits, loaded and stored as one: half the accesses, of 128 bytes a
// warp. Kernels for pairs are told half the H, and do all their arithmetic in two floats.
// One word: a struct's parts would be taken apart, and so waited for, right after the load.
template <typename T> struct pair { unsigned bits; };
template <typename T> struct is_pair { static const bool value = false; };
template <typename T> struct is_pair<pair<T>> { static const bool value = true; };

struct alignas(8) floats {
  float first, second;
  floats() = default;
  __device__ floats(float x) : first(x), second(x) {}
  __device__ floats(float x, float y) : first(x), second(y) {}
};
__device__ inline floats operator+(floats a, floats b) {
  return floats(a.first + b.first, a.second + b.second);
}
__device__ inline floats operator-(floats a, floats b) {
  return floats(a.first - b.first, a.second - b.second);
}
__device__ inline floats operator*(floats a, floats b) {
  return floats(a.first * b.first, a.second * b.second);
}
__device__ inline void operator+=(floats& a, floats b) { a = a + b; }
__device__ inline void operator*=(floats& a, floats b) { a = a * b; }

__device__ inline floats load(const pair<half16>* p) {
  return floats(half_to_float((unsigned short)p->bits), half_to_float(p->bits >> 16));
}
__device__ inline floats load(const pair<bfloat16>* p) {
  return floats(bits_float(p->bits << 16), bits_float(p->bits & 0xffff0000u));
}
template <typename T> __device__ inline void store(pair<T>* p, floats x) {
  T first, second;
  store(&first, x.first);
  store(&second, x.second);
  p->bits = first.bits | (unsigned)second.bits << 16;
}

// x itself, see fence()
template <typename T> __device__ inline const T* after(unsigned zero, T& x) {
  x.bits |= zero;
  return &x;
}
__device__ inline const float* after(unsigned zero, float& x) {
  x = bits_float(float_bits(x) | zero);
  return &x;
}
__device__ inline const double* after(unsigned zero, double& x) {
  x = bits_double(double_bits(x) | zero);
  return &x;
}
// After a second fence, for x that was used before it: 16 bits are unpacked anew, which takes fewer
// registers than to keep the floats.
template <typename T> __device__ inline void again(unsigned zero, T& x) { after(zero, x); }
__device__ inline void again(unsigned, float&) {}
__device__ inline void again(unsigned, double&) {}

template <typename T> struct wide { typedef float type; };
template <> struct wide<double> { typedef double type; };
template <typename T> struct wide<pair<T>> { typedef floats type; };

const float LOG2_E2 = 2.88539008f;  // of e * e

// Of the type that is stored: 16 bits need no more than the fast exponential.
template <typename T> __device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + (sizeof(T) == 2 ? __expf(-x) : expf(-x)));
}
template <typename T> __device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
template <typename T> __device__ inline float hyperbolic(float x) {
  if (sizeof(T) > 2) return tanhf(x);
  return fmaf(-2.0f, __fdividef(1.0f, 1.0f + exp2f(LOG2_E2 * x)), 1.0f);
}
template <typename T> __device__ inline double hyperbolic(double x) { return tanh(x); }
template <typename T> __device__ inline floats sigmoid(floats x) {
  return floats(sigmoid<half16>(x.first), sigmoid<half16>(x.second));
}
template <typename T> __device__ inline floats hyperbolic(floats x) {
  return floats(hyperbolic<half16>(x.first), hyperbolic<half16>(x.second));
}

// 0 if entry n of reference.uniform(seed) is below the rate, both as 24-bit integers; else 1.
__device__ inline float survives(u64 seed, u64 n, u64 threshold) {
  u64 x = seed + 0x9E3779B97F4A7C15ull * (n + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return ((x ^ (x >> 31)) >> 40) < threshold ? 0.0f : 1.0f;
}
template <typename A> __device__ inline void draw(A& alive, u64 seed, u64 n, u64 threshold) {
  alive = survives(seed, n, threshold);
}
__device__ inline void draw(floats& alive, u64 seed, u64 n, u64 threshold) {
  alive = floats(survives(seed, 2 * n, threshold), survives(seed, 2 * n + 1, threshold));
}

// ---- what every kernel is told

struct Shape {
  i64 T, B, D, H;
  i64 columns;         // B * D * H
  int groups, tiles;   // of columns, and of steps
  int interval;        // tiles after which a state is handed on, a power of 2, see Relay
  const i64* lengths;  // (B,), or null for T
  int reverse;         // of the only direction; with D = 2 the second one runs in reverse
  int shift;           // rows of gates by which the second direction's are later, see operator.py
};

struct Zoneout {
  const i64* seed;  // read only by kernels that are DRAWN
  u64 threshold;    // of 2^24
  double keep;      // factor of the update gate when not drawn
};

const int LANES = 32;  // columns of a block

// How tiles are cut: into at most SLICES (where they are RELAYED, just as many) of STEPS steps, so
// that each value that is kept of them takes 32 bytes; relayed pairs into slices of PAIRS_STEPS.
// `resident`: how many blocks a multiprocessor is to hold of a kernel of which it holds `blocks` in
// float, and `pairs` of relayed pairs.
template <typename T, bool RELAYED, int PAIRS_STEPS = 8> struct Cut {
  static const int SLICES = 8, STEPS = 32 / sizeof(typename wide<T>::type);
  __device__ static int slices() { return RELAYED ? SLICES : blockDim.y; }
  static constexpr int resident(int blocks, int) {
    return sizeof(T) == 8 ? 2 : is_pair<T>::value && blocks == 2 ? 3 : blocks;
  }
};
template <typename T, int PAIRS_STEPS> struct Cut<pair<T>, true, PAIRS_STEPS> {
  static const int SLICES = 4, STEPS = PAIRS_STEPS;
  __device__ static int slices() { return SLICES; }
  static constexpr int resident(int, int pairs) { return pairs; }
};

// 64-bit division is slow, and rarely needed.
__device__ inline i64 divide(i64 a, i64 b) {
  return (a | b) >> 32 ? a / b : (i64)((unsigned)a / (unsigned)b);
}

struct Column {
  int tile;       // the block's first
  i64 n, length;  // the column's place in a step's elements, and its steps
  int b, d;
  bool exists, backwards;

  // The grid is (groups, tiles), where a third dimension goes on with what y cannot count.
  // alone: D = 1, and no lengths.
  __device__ Column(const Shape& s, bool alone = false) {
    tile = blockIdx.z * gridDim.y + blockIdx.y;
    n = (i64)blockIdx.x * LANES + threadIdx.x;
    exists = n < s.columns;
    i64 row = alone ? 0 : divide(n, s.H);  // b * D + d
    b = alone || s.D == 1 ? row : row >> 1;
    d = row - b * s.D;
    backwards = s.reverse || d == 1;
    length = exists ? s.T : 0;
    if (!alone && s.lengths && exists) {
      length = s.lengths[b];
      length = length < 0 ? 0 : length > s.T ? s.T : length;
    }
  }
  // where in (T, B, D, H) the column's step t is, counted in its own direction, and one step on
  __device__ i64 place(const Shape& s, i64 t) const {
    return (backwards ? length - 1 - t : t) * s.columns + n;
  }
  __device__ i64 step(const Shape& s) const { return backwards ? -s.columns : s.columns; }
  // how many rows of gates lie before step 0 of the column's direction
  __device__ int first(const Shape& s) const {
    return d ? (s.shift > 0 ? s.shift : 0) : (s.shift < 0 ? -s.shift : 0);
  }
  // in (T + |shift|, B, D, G, H), an element at `place` of (T, B, D, H) has its first gate at
  // place * G + this
  __device__ i64 gates(const Shape& s, int G) const {
    i64 h = n - ((i64)b * s.D + d) * s.H;
    return (first(s) * s.columns - h) * G + h;
  }
  __device__ i64 state(const Shape& s) const { return n + (d * (s.B - 1) - b * (s.D - 1)) * s.H; }
};

// This warp's steps of a tile: `count` of the column's own length, the first of them at `place`.
template <typename CUT> struct Slice {
  static const int U = CUT::STEPS;
  const Shape& shape;
  const Column& column;
  i64 begin, place;
  int count, tile_steps;

  // Of the first tile to be processed; backward begins with the last steps.
  __device__ Slice(const Shape& shape, const Column& column, bool backward)
      : shape(shape), column(column), tile_steps(CUT::slices() * U) {
    int tile = column.tile, warp = threadIdx.y;
    if (backward) tile = shape.tiles - 1 - tile, warp = CUT::slices() - 1 - warp;
    begin = (i64)tile * tile_steps + warp * U;
    place = column.place(shape, begin);
    if (backward) tile_steps = -tile_steps;
    measure();
  }
  __device__ void measure() {
    i64 left = column.length - begin;
    count = left < 0 ? 0 : left < U ? (int)left : U;
  }
  __device__ void next() {
    begin += tile_steps;
    place += tile_steps * column.step(shape);
    measure();
  }
  // whether the column's last step is in it
  __device__ bool is_final() const { return count && begin + count == column.length; }
  // Calls body(k) for each step. Nearly all slices are whole: those do without the comparisons.
  template <typename Body> __device__ void each(Body body) const {
    if (count == U)
      for (int k = 0; k < U; ++k) body(k);
    else
      for (int k = 0; k < U; ++k)
        if (k < count) body(k);
  }
  template <typename Body> __device__ void each_backwards(Body body) const {
    if (count == U)
      for (int k = U - 1; k >= 0; --k) body(k);
    else
      for (int k = U - 1; k >= 0; --k)
        if (k < count) body(k);
  }
  // Calls body(place) for those that are padding.
  template <typename Body> __device__ void padding(Body body) const {
    if (count == U || !column.exists) return;
    i64 end = begin + U < shape.T ? begin + U : shape.T;
#pragma unroll 1
    for (i64 t = begin + count; t < end; ++t) body(t * shape.columns + column.n);
  }
};

// ---- the state on its way through slices and tiles

template <typename A> struct Map {  // c -> factor * c + addend
  A factor, addend;
  __device__ A of(A c) const { return factor * c + addend; }
  __device__ void then(const Map& next) {
    addend = next.of(addend);
    factor *= next.factor;
  }
  // the same where the addend comes before the factor, as it does backwards
  __device__ void add(const Map& next) {
    addend = next.factor * (addend + next.addend);
    factor *= next.factor;
  }
};
template <typename A> __device__ inline Map<A> identity() { return {A(1), A(0)}; }

// What a thread keeps for the time when it has its state. Where it waits for other blocks that is
// in shared memory, so that more blocks find room on a multiprocessor.
template <typename V, typename CUT, bool SHARED> struct Kept {
  V values[CUT::STEPS];
  __device__ V& operator[](int k) { return values[k]; }
};
template <typename V, typename CUT> struct Kept<V, CUT, true> {
  static const int THREADS = LANES * CUT::SLICES;
  static_assert(CUT::STEPS > 2, "Relay's Maps, which shared() would take for these");
  V* values;
  __device__ Kept()
      : values(shared<V, CUT::STEPS * THREADS>() + threadIdx.y * LANES + threadIdx.x) {}
  __device__ V& operator[](int k) { return values[k * THREADS]; }
};

// Hands the state through a block's slices, and, where each tile has a block of its own (RELAYED),
// through the blocks of a group. There each block makes known its tile's Map, and the last of every
// `interval` tiles the state after it; a block then knows its own state by the last interval's and
// the Maps since (a decoupled look-back: Merrill and Garland 2016). It waits for blocks of a lower
// index only, and blocks start in the order of their indices, x before y before z (CUB's scans rely
// on such an order, too). What is combined with what does not depend on time, so that results are
// reproducible.
//
// `words` (tiles, columns, WORDS), zeroed before the launch: each holds bits of a Map, inverted, so
// that one that is not 0 is complete by itself, and no fence of the memory is needed. Null without
// RELAYED. Tiles count in the order of processing: in backward from the last steps.
template <typename A, typename CUT, bool RELAYED> struct Relay {
  static const int SLICES = CUT::SLICES, WORDS = sizeof(Map<A>) / 8;
  static const int LOOKS = 2;  // in flight at once; more take too many registers
  union Bits {
    Map<A> map;
    u64 words[WORDS];
    __device__ Bits() {}
  };
  const Shape& shape;
  const Column& column;
  u64* words;
  int tile, end;
  Map<A>* maps;

  __device__ Relay(const Shape& shape, const Column& column, u64* words)
      : shape(shape), column(column), words(words), tile(column.tile) {
    end = !RELAYED ? shape.tiles : tile < shape.tiles ? tile + 1 : 0;
    maps = shared<Map<A>, (1 + RELAYED) * SLICES * LANES>();
  }

  __device__ volatile u64* place(int tile) const {
    return words + ((i64)tile * shape.columns + column.n) * WORDS;
  }
  __device__ void publish(const Map<A>& map) const {
    Bits bits;
    bits.map = map;
    for (int n = 0; n < WORDS; ++n)  // all ones, a NaN, would become 0; 1 is read as another NaN
      place(tile)[n] = bits.words[n] == ~0ull ? 1 : ~bits.words[n];
  }
  // Reads a Map that another block publishes: first a look, of which several can be in flight.
  struct Look {
    u64 seen[WORDS];
    __device__ void start(volatile u64* place) {
      for (int n = 0; n < WORDS; ++n) seen[n] = place[n];
    }
    __device__ Map<A> wait(volatile u64* place) {
      Bits bits;
      for (int n = 0; n < WORDS; ++n) {
        while (!seen[n]) {
          idle();
          seen[n] = place[n];
        }
        bits.words[n] = ~seen[n];
      }
      return bits.map;
    }
  };

  // These are called by all threads of a block, after fence().

  // The state before this block's tile. `row`: the Maps of its slices; start: before all tiles.
  __device__ A arrive(const Map<A>* row, A start) const {
    // tiles after the last known state; how many tiles that one is after
    int since = tile & (shape.interval - 1), known = tile - since;
    bool leads = threadIdx.y == 0;
    Map<A> seen = identity<A>();
    if (column.exists) {
      if (leads && since + 1 < shape.interval) {
        Map<A> whole = identity<A>();
        for (int y = 0; y < SLICES; ++y) whole.then(row[y * LANES]);
        publish(whole);
      }
      Look state, looks[LOOKS];
      if (leads && known) state.start(place(known - 1));
      int share = (shape.interval + SLICES - 1) / SLICES;
      int other = known + threadIdx.y * share, count = tile - other < share ? tile - other : share;
#pragma unroll 1
      for (; count > 0; count -= LOOKS, other += LOOKS) {
        for (int n = 0; n < LOOKS; ++n)
          if (n < count) looks[n].start(place(other + n));
        for (int n = 0; n < LOOKS; ++n)
          if (n < count) seen.then(looks[n].wait(place(other + n)));
      }
      if (leads && known) start = state.wait(place(known - 1)).addend;
    }
    if (leads) seen.addend = seen.of(start);  // the state itself
    Map<A>* others = maps + SLICES * LANES + threadIdx.x;
    others[threadIdx.y * LANES] = seen;
    barrier();
    A state = others[0].addend;
    for (int y = 1; y < SLICES; ++y) state = others[y * LANES].of(state);
    return state;
  }

  // The state before this warp's slice, which does `own` to it; `state` is that before the tile,
  // and becomes that after it. `zero` becomes that of another fence().
  __device__ A pass(const Map<A>& own, A& state, unsigned& zero) const {
    Map<A>* row = maps + threadIdx.x;
    row[threadIdx.y * LANES] = own;
    zero = fence();
    if (RELAYED) state = arrive(row, state);
    A before = state;
#pragma unroll(RELAYED ? SLICES : 1)
    for (int y = 0; y < CUT::slices(); ++y) {
      if (y == threadIdx.y) before = state;
      state = row[y * LANES].of(state);
    }
    bool handed_on = RELAYED && !((tile + 1) & (shape.interval - 1));
    if (handed_on && threadIdx.y == 0 && column.exists) publish({A(0), state});
    return before;
  }
  // whether this thread is the one to write what the last tile leaves
  __device__ bool writes_last() const {
    return threadIdx.y == 0 && column.exists && end == shape.tiles;
  }
};

// ---- the pool; DRAWN: zoneout is drawn at random

template <typename T, int G, bool DRAWN> struct Gates {
  typedef typename wide<T>::type A;
  T pre[G] = {};
  A z, f, alive, update, i;

  // What is not read becomes the identity: with f = 1 nothing is let in.
  __device__ Gates() { store(&pre[1], A(1e30f)); }
  __device__ void read(const T* gates, i64 H) {
    for (int g = 0; g < G; ++g) pre[g] = gates[g * H];
  }
  __device__ void activate(unsigned zero, const Zoneout& zoneout, u64 seed, i64 place) {
    z = hyperbolic<T>(load(after(zero, pre[0])));
    f = sigmoid<T>(load(after(zero, pre[1])));
    if (DRAWN)
      draw(alive, seed, (u64)place, zoneout.threshold);
    else
      alive = (A)zoneout.keep;
    update = alive * (A(1) - f);
    i = G > 3 ? sigmoid<T>(load(after(zero, pre[G > 3 ? 3 : 0]))) : update;
  }
  __device__ A output(unsigned zero) {
    return G > 2 ? sigmoid<T>(load(after(zero, pre[G > 2 ? 2 : 0]))) : A(1);
  }
};

template <typename T, int G, bool DRAWN, bool RELAYED>
__global__ BOUNDS(T, RELAYED, RELAYED && G < 4 ? 4 : 3, G < 4 ? 5 : 4) void pool_forward(
    Shape shape, u64* words, Zoneout zoneout, const T* gates, const T* c0, T* h, T* cells, T* h_n,
    T* c_n) {
  typedef typename wide<T>::type A;
  typedef Cut<T, RELAYED, 16> CUT;
  constexpr int U = CUT::STEPS;
  Column column(shape);
  u64 seed = DRAWN ? (u64)*zoneout.seed : 0;
  A state = c0 && column.exists ? load(c0 + column.state(shape)) : A(0);
  i64 step = column.step(shape);
  i64 first_gate = column.gates(shape, G);
  Slice<CUT> slice(shape, column, false);
  Relay<A, CUT, RELAYED> relay(shape, column, words);
  for (; relay.tile < relay.end; ++relay.tile, slice.next()) {
    Gates<T, G, DRAWN> gate[U];
    const T* from = gates + (first_gate + slice.place * G);
    slice.each([&](int k) {
      gate[k].read(from, shape.H);
      from += step * G;
    });
    unsigned zero = fence();
    Kept<Map<A>, CUT, RELAYED> kept;
    Map<A> whole = identity<A>();
    for (int k = 0; k < U; ++k) {
      gate[k].activate(zero, zoneout, seed, slice.place + k * step);
      Map<A> map = {A(1) - gate[k].update, gate[k].i * gate[k].z};
      whole.then(map);
      kept[k] = map;
    }
    A c = relay.pass(whole, state, zero), output;
    i64 place = slice.place;
    slice.each([&](int k) {
      c = kept[k].of(c);
      if (cells) store(cells + place, c);
      output = G > 2 ? gate[k].output(zero) * c : c;
      store(h + place, output);
      place += step;
    });
    if (slice.is_final()) {  // to the bit the last of the outputs and of the cells
      store(h_n + column.state(shape), output);
      store(c_n + column.state(shape), c);
    }
    slice.padding([&](i64 place) {
      store(h + place, A(0));
      if (cells) store(cells + place, A(0));
    });
  }
  if (relay.writes_last() && !column.length) {
    store(h_n + column.state(shape), A(0));
    store(c_n + column.state(shape), state);
  }
}

// The gradient at the cells is g_s = o_s grad_h_s + (1 - update_(s+1)) g_(s+1).
template <typename T, int G, bool DRAWN, bool RELAYED>
__global__ BOUNDS(T, RELAYED, 2, 5) void pool_backward(
    Shape shape, u64* words, Zoneout zoneout, const T* gates, const T* c0, const T* cells,
    const T* grad_h, const T* grad_h_n, const T* grad_c_n, T* grad_gates, T* grad_c0) {
  typedef typename wide<T>::type A;
  typedef Cut<T, RELAYED, 8> CUT;
  constexpr int U = CUT::STEPS;
  Column column(shape);
  u64 seed = DRAWN ? (u64)*zoneout.seed : 0;
  A state = grad_c_n && column.exists ? load(grad_c_n + column.state(shape)) : A(0);
  i64 step = column.step(shape);
  i64 first_gate = column.gates(shape, G);
  auto zero_gates = [&](i64 place) {
    for (int n = 0; n < G; ++n) store(grad_gates + (first_gate + place * G + n * shape.H), A(0));
  };
  Slice<CUT> slice(shape, column, true);
  Relay<A, CUT, RELAYED> relay(shape, column, words);
  for (; relay.tile < relay.end; ++relay.tile, slice.next()) {
    Gates<T, G, DRAWN> gate[U];
    T grads[U] = {}, c[U + 1] = {};  // the cells before and after each step
    if (slice.count) {
      if (slice.begin)
        c[0] = cells[slice.place - step];
      else if (c0)
        c[0] = c0[column.state(shape)];
    }
    const T* from = gates + (first_gate + slice.place * G);
    i64 place = slice.place;
    T last = {};
    if (grad_h_n && slice.is_final()) last = grad_h_n[column.state(shape)];
    slice.each([&](int k) {
      gate[k].read(from, shape.H);
      if (grad_h) grads[k] = grad_h[place];
      c[k + 1] = cells[place];
      from += step * G;
      place += step;
    });
    unsigned zero = fence();
    struct Step { Map<A> map; A by[G > 3 ? 3 : 2]; };  // what gives z's, f's and i's gradient of g
    Kept<Step, CUT, RELAYED> kept;
    Map<A> whole = identity<A>();
    T* to = grad_gates + (first_gate + slice.place * G);
    A grad_last = load(after(zero, last));
    for (int k = U - 1; k >= 0; --k) {
      gate[k].activate(zero, zoneout, seed, slice.place + k * step);
      A z = gate[k].z, f = gate[k].f, i = gate[k].i, o = gate[k].output(zero);
      A grad = load(after(zero, grads[k])), before = load(after(zero, c[k]));
      if (k == slice.count - 1) grad += grad_last;
      kept[k].by[0] = i * (A(1) - z * z);
      kept[k].by[1] = (G > 3 ? before : before - z) * gate[k].alive * f * (A(1) - f);
      if (G > 3) kept[k].by[G > 3 ? 2 : 0] = z * i * (A(1) - i);
      if (G > 2 && k < slice.count)
        store(to + k * step * G + 2 * shape.H, grad * load(&c[k + 1]) * o * (A(1) - o));
      Map<A> map = {A(1) - gate[k].update, G > 2 ? o * grad : grad};
      whole.add(map);
      kept[k].map = map;
    }
    A g = relay.pass(whole, state, zero);
    slice.each_backwards([&](int k) {
      g += kept[k].map.addend;
      T* out = to + k * step * G;
      store(out, g * kept[k].by[0]);
      store(out + shape.H, g * kept[k].by[1]);
      if (G > 3) store(out + 3 * shape.H, g * kept[k].by[G > 3 ? 2 : 0]);
      g *= kept[k].map.factor;
    });
    slice.padding(zero_gates);
  }
  if (!relay.writes_last()) return;
  int first = column.first(shape), beside = shape.shift < 0 ? -shape.shift : shape.shift;
  for (int row = 0; row < beside; ++row)  // counted from step 0, as `gates` does
    zero_gates((row < first ? row - first : shape.T + row - first) * shape.columns + column.n);
  store(grad_c0 + column.state(shape), state);
}

// ---- linear_recurrence: h_s = f_s h_(s-1) + x_s, with D = 1 and no lengths

template <typename T, bool RELAYED>
__global__ BOUNDS(T, RELAYED, 4, 6) void recurrence(
    Shape shape, u64* words, const T* f, const T* x, const T* h0, T* h) {
  typedef typename wide<T>::type A;
  typedef Cut<T, RELAYED, 16> CUT;
  constexpr int U = CUT::STEPS;
  Column column(shape, true);
  A state = column.exists ? load(h0 + column.state(shape)) : A(0);
  i64 step = column.step(shape);
  Slice<CUT> slice(shape, column, false);
  Relay<A, CUT, RELAYED> relay(shape, column, words);
  for (; relay.tile < relay.end; ++relay.tile, slice.next()) {
    T factors[U], addends[U] = {};
    for (int k = 0; k < U; ++k) store(&factors[k], A(1));
    i64 place = slice.place;
    slice.each([&](int k) {
      factors[k] = f[place];
      addends[k] = x[place];
      place += step;
    });
    unsigned zero = fence();
    Map<A> whole = identity<A>();
    auto map = [&](int k) -> Map<A> { return {load(&factors[k]), load(&addends[k])}; };
    for (int k = 0; k < U; ++k) {
      after(zero, factors[k]), after(zero, addends[k]);
      whole.then(map(k));
    }
    A value = relay.pass(whole, state, zero);
    place = slice.place;
    slice.each([&](int k) {
      again(zero, factors[k]), again(zero, addends[k]);
      value = map(k).of(value);
      store(h + place, value);
      place += step;
    });
  }
}

// g_s = grad_h_s + f_(s+1) g_(s+1) is x's gradient, g_s h_(s-1) is f's.
template <typename T, bool RELAYED>
__global__ BOUNDS(T, RELAYED, 4, 5) void recurrence_backward(
    Shape shape, u64* words, const T* f, const T* h0, const T* h, const T* grad_h, T* grad_f,
    T* grad_x, T* grad_h0) {
  typedef typename wide<T>::type A;
  typedef Cut<T, RELAYED, 16> CUT;
  constexpr int U = CUT::STEPS;
  Column column(shape, true);
  A state = 0;
  i64 step = column.step(shape);
  Slice<CUT> slice(shape, column, true);
  Relay<A, CUT, RELAYED> relay(shape, column, words);
  for (; relay.tile < relay.end; ++relay.tile, slice.next()) {
    T factors[U], grads[U] = {}, before[U] = {};  // h before each step
    for (int k = 0; k < U; ++k) store(&factors[k], A(1));
    i64 place = slice.place;
    slice.each([&](int k) {
      factors[k] = f[place];
      grads[k] = grad_h[place];
      before[k] = slice.begin + k ? h[place - step] : h0[column.state(shape)];
      place += step;
    });
    unsigned zero = fence();
    Map<A> whole = identity<A>();
    for (int k = U - 1; k >= 0; --k) {
      after(zero, factors[k]), after(zero, grads[k]), after(zero, before[k]);
      whole.add({load(&factors[k]), load(&grads[k])});
    }
    A g = relay.pass(whole, state, zero);
    slice.each_backwards([&](int k) {
      again(zero, factors[k]), again(zero, grads[k]), again(zero, before[k]);
      g += load(&grads[k]);
      store(grad_x + slice.place + k * step, g);
      store(grad_f + slice.place + k * step, g * load(&before[k]));
      g *= load(&factors[k]);
    });
  }
  if (relay.writes_last()) store(grad_h0 + column.state(shape), state);
}

// ---- the convolution's windows: k steps of x side by side, with rows of zeros around x

// Neighbours in memory, loaded and stored as one.
template <typename T, int N> struct alignas(N * sizeof(T)) several { T values[N]; };

// x (T, B, I) and its windows (rows, B, k, I), where I counts what a lane takes.
struct Windows {
  i64 rows, T, B, I, k;
  i64 before;  // rows of zeros before x

  __device__ static i64 lane() {
    return ((i64)blockIdx.x * blockDim.y + threadIdx.y) * LANES + threadIdx.x;
  }
  // Calls body with each place in the windows of element n of x and the zeros around it.
  template <typename Body> __device__ void each(i64 n, Body body) const {
    i64 row = divide(n, I), place = n + row * (k - 1) * I;
    for (i64 j = 0; j < k; ++j, row -= B, place -= (B * k - 1) * I)
      if (0 <= row && row < rows * B) body(place);
  }
};

template <typename T, int N>
__global__ void windows(Windows shape, const several<T, N>* x, several<T, N>* out) {
  i64 n = Windows::lane(), step = shape.B * shape.I, from = n - shape.before * step;
  if (n >= (shape.rows + shape.k - 1) * step) return;
  several<T, N> value = {};
  if (0 <= from && from < shape.T * step) value = x[from];
  shape.each(n, [&](i64 place) { out[place] = value; });
}

template <typename T, int N>
__global__ void windows_backward(
    Windows shape, const several<T, N>* grad, several<T, N>* grad_x) {
  i64 n = Windows::lane(), step = shape.B * shape.I;
  if (n >= shape.T * step) return;
  typename wide<T>::type sum[N] = {};
  shape.each(n + shape.before * step, [&](i64 place) {
    several<T, N> part = grad[place];
    for (int m = 0; m < N; ++m) sum[m] += load(&part.values[m]);
  });
  several<T, N> total;
  for (int m = 0; m < N; ++m) store(&total.values[m], sum[m]);
  grad_x[n] = total;
}
