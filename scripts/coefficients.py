#!/usr/bin/env python3
"""Regenerates src/numbers/coefficients.h: polynomials and split constants of exp2, exp, log, log1p and tanh.

  scripts/coefficients.py                               print the header
  scripts/coefficients.py --output src/numbers/coefficients.h
  scripts/coefficients.py --check src/numbers/coefficients.h    exit 1 and show a diff if the file is not this output

Needs Python 3.9 or newer with mpmath and numpy (Debian: python3-mpmath python3-numpy; or `pip install mpmath numpy`).
Takes about a minute. The output does not depend on the machine: the minimax fits run in 60-digit arithmetic, the
search uses Python's Mersenne Twister with a fixed seed, and float arithmetic is limited to correctly rounded
operations.

Method. Each polynomial is the minimax fit of the relative error (second algorithm of Remez). Rounding all coefficients
of such a fit at once would throw away several bits, so they are rounded one by one from the lowest degree up, and after
each the remaining ones are fitted again and absorb most of that rounding. The float32 set is then improved by a search
over neighbouring float32 values, judged by the error of the evaluation itself (Horner's rule with FMA) and not by that
of the polynomial in exact arithmetic.
"""

import argparse
import difflib
import random
import sys
import textwrap
from fractions import Fraction

import mpmath
import numpy as np
from mpmath import mp, mpf

mp.dps = 60

# Half-widths of the intervals in f. The reduced argument is |f| <= 1/2 before the rounding of its own computation;
# float32 callers may reduce with an n that is off by a little, so that set keeps its accuracy somewhat beyond 1/2.
EXP2_F32_CORE = 0.5
EXP2_F32_RANGE = 0.521
EXP2_F64_RANGE = 0.5005
# ln(2) / 2, and somewhat beyond.
EXP_RANGE = 0.3467
# 1 + r in [3/4, 3/2].
LOG_REST_LOWEST, LOG_REST_HIGHEST = -0.25, 0.5
# s = r / (2 + r) stays within (sqrt(2) - 1) / (sqrt(2) + 1) = 0.171573 for 1 + r in [sqrt(1/2), sqrt(2)].
LOG_S_RANGE = 0.1716

SEARCH_SEED = 20240607
SEARCH_STEPS = 3000
SEARCH_POINTS = 1 << 14
JUDGE_POINTS = 1 << 21
JUDGE_CANDIDATES = 8
EXP2_F64_POINTS = 10000


# ---- rounding ----------------------------------------------------------------------------------------------------


def round_to_bits(x, bits):
    """x rounded to nearest, ties to even, to `bits` significant bits (exponent range unbounded)."""
    with mp.workprec(bits):
        return +mpf(x)


def to_double(x):
    return float(round_to_bits(x, 53))


def to_single(x):
    return float(round_to_bits(x, 24))


def split(x, parts, rounding):
    """`parts` floats, each the rounding of what the ones before leave of x."""
    result = []
    for _ in range(parts):
        result.append(rounding(x))
        x -= mpf(result[-1])
    return result


# ---- minimax fits ------------------------------------------------------------------------------------------------


def reduce_to_alternation(points, count):
    """Drops extrema, (x, error) with alternating signs, until `count` are left, keeping the largest ones."""
    points = list(points)
    while len(points) > count:
        if len(points) == count + 1:
            points.pop(0 if abs(points[0][1]) < abs(points[-1][1]) else -1)
            continue
        i = min(range(len(points)), key=lambda j: abs(points[j][1]))
        points.pop(i)
        if 0 < i < len(points):
            # The neighbours of the dropped one have the same sign: one of them has to go too.
            points.pop(i - 1 if abs(points[i - 1][1]) < abs(points[i][1]) else i)
    return points


def refine_extremum(error, x, step, lo, hi):
    """The largest |error| near the grid point x, by shrinking steps of a three-point search."""
    best, at = abs(error(x)), x
    while step > mpf(2) ** -40:
        step /= 2
        for candidate in (max(lo, at - step), min(hi, at + step)):
            value = abs(error(candidate))
            if value > best:
                best, at = value, candidate
    return at


