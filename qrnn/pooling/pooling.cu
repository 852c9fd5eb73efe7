// The pooling operator for CUDA, compiled at run time (NVRTC) by cuda.py, and by the tests for the
// host: no header is needed, and nothing but the functions under "device" differs between the two.
//
// A thread owns one channel (or one pair of 16-bit channels) of one sequence in one direction, a
// "column", and walks its steps. Its neighbours own the neighbouring channels, so that every access
// of a warp is one contiguous row. UNROLL steps are loaded before any is used, to keep that many
// loads in flight; without `fence` the assembler would move loads down to their uses. Addresses are
// not computed but advanced: 64-bit products at every access would cost more than the arithmetic.
//
// Where columns are too few to fill the GPU, time is cut into chunks: `summarise` finds what a chunk
// does to the state (c -> factor * c + addend), `carry` runs over the chunks, and the main kernel
// then starts every chunk from its own state. With one chunk the main kernel does it all.
//
// Layout: gates (T + |shift|, B, D, G, H) in the order z, f, o, i; h and cells (T, B, D, H);
// c (D, B, H).

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
// A barrier of those threads of the warp that are here, which no load is moved across.
__device__ inline void fence() {
  unsigned here;
  asm volatile("activemask.b32 %0;" : "=r"(here));
  asm volatile("bar.warp.sync %0;" ::"r"(here) : "memory");
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

template <typename T> struct wide { typedef float type; };
template <> struct wide<double> { typedef double type; };
template <typename T> struct wide<pair<T>> { typedef floats type; };

// Of the type that is stored: 16 bits need no more than the fast exponential.
template <typename T> __device__ inline float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + (sizeof(T) == 2 ? __expf(-x) : expf(-x)));
}
template <typename T> __device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
template <typename T> __device__ inline float hyperbolic(float x) {
  return sizeof(T) == 2 ? 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x)) : tanhf(x);
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
  i64 chunk;           // steps of a chunk; chunks are blockIdx.y
  const i64* lengths;  // (B,), or null for T
  int reverse;         // of the only direction; with D = 2 the second one runs in reverse
  int shift;           // rows of gates by which the second direction's are later, see operator.py
};

struct Zoneout {
  const i64* seed;  // read only by kernels that are DRAWN
  u64 threshold;    // of 2^24
  double keep;      // factor of the update gate when not drawn
};

// 64-bit division is slow, and rarely needed.
__device__ inline i64 divide(i64 a, i64 b) {
  return (a | b) >> 32 ? a / b : (i64)((unsigned)a / (unsigned)b);
}

struct Column {
  i64 n, b, d, h, length, row0, stride, columns;
  i64 first, beside;  // the row of gates of step 0, and how many rows are not of any step
  bool backwards;

  __device__ Column(const Shape& s) {
    n = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    row0 = divide(n, s.H);  // b * D + d
    h = n - row0 * s.H;
    b = s.D == 1 ? row0 : row0 >> 1;
    d = row0 - b * s.D;
    backwards = s.reverse || d == 1;
    stride = s.B * s.D;
    columns = stride * s.H;
    first = d == 1 ? (s.shift > 0 ? s.shift : 0) : (s.shift < 0 ? -s.shift : 0);
    beside = s.shift < 0 ? -s.shift : s.shift;
    length = s.T;
    if (s.lengths && exists()) {
      length = s.lengths[b];
      length = length < 0 ? 0 : length > s.T ? s.T : length;
    }
  }
  __device__ bool exists() const { return n < columns; }
  // where in (T, B, D, H) the column's step `s` is, counted in its own direction; one step on; and
  // where an element of (T, B, D, H) has its first gate in (T + |shift|, B, D, G, H)
  __device__ i64 place(i64 s) const {
    return (backwards ? length - 1 - s : s) * columns + n;
  }
  __device__ i64 step() const { return backwards ? -columns : columns; }
  __device__ i64 gates(i64 place, int G) const { return (place + first * columns - h) * G + h; }
  __device__ i64 state(const Shape& s) const { return (d * s.B + b) * s.H + h; }
};

