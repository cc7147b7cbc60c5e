// Vectors of float32 in GCC's and clang's own notation, as wide as the processor that the code is compiled for.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(SPECTRUM_LANES)  // for tests: any width runs on any processor
constexpr int LANES = SPECTRUM_LANES;
#elif defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t Indices __attribute__((vector_size(LANES * 4)));

static inline int64_t vectors(int64_t channels) { return (channels + LANES - 1) / LANES; }

static inline Vector load(const float* from) { return *(const Vector*)from; }
static inline void store(float* to, Vector v) { *(Vector*)to = v; }
static inline Vector splat(float f) { return f - (Vector){}; }

static inline void store_some(float* to, Vector v, int64_t lanes) {
  if (lanes >= LANES)
    store(to, v);
  else if (lanes > 0)
    std::memcpy(to, &v, lanes * sizeof(float));
}

// Lanes in groups of PERIOD, each turned by BY: lane l gets lane (l + BY) mod PERIOD of its group. Lanes that are left
// over beside whole groups keep their places.
template <int PERIOD, int BY>
constexpr int turned_lane(int l) {
  return l < LANES / PERIOD * PERIOD ? l - l % PERIOD + (l % PERIOD + BY) % PERIOD : l;
}

#ifdef __clang__
template <int PERIOD, int BY, int... L>
static inline Vector shuffle(Vector v, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(v, v, turned_lane<PERIOD, BY>(L)...);
}
#else
template <int PERIOD, int BY, int... L>
static inline Vector shuffle(Vector v, std::integer_sequence<int, L...>) {
  return __builtin_shuffle(v, Indices{turned_lane<PERIOD, BY>(L)...});
}
#endif

template <int PERIOD, int BY>
static inline Vector turn(Vector v) {
  if constexpr (BY == 0) return v;
  return shuffle<PERIOD, BY>(v, std::make_integer_sequence<int, LANES>());
}

// Whether all numbers are finite: whether an exponent has all its bits set is asked of all at once, as vectors.
static inline bool all_finite(const float* from, int64_t size) {
  int32_t any = 0;
  for (int64_t i = 0; i < size; i++) {
    int32_t bits;
    std::memcpy(&bits, from + i, sizeof(bits));
    any |= ((bits & 0x7f800000) == 0x7f800000);
  }
  return !any;
}

// Zeroed memory on a cache line's border, with room for a few vectors that are read past the end.
struct Buffer {
  float* data;
  explicit Buffer(int64_t size) {
    const size_t bytes = ((size + 4 * LANES) * sizeof(float) + 63) / 64 * 64;
    data = (float*)std::aligned_alloc(64, bytes);
    if (!data) std::abort();
    std::memset(data, 0, bytes);
  }
  Buffer(Buffer&& other) : data(std::exchange(other.data, nullptr)) {}
  ~Buffer() { std::free(data); }
};

// body(thread, begin, end) in each of `threads` threads, over equal neighbouring shares of 0 … items − 1. Which thread
// does what depends on the number of threads alone, and with it the order in which sums are taken.
template <typename Body>
static void share(int64_t items, int threads, Body body) {
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
  {
    const int64_t mine = omp_get_thread_num(), all = omp_get_num_threads();
    body(mine, items * mine / all, items * (mine + 1) / all);
  }
#else
  body(0, 0, items);
#endif
}
