// Vectors of one number per conformation, and the functions that the energy terms need of them.
//
// GCC's and Clang's vector extensions give the arithmetic; square roots and reciprocals start from the hardware's estimates
// where it has them. Exponential, logarithm and arctangent are Taylor series after a reduction of the argument: no call of a
// library stands in an inner loop, so nothing can silently turn a loop into scalar code.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define HM_AVX512 1
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__) && defined(__FMA__)
#define HM_AVX2 1
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

typedef float vf __attribute__((vector_size(VECTOR_BYTES)));
typedef double vd __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t vfi __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vdi __attribute__((vector_size(VECTOR_BYTES)));

template <typename T> struct Lanes;
template <> struct Lanes<float> {
    typedef vf V;
    typedef vfi I;
    static constexpr int W = VECTOR_BYTES / 4;
    static constexpr int MANTISSA = 23, BIAS = 127;
    static constexpr float LARGEST_EXPONENT = 87.0f;
};
template <> struct Lanes<double> {
    typedef vd V;
    typedef vdi I;
    static constexpr int W = VECTOR_BYTES / 8;
    static constexpr int MANTISSA = 52, BIAS = 1023;
    static constexpr double LARGEST_EXPONENT = 708.0;
};

// keeps -ffast-math from cancelling what stands before and after it
#if defined(__x86_64__)
#define HM_BARRIER(x) asm("" : "+x"(x))
#elif defined(__aarch64__)
#define HM_BARRIER(x) asm("" : "+w"(x))
#else
#define HM_BARRIER(x) asm("" : "+m"(x))
#endif
#define HM_INLINE static inline __attribute__((always_inline))

HM_INLINE vf splat(float x) { return x - (vf){}; }
HM_INLINE vd splat(double x) { return x - (vd){}; }

template <typename V> HM_INLINE V largest(V a, V b) { return a > b ? a : b; }
template <typename V> HM_INLINE V smallest(V a, V b) { return a < b ? a : b; }