// Steps begin..end of this block's chunk, those of the column's own length only.
struct Chunk {
  i64 begin, end, steps, padding_begin, padding_end;
  __device__ Chunk(const Shape& s, const Column& column) {
    begin = (i64)blockIdx.y * s.chunk;
    padding_end = begin + s.chunk < s.T ? begin + s.chunk : s.T;
    end = padding_end < column.length ? padding_end : column.length;
    steps = end > begin ? end - begin : 0;
    padding_begin = begin > column.length ? begin : column.length;
  }
  // the chunk after which the column is done; the first one when it has no steps at all
  __device__ bool last(const Column& column) const {
    return column.length ? begin < column.length && end == column.length : begin == 0;
  }
};

// ---- one step; DRAWN: zoneout is drawn at random

template <typename T, int G, bool DRAWN> struct Gates {
  typedef typename wide<T>::type A;
  T pre[G];
  A z, f, alive, update, o, i;

  __device__ void read(const T* gates, i64 H) {
    for (int g = 0; g < G; ++g) pre[g] = gates[g * H];
  }
  __device__ void activate(const Zoneout& zoneout, u64 seed, i64 place) {
    z = hyperbolic<T>(load(&pre[0]));
    f = sigmoid<T>(load(&pre[1]));
    if (DRAWN)
      draw(alive, seed, (u64)place, zoneout.threshold);
    else
      alive = (A)zoneout.keep;
    update = alive * (A(1) - f);
    if (G > 2) o = sigmoid<T>(load(&pre[G > 2 ? 2 : 0]));
    i = G > 3 ? sigmoid<T>(load(&pre[G > 3 ? 3 : 0])) : update;
  }
};

const int UNROLL = 8;

struct All {  // the number of steps in a whole block, known when compiling
  __device__ constexpr operator int() const { return UNROLL; }
};

// Calls block(All()) for every UNROLL of `steps`, and block(rest) for what is left.
template <typename Block> __device__ inline void in_blocks(i64 steps, Block block) {
#pragma unroll 1
  for (; steps >= UNROLL; steps -= UNROLL) block(All());
  if (steps) block((int)steps);
}

// ---- forward

// What each chunk does to a state, (2, chunks, columns): its factor and its addend.
template <typename T, int G, bool DRAWN>
__global__ void pool_summarise(Shape shape, Zoneout zoneout, const T* gates,
                               typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  u64 seed = DRAWN ? (u64)*zoneout.seed : 0;
  i64 place = column.place(chunk.begin), step = column.step();
  if (chunk.steps) gates += column.gates(place, G);
  A factor = 1, addend = 0;
  in_blocks(chunk.steps, [&](auto count) {
    Gates<T, G, DRAWN> gate[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].read(gates, shape.H);
        gates += step * G;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].activate(zoneout, seed, place);
        A keep = A(1) - gate[u].update;
        factor *= keep;
        addend = keep * addend + gate[u].i * gate[u].z;
        place += step;
      }
  });
  i64 at = blockIdx.y * column.columns + column.n;
  summary[at] = factor;
  summary[gridDim.y * column.columns + at] = addend;
}

// Turns addends into the state at the start of each chunk (forward: from the first to the last).
template <typename T>
__global__ void carry(Shape shape, i64 chunks, const T* start, typename wide<T>::type* summary,
                      int from_last) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  A state = start ? load(start + column.state(shape)) : A(0);
  i64 step = from_last ? -column.columns : column.columns;
  A* factors = summary + (from_last ? chunks - 1 : 0) * column.columns + column.n;
  A* addends = factors + chunks * column.columns;
  in_blocks(chunks, [&](auto count) {
    A factor[UNROLL], addend[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        factor[u] = factors[u * step];
        addend[u] = addends[u * step];
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        addends[u * step] = state;
        state = factor[u] * state + addend[u];
      }
    factors += UNROLL * step;
    addends += UNROLL * step;
  });
}

// `states` are the chunks' first cells as `carry` leaves them, or null for one chunk from c0.
template <typename T, int G, bool DRAWN>
__global__ void pool_forward(Shape shape, Zoneout zoneout, const T* gates, const T* c0,
                             const typename wide<T>::type* states, T* h, T* cells, T* c_n) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  u64 seed = DRAWN ? (u64)*zoneout.seed : 0;
  A c = states ? states[blockIdx.y * column.columns + column.n]
               : c0 ? load(c0 + column.state(shape)) : A(0);
  i64 place = column.place(chunk.begin), step = column.step();
  if (chunk.steps) gates += column.gates(place, G);
  in_blocks(chunk.steps, [&](auto count) {
    Gates<T, G, DRAWN> gate[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].read(gates, shape.H);
        gates += step * G;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].activate(zoneout, seed, place);
        c = (A(1) - gate[u].update) * c + gate[u].i * gate[u].z;
        if (cells) store(cells + place, c);
        store(h + place, G > 2 ? gate[u].o * c : c);
        place += step;
      }
  });
  for (i64 t = chunk.padding_begin; t < chunk.padding_end; ++t) {
    place = t * column.columns + column.n;
    store(h + place, A(0));
    if (cells) store(cells + place, A(0));
  }
  if (chunk.last(column)) store(c_n + column.state(shape), c);
}