def extrema(error, lo, hi, grid=400):
    """One extremum, as (x, error), of each stretch of constant sign of `error` on [lo, hi]."""
    xs = [(lo + hi) / 2 - (hi - lo) / 2 * mpmath.cos(mp.pi * i / grid) for i in range(grid + 1)]
    runs = []
    for i, x in enumerate(xs):
        value = error(x)
        if value == 0:
            continue
        if runs and (runs[-1][1] > 0) == (value > 0):
            if abs(value) > abs(runs[-1][1]):
                runs[-1] = (i, value)
        else:
            runs.append((i, value))
    result = []
    for i, _ in runs:
        step = max(xs[min(i + 1, grid)] - xs[i], xs[i] - xs[max(i - 1, 0)])
        x = refine_extremum(error, xs[i], step, lo, hi)
        result.append((x, error(x)))
    return result


class Fit:
    """Minimises over c_j.. the largest |weight(x) * (target(x) - sum c_k x^k)| on [lo, hi], with c_0..c_(j-1) given."""

    def __init__(self, target, weight, lo, hi, terms):
        self.target, self.weight = target, weight
        self.lo, self.hi, self.terms = mpf(lo), mpf(hi), terms

    def error(self, coefficients, x):
        return self.weight(x) * (self.target(x) - mpmath.polyval(coefficients[::-1], x))

    def max_error(self, coefficients):
        coefficients = [mpf(c) for c in coefficients]
        return max(abs(e) for _, e in extrema(lambda x: self.error(coefficients, x), self.lo, self.hi))

    def solve(self, fixed):
        fixed = [mpf(c) for c in fixed]
        first, free = len(fixed), self.terms - len(fixed)
        # x^first has one sign on each side of 0, so that the alternation is that of error / sign(x)^first.
        def sign(x):
            return -1 if x < 0 and first % 2 else 1

        middle, half = (self.lo + self.hi) / 2, (self.hi - self.lo) / 2
        xs = [middle - half * mpmath.cos(mp.pi * (2 * i + 1) / (2 * free + 2)) for i in range(free + 1)]
        # A point at 0 would say nothing about the free coefficients.
        xs = [x if abs(x) > half / 100 else half / 100 for x in xs]
        for _ in range(60):
            matrix = mp.matrix(free + 1, free + 1)
            rhs = mp.matrix(free + 1, 1)
            for i, x in enumerate(xs):
                for k in range(free):
                    matrix[i, k] = self.weight(x) * x ** (first + k)
                matrix[i, free] = sign(x) * (-1) ** i
                rhs[i] = self.error(fixed, x) if fixed else self.weight(x) * self.target(x)
            solution = mp.lu_solve(matrix, rhs)
            coefficients = fixed + [solution[k] for k in range(free)]
            points = extrema(lambda x: sign(x) * self.error(coefficients, x), self.lo, self.hi)
            if len(points) < free + 1:
                raise ArithmeticError(f"Remez: {len(points)} extrema where {free + 1} are needed")
            points = reduce_to_alternation(points, free + 1)
            xs = [x for x, _ in points]
            sizes = [abs(e) for _, e in points]
            if max(sizes) - min(sizes) < max(sizes) / 10**5:
                return coefficients
        raise ArithmeticError("Remez: no convergence in 60 exchanges")

    def solve_rounded(self, fixed, rounding):
        """Rounds the lowest free coefficient, fits the others again, and so on."""
        fixed = list(fixed)
        while len(fixed) < self.terms - 1:
            fixed.append(rounding(self.solve(fixed)[len(fixed)]))
        return fixed + [rounding(self.solve(fixed)[-1])]


def exp2_fit(half_width, degree):
    return Fit(lambda x: mpf(2) ** x, lambda x: mpf(2) ** -x, -half_width, half_width, degree + 1)


