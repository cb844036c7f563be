// Energy and forces of W conformations at once: harmonic bonds and angles, Fourier series of torsions, Coulomb and Lennard-Jones
// over all pairs, OBC1 or OBC2 with the ACE surface term. The formulas are those of OpenMM's Reference platform.
#pragma once
#include <vector>

#include "simd.h"

// what Python hands over; see __init__.py
struct TermArrays {
    int64_t n_atoms, n_bonds, n_angles, n_torsions, n_max, has_pairs, has_born;
    const int32_t *bonds, *angles, *torsions;
    const double *bond_parameters, *angle_parameters, *torsion_cos, *torsion_sin;
    const double *coulomb, *c12, *c6;                  // (n_atoms, n_atoms)
    const double *born_charge, *born_radius, *born_scale;  // (n_atoms,)
    double born_prefactor, born_surface, born_offset, born_probe, born_alpha, born_beta, born_gamma, born_engulfed;
};

template <typename T> struct Molecule {
    typedef typename Lanes<T>::V V;
    static constexpr int W = Lanes<T>::W;

    int n_atoms, n_max;
    bool has_pairs, has_born, engulfed;
    std::vector<int32_t> bonds, angles, torsions;
    std::vector<T> bond_parameters, angle_parameters, torsion_cos, torsion_sin;
    std::vector<T> coulomb, c12, c6;  // rows i < j, packed
    std::vector<T> born_product, born_radius, born_offset_radius, born_scaled;
    T born_surface, born_probe, born_alpha, born_beta, born_gamma;

    explicit Molecule(const TermArrays &a)
        : n_atoms((int)a.n_atoms), n_max((int)a.n_max), has_pairs(a.has_pairs), has_born(a.has_born),
          engulfed(a.born_engulfed != 0), bonds(a.bonds, a.bonds + 2 * a.n_bonds), angles(a.angles, a.angles + 3 * a.n_angles),
          torsions(a.torsions, a.torsions + 4 * a.n_torsions),
          bond_parameters(a.bond_parameters, a.bond_parameters + 2 * a.n_bonds),
          angle_parameters(a.angle_parameters, a.angle_parameters + 2 * a.n_angles),
          torsion_cos(a.torsion_cos, a.torsion_cos + a.n_torsions * (a.n_max + 1)),
          torsion_sin(a.torsion_sin, a.torsion_sin + a.n_torsions * (a.n_max + 1)), born_surface((T)a.born_surface),
          born_probe((T)a.born_probe), born_alpha((T)a.born_alpha), born_beta((T)a.born_beta), born_gamma((T)a.born_gamma) {
        for (int i = 0; i < n_atoms; ++i) {
            for (int j = i + 1; j < n_atoms; ++j) {
                const int64_t at = (int64_t)i * n_atoms + j;
                coulomb.push_back((T)a.coulomb[at]);
                c12.push_back((T)a.c12[at]);
                c6.push_back((T)a.c6[at]);
                if (has_born) born_product.push_back((T)(a.born_prefactor * a.born_charge[i] * a.born_charge[j]));
            }
        }
        for (int i = 0; has_born && i < n_atoms; ++i) {
            const double inner = a.born_radius[i] - a.born_offset;
            born_radius.push_back((T)a.born_radius[i]);
            born_offset_radius.push_back((T)inner);
            born_scaled.push_back((T)(a.born_scale[i] * inner));
            born_self.push_back((T)(0.5 * a.born_prefactor * a.born_charge[i] * a.born_charge[i]));
        }
    }
    std::vector<T> born_self;
};

// memory of one thread, reused from group to group
template <typename T> struct Scratch {
    typedef typename Lanes<T>::V V;
    V *x, *v, *force, *old, *pair, *born;  // (n_atoms * 3) x 4, (n_pairs * 4), (n_atoms * 4)
    char *memory;

    explicit Scratch(const Molecule<T> &m) {
        const size_t n = m.n_atoms, pairs = m.has_born ? n * (n - 1) / 2 : 0;
        const size_t total = 12 * n + 4 * pairs + 4 * n;
        memory = new char[total * sizeof(V) + 64];
        V *at = reinterpret_cast<V *>((reinterpret_cast<uintptr_t>(memory) + 63) & ~(uintptr_t)63);
        x = at, v = x + 3 * n, force = v + 3 * n, old = force + 3 * n, pair = old + 3 * n, born = pair + 4 * pairs;
    }
    ~Scratch() { delete[] memory; }
    Scratch(const Scratch &) = delete;
};