// ---- backward: the gradient at the cells, g_s = o_s grad_h_s + (1 - update_(s+1)) g_(s+1)

template <typename T, int G, bool DRAWN>
__global__ void pool_backward_summarise(Shape shape, Zoneout zoneout, const T* gates,
                                        const T* grad_h, typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  u64 seed = DRAWN ? (u64)*zoneout.seed : 0;
  i64 place = column.place(chunk.end - 1), step = -column.step();
  if (chunk.steps) {
    gates += column.gates(place, G);
    grad_h += place;
  }
  A factor = 1, addend = 0;
  in_blocks(chunk.steps, [&](auto count) {
    Gates<T, G, DRAWN> gate[UNROLL];
    T grads[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].read(gates, shape.H);
        grads[u] = *grad_h;
        gates += step * G;
        grad_h += step;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].activate(zoneout, seed, place);
        A keep = A(1) - gate[u].update, grad = load(&grads[u]);
        factor *= keep;
        addend = keep * (addend + (G > 2 ? gate[u].o * grad : grad));
        place += step;
      }
  });
  i64 at = blockIdx.y * column.columns + column.n;
  summary[at] = factor;
  summary[gridDim.y * column.columns + at] = addend;
}

template <typename T, int G, bool DRAWN>
__global__ void pool_backward(Shape shape, Zoneout zoneout, const T* gates, const T* c0,
                              const T* cells, const T* grad_h, const T* grad_c_n,
                              const typename wide<T>::type* states, T* grad_gates, T* grad_c0) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  u64 seed = DRAWN ? (u64)*zoneout.seed : 0;
  T first = c0 ? c0[column.state(shape)] : T();
  A g = states ? states[blockIdx.y * column.columns + column.n]
               : grad_c_n ? load(grad_c_n + column.state(shape)) : A(0);
  i64 place = column.place(chunk.end - 1), step = -column.step();
  i64 before = chunk.end - 1;  // steps before the one at `place`
  T* out = grad_gates;
  A c_here = 0;
  if (chunk.steps) {
    out += column.gates(place, G);
    gates += column.gates(place, G);
    grad_h += place;
    cells += place;
    c_here = load(cells);
  }
  in_blocks(chunk.steps, [&](auto count) {
    Gates<T, G, DRAWN> gate[UNROLL];
    T grads[UNROLL], earlier[UNROLL];  // the cell before each step
    int inside = before < UNROLL ? (int)before : UNROLL;
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].read(gates, shape.H);
        grads[u] = *grad_h;
        gates += step * G;
        grad_h += step;
        cells += step;
        earlier[u] = u < inside ? *cells : first;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        gate[u].activate(zoneout, seed, place);
        A z = gate[u].z, f = gate[u].f, o = gate[u].o, i = gate[u].i;
        A grad = load(&grads[u]), c_before = load(&earlier[u]);
        g += G > 2 ? o * grad : grad;
        store(out, g * i * (A(1) - z * z));
        store(out + shape.H, g * (G > 3 ? c_before : c_before - z) * gate[u].alive * f * (A(1) - f));
        if (G > 2) store(out + 2 * shape.H, grad * c_here * o * (A(1) - o));
        if (G > 3) store(out + 3 * shape.H, g * z * i * (A(1) - i));
        g *= A(1) - gate[u].update;
        c_here = c_before;
        out += step * G;
        place += step;
      }
    before -= UNROLL;
  });
  for (i64 t = chunk.padding_begin; t < chunk.padding_end; ++t) {
    out = grad_gates + column.gates(t * column.columns + column.n, G);
    for (int k = 0; k < G; ++k) store(out + k * shape.H, A(0));
  }
  if (chunk.begin) return;
  for (i64 row = 0; row < column.beside; ++row) {  // counted from step 0, as `gates` does
    i64 t = row < column.first ? row - column.first : shape.T + row - column.first;
    out = grad_gates + column.gates(t * column.columns + column.n, G);
    for (int k = 0; k < G; ++k) store(out + k * shape.H, A(0));
  }
  store(grad_c0 + column.state(shape), g);
}

