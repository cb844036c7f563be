// Langevin dynamics of W copies at once in the "middle" scheme (Zhang et al. 2019, J. Phys. Chem. A 123, 6056): the same
// sequence of updates as OpenMM's LangevinMiddleIntegrator. No decision looks at more than one lane, so a copy's trajectory
// does not depend on its neighbours.
#pragma once
#include <cmath>

#include "energy.h"
#include "random.h"

struct DynamicsArrays {
    const double *masses_amu;              // (n_atoms,); 0: the atom stays where it is
    const int32_t *constraints;            // (n_constraints, 2)
    const double *constraint_lengths;      // (n_constraints,)
    int64_t n_constraints;
    double timestep_ps, friction_per_ps, tolerance;
    int64_t recentre;                      // steps between two moves of the centroid to the origin; 0: never
};

template <typename T> struct Integrator {
    typedef typename Lanes<T>::V V;
    typedef typename Lanes<T>::I I;
    static constexpr int W = Lanes<T>::W;
    typedef Counter<W> Random;
    static constexpr int MAX_SWEEPS = 200;

    const Molecule<T> &m;
    std::vector<T> kick, inverse_mass, root_inverse_mass, length2;
    std::vector<int32_t> constraints;
    T dt, decay, noise, tolerance;
    int64_t recentre;

    Integrator(const Molecule<T> &molecule, const DynamicsArrays &a)
        : m(molecule), constraints(a.constraints, a.constraints + 2 * a.n_constraints), dt((T)a.timestep_ps),
          decay((T)std::exp(-a.friction_per_ps * a.timestep_ps)),
          noise((T)std::sqrt(1 - std::exp(-2 * a.friction_per_ps * a.timestep_ps))), tolerance((T)a.tolerance),
          recentre(a.recentre) {
        for (int i = 0; i < m.n_atoms; ++i) {
            const double inverse = a.masses_amu[i] > 0 ? 1 / a.masses_amu[i] : 0;
            kick.push_back((T)(a.timestep_ps * inverse));
            inverse_mass.push_back((T)inverse);
            root_inverse_mass.push_back((T)std::sqrt(inverse));
        }
        for (int64_t c = 0; c < a.n_constraints; ++c) length2.push_back((T)(a.constraint_lengths[c] * a.constraint_lengths[c]));
    }

    // SHAKE (Ryckaert, Ciccotti, Berendsen 1977, J. Comput. Phys. 23, 327): moves `x` along the bonds of `reference`
    void constrain_positions(V *x, const V *reference) const {
        for (int sweep = 0; sweep < MAX_SWEEPS; ++sweep) {
            I open = {};
            for (size_t c = 0; c < length2.size(); ++c) {
                const int i = constraints[2 * c], j = constraints[2 * c + 1];
                const Vector3<V> now = between(x, i, j), before = between(reference, i, j);
                const V excess = length2[c] - dot(now, now);
                const I off = (excess > 2 * tolerance * length2[c]) | (excess < -2 * tolerance * length2[c]);
                V g = excess * recip(2 * (inverse_mass[i] + inverse_mass[j]) * dot(now, before));
                g = off ? g : (V){};
                add(x, i, before, g * inverse_mass[i]);
                add(x, j, before, -g * inverse_mass[j]);
                open |= off;
            }
            if (!any(open)) return;
        }
    }

    // RATTLE's second half (Andersen 1983, J. Comput. Phys. 52, 24): no velocity along a constrained bond
    void constrain_velocities(V *v, const V *x) const {
        for (int sweep = 0; sweep < MAX_SWEEPS; ++sweep) {
            I open = {};
            for (size_t c = 0; c < length2.size(); ++c) {
                const int i = constraints[2 * c], j = constraints[2 * c + 1];
                const Vector3<V> bond = between(x, i, j), speed = between(v, i, j);
                const V along = dot(bond, speed), limit = splat(tolerance * length2[c] / dt);
                const I off = (along > limit) | (along < -limit);
                V g = along * recip((inverse_mass[i] + inverse_mass[j]) * dot(bond, bond));
                g = off ? g : (V){};
                add(v, i, bond, -g * inverse_mass[i]);
                add(v, j, bond, g * inverse_mass[j]);
                open |= off;
            }
            if (!any(open)) return;
        }
    }

    static bool any(I mask) {
        for (int lane = 0; lane < W; ++lane)
            if (mask[lane]) return true;
        return false;
    }

    HM_INLINE V widen(typename Random::F x) { return __builtin_convertvector(x, V); }

    void step(Scratch<T> &scratch, V root_kt, const typename Random::U key[4], uint64_t number) const {
        V *x = scratch.x, *v = scratch.v, *old = scratch.old;
        const int n = 3 * m.n_atoms;
        const bool constrained = !length2.empty();
        evaluate<T, true>(m, scratch);
        for (int k = 0; k < n; ++k) v[k] += kick[k / 3] * scratch.force[k];
        if (constrained) {
            constrain_velocities(v, x);
            std::memcpy(old, x, n * sizeof(V));
        }
        const V size = noise * root_kt;
        const T half = dt / 2;
        for (int k = 0; k < n; k += 4) {
            typename Random::F normal[4];
            Random::normals(key, number, (uint32_t)(k / 4), normal);
            for (int q = k; q < n && q < k + 4; ++q) {
                const V fresh = decay * v[q] + size * root_inverse_mass[q / 3] * widen(normal[q - k]);
                x[q] += half * (v[q] + fresh);
                v[q] = fresh;
            }
        }
        if (constrained) {
            V *free = scratch.force;
            std::memcpy(free, x, n * sizeof(V));
            constrain_positions(x, old);
            for (int k = 0; k < n; ++k) v[k] += (x[k] - free[k]) * (1 / dt);
        }
        if (recentre && number % recentre == 0) centre(x);
    }

    void centre(V *x) const {
        for (int axis = 0; axis < 3; ++axis) {
            V sum = {};
            for (int i = 0; i < m.n_atoms; ++i) sum += x[3 * i + axis];
            sum *= (T)1 / (T)m.n_atoms;
            for (int i = 0; i < m.n_atoms; ++i) x[3 * i + axis] -= sum;
        }
    }
};