template <typename V> struct Vector3 {
    V x, y, z;
};
template <typename V> HM_INLINE Vector3<V> between(const V *x, int i, int j) {  // from j to i
    return {x[3 * i] - x[3 * j], x[3 * i + 1] - x[3 * j + 1], x[3 * i + 2] - x[3 * j + 2]};
}
template <typename V> HM_INLINE V dot(const Vector3<V> &a, const Vector3<V> &b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <typename V> HM_INLINE Vector3<V> cross(const Vector3<V> &a, const Vector3<V> &b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
template <typename V> HM_INLINE void add(V *force, int i, const Vector3<V> &a, V scale) {
    force[3 * i] += scale * a.x;
    force[3 * i + 1] += scale * a.y;
    force[3 * i + 2] += scale * a.z;
}

template <typename T, bool FORCE, typename V = typename Lanes<T>::V> V bonded(const Molecule<T> &m, const V *x, V *force) {
    V energy = {};
    for (size_t b = 0; b < m.bonds.size() / 2; ++b) {
        const int i = m.bonds[2 * b], j = m.bonds[2 * b + 1];
        const T length = m.bond_parameters[2 * b], k = m.bond_parameters[2 * b + 1];
        const Vector3<V> d = between(x, i, j);
        const V r2 = dot(d, d), inverse = rsqrt(r2), stretch = r2 * inverse - length;
        energy += (T)0.5 * k * stretch * stretch;
        if (FORCE) {
            const V scale = -k * stretch * inverse;
            add(force, i, d, scale);
            add(force, j, d, -scale);
        }
    }
    for (size_t a = 0; a < m.angles.size() / 3; ++a) {
        const int i = m.angles[3 * a], j = m.angles[3 * a + 1], k = m.angles[3 * a + 2];
        const T angle = m.angle_parameters[2 * a], strength = m.angle_parameters[2 * a + 1];
        const Vector3<V> u = between(x, i, j), w = between(x, k, j), normal = cross(u, w);
        const V area2 = largest(dot(normal, normal), splat((T)1e-12)), area = root(area2), inner = dot(u, w);
        const V bend = vangle<T>(area, inner) - angle;
        energy += (T)0.5 * strength * bend * bend;
        if (FORCE) {  // d theta / d r_i = u x (u x w) / (|u|^2 |u x w|)
            const V scale = -strength * bend / area;
            const V at_i = scale * recip(dot(u, u)), at_k = scale * recip(dot(w, w));
            const Vector3<V> turn_i = cross(u, normal), turn_k = cross(normal, w);
            add(force, i, turn_i, at_i);
            add(force, k, turn_k, at_k);
            add(force, j, turn_i, -at_i);
            add(force, j, turn_k, -at_k);
        }
    }
    const int n_max = m.n_max;
    for (size_t t = 0; t < m.torsions.size() / 4; ++t) {
        const int32_t *q = &m.torsions[4 * t];
        const T *c = &m.torsion_cos[t * (n_max + 1)], *s = &m.torsion_sin[t * (n_max + 1)];
        const Vector3<V> f = between(x, q[0], q[1]), g = between(x, q[1], q[2]), h = between(x, q[3], q[2]);
        const Vector3<V> a = cross(f, g), b = cross(h, g);
        const V a2 = largest(dot(a, a), splat((T)1e-12)), b2 = largest(dot(b, b), splat((T)1e-12)), g2 = dot(g, g);
        const V g_inverse = rsqrt(g2), length = g2 * g_inverse;
        const V norm = rsqrt(a2) * rsqrt(b2);
        const V cosine = dot(a, b) * norm, sine = dot(cross(b, a), g) * g_inverse * norm;
        V cos_n = cosine, sin_n = sine, value = splat(c[0]), slope = {};
        for (int n = 1; n <= n_max; ++n) {
            value += c[n] * cos_n + s[n] * sin_n;
            if (FORCE) slope += (T)n * (s[n] * cos_n - c[n] * sin_n);
            const V next = cos_n * cosine - sin_n * sine;
            sin_n = sin_n * cosine + cos_n * sine;
            cos_n = next;
        }
        energy += value;
        if (FORCE) {  // Blondel and Karplus 1996, J. Comput. Chem. 17, 1132, eq. 27
            const V at_a = slope * recip(a2), at_b = slope * recip(b2);
            const V along_f = dot(f, g) * g_inverse, along_h = dot(h, g) * g_inverse;
            add(force, q[0], a, at_a * length);
            add(force, q[3], b, -at_b * length);
            add(force, q[1], a, -at_a * (length + along_f));
            add(force, q[1], b, at_b * along_h);
            add(force, q[2], a, at_a * along_f);
            add(force, q[2], b, at_b * (length - along_h));
        }
    }
    return energy;
}

template <typename T, bool FORCE, typename V = typename Lanes<T>::V> V pairs(const Molecule<T> &m, const V *x, V *force) {
    V energy = {};
    size_t at = 0;
    for (int i = 0; i < m.n_atoms; ++i) {
        V row = {};
        Vector3<V> total = {};
        for (int j = i + 1; j < m.n_atoms; ++j, ++at) {
            const Vector3<V> d = between(x, i, j);
            const V inverse = rsqrt(dot(d, d)), i2 = inverse * inverse, i6 = i2 * i2 * i2;
            const V coulomb = m.coulomb[at] * inverse, repulsion = m.c12[at] * i6 * i6, dispersion = m.c6[at] * i6;
            row += coulomb + (repulsion - dispersion);
            if (FORCE) {
                const V scale = (coulomb + 12 * repulsion - 6 * dispersion) * i2;
                total.x += scale * d.x, total.y += scale * d.y, total.z += scale * d.z;
                add(force, j, d, -scale);
            }
        }
        if (FORCE) add(force, i, total, splat((T)1));
        energy += row;
    }
    return energy;
}

// one direction of the pairwise descreening (Hawkins, Cramer, Truhlar 1996, J. Phys. Chem. 100, 19824): twice the integral over
// the sphere of radius s at distance r, seen from an atom of radius o; and its derivative along r
// without ENGULFED an atom within the sphere is not descreened by what of the sphere is around it
template <typename T, bool FORCE, bool ENGULFED, typename V> HM_INLINE V descreen(V r, V inverse, T o, T s, V &slope) {
    const V upper = r + s, gap = r > s ? r - s : s - r;
    const V lower = largest(gap, splat(o));
    const V product = recip(lower * upper), l = upper * product, u = lower * product;
    const V difference = u * u - l * l, log = vlog<T>(upper * l);  // ln(U/L)
    const V ratio = s * inverse, s2 = ratio * ratio;
    V term = l - u + (T)0.25 * r * difference * (1 - s2) - (T)0.5 * inverse * log;
    if (ENGULFED) term += s - r > o ? 2 * ((T)1 / o - l) : (V){};
    if (FORCE) {  // what comes of the lower bound's derivative cancels, but for this
        slope = (T)0.25 * difference * (1 + s2) + (T)0.5 * log * inverse * inverse;
        if (!ENGULFED) slope += s - r > o ? 2 * l * l : (V){};
        slope = upper > o ? slope : (V){};
    }
    return upper > o ? term : (V){};
}

template <typename T, bool FORCE, bool ENGULFED, typename V = typename Lanes<T>::V>
V pairs_and_born(const Molecule<T> &m, const V *x, V *force, Scratch<T> &scratch) {
    const int n = m.n_atoms;
    V *radius = scratch.born, *inverse_radius = radius + n, *chain = inverse_radius + n, *slope = chain + n;  // slope: dE/dB
    V *store = scratch.pair;
    for (int i = 0; i < n; ++i) radius[i] = (V){};
    size_t at = 0;
    for (int i = 0; i < n; ++i) {
        V sum = radius[i];
        for (int j = i + 1; j < n; ++j, ++at) {
            const Vector3<V> d = between(x, i, j);
            const V r2 = dot(d, d), inverse = rsqrt(r2), r = r2 * inverse;
            V d_i, d_j;
            sum += descreen<T, FORCE, ENGULFED>(r, inverse, m.born_offset_radius[i], m.born_scaled[j], d_i);
            radius[j] += descreen<T, FORCE, ENGULFED>(r, inverse, m.born_offset_radius[j], m.born_scaled[i], d_j);
            store[4 * at] = r2, store[4 * at + 1] = inverse;
            if (FORCE) store[4 * at + 2] = d_i * inverse, store[4 * at + 3] = d_j * inverse;
        }
        radius[i] = sum;
    }
    V energy = {};
    for (int i = 0; i < n; ++i) {  // Onufriev, Bashford, Case 2004, eq. 6
        const T o = m.born_offset_radius[i], full = m.born_radius[i];
        const V sum = (T)0.5 * o * radius[i], sum2 = sum * sum;
        const V argument = m.born_alpha * sum - m.born_beta * sum2 + m.born_gamma * sum * sum2;
        const V tanh = 1 - 2 * recip(vexp<T>(2 * argument) + 1);
        inverse_radius[i] = (T)1 / o - tanh / full;
        const V b = recip(inverse_radius[i]);
        radius[i] = b;
        // dB/d(raw sum)
        const V bend = m.born_alpha - 2 * m.born_beta * sum + 3 * m.born_gamma * sum2;
        chain[i] = b * b * (1 - tanh * tanh) * bend * ((T)0.5 * o / full);
        const V ratio = full * inverse_radius[i], ratio3 = ratio * ratio * ratio;
        const V surface = m.born_surface * (full + m.born_probe) * (full + m.born_probe) * ratio3 * ratio3;
        const V self = m.born_self[i] * inverse_radius[i];
        energy += self + surface;
        slope[i] = -(self + 6 * surface) * inverse_radius[i];
    }
    at = 0;
    for (int i = 0; i < n; ++i) {
        V row = {}, d_born = slope[i];
        Vector3<V> total = {};
        const V b_i = radius[i], quarter = (T)0.25 * inverse_radius[i];
        for (int j = i + 1; j < n; ++j, ++at) {
            const V r2 = store[4 * at], inverse = store[4 * at + 1], i2 = inverse * inverse, i6 = i2 * i2 * i2;
            const V coulomb = m.coulomb[at] * inverse, repulsion = m.c12[at] * i6 * i6, dispersion = m.c6[at] * i6;
            const V product = b_i * radius[j], exponent = r2 * quarter * inverse_radius[j];
            const V decay = vexp<T>(-exponent), f_inverse = rsqrt(r2 + product * decay);
            const V born = m.born_product[at] * f_inverse;
            row += coulomb + (repulsion - dispersion) + born;
            if (FORCE) {
                const V g = born * f_inverse * f_inverse, d_product = (T)-0.5 * g * decay * (1 + exponent);
                d_born += d_product * radius[j];
                slope[j] += d_product * b_i;
                const V scale = (coulomb + 12 * repulsion - 6 * dispersion) * i2 + g * (1 - (T)0.25 * decay);
                const Vector3<V> d = between(x, i, j);
                total.x += scale * d.x, total.y += scale * d.y, total.z += scale * d.z;
                add(force, j, d, -scale);
            }
        }
        if (FORCE) {
            add(force, i, total, splat((T)1));
            slope[i] = d_born * chain[i];
        }
        energy += row;
    }
    at = 0;
    for (int i = 0; FORCE && i < n; ++i) {  // through the radii
        Vector3<V> total = {};
        const V own = slope[i];
        for (int j = i + 1; j < n; ++j, ++at) {
            const Vector3<V> d = between(x, i, j);
            const V scale = -(own * store[4 * at + 2] + slope[j] * store[4 * at + 3]);
            total.x += scale * d.x, total.y += scale * d.y, total.z += scale * d.z;
            add(force, j, d, -scale);
        }
        add(force, i, total, splat((T)1));
    }
    return energy;
}

// energies of the group in scratch.x; forces into scratch.force
template <typename T, bool FORCE, typename V = typename Lanes<T>::V> V evaluate(const Molecule<T> &m, Scratch<T> &scratch) {
    if (FORCE) std::memset(scratch.force, 0, 3 * m.n_atoms * sizeof(V));
    V energy = bonded<T, FORCE>(m, scratch.x, scratch.force);
    if (m.has_born && m.engulfed) return energy + pairs_and_born<T, FORCE, true>(m, scratch.x, scratch.force, scratch);
    if (m.has_born) return energy + pairs_and_born<T, FORCE, false>(m, scratch.x, scratch.force, scratch);
    return m.has_pairs ? energy + pairs<T, FORCE>(m, scratch.x, scratch.force) : energy;
}
