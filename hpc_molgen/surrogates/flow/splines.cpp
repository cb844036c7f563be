// Rational-quadratic splines with ln of their slope, and the gradients of both, one number per lane (see splines.py beside this).
//
// Coordinates are the slow axis and samples the fast one: numbers (d, n), logits (each, d, n) in the order widths, heights,
// slopes. On the circle there is a slope for each bin's left knot; on the line for each inner knot, and one at both ends.
#include <cmath>
#include <cstddef>

#include "simd.h"

namespace {

constexpr int MOST_BINS = 64;
constexpr double LEAST_WIDTH = 1e-3, LEAST_SLOPE = 1e-3;  // as in splines.py

template <typename T> HM_INLINE typename Lanes<T>::V load(const T *from, int count) {
    typename Lanes<T>::V v = {};
    if (count == Lanes<T>::W)
        std::memcpy(&v, from, sizeof v);
    else
        for (int lane = 0; lane < count; ++lane) v[lane] = from[lane];
    return v;
}

template <typename T> HM_INLINE void store(T *to, typename Lanes<T>::V v, int count) {
    if (count == Lanes<T>::W)
        std::memcpy(to, &v, sizeof v);
    else
        for (int lane = 0; lane < count; ++lane) to[lane] = v[lane];
}

#define HM_METHOD inline __attribute__((always_inline))

// The spline of one vector of numbers: its bins, the bin that each number lies in, and what is in there.
template <typename T> struct Spline {
    typedef typename Lanes<T>::V V;
    V share_w[MOST_BINS], share_h[MOST_BINS];  // softmax of the logits
    V index, x0, dx, y0, dy, z0, z1, s0, s1, t, m, bend, bottom, slope_sum;
    T free;  // what bins share beyond their least width
    T unit;  // the logit of a slope of one

    static HM_METHOD void softmax(const T *logits, size_t stride, int bins, int count, V *share) {
        V top = load<T>(logits, count), sum = {};
        share[0] = top;
        for (int k = 1; k < bins; ++k) top = largest(top, share[k] = load<T>(logits + k * stride, count));
        for (int k = 0; k < bins; ++k) sum += share[k] = vexp<T>(share[k] - top);
        sum = 1 / sum;
        for (int k = 0; k < bins; ++k) share[k] *= sum;
    }
    HM_METHOD V size(V share) const { return (T)LEAST_WIDTH + free * share; }
    HM_METHOD V slope(V logit) const { return (T)LEAST_SLOPE + vlog<T>(1 + vexp<T>(logit + unit)); }
    HM_METHOD V rate(V logit) const { return 1 / (1 + vexp<T>(-logit - unit)); }

    // from the logits of one coordinate: where `u` in [0, 1] lies among the knots, of x or of the images if INVERSE
    template <bool INVERSE> HM_METHOD void locate(V u, const T *logits, size_t stride, int bins, bool circular, int count) {
        u = smallest(largest(u, (V){}), splat((T)1));
        free = (T)(1 - LEAST_WIDTH * bins);
        unit = (T)std::log(std::expm1(1 - LEAST_SLOPE));
        softmax(logits, stride, bins, count, share_w);
        softmax(logits + bins * stride, stride, bins, count, share_h);
        const T *slopes = logits + 2 * bins * stride;
        const V first = circular ? load<T>(slopes, count) : (V){};
        V begin_x = {}, begin_y = {};
        index = x0 = y0 = (V){};
        dx = size(share_w[0]), dy = size(share_h[0]);
        z0 = first;
        z1 = bins == 1 ? first : load<T>(slopes + (circular ? stride : 0), count);
        for (int k = 1; k < bins; ++k) {
            begin_x += size(share_w[k - 1]), begin_y += size(share_h[k - 1]);
            const auto beyond = u >= (INVERSE ? begin_y : begin_x);
            const int left = circular ? k : k - 1;
            const V right = k == bins - 1 ? first : load<T>(slopes + (left + 1) * stride, count);
            index = beyond ? splat((T)k) : index;
            x0 = beyond ? begin_x : x0, dx = beyond ? size(share_w[k]) : dx;
            y0 = beyond ? begin_y : y0, dy = beyond ? size(share_h[k]) : dy;
            z0 = beyond ? load<T>(slopes + left * stride, count) : z0, z1 = beyond ? right : z1;
        }
        s0 = slope(z0), s1 = slope(z1);
        m = dy / dx;
        bend = s0 + s1 - 2 * m;
        if (INVERSE) {
            const V rise = u - y0;
            const V a = dy * (m - s0) + rise * bend, b = dy * s0 - rise * bend, c = -m * rise;
            t = 2 * c / (-b - root(largest(b * b - 4 * a * c, (V){})));
        } else {
            t = (u - x0) / dx;
        }
        t = smallest(largest(t, (V){}), splat((T)1));
        bottom = m + bend * t * (1 - t);
        slope_sum = s1 * t * t + 2 * m * t * (1 - t) + s0 * (1 - t) * (1 - t);
    }
    HM_METHOD V image() const { return y0 + dy * (m * t * t + s0 * t * (1 - t)) / bottom; }
    HM_METHOD V log_slope() const { return vlog<T>(m * m * slope_sum / (bottom * bottom)); }

    // gradients of gf f + gl ln f' with respect to u at fixed knots (returned) and to the logits
    template <bool INVERSE>
    HM_METHOD V gradients(V gf, V gl, T *to, size_t stride, int bins, bool circular, int count) const {
        const V r = 1 - t, tr = t * r, part = (m * t * t + s0 * tr) / bottom, turn = 1 - 2 * t;
        const V f_t = dy * (2 * m * t + s0 * turn - part * bend * turn) / bottom;
        const V l_t = (2 * s1 * t + 2 * m * turn - 2 * s0 * r) / slope_sum - 2 * bend * turn / bottom;
        V gu = {};
        if (INVERSE) {  // x follows from f(x) = u: dx = (du - df) / f', and ln of the inverse's slope is -ln f'
            gu = (gf * dx - gl * l_t) / f_t;
            gf = -gu, gl = -gl;
        }
        const V ct = gf * f_t + gl * l_t;
        if (!INVERSE) gu = ct / dx;
        const V cm = gf * dy * (t * t - part * (1 - 2 * tr)) / bottom + gl * (2 / m + 2 * tr / slope_sum - 2 * (1 - 2 * tr) / bottom);
        const V c0 = gf * dy * tr * (1 - part) / bottom + gl * (r * r / slope_sum - 2 * tr / bottom);
        const V c1 = -gf * dy * part * tr / bottom + gl * (t * t / slope_sum - 2 * tr / bottom);
        spread(share_w, -ct / dx, -(ct * t + cm * m) / dx, to, stride, bins, count);
        spread(share_h, gf, gf * part + cm / dx, to + bins * stride, stride, bins, count);
        const V of_left = c0 * rate(z0), of_right = c1 * rate(z1), none = {};
        T *slopes = to + 2 * bins * stride;
        for (int knot = circular ? 0 : 1; knot < bins; ++knot) {
            V g = index == splat((T)knot) ? of_left : none;
            g += index == splat((T)(knot ? knot - 1 : bins - 1)) ? of_right : none;
            store(slopes + (circular ? knot : knot - 1) * stride, g, count);
        }
        return gu;
    }
    // from gradients with respect to where the bin begins and to its size, those with respect to the logits of all sizes
    HM_METHOD void spread(const V *share, V of_begin, V of_size, T *to, size_t stride, int bins, int count) const {
        V mean = {};
        for (int k = 0; k < bins; ++k) {
            const V which = splat((T)k);
            mean += share[k] * (which < index ? of_begin : which == index ? of_size : (V){});
        }
        for (int k = 0; k < bins; ++k) {
            const V which = splat((T)k);
            const V own = which < index ? of_begin : which == index ? of_size : (V){};
            store(to + k * stride, free * share[k] * (own - mean), count);
        }
    }
};

template <typename T, bool INVERSE>
void forward(const T *x, const T *logits, int bins, bool circular, int64_t d, int64_t n, T *image, T *log_slope) {
    constexpr int W = Lanes<T>::W;
    Spline<T> spline;
    for (int64_t row = 0; row < d; ++row)
        for (int64_t i = row * n; i < (row + 1) * n; i += W) {
            const int count = (int)((row + 1) * n - i < W ? (row + 1) * n - i : W);
            spline.template locate<INVERSE>(load<T>(x + i, count), logits + i, (size_t)(d * n), bins, circular, count);
            store(image + i, INVERSE ? spline.x0 + spline.t * spline.dx : spline.image(), count);
            store(log_slope + i, INVERSE ? -spline.log_slope() : spline.log_slope(), count);
        }
}

template <typename T, bool INVERSE>
void backward(const T *x, const T *logits, int bins, bool circular, int64_t d, int64_t n, const T *of_image, const T *of_slope,
              T *of_x, T *of_logits) {
    constexpr int W = Lanes<T>::W;
    Spline<T> spline;
    for (int64_t row = 0; row < d; ++row)
        for (int64_t i = row * n; i < (row + 1) * n; i += W) {
            const int count = (int)((row + 1) * n - i < W ? (row + 1) * n - i : W);
            const size_t stride = (size_t)(d * n);
            spline.template locate<INVERSE>(load<T>(x + i, count), logits + i, stride, bins, circular, count);
            const auto g = spline.template gradients<INVERSE>(load<T>(of_image + i, count), load<T>(of_slope + i, count),
                                                              of_logits + i, stride, bins, circular, count);
            store(of_x + i, g, count);
        }
}

}  // namespace

#define HM_EXPORT __attribute__((visibility("default")))
#define HM_INTERFACE(SUFFIX, T)                                                                                                \
    HM_EXPORT void hm_spline_##SUFFIX(const T *x, const T *logits, int64_t bins, int64_t circular, int64_t inverse, int64_t d, \
                                      int64_t n, T *image, T *log_slope) {                                                     \
        (inverse ? forward<T, true> : forward<T, false>)(x, logits, (int)bins, circular, d, n, image, log_slope);              \
    }                                                                                                                          \
    HM_EXPORT void hm_spline_gradients_##SUFFIX(const T *x, const T *logits, int64_t bins, int64_t circular, int64_t inverse,  \
                                                int64_t d, int64_t n, const T *of_image, const T *of_slope, T *of_x,           \
                                                T *of_logits) {                                                                \
        (inverse ? backward<T, true> : backward<T, false>)(x, logits, (int)bins, circular, d, n, of_image, of_slope, of_x,     \
                                                           of_logits);                                                         \
    }

extern "C" {
HM_INTERFACE(f32, float)
HM_INTERFACE(f64, double)
HM_EXPORT int64_t hm_layout() { return MOST_BINS; }
}
