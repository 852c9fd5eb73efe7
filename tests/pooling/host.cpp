// Runs the kernels of pooling.cu on the host: CUDA's keywords as nothing, the grid as loops.
#include <cmath>
#include <cstring>

struct Index { long long x, y; };
static thread_local Index blockIdx, blockDim, gridDim, threadIdx;
#define __global__
#define __device__

static float half_to_float(unsigned short bits) {
  _Float16 x;
  std::memcpy(&x, &bits, 2);
  return x;
}
static unsigned short float_to_half(float x) {
  _Float16 h = (_Float16)x;
  unsigned short bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
static unsigned float_bits(float x) { unsigned b; std::memcpy(&b, &x, 4); return b; }
static void fence() {}
static float bits_float(unsigned b) { float x; std::memcpy(&x, &b, 4); return x; }

#define __expf(x) expf(x)
#define __fdividef(x, y) ((x) / (y))

#include "pooling.cu"

template <typename... P> struct Arguments;
template <> struct Arguments<> {
  template <typename F, typename... A> static void call(F kernel, void** p, A... a) { kernel(a...); }
};
template <typename P, typename... Rest> struct Arguments<P, Rest...> {
  template <typename F, typename... A> static void call(F kernel, void** p, A... a) {
    Arguments<Rest...>::call(kernel, p + 1, a..., *(P*)*p);
  }
};
template <typename... P>
void run(void (*kernel)(P...), long long gx, long long gy, long long block, void** p) {
  gridDim = {gx, gy};
  blockDim = {block, 1};
  for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)
      for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) Arguments<P...>::call(kernel, p);
}

#define CASE(...) \
  if (!std::strcmp(name, #__VA_ARGS__)) return run(__VA_ARGS__, gx, gy, block, p), 0;
#define POOL(T, G, DRAWN)                                           \
  CASE(pool_summarise<T, G, DRAWN>) CASE(pool_forward<T, G, DRAWN>) \
  CASE(pool_backward_summarise<T, G, DRAWN>) CASE(pool_backward<T, G, DRAWN>)
#define TYPE(T)                                                     \
  POOL(T, 2, false) POOL(T, 3, false) POOL(T, 4, false)             \
  POOL(T, 2, true) POOL(T, 3, true) POOL(T, 4, true)                \
  CASE(carry<T>) CASE(recurrence_summarise<T>) CASE(recurrence<T>)  \
  CASE(recurrence_backward_summarise<T>) CASE(recurrence_backward<T>)

// Arguments as pointers to their values, as cuLaunchKernel takes them. 1: no such kernel.
extern "C" int launch(const char* name, long long gx, long long gy, long long block, void** p) {
  TYPE(float) TYPE(double) TYPE(half16) TYPE(bfloat16) TYPE(pair<half16>) TYPE(pair<bfloat16>)
  return 1;
}
