// The pooling operator for CUDA, compiled at run time (NVRTC) by cuda.py, and by the tests for the
// host: no header is needed, and nothing but the functions under "device" differs between the two.
//
// A thread owns one channel of one sequence in one direction, a "column", and walks its steps. Its
// neighbours own the neighbouring channels, so that every access of a warp is one contiguous row.
// UNROLL steps are loaded before any is used, to keep that many loads in flight.
//
// Where columns are too few to fill the GPU, time is cut into chunks: `summarise` finds what a chunk
// does to the state (c -> factor * c + addend), `carry` runs over the chunks, and the main kernel
// then starts every chunk from its own state. With one chunk the main kernel does it all.
//
// Layout: gates (T, B, D, G, H) in the order z, f, o, i; h and cells (T, B, D, H); c (D, B, H).

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
#endif

__device__ inline float load(const float* p) { return *p; }
__device__ inline double load(const double* p) { return *p; }
__device__ inline float load(const half16* p) { return half_to_float(p->bits); }
__device__ inline float load(const bfloat16* p) { return bits_float((unsigned)p->bits << 16); }
__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(double* p, double x) { *p = x; }
__device__ inline void store(half16* p, float x) { p->bits = float_to_half(x); }
__device__ inline void store(bfloat16* p, float x) {
  unsigned bits = float_bits(x);
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  p->bits = nan ? 0x7fc0 : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
}

template <typename T> struct wide { typedef float type; };
template <> struct wide<double> { typedef double type; };

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
__device__ inline float hyperbolic(float x) { return tanhf(x); }
__device__ inline double hyperbolic(double x) { return tanh(x); }

// Whether entry n of reference.uniform(seed) is below the rate, both as 24-bit integers.
__device__ inline bool dropped(u64 seed, u64 n, u64 threshold) {
  u64 x = seed + 0x9E3779B97F4A7C15ull * (n + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return ((x ^ (x >> 31)) >> 40) < threshold;
}

// ---- what every kernel is told

struct Shape {
  i64 T, B, D, H;
  i64 chunk;           // steps of a chunk; chunks are blockIdx.y
  const i64* lengths;  // (B,), or null for T
  int reverse;         // of the only direction; with D = 2 the second one runs in reverse
};

struct Zoneout {
  const i64* seed;  // null: not drawn
  u64 threshold;    // of 2^24
  double keep;      // factor of the update gate when not drawn
};

struct Column {
  i64 n, b, d, h, length, row0, stride;
  bool backwards;

  __device__ Column(const Shape& s) {
    n = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    h = n % s.H;
    d = n / s.H % s.D;
    b = n / s.H / s.D;
    backwards = s.reverse || d == 1;
    row0 = b * s.D + d;
    stride = s.B * s.D;
    length = s.T;
    if (s.lengths && exists(s)) {
      length = s.lengths[b];
      length = length < 0 ? 0 : length > s.T ? s.T : length;
    }
  }
  __device__ bool exists(const Shape& s) const { return n < s.B * s.D * s.H; }
  // the row of (T, B, D) that holds the column's step `s`, counted in its own direction
  __device__ i64 row(i64 s) const { return (backwards ? length - 1 - s : s) * stride + row0; }
  __device__ i64 padding(i64 t) const { return t * stride + row0; }
  __device__ i64 state(const Shape& s) const { return (d * s.B + b) * s.H + h; }
};

// Steps begin..end of this block's chunk, those of the column's own length only.
struct Chunk {
  i64 begin, end, padding_end;
  __device__ Chunk(const Shape& s, const Column& column) {
    begin = (i64)blockIdx.y * s.chunk;
    padding_end = begin + s.chunk < s.T ? begin + s.chunk : s.T;
    end = padding_end < column.length ? padding_end : column.length;
  }
  // the chunk after which the column is done; the first one when it has no steps at all
  __device__ bool last(const Column& column) const {
    return column.length ? begin < column.length && end == column.length : begin == 0;
  }
};

// ---- one step

template <typename A, int G> struct Gates {
  A pre[G];
  A z, f, alive, update, o, i;

  template <typename T> __device__ void read(const T* gates, const Shape& s, i64 row, i64 h) {
    const T* p = gates + row * G * s.H + h;
    for (int g = 0; g < G; ++g) pre[g] = load(p + g * s.H);
  }
  __device__ void activate(const Zoneout& zoneout, u64 seed, u64 element) {
    z = hyperbolic(pre[0]);
    f = sigmoid(pre[1]);
    alive = (A)zoneout.keep;
    if (zoneout.seed) alive = dropped(seed, element, zoneout.threshold) ? A(0) : A(1);
    update = alive * (A(1) - f);
    if (G > 2) o = sigmoid(pre[G > 2 ? 2 : 0]);
    i = G > 3 ? sigmoid(pre[G > 3 ? 3 : 0]) : update;
  }
};

const int UNROLL = 8;

// ---- forward

// What each chunk does to a state, (2, chunks, columns): its factor and its addend.
template <typename T, int G>
__global__ void pool_summarise(Shape shape, Zoneout zoneout, const T* gates,
                               typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  Chunk chunk(shape, column);
  u64 seed = zoneout.seed ? (u64)*zoneout.seed : 0;
  A factor = 1, addend = 0;
  Gates<A, G> gate[UNROLL];
  for (i64 s0 = chunk.begin; s0 < chunk.end; s0 += UNROLL) {
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) gate[u].read(gates, shape, column.row(s0 + u), column.h);
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) {
        gate[u].activate(zoneout, seed, (u64)(column.row(s0 + u) * shape.H + column.h));
        factor *= A(1) - gate[u].update;
        addend = (A(1) - gate[u].update) * addend + gate[u].i * gate[u].z;
      }
  }
  i64 columns = shape.B * shape.D * shape.H, chunks = gridDim.y;
  summary[blockIdx.y * columns + column.n] = factor;
  summary[(chunks + blockIdx.y) * columns + column.n] = addend;
}