def exp_fit(degree):
    """e^r for |r| <= EXP_RANGE, by its relative error."""
    return Fit(mpmath.exp, lambda r: mpmath.exp(-r), -EXP_RANGE, EXP_RANGE, degree + 1)


def log_rest_fit(terms):
    """P of log(1+r) = r + r^2 P(r), the error that of the whole, relative to log(1+r)."""
    def rest(r):
        return (mpmath.log1p(r) - r) / r**2 if r else mpf(-1) / 2

    def weight(r):
        # Its magnitude: the theory of alternation wants a weight of one sign.
        return abs(r**2 / mpmath.log1p(r)) if r else mpf(0)

    return Fit(rest, weight, LOG_REST_LOWEST, LOG_REST_HIGHEST, terms)


def log_fit(terms):
    """P of log(1+r) = 2s + s*w*P(w), fitted so that the error is that of the whole, relative to log(1+r)."""
    def ratio(w):
        s = mpmath.sqrt(w)
        return 2 * mpmath.atanh(s) / s

    w_max = mpf(LOG_S_RANGE) ** 2
    return Fit(lambda w: (ratio(w) - 2) / w, lambda w: w / ratio(w), w_max / 10**6, w_max, terms)


def log1p_fit(terms):
    """P of log(1+x) = x*P(x) for 0 <= x <= 1, by its relative error."""
    def ratio(x):
        return mpmath.log1p(x) / x if x else mpf(1)

    return Fit(ratio, lambda x: 1 / ratio(x), 0, 1, terms)


def mixture_fit(terms):
    """P of -log(1-w) = w*P(w) for 0 <= w <= 1/2, by its relative error."""
    def ratio(w):
        return -mpmath.log1p(-w) / w if w else mpf(1)

    return Fit(ratio, lambda w: 1 / ratio(w), 0, mpf(1) / 2, terms)


def tanh_fit(terms):
    """P of tanh(x) = x + x*u*P(u), u = x*x <= 1, by the error of the whole, relative to tanh(x)."""
    def ratio(u):
        x = mpmath.sqrt(u)
        return mpmath.tanh(x) / x

    return Fit(lambda u: (ratio(u) - 1) / u, lambda u: u / ratio(u), mpf(10) ** -6, 1, terms)


# ---- float32 evaluation ------------------------------------------------------------------------------------------


def fma_unrounded(a, b, c):
    """a * b + c for float32 a, b, c as float64, rounded to odd, so that one more rounding to float32 is the only one.

    The product is exact in float64. TwoSum finds what the sum loses; a lossy sum with an even last bit moves to its odd
    neighbour on the side of the loss.
    """
    product = a.astype(np.float64) * b
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    step = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where((lost != 0) & (bits & 1 == 0), bits + step, bits).view(np.float64)


def exp2_reference(f):
    """2^f in float64 within 2^-51: Taylor's series by Horner's rule, the same bits on every machine (exp2 is not)."""
    x = f * float(mpmath.log(2))
    result = np.ones_like(x)
    for k in range(17, 0, -1):
        result = 1 + result * x / k
    return result


def random_arguments(count, generator):
    """Float32 arguments, one at random in each of `count` equal cells of [-EXP2_F32_RANGE, EXP2_F32_RANGE]."""
    jitter = np.array([generator.random() for _ in range(count)])
    return ((2 * (np.arange(count) + jitter) / count - 1) * EXP2_F32_RANGE).astype(np.float32)


def all_arguments(smallest, block=1 << 20):
    """Every float32 f with smallest <= |f| <= EXP2_F32_RANGE, in blocks."""
    first, last = np.array([smallest, EXP2_F32_RANGE], dtype=np.float32).view(np.int32).tolist()
    for start in range(first, last + 1, block):
        f = np.arange(start, min(start + block, last + 1), dtype=np.int32).view(np.float32)
        yield f
        yield -f


