// Runs the kernels of pooling.cu on the host. Every thread of CUDA's is a context of its own, which
// gives way at barriers and while it waits for another block. Blocks start in the order of their
// indices, at most IN_FLIGHT at a time; which of those goes on next is drawn at random, and so is
// whether its threads go on from the first or from the last.
#include <sys/mman.h>
#include <ucontext.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

struct Index { unsigned x, y, z; };
static Index blockIdx, blockDim, gridDim, threadIdx;  // those of the thread that runs
#define __global__
#define __device__
#define BOUNDS(T, RELAYED, blocks, pairs)

const int IN_FLIGHT = 5;
const int PATIENCE = 10000;  // turns in which no block ends, after which they wait for each other
const size_t STACK = 1 << 16;

struct Thread {
  ucontext_t context;
  unsigned barriers = 0;  // that it has reached
  bool done = false;
};
struct Block {
  Index index;
  int slot;
  unsigned arrived = 0, barriers = 0;  // of the threads at the next barrier; barriers passed by all
  std::vector<Thread> threads;
  std::map<const void*, std::vector<char>> shared;
};
static ucontext_t scheduler;
static Block* block;
static Thread* thread;

static void give_way() { swapcontext(&thread->context, &scheduler); }
static void idle() { give_way(); }
static void barrier() {
  ++thread->barriers;
  if (++block->arrived == block->threads.size()) {
    block->arrived = 0;
    ++block->barriers;
  }
  while (block->barriers < thread->barriers) give_way();
}
template <typename T, int N> static T* shared() {
  static const char key = 0;
  std::vector<char>& memory = block->shared[&key];
  if (memory.empty()) memory.assign(N * sizeof(T), (char)0xff);  // NaN
  return (T*)memory.data();
}

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
static unsigned fence() {
  barrier();
  return 0;
}
static float bits_float(unsigned b) { float x; std::memcpy(&x, &b, 4); return x; }
static long long double_bits(double x) { long long b; std::memcpy(&b, &x, 8); return b; }
static double bits_double(long long b) { double x; std::memcpy(&x, &b, 8); return x; }

#define __expf(x) expf(x)
#define __fdividef(x, y) ((x) / (y))

#include "pooling.cu"

template <typename... P> struct Arguments;
template <> struct Arguments<> {
  template <typename F, typename... A> static void call(F kernel, void**, A... a) { kernel(a...); }
};
template <typename P, typename... Rest> struct Arguments<P, Rest...> {
  template <typename F, typename... A> static void call(F kernel, void** p, A... a) {
    Arguments<Rest...>::call(kernel, p + 1, a..., *(P*)*p);
  }
};

static void (*start)();  // runs the kernel as the current thread
static void body() {
  start();
  thread->done = true;
  give_way();
}

static unsigned random_state = 1;
static unsigned draw_below(unsigned n) {
  random_state = random_state * 1664525u + 1013904223u;
  return (random_state >> 8) % n;
}

static int run_grid() {
  static char* stacks = nullptr;
  const size_t most = LANES * 8, count = (size_t)blockDim.x * blockDim.y;
  if (!stacks)
    stacks = (char*)mmap(nullptr, IN_FLIGHT * most * STACK, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  std::vector<std::unique_ptr<Block>> running;
  std::vector<int> free_slots;
  for (int slot = 0; slot < IN_FLIGHT; ++slot) free_slots.push_back(slot);
  unsigned next = 0;
  int turns = 0;
  const unsigned x = gridDim.x, y = gridDim.y, blocks = x * y * gridDim.z;
  while (next < blocks || !running.empty()) {
    while (next < blocks && !free_slots.empty()) {
      std::unique_ptr<Block> fresh(new Block);
      fresh->index = {next % x, next / x % y, next / x / y};
      ++next;
      fresh->slot = free_slots.back();
      free_slots.pop_back();
      fresh->threads.resize(count);
      for (size_t n = 0; n < count; ++n) {
        ucontext_t& context = fresh->threads[n].context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks + (fresh->slot * most + n) * STACK;
        context.uc_stack.ss_size = STACK;
        makecontext(&context, body, 0);
      }
      running.push_back(std::move(fresh));
    }
    if (++turns > PATIENCE) return 2;
    size_t chosen = draw_below(running.size());
    block = running[chosen].get();
    blockIdx = block->index;
    bool backwards = draw_below(2), left = false;
    for (size_t n = 0; n < count; ++n) {
      size_t which = backwards ? count - 1 - n : n;
      thread = &block->threads[which];
      if (thread->done || block->barriers < thread->barriers) {
        left = left || !thread->done;
        continue;
      }
      threadIdx = {(unsigned)(which % blockDim.x), (unsigned)(which / blockDim.x), 0};
      swapcontext(&scheduler, &thread->context);
      left = left || !thread->done;
    }
    if (!left) {
      turns = 0;
      free_slots.push_back(block->slot);
      running.erase(running.begin() + chosen);
    }
  }
  return 0;
}

template <typename... P> int run(void (*kernel)(P...), void** p) {
  static void (*own_kernel)(P...);
  static void** own_arguments;
  own_kernel = kernel;
  own_arguments = p;
  start = [] { Arguments<P...>::call(own_kernel, own_arguments); };
  return run_grid();
}

#define CASE(...) \
  if (!std::strcmp(name, #__VA_ARGS__)) return run(__VA_ARGS__, p);
#define RELAYED(...) CASE(__VA_ARGS__, false>) CASE(__VA_ARGS__, true>)
#define POOL(T, G, DRAWN) RELAYED(pool_forward<T, G, DRAWN) RELAYED(pool_backward<T, G, DRAWN)
#define TYPE(T)                                                   \
  POOL(T, 2, false) POOL(T, 3, false) POOL(T, 4, false)           \
  POOL(T, 2, true) POOL(T, 3, true) POOL(T, 4, true)              \
  RELAYED(recurrence<T) RELAYED(recurrence_backward<T)
#define ALIGNED(T, N) CASE(windows<T, N>) CASE(windows_backward<T, N>)
#define WINDOWS(T, N) ALIGNED(T, 1) ALIGNED(T, N)

// Arguments as pointers to their values, as cuLaunchKernel takes them. 1: no such kernel. 2: its
// blocks wait for each other.
extern "C" int launch(
    const char* name, unsigned x, unsigned y, unsigned z, unsigned lanes, unsigned warps,
    void** p) {
  gridDim = {x, y, z};
  blockDim = {lanes, warps, 1};
  TYPE(float) TYPE(double) TYPE(half16) TYPE(bfloat16) TYPE(pair<half16>) TYPE(pair<bfloat16>)
  WINDOWS(float, 4) WINDOWS(double, 2) WINDOWS(half16, 8) WINDOWS(bfloat16, 8)
  return 1;
}
