// The C interface of the kernel, for ctypes (see __init__.py beside this): copies arrive as (copy, atom, axis) and are turned into lanes here.
#include <cstddef>

#include "dynamics.h"

namespace {

template <typename T, typename Input> void load(const Molecule<T> &m, typename Lanes<T>::V *to, const Input *from, int64_t first,
                                                int64_t n_copies, bool centred) {
    constexpr int W = Lanes<T>::W;
    const int n = 3 * m.n_atoms;
    T *lanes = reinterpret_cast<T *>(to);
    for (int lane = 0; lane < W; ++lane) {  // lanes beyond the end repeat the last copy
        const Input *copy = from + (first + lane < n_copies ? first + lane : n_copies - 1) * n;
        double mean[3] = {0, 0, 0};
        for (int k = 0; centred && k < n; ++k) mean[k % 3] += copy[k];
        for (double &value : mean) value /= m.n_atoms;
        for (int k = 0; k < n; ++k) lanes[(size_t)k * W + lane] = (T)(copy[k] - mean[k % 3]);
    }
}

template <typename T> void store(const Molecule<T> &m, T *to, const typename Lanes<T>::V *from, int64_t first, int64_t n_copies) {
    constexpr int W = Lanes<T>::W;
    const int n = 3 * m.n_atoms;
    const T *lanes = reinterpret_cast<const T *>(from);
    for (int lane = 0; lane < W && first + lane < n_copies; ++lane)
        for (int k = 0; k < n; ++k) to[(first + lane) * n + k] = lanes[(size_t)k * W + lane];
}

template <typename T, typename Input>
void energies(const Molecule<T> &m, const Input *positions, int64_t n_copies, double *energy, T *force) {
    constexpr int W = Lanes<T>::W;
    Scratch<T> scratch(m);
    for (int64_t first = 0; first < n_copies; first += W) {
        load(m, scratch.x, positions, first, n_copies, true);
        const typename Lanes<T>::V value = force ? evaluate<T, true>(m, scratch) : evaluate<T, false>(m, scratch);
        for (int lane = 0; lane < W && first + lane < n_copies; ++lane) energy[first + lane] = value[lane];
        if (force) store(m, force, scratch.force, first, n_copies);
    }
}

template <typename T>
void run(const Molecule<T> &m, const DynamicsArrays &arrays, T *positions, T *velocities, const double *kt, const uint32_t *seeds,
         int64_t n_copies, uint64_t first_step, int64_t n_steps) {
    constexpr int W = Lanes<T>::W;
    typedef typename Lanes<T>::V V;
    typedef typename Counter<W>::U U;
    const Integrator<T> integrator(m, arrays);
    Scratch<T> scratch(m);
    for (int64_t first = 0; first < n_copies; first += W) {
        load(m, scratch.x, positions, first, n_copies, false);
        load(m, scratch.v, velocities, first, n_copies, false);
        V root_kt;
        U key[4] = {};
        for (int lane = 0; lane < W; ++lane) {
            const int64_t copy = first + lane < n_copies ? first + lane : n_copies - 1;
            root_kt[lane] = (T)std::sqrt(kt[copy]);
            key[0][lane] = seeds[2 * copy];
            key[1][lane] = seeds[2 * copy + 1];
        }
        for (int64_t step = 0; step < n_steps; ++step) integrator.step(scratch, root_kt, key, first_step + step);
        store(m, positions, scratch.x, first, n_copies);
        store(m, velocities, scratch.v, first, n_copies);
    }
}

}  // namespace

#define HM_EXPORT __attribute__((visibility("default")))
#define HM_INTERFACE(SUFFIX, T)                                                                                                \
    HM_EXPORT void *hm_create_##SUFFIX(const TermArrays *a) { return new Molecule<T>(*a); }                                    \
    HM_EXPORT void hm_destroy_##SUFFIX(void *m) { delete static_cast<Molecule<T> *>(m); }                                      \
    HM_EXPORT int64_t hm_lanes_##SUFFIX() { return Lanes<T>::W; }                                                              \
    HM_EXPORT void hm_energies_##SUFFIX(const void *m, const void *positions, int64_t is_double, int64_t n_copies,             \
                                        double *energy, T *force) {                                                            \
        const Molecule<T> &molecule = *static_cast<const Molecule<T> *>(m);                                                    \
        if (is_double)                                                                                                         \
            energies(molecule, static_cast<const double *>(positions), n_copies, energy, force);                               \
        else                                                                                                                   \
            energies(molecule, static_cast<const float *>(positions), n_copies, energy, force);                                \
    }                                                                                                                          \
    HM_EXPORT void hm_run_##SUFFIX(const void *m, const DynamicsArrays *a, T *positions, T *velocities, const double *kt,      \
                                   const uint32_t *seeds, int64_t n_copies, uint64_t first_step, int64_t n_steps) {            \
        run(*static_cast<const Molecule<T> *>(m), *a, positions, velocities, kt, seeds, n_copies, first_step, n_steps);        \
    }

extern "C" {
HM_INTERFACE(f32, float)
HM_INTERFACE(f64, double)
// tells a library that was built from other sources than the Python code that calls it
HM_EXPORT int64_t hm_layout() { return 1000 * sizeof(TermArrays) + sizeof(DynamicsArrays); }
// one block of the generator: for the tests of the random stream
HM_EXPORT void hm_threefry(const uint32_t *counter, const uint32_t *key, uint32_t *out) {
    typedef Counter<4>::U U;
    U x[4], k[4];
    for (int i = 0; i < 4; ++i) x[i] = (U){} + counter[i], k[i] = (U){} + key[i];
    Counter<4>::threefry(x, k);
    for (int i = 0; i < 4; ++i) out[i] = x[i][0];
}
HM_EXPORT void hm_normals(uint32_t seed_low, uint32_t seed_high, uint64_t first_step, int64_t n_steps, float *out) {
    constexpr int W = Lanes<float>::W;
    typedef Counter<W> Random;
    typename Random::U key[4] = {(typename Random::U){} + seed_low, (typename Random::U){} + seed_high};
    for (int64_t step = 0; step < n_steps; ++step) {
        typename Random::F normal[4];
        Random::normals(key, first_step + step, 0, normal);
        for (int i = 0; i < 4; ++i) out[4 * step + i] = normal[i][0];
    }
}
}