// Turns addends into the state at the start of each chunk (forward: from the first to the last).
template <typename T>
__global__ void carry(Shape shape, i64 chunks, const T* start, typename wide<T>::type* summary,
                      int from_last) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  i64 columns = shape.B * shape.D * shape.H;
  A state = start ? load(start + column.state(shape)) : A(0);
  for (i64 k = 0; k < chunks; ++k) {
    i64 at = (from_last ? chunks - 1 - k : k) * columns + column.n;
    A factor = summary[at], addend = summary[chunks * columns + at];
    summary[chunks * columns + at] = state;
    state = factor * state + addend;
  }
}

// `states` are the chunks' first cells as `carry` leaves them, or null for one chunk from c0.
template <typename T, int G>
__global__ void pool_forward(Shape shape, Zoneout zoneout, const T* gates, const T* c0,
                             const typename wide<T>::type* states, T* h, T* cells, T* c_n) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  Chunk chunk(shape, column);
  u64 seed = zoneout.seed ? (u64)*zoneout.seed : 0;
  A c = states ? states[blockIdx.y * shape.B * shape.D * shape.H + column.n]
               : c0 ? load(c0 + column.state(shape)) : A(0);
  Gates<A, G> gate[UNROLL];
  for (i64 s0 = chunk.begin; s0 < chunk.end; s0 += UNROLL) {
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) gate[u].read(gates, shape, column.row(s0 + u), column.h);
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) {
        i64 place = column.row(s0 + u) * shape.H + column.h;
        gate[u].activate(zoneout, seed, (u64)place);
        c = (A(1) - gate[u].update) * c + gate[u].i * gate[u].z;
        if (cells) store(cells + place, c);
        store(h + place, G > 2 ? gate[u].o * c : c);
      }
  }
  for (i64 t = chunk.begin > column.length ? chunk.begin : column.length; t < chunk.padding_end; ++t) {
    i64 place = column.padding(t) * shape.H + column.h;
    store(h + place, A(0));
    if (cells) store(cells + place, A(0));
  }
  if (chunk.last(column)) store(c_n + column.state(shape), c);
}

// ---- backward: the gradient at the cells, g_s = o_s grad_h_s + (1 - update_(s+1)) g_(s+1)

template <typename T, int G>
__global__ void pool_backward_summarise(Shape shape, Zoneout zoneout, const T* gates,
                                        const T* grad_h, typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  Chunk chunk(shape, column);
  u64 seed = zoneout.seed ? (u64)*zoneout.seed : 0;
  A factor = 1, addend = 0;
  Gates<A, G> gate[UNROLL];
  A grad[UNROLL];
  for (i64 s0 = chunk.end - 1; s0 >= chunk.begin; s0 -= UNROLL) {
    for (int u = 0; u < UNROLL; ++u)
      if (s0 - u >= chunk.begin) {
        i64 row = column.row(s0 - u);
        gate[u].read(gates, shape, row, column.h);
        grad[u] = load(grad_h + row * shape.H + column.h);
      }
    for (int u = 0; u < UNROLL; ++u)
      if (s0 - u >= chunk.begin) {
        gate[u].activate(zoneout, seed, (u64)(column.row(s0 - u) * shape.H + column.h));
        A keep = A(1) - gate[u].update;
        factor *= keep;
        addend = keep * (addend + (G > 2 ? gate[u].o * grad[u] : grad[u]));
      }
  }
  i64 columns = shape.B * shape.D * shape.H, chunks = gridDim.y;
  summary[blockIdx.y * columns + column.n] = factor;
  summary[(chunks + blockIdx.y) * columns + column.n] = addend;
}