class Exp2Samples:
    """Evaluates float32 coefficient sets on the float32 arguments f."""

    def __init__(self, f):
        self.f = f
        self.exact = exp2_reference(self.f.astype(np.float64))
        self.ulp = np.where(self.exact < 1, 2.0**-24, 2.0**-23)
        self.core = np.abs(self.f) <= EXP2_F32_CORE

    def last_step(self, coefficients):
        """The exact sum that the last FMA rounds."""
        p = np.full_like(self.f, coefficients[-1])
        for c in coefficients[-2:0:-1]:
            p = fma_unrounded(p, self.f, c).astype(np.float32)
        return fma_unrounded(p, self.f, coefficients[0])

    def bound(self, coefficients):
        """Bounds on the error in ULP, (for |f| <= core, for all f): half an ULP of the last rounding on top."""
        error = np.abs(self.last_step(coefficients) - self.exact) / self.ulp
        return error[self.core].max() + 0.5, error.max() + 0.5

    def worst(self, coefficients):
        """Evaluated errors in ULP: ((error, f) for |f| <= core, (error, f) for all f)."""
        error = np.abs(self.last_step(coefficients).astype(np.float32) - self.exact) / self.ulp
        inner = np.where(self.core, error, 0).argmax()
        outer = error.argmax()
        return (error[inner], self.f[inner]), (error[outer], self.f[outer])


def search_exp2_f32(start, generator):
    """Random steps of a few float32 neighbours from `start`; returns the best set by evaluated error."""
    samples = Exp2Samples(random_arguments(SEARCH_POINTS, generator))

    def score(coefficients):
        inner, outer = samples.bound(coefficients)
        # Outside the core an error of 2% more counts the same.
        return max(inner, outer / 1.02)

    best = np.array(start, dtype=np.float32)
    seen = {tuple(best): score(best)}
    best_score = seen[tuple(best)]
    for _ in range(SEARCH_STEPS):
        candidate = best.copy()
        for k in range(1, len(candidate)):
            # The higher the degree the less one ULP of its coefficient weighs, so the wider the step.
            reach = 1 if k == 1 else 1 << k
            if generator.random() < 0.5:
                steps = int(generator.random() * (2 * reach + 1)) - reach
                candidate[k : k + 1].view(np.int32)[0] += steps
        key = tuple(candidate)
        if key not in seen:
            seen[key] = score(candidate)
            if seen[key] < best_score:
                best, best_score = candidate, seen[key]
    finalists = sorted(seen, key=lambda key: (seen[key], key))[:JUDGE_CANDIDATES]
    judge = Exp2Samples(random_arguments(JUDGE_POINTS, generator))
    verdicts = []
    for key in finalists:
        coefficients = np.array(key, dtype=np.float32)
        inner, outer = judge.worst(coefficients)
        verdicts.append((max(inner[0], outer[0] / 1.02), key))
    return [float(c) for c in min(verdicts)[1]]


def exp2_f32_worst(coefficients):
    """The errors of Exp2Samples.worst over every float32 f in the interval.

    Those with |f| < 1/8 are not visited, as they cannot be the worst: the last rounding adds 1/2 ULP, that of the
    next-to-last step (a result below 1, half an ULP of it 2^-25, times f) at most 1/16, earlier ones less than 1/64,
    and the polynomial, with relative error below 2^-27 (the caller checks), at most 1/8: 0.71 ULP in all.
    """
    inner, outer = (0.0, 0.0), (0.0, 0.0)
    for f in all_arguments(0.125):
        block_inner, block_outer = Exp2Samples(f).worst(coefficients)
        inner, outer = max(inner, block_inner), max(outer, block_outer)
    if inner[0] <= 0.71:
        raise ArithmeticError("the largest error is not where it was searched")
    return inner, outer


# ---- float64 evaluation ------------------------------------------------------------------------------------------


