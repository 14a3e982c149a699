"""Exact losses in NumPy's long double (64 bits of significand or more), and errors counted in ULP.

Nothing here calls xent. Differences that cancel are formed by their other formula: lse - z_c is log1p of the sum over
all other columns, so that an oracle's own error stays below 2**-60 of the result.
"""

import numpy as np

WIDE = np.longdouble


def ulp(exact, dtype):
    """The spacing of dtype's numbers at |exact|, never below that at its smallest normal number."""
    info = np.finfo(dtype)
    magnitude = np.maximum(np.abs(np.asarray(exact, WIDE)), WIDE(info.tiny))
    exponent = np.frexp(magnitude)[1] - 1
    return np.ldexp(WIDE(1), exponent - info.nmant)


def error(got, exact, dtype, scale=None):
    """The largest |got - exact| in ULP of dtype at exact, or at scale. Infinities and NaN must be equal."""
    got, exact = np.asarray(got, WIDE), np.asarray(exact, WIDE)
    assert got.shape == exact.shape, (got.shape, exact.shape)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    finite = np.isfinite(exact)
    special = ~finite & ~np.isnan(exact)
    np.testing.assert_array_equal(got[special], exact[special])
    scale = exact if scale is None else np.broadcast_to(np.asarray(scale, WIDE), exact.shape)
    errors = np.abs(got - exact)[finite] / ulp(scale[finite], dtype)
    return float(errors.max(initial=0.0))


def softplus(x):
    x = np.asarray(x, WIDE)
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    x = np.asarray(x, WIDE)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def logsumexp(z):
    """Of the last axis."""
    z = np.asarray(z, WIDE)
    m = z.max(-1, keepdims=True)
    return (m + np.log(np.exp(z - m).sum(-1, keepdims=True)))[..., 0]


def nll(z):
    """lse - z_c for each column c of the last axis."""
    z = np.asarray(z, WIDE)
    cols = z.shape[-1]
    others = ~np.eye(cols, dtype=bool)
    differences = z[..., None, :] - z[..., :, None]  # [..., c, j]: z_j - z_c
    with np.errstate(over="ignore"):
        sums = np.where(others, np.exp(differences), 0).sum(-1)
        top = differences.max(-1)
        above = top + np.log(np.exp(differences - top[..., None]).sum(-1))
    return np.where(top > 0, above, np.log1p(sums))


def softmax(z):
    return np.exp(-nll(z))


def transformed(z, scale=1.0, cap=0.0):
    z = np.asarray(z, WIDE) * WIDE(scale)
    return WIDE(cap) * np.tanh(z / WIDE(cap)) if cap else z


def coefficients(targets, cols, smoothing=0.0, exclusive=False):
    """The smoothed one-hot rows of class indices."""
    hot = np.asarray(targets)[..., None] == np.arange(cols)
    off = WIDE(smoothing) / (cols - 1 if exclusive else cols)
    return np.where(hot, 1 - WIDE(smoothing) + (0 if exclusive else off), off)