template <typename T, int G>
__global__ void pool_backward(Shape shape, Zoneout zoneout, const T* gates, const T* c0,
                              const T* cells, const T* grad_h, const T* grad_c_n,
                              const typename wide<T>::type* states, T* grad_gates, T* grad_c0) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  Chunk chunk(shape, column);
  u64 seed = zoneout.seed ? (u64)*zoneout.seed : 0;
  A first = c0 ? load(c0 + column.state(shape)) : A(0);
  A g = states ? states[blockIdx.y * shape.B * shape.D * shape.H + column.n]
               : load(grad_c_n + column.state(shape));
  Gates<A, G> gate[UNROLL];
  A grad[UNROLL], c[UNROLL + 1];
  for (i64 s0 = chunk.end - 1; s0 >= chunk.begin; s0 -= UNROLL) {
    c[0] = load(cells + column.row(s0) * shape.H + column.h);
    for (int u = 0; u < UNROLL; ++u)
      if (s0 - u >= chunk.begin) {
        i64 row = column.row(s0 - u);
        gate[u].read(gates, shape, row, column.h);
        grad[u] = load(grad_h + row * shape.H + column.h);
        c[u + 1] = s0 - u ? load(cells + column.row(s0 - u - 1) * shape.H + column.h) : first;
      }
    for (int u = 0; u < UNROLL; ++u)
      if (s0 - u >= chunk.begin) {
        i64 row = column.row(s0 - u);
        gate[u].activate(zoneout, seed, (u64)(row * shape.H + column.h));
        T* out = grad_gates + row * G * shape.H + column.h;
        A z = gate[u].z, f = gate[u].f, o = gate[u].o, i = gate[u].i;
        g += G > 2 ? o * grad[u] : grad[u];
        store(out, g * i * (A(1) - z * z));
        store(out + shape.H, g * (G > 3 ? c[u + 1] : c[u + 1] - z) * gate[u].alive * f * (A(1) - f));
        if (G > 2) store(out + 2 * shape.H, grad[u] * c[u] * o * (A(1) - o));
        if (G > 3) store(out + 3 * shape.H, g * z * i * (A(1) - i));
        g *= A(1) - gate[u].update;
      }
  }
  for (i64 t = chunk.begin > column.length ? chunk.begin : column.length; t < chunk.padding_end; ++t)
    for (int k = 0; k < G; ++k)
      store(grad_gates + (column.padding(t) * G + k) * shape.H + column.h, A(0));
  if (chunk.begin == 0) store(grad_c0 + column.state(shape), g);
}

// ---- linear_recurrence: h_s = f_s h_(s-1) + x_s, with D = 1 and no lengths

template <typename T>
__global__ void recurrence_summarise(Shape shape, const T* f, const T* x,
                                     typename wide<T>::type* summary) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  Chunk chunk(shape, column);
  A factor = 1, addend = 0, factors[UNROLL], addends[UNROLL];
  for (i64 s0 = chunk.begin; s0 < chunk.end; s0 += UNROLL) {
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) {
        i64 place = column.row(s0 + u) * shape.H + column.h;
        factors[u] = load(f + place);
        addends[u] = load(x + place);
      }
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) {
        factor *= factors[u];
        addend = factors[u] * addend + addends[u];
      }
  }
  i64 columns = shape.B * shape.D * shape.H, chunks = gridDim.y;
  summary[blockIdx.y * columns + column.n] = factor;
  summary[(chunks + blockIdx.y) * columns + column.n] = addend;
}

template <typename T>
__global__ void recurrence(Shape shape, const T* f, const T* x, const T* h0,
                           const typename wide<T>::type* states, T* h) {
  typedef typename wide<T>::type A;
  Column column(shape);
  if (!column.exists(shape)) return;
  Chunk chunk(shape, column);
  A state = states ? states[blockIdx.y * shape.B * shape.D * shape.H + column.n]
                   : load(h0 + column.state(shape));
  A factors[UNROLL], addends[UNROLL];
  for (i64 s0 = chunk.begin; s0 < chunk.end; s0 += UNROLL) {
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) {
        i64 place = column.row(s0 + u) * shape.H + column.h;
        factors[u] = load(f + place);
        addends[u] = load(x + place);
      }
    for (int u = 0; u < UNROLL; ++u)
      if (s0 + u < chunk.end) {
        state = factors[u] * state + addends[u];
        store(h + column.row(s0 + u) * shape.H + column.h, state);
      }
  }
}