def exp2_f64_last_step_error(coefficients, generator):
    """The largest error, in ULP of the result, of the sum that the last FMA of Horner's rule rounds in float64."""
    worst = 0.0
    exact_coefficients = [Fraction(c) for c in coefficients]
    for _ in range(EXP2_F64_POINTS):
        f = (2 * generator.random() - 1) * EXP2_F64_RANGE
        argument = Fraction(f)
        p = coefficients[-1]
        for c in exact_coefficients[-2:0:-1]:
            p = float(Fraction(p) * argument + c)
        exact = mpf(2) ** mpf(f)
        error = abs(mpf(p) * mpf(f) + coefficients[0] - exact) * mpf(2) ** (53 if exact < 1 else 52)
        worst = max(worst, float(error))
    return worst


# ---- output ------------------------------------------------------------------------------------------------------


def literal(value, suffix=""):
    mantissa, exponent = float(value).hex().split("p")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}p{exponent}{suffix}"


def comment(text):
    return "\n".join("// " + line for line in textwrap.wrap(" ".join(text.split()), 117, break_on_hyphens=False))


def scalars(named, single=False):
    """Definitions of (name, value) pairs, their decimal comments aligned as clang-format aligns them."""
    kind, suffix, digits = ("float", "f", 9) if single else ("double", "", 17)
    lines = [f"inline constexpr {kind} {name} = {literal(value, suffix)};" for name, value in named]
    width = max(map(len, lines))
    return "\n".join(f"{line:<{width}}  // {value:.{digits}g}" for line, (_, value) in zip(lines, named))


def array(name, values, single=False):
    kind, suffix, digits = ("float", "f", 9) if single else ("double", "", 17)
    lines = [f"inline constexpr {kind} {name}[{len(values)}] = {{"]
    width = max(len(literal(v, suffix)) for v in values) + 1
    lines += [f"    {literal(v, suffix) + ',':<{width}}  // {v:.{digits}g}" for v in values]
    return "\n".join(lines + ["};"])


def power_of_two(x):
    return f"2^{float(mpmath.log(x, 2)):.2f}"


