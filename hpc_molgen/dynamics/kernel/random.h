// Normal deviates by counter: number, step and block decide them, and nothing else (not the batch, not the thread).
//
// Threefry-4x32 with 20 rounds (Salmon, Moraes, Dror, Shaw 2011, SC11, "Parallel random numbers: as easy as 1, 2, 3"), then
// Box and Muller (1958), in single precision: uniforms have 24 bits, deviates reach 5.8 standard deviations.
#pragma once
#include "simd.h"

template <int W> struct Words;  // W words of 32 bits
#define HM_WORDS(W)                                                    \
    template <> struct Words<W> {                                      \
        typedef uint32_t U __attribute__((vector_size(4 * W)));        \
        typedef int32_t I __attribute__((vector_size(4 * W)));         \
        typedef float F __attribute__((vector_size(4 * W)));           \
        HM_INLINE F to_real(I n) { return __builtin_convertvector(n, F); } \
    };
HM_WORDS(2) HM_WORDS(4) HM_WORDS(8) HM_WORDS(16)

template <int W> struct Counter {
    typedef typename Words<W>::U U;
    typedef typename Words<W>::I I;
    typedef typename Words<W>::F F;

    HM_INLINE void threefry(U x[4], const U key[4]) {
        constexpr int rotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
        const U schedule[5] = {key[0], key[1], key[2], key[3], key[0] ^ key[1] ^ key[2] ^ key[3] ^ 0x1BD11BDAu};
        for (int i = 0; i < 4; ++i) x[i] += schedule[i];
#pragma GCC unroll 20
        for (int round = 0; round < 20; ++round) {
            const int *rotation = rotations[round % 8];
            const int a = round % 2 ? 3 : 1, b = round % 2 ? 1 : 3;
            x[0] += x[a];
            x[a] = ((x[a] << rotation[0]) | (x[a] >> (32 - rotation[0]))) ^ x[0];
            x[2] += x[b];
            x[b] = ((x[b] << rotation[1]) | (x[b] >> (32 - rotation[1]))) ^ x[2];
            if (round % 4 == 3) {
                const uint32_t injection = round / 4 + 1;
                for (int i = 0; i < 4; ++i) x[i] += schedule[(injection + i) % 5];
                x[3] += injection;
            }
        }
    }

    // sqrt(-2 ln u), u in (0, 1]
    HM_INLINE F radius(U bits) {
        F u = Words<W>::to_real((I)(bits >> 8) + 1) * 5.9604645e-8f;
        I b = (I)u, exponent = (b - 0x3f3504f3) >> 23;  // sqrt(1/2)
        F m = (F)(b - (exponent << 23));
        F s = (m - 1) / (m + 1), s2 = s * s;
        F log = Words<W>::to_real(exponent) * 0.69314718f
                + 2 * s * (1 + s2 * (1 / 3.0f + s2 * (0.2f + s2 * (1 / 7.0f + s2 * (1 / 9.0f)))));
        F square = -2 * log;
        square = square > 1e-20f ? square : square * 0 + 1e-20f;
        F y;  // two Newton steps from the exponent's half, then one of Heron: division is dearer than these
        I guess = 0x5f3759df - ((I)square >> 1);
        y = (F)guess;
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) y = y * (1.5f - 0.5f * square * y * y);
        return square * y;
    }

    // cos and sin of 2 pi times a uniform number
    HM_INLINE void circle(U bits, F &cosine, F &sine) {
        I quarter = (I)(bits >> 30);
        F a = Words<W>::to_real((I)((bits >> 6) & 0xffffffu)) * (float)(1.5707963267948966 / 16777216) - 0.78539816f;  // -pi/4 .. pi/4
        F a2 = a * a;
        F s = a * (1 - a2 * (1 / 6.0f) * (1 - a2 * (1 / 20.0f) * (1 - a2 * (1 / 42.0f) * (1 - a2 * (1 / 72.0f)))));
        F c = 1 - a2 * 0.5f * (1 - a2 * (1 / 12.0f) * (1 - a2 * (1 / 30.0f) * (1 - a2 * (1 / 56.0f))));
        I swap = -(quarter & 1), flip_c = ((quarter + 1) & 2) << 30, flip_s = (quarter & 2) << 30;
        cosine = (F)((((I)s & swap) | ((I)c & ~swap)) ^ flip_c);
        sine = (F)((((I)c & swap) | ((I)s & ~swap)) ^ flip_s);
    }

    // four independent normal deviates per lane
    HM_INLINE void normals(const U key[4], uint64_t step, uint32_t block, F out[4]) {
        U x[4] = {(U){} + (uint32_t)step, (U){} + (uint32_t)(step >> 32), (U){} + block, (U){}};
        threefry(x, key);
        for (int i = 0; i < 4; i += 2) {
            F r = radius(x[i]), c, s;
            circle(x[i + 1], c, s);
            out[i] = r * c;
            out[i + 1] = r * s;
        }
    }
};