// ---- linear_recurrence: h_s = f_s h_(s-1) + x_s, with D = 1 and no lengths

template <typename T>
__global__ void recurrence_summarise(Shape shape, const T* f, const T* x,
                                     typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  i64 place = column.place(chunk.begin), step = column.step();
  if (chunk.steps) {
    f += place;
    x += place;
  }
  A factor = 1, addend = 0;
  in_blocks(chunk.steps, [&](auto count) {
    T factors[UNROLL], addends[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        factors[u] = *f;
        addends[u] = *x;
        f += step;
        x += step;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        A own = load(&factors[u]);
        factor *= own;
        addend = own * addend + load(&addends[u]);
      }
  });
  i64 at = blockIdx.y * column.columns + column.n;
  summary[at] = factor;
  summary[gridDim.y * column.columns + at] = addend;
}

template <typename T>
__global__ void recurrence(Shape shape, const T* f, const T* x, const T* h0,
                           const typename wide<T>::type* states, T* h) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  A state = states ? states[blockIdx.y * column.columns + column.n]
                   : load(h0 + column.state(shape));
  i64 place = column.place(chunk.begin), step = column.step();
  if (chunk.steps) {
    f += place;
    x += place;
    h += place;
  }
  in_blocks(chunk.steps, [&](auto count) {
    T factors[UNROLL], addends[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        factors[u] = *f;
        addends[u] = *x;
        f += step;
        x += step;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        state = load(&factors[u]) * state + load(&addends[u]);
        store(h, state);
        h += step;
      }
  });
}

// ---- its backward: g_s = grad_h_s + f_(s+1) g_(s+1) is x's gradient, g_s h_(s-1) is f's

template <typename T>
__global__ void recurrence_backward_summarise(Shape shape, const T* f, const T* grad_h,
                                              typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  i64 place = column.place(chunk.end - 1), step = -column.step();
  if (chunk.steps) {
    f += place;
    grad_h += place;
  }
  A factor = 1, addend = 0;
  in_blocks(chunk.steps, [&](auto count) {
    T factors[UNROLL], grads[UNROLL];
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        factors[u] = *f;
        grads[u] = *grad_h;
        f += step;
        grad_h += step;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        A own = load(&factors[u]);
        factor *= own;
        addend = own * (addend + load(&grads[u]));
      }
  });
  i64 at = blockIdx.y * column.columns + column.n;
  summary[at] = factor;
  summary[gridDim.y * column.columns + at] = addend;
}

template <typename T>
__global__ void recurrence_backward(Shape shape, const T* f, const T* h0, const T* h,
                                    const T* grad_h, const typename wide<T>::type* states,
                                    T* grad_f, T* grad_x, T* grad_h0) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists()) return;
  Chunk chunk(shape, column);
  T first = h0[column.state(shape)];
  A g = states ? states[blockIdx.y * column.columns + column.n] : A(0);
  i64 place = column.place(chunk.end - 1), step = -column.step();
  i64 before = chunk.end - 1;  // steps before the one at `place`
  if (chunk.steps) {
    f += place;
    h += place;
    grad_h += place;
    grad_f += place;
    grad_x += place;
  }
  in_blocks(chunk.steps, [&](auto count) {
    T factors[UNROLL], grads[UNROLL], earlier[UNROLL];  // h before each step
    int inside = before < UNROLL ? (int)before : UNROLL;
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        factors[u] = *f;
        grads[u] = *grad_h;
        f += step;
        grad_h += step;
        h += step;
        earlier[u] = u < inside ? *h : first;
      }
    fence();
    for (int u = 0; u < UNROLL; ++u)
      if (u < count) {
        g += load(&grads[u]);
        store(grad_x, g);
        store(grad_f, g * load(&earlier[u]));
        g *= load(&factors[u]);
        grad_x += step;
        grad_f += step;
      }
    before -= UNROLL;
  });
  if (chunk.begin == 0) store(grad_h0 + column.state(shape), g);
}