// 1/sqrt(x) and 1/x to working precision
#if defined(HM_AVX512)
HM_INLINE vf rsqrt(vf x) {
    vf y = (vf)_mm512_rsqrt14_ps((__m512)x);
    return y * (1.5f - 0.5f * x * y * y);
}
HM_INLINE vd rsqrt(vd x) {  // one step of fourth order: 14 bits become 56
    vd y = (vd)_mm512_rsqrt14_pd((__m512d)x), e = 1 - x * y * y;
    return y + y * e * (0.5 + e * (0.375 + e * 0.3125));
}
HM_INLINE vf recip(vf x) {
    vf y = (vf)_mm512_rcp14_ps((__m512)x);
    return y * (2.0f - x * y);
}
HM_INLINE vd recip(vd x) {
    vd y = (vd)_mm512_rcp14_pd((__m512d)x), e = 1 - x * y;
    return y + y * e * (1 + e * (1 + e));
}
HM_INLINE vf root(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
HM_INLINE vd root(vd x) { return (vd)_mm512_sqrt_pd((__m512d)x); }
#elif defined(HM_AVX2)
HM_INLINE vf root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
HM_INLINE vd root(vd x) { return (vd)_mm256_sqrt_pd((__m256d)x); }
HM_INLINE vf rsqrt(vf x) {
    vf y = (vf)_mm256_rsqrt_ps((__m256)x);
    return y * (1.5f - 0.5f * x * y * y);
}
HM_INLINE vd rsqrt(vd x) { return 1.0 / root(x); }
HM_INLINE vf recip(vf x) { return 1.0f / x; }
HM_INLINE vd recip(vd x) { return 1.0 / x; }
#else
template <typename V> HM_INLINE V root(V x) {
    V y;
    for (unsigned lane = 0; lane < sizeof(V) / sizeof(x[0]); ++lane) y[lane] = __builtin_sqrt(x[lane]);
    return y;
}
template <typename V> HM_INLINE V rsqrt(V x) { return 1 / root(x); }
template <typename V> HM_INLINE V recip(V x) { return 1 / x; }
#endif

// nearest integer, as a number of the same kind and as an integer; |x| must stay below 2^22 (2^51)
HM_INLINE vf nearest(vf x, vfi &integer) {
    const vf shift = splat(12582912.0f);  // 1.5 * 2^23
    vf moved = x + shift;
    HM_BARRIER(moved);
    integer = (vfi)moved - (vfi)shift;
    return moved - shift;
}
HM_INLINE vd nearest(vd x, vdi &integer) {
    const vd shift = splat(6755399441055744.0);  // 1.5 * 2^52
    vd moved = x + shift;
    HM_BARRIER(moved);
    integer = (vdi)moved - (vdi)shift;
    return moved - shift;
}
HM_INLINE vf to_real(vfi n) { return __builtin_convertvector(n, vf); }
HM_INLINE vd to_real(vdi n) {  // |n| < 2^51; AVX2 has no conversion of 64-bit integers
    const vd shift = splat(6755399441055744.0);
    vd moved = (vd)(n + (vdi)shift);
    HM_BARRIER(moved);
    return moved - shift;
}

// c[0] + c[1] x + ... + c[N] x^N, even and odd powers apart: the chain of dependent operations is half as long as Horner's
template <int N, typename T, typename V> HM_INLINE V polynomial(const T *c, V x) {
    const V x2 = x * x;
    V high = splat(c[N]), low = splat(c[N - 1]);
#pragma GCC unroll 16
    for (int i = N - 2; i >= 1; i -= 2) {
        high = c[i] + x2 * high;
        low = c[i - 1] + x2 * low;
    }
    if (N % 2) return low + x * high;
    return c[0] + x * (low + x * high);
}

template <typename T, int N> struct Series {  // coefficients of exp(x), and of artanh(sqrt(z)) / sqrt(z)
    T exponential[N + 1], artanh[N + 1];
    constexpr Series() : exponential(), artanh() {
        double factorial = 1;
        for (int i = 0; i <= N; ++i) {
            factorial *= i ? i : 1;
            exponential[i] = (T)(1 / factorial);
            artanh[i] = (T)(1.0 / (2 * i + 1));
        }
    }
};

// exp(x), Taylor series on |x| <= ln(2)/2; results below the smallest normal number are cut off there
template <typename T, typename V = typename Lanes<T>::V> HM_INLINE V vexp(V x) {
    typedef typename Lanes<T>::I I;
    constexpr int degree = sizeof(T) == 4 ? 7 : 13;
    const T limit = Lanes<T>::LARGEST_EXPONENT;
    x = smallest(largest(x, splat(-limit)), splat(limit));
    I n;
    V k = nearest(x * (T)1.4426950408889634, n);
    const T ln2_high = sizeof(T) == 4 ? (T)0.693359375 : (T)0.6931471803691238;
    const T ln2_low = sizeof(T) == 4 ? (T)-2.12194440e-4 : (T)1.9082149292705877e-10;
    V r = x - k * ln2_high - k * ln2_low;
    static constexpr Series<T, degree> series;
    V sum = polynomial<degree>(series.exponential, r);
    I scale = (n + Lanes<T>::BIAS) << Lanes<T>::MANTISSA;
    return sum * (V)scale;
}

// ln(x) for normal x > 0: ln m = 2 artanh((m - 1)/(m + 1)) with m in [sqrt(1/2), sqrt(2)]
template <typename T, typename V = typename Lanes<T>::V> HM_INLINE V vlog(V x) {
    typedef typename Lanes<T>::I I;
    constexpr int terms = sizeof(T) == 4 ? 4 : 10;
    constexpr T root_half = (T)0.70710678118654752;
    I bits = (I)x, half;
    const V lowest = splat(root_half);
    std::memcpy(&half, &lowest, sizeof(I));
    I exponent = (bits - half) >> Lanes<T>::MANTISSA;
    V m = (V)(bits - (exponent << Lanes<T>::MANTISSA));
    static constexpr Series<T, terms> series;
    V s = (m - 1) * recip(m + 1);
    V sum = polynomial<terms>(series.artanh, s * s);
    return to_real(exponent) * (T)0.6931471805599453 + 2 * s * sum;
}

// angle of the point (x, y), y >= 0, in [0, pi]: the argument is halved until Taylor's series is short
template <typename T, typename V = typename Lanes<T>::V> HM_INLINE V vangle(V y, V x) {
    constexpr int terms = sizeof(T) == 4 ? 8 : 10, halvings = sizeof(T) == 4 ? 1 : 2;
    V length = x < 0 ? -x : x;
    V t = smallest(y, length) / largest(largest(y, length), splat((T)1e-30));
#pragma GCC unroll 2
    for (int i = 0; i < halvings; ++i) t = t / (1 + root(1 + t * t));
    V t2 = t * t, sum = splat((T)(terms % 2 ? -1 : 1) / (T)(2 * terms + 1));
#pragma GCC unroll 16
    for (int i = terms - 1; i >= 0; --i) sum = (T)(i % 2 ? -1 : 1) / (T)(2 * i + 1) + t2 * sum;
    V angle = t * sum * (T)(1 << halvings);
    angle = y > length ? (T)1.5707963267948966 - angle : angle;
    return x < 0 ? (T)3.141592653589793 - angle : angle;
}