def generate():
    generator = random.Random(SEARCH_SEED)
    log2e = 1 / mpmath.log(2)
    ln2 = mpmath.log(2)

    fit32 = exp2_fit(EXP2_F32_RANGE, 6)
    ideal32 = fit32.max_error(fit32.solve([1.0]))
    exp2_f32 = search_exp2_f32(fit32.solve_rounded([1.0], to_single), generator)
    error32 = fit32.max_error(exp2_f32)
    if error32 >= mpf(2) ** -27:
        raise ArithmeticError("float32 exp2: the search left a polynomial less accurate than 2^-27")
    inner, outer = exp2_f32_worst(exp2_f32)

    for degree in (11, 12):
        fit64 = exp2_fit(EXP2_F64_RANGE, degree)
        ideal64 = fit64.max_error(fit64.solve([1.0]))
        if ideal64 <= mpf(2) ** -58:
            break
    else:
        raise ArithmeticError("float64 exp2: no degree is accurate enough")
    exp2_f64 = fit64.solve_rounded([1.0], to_double)
    error64 = fit64.max_error(exp2_f64)
    last_step64 = exp2_f64_last_step_error(exp2_f64, generator)

    exp_fits = {6: exp_fit(6), 11: exp_fit(11)}
    exp_f32 = exp_fits[6].solve_rounded([1.0, 1.0], to_single)
    exp_f64 = exp_fits[11].solve_rounded([1.0, 1.0], to_double)
    rest_fits = {terms: log_rest_fit(terms) for terms in (9, 20)}
    log_rest_f32 = rest_fits[9].solve_rounded([], to_single)
    log_rest_f64 = rest_fits[20].solve_rounded([], to_double)

    for terms in range(6, 11):
        fit_log = log_fit(terms)
        ideal_log = fit_log.max_error(fit_log.solve([]))
        if ideal_log < mpf(2) ** -62:
            break
    else:
        raise ArithmeticError("log: no number of terms is accurate enough")
    log_f64 = fit_log.solve_rounded([], to_double)
    error_log = fit_log.max_error(log_f64)

    for terms in range(8, 12):
        fit_log1p = log1p_fit(terms)
        ideal_log1p = fit_log1p.max_error(fit_log1p.solve([1.0]))
        if ideal_log1p < mpf(2) ** -27:
            break
    else:
        raise ArithmeticError("log1p: no number of terms is accurate enough")
    log1p_f32 = fit_log1p.solve_rounded([1.0], to_single)
    error_log1p = fit_log1p.max_error(log1p_f32)

    fit_mixture = mixture_fit(10)
    mixture_f32 = fit_mixture.solve_rounded([1.0], to_single)

    for terms in range(5, 10):
        fit_tanh = tanh_fit(terms)
        ideal_tanh = fit_tanh.max_error(fit_tanh.solve([]))
        if ideal_tanh < mpf(2) ** -26:
            break
    else:
        raise ArithmeticError("tanh: no number of terms is accurate enough")
    tanh_f32 = fit_tanh.solve_rounded([], to_single)
    error_tanh = fit_tanh.max_error(tanh_f32)

    log2e_f32 = split(log2e, 2, to_single)
    log2e_f64 = split(log2e, 2, to_double)
    ln2_f32 = split(ln2, 2, to_single)
    ln2_f64 = split(ln2, 3, to_double)
    ln2_short = to_double(round_to_bits(ln2, 53 - 11))
    ln2_short_lo = to_double(ln2 - mpf(ln2_short))
    ln2_short_error = abs(ln2 - mpf(ln2_short) - mpf(ln2_short_lo))
    ln2_short_exponent = int(mpmath.ceil(mpmath.log(ln2_short_error, 2)))

    parts = [
        comment(
            """Polynomial coefficients and split constants of the library's exp2, log, log1p and tanh, generated by
            scripts/coefficients.py. Do not edit: change the script and run it again. Coefficients run from the lowest
            degree up."""
        ),
        "#pragma once",
        "namespace xent {",
        comment(
            f"""2^f for |f| <= {EXP2_F32_RANGE}, float32, c0 exactly 1. Relative error of the polynomial
            {power_of_two(error32)} (minimax of this degree: {power_of_two(ideal32)}). Evaluated by Horner's rule with
            FMA in float32, the largest error over every float32 is {inner[0]:.4f} ULP for |f| <= {EXP2_F32_CORE} (at
            f = {float(inner[1]):.9g}) and {outer[0]:.4f} ULP overall (at f = {float(outer[1]):.9g})."""
        )
        + "\n"
        + array("kExp2F32", exp2_f32, single=True),
        comment(
            f"""2^f for |f| <= {EXP2_F64_RANGE}, float64, c0 exactly 1. Relative error of the polynomial
            {power_of_two(error64)} (minimax of this degree: {power_of_two(ideal64)}). Evaluated by Horner's rule with
            FMA in float64, the sum that the last FMA rounds is off by at most {last_step64:.3f} ULP of the result over
            {EXP2_F64_POINTS} random arguments; its rounding adds up to 0.5 ULP."""
        )
        + "\n"
        + array("kExp2F64", exp2_f64),
        comment(
            f"""e^r for |r| <= {EXP_RANGE}, c0 and c1 exactly 1. Relative error of the polynomials
            {power_of_two(exp_fits[6].max_error(exp_f32))} (float32) and {power_of_two(exp_fits[11].max_error(exp_f64))}
            (float64)."""
        )
        + "\n"
        + array("kExpF32", exp_f32, single=True)
        + "\n"
        + array("kExpF64", exp_f64),
        comment(
            f"""P in log(1+r) = r + r^2 P(r) for 1+r in [{1 + LOG_REST_LOWEST}, {1 + LOG_REST_HIGHEST}]. Error of the
            whole in exact arithmetic, relative to log(1+r): {power_of_two(rest_fits[9].max_error(log_rest_f32))}
            (float32) and {power_of_two(rest_fits[20].max_error(log_rest_f64))} (float64)."""
        )
        + "\n"
        + array("kLogRestF32", log_rest_f32, single=True)
        + "\n"
        + array("kLogRestF64", log_rest_f64),
        comment(
            f"""P in log(1+r) = 2s + s*w*P(w), s = r/(2+r), w = s*s, for |s| <= {LOG_S_RANGE}, which covers 1+r in
            [sqrt(1/2), sqrt(2)]. Error of the whole in exact arithmetic, relative to log(1+r):
            {power_of_two(error_log)} (minimax of this degree: {power_of_two(ideal_log)})."""
        )
        + "\n"
        + array("kLogF64", log_f64),
        comment(
            f"""P in log(1+x) = x*P(x) for 0 <= x <= 1, float32, c0 exactly 1. Relative error in exact arithmetic
            {power_of_two(error_log1p)} (minimax of this degree: {power_of_two(ideal_log1p)})."""
        )
        + "\n"
        + array("kLog1pF32", log1p_f32, single=True),
        comment(
            f"""P in -log(1-w) = w*P(w) for 0 <= w <= 1/2, float32, c0 exactly 1. Relative error in exact arithmetic
            {power_of_two(fit_mixture.max_error(mixture_f32))} (minimax of this degree:
            {power_of_two(fit_mixture.max_error(fit_mixture.solve([1.0])))})."""
        )
        + "\n"
        + array("kMixtureF32", mixture_f32, single=True),
        comment(
            f"""P in tanh(x) = x + x*u*P(u), u = x*x <= 1, float32. Error of the whole in exact arithmetic, relative to
            tanh(x): {power_of_two(error_tanh)} (minimax of this degree: {power_of_two(ideal_tanh)})."""
        )
        + "\n"
        + array("kTanhF32", tanh_f32, single=True),
        comment("log2(e) as unevaluated sums: each part is the rounding of what the parts before leave.")
        + "\n"
        + scalars([("kLog2E_F32_Hi", log2e_f32[0]), ("kLog2E_F32_Lo", log2e_f32[1])], single=True)
        + "\n\n"
        + scalars([("kLog2E_F64_Hi", log2e_f64[0]), ("kLog2E_F64_Lo", log2e_f64[1])]),
        comment("ln(2) as an unevaluated sum: each part is the rounding of what the parts before leave.")
        + "\n"
        + scalars([("kLn2_F32_Hi", ln2_f32[0]), ("kLn2_F32_Lo", ln2_f32[1])], single=True)
        + "\n\n"
        + scalars([("kLn2_F64_Hi", ln2_f64[0]), ("kLn2_F64_Lo", ln2_f64[1]), ("kLn2_F64_LoLo", ln2_f64[2])]),
        comment(
            f"""ln(2) = kLn2HiShort + kLn2LoShort within 2^{ln2_short_exponent}; the low 11 bits of kLn2HiShort are
            0, so that k * kLn2HiShort is exact for every integer |k| <= 2048 (Cody and Waite's reduction)."""
        )
        + "\n"
        + scalars([("kLn2HiShort", ln2_short), ("kLn2LoShort", ln2_short_lo)]),
        "}  // namespace xent\n",
    ]
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description="Regenerates src/numbers/coefficients.h.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--output", metavar="FILE", help="write the header to FILE instead of standard output")
    mode.add_argument("--check", metavar="FILE", help="exit 1 and show a diff if FILE is not this script's output")
    arguments = parser.parse_args()

    header = generate()
    if arguments.check:
        with open(arguments.check, encoding="utf-8") as file:
            present = file.read()
        if present != header:
            sys.stdout.writelines(
                difflib.unified_diff(
                    present.splitlines(True), header.splitlines(True), arguments.check, "generated", n=1
                )
            )
            return 1
    elif arguments.output:
        with open(arguments.output, "w", encoding="utf-8", newline="\n") as file:
            file.write(header)
    else:
        sys.stdout.write(header)
    return 0


if __name__ == "__main__":
    sys.exit(main())
