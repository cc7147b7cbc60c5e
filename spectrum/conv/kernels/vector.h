// Vectors of float32 in GCC's and clang's own notation, as wide as the processor that the code is compiled for.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__clang__) && defined(__x86_64__)
#include <immintrin.h>
#elif defined(__clang__) && defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef SPECTRUM_LANES  // tests define it: any width runs on any processor
#if defined(__AVX512F__)
#define SPECTRUM_LANES 16
#elif defined(__AVX__)
#define SPECTRUM_LANES 8
#else
#define SPECTRUM_LANES 4
#endif
#endif

constexpr int LANES = SPECTRUM_LANES;

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

// Lane l gets lane from[l]. clang has no shuffle of its own by indices that are not constants.
static inline Vector permute(Vector v, Indices from) {
#if !defined(__clang__)
  return __builtin_shuffle(v, from);
#elif SPECTRUM_LANES == 16 && defined(__AVX512F__)
  return (Vector)_mm512_permutexvar_ps((__m512i)from, (__m512)v);
#elif SPECTRUM_LANES == 8 && defined(__AVX2__)
  return (Vector)_mm256_permutevar8x32_ps((__m256)v, (__m256i)from);
#elif SPECTRUM_LANES == 4 && defined(__AVX__)
  return (Vector)_mm_permutevar_ps((__m128)v, (__m128i)from);
#elif SPECTRUM_LANES == 4 && defined(__aarch64__)
  return (Vector)vqtbl1q_u8((uint8x16_t)v, (uint8x16_t)(from * 0x04040404 + 0x03020100));  // a lane is four bytes
#else
  Vector permuted;
  for (int l = 0; l < LANES; l++) permuted[l] = v[from[l]];
  return permuted;
#endif
}

// What turns lanes in groups of `period` by `by`: lane l gets lane (l + by) mod period of its group. Lanes that are left
// over beside whole groups keep their places.
static inline Indices turned_by(int64_t period, int64_t by) {
  Indices from;
  for (int64_t l = 0; l < LANES; l++) from[l] = l < LANES / period * period ? l - l % period + (l % period + by) % period : l;
  return from;
}

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

// The same with constants, which is a little faster.
template <int PERIOD, int BY>
static inline Vector turn(Vector v) {
  if constexpr (BY == 0) return v;
  return shuffle<PERIOD, BY>(v, std::make_integer_sequence<int, LANES>());
}

// Segments of which a vector holds several, or is filled by one.
constexpr int NARROW = LANES == 16 ? 8 : 4;

// run(size) with a narrow segment's size as a constant.
template <int SIZE = 1, typename Run>
static void with_size(int64_t size, Run run) {
  if constexpr (SIZE < NARROW) {
    if (size > SIZE) return with_size<SIZE + 1>(size, run);
  }
  run(std::integral_constant<int, SIZE>());
}

// The turns of segments of one size; made once, for divisions are slow.
struct Turns {
  int64_t number;
  Indices by[NARROW];
};

static inline const Turns& turns_of(int64_t size) {
  static const struct All {
    Turns of[NARROW];
    All() {
      for (int64_t n = 1; n <= NARROW; n++) {
        of[n - 1].number = n;
        for (int64_t r = 0; r < n; r++) of[n - 1].by[r] = turned_by(n, r);
      }
    }
  } all;
  return all.of[size - 1];
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
