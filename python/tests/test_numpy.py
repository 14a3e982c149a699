"""The functions on arrays against oracle.py: values within the bounds of xent.h, every dtype, layout and option."""

import doctest
import inspect

import numpy as np
import pytest

import oracle
import xent
from oracle import WIDE, error

ml_dtypes = pytest.importorskip("ml_dtypes")

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
DTYPES = [F32, F64, F16, BF16]
SHAPES = [(1, 1), (1, 10), (7, 33), (3, 300)]


def arithmetic(dtype):
    return F64 if dtype == F64 else F32


def logits_of(shape, dtype, seed=1, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def targets_of(shape, cols, seed=2):
    return np.random.default_rng(seed).integers(0, cols, shape)


def half_ulp(dtype):
    """What one rounding to a half-precision dtype is worth, in ULP of that dtype."""
    return 0.5 if dtype in (F16, BF16) else 0.0


def gradient_error(got, exact, dtype, bound, scale=None):
    """Asserts a gradient: `bound` ULP of float32 or float64, then half a ULP of a half-precision dtype."""
    got, exact = np.asarray(got, WIDE), np.asarray(exact, WIDE)
    scale = np.abs(exact) if scale is None else np.broadcast_to(scale, exact.shape)
    info = ml_dtypes.finfo(dtype)
    # Subnormal numbers of float16 are as far apart as its smallest normal ones.
    rounded = np.maximum(np.abs(exact), WIDE(float(info.smallest_normal)))
    last = np.ldexp(WIDE(1), np.frexp(rounded)[1] - 1 - info.nmant)
    allowed = bound * oracle.ulp(scale, arithmetic(dtype)) + half_ulp(dtype) * last * 1.01
    worst = (np.abs(got - exact) / allowed).max()
    assert worst <= 1, worst


# ---------------------------------------------------------------- docstrings


@pytest.mark.parametrize("name", [n for n in xent.__all__ if callable(getattr(xent, n))])
def test_docstrings(name):
    """Each function has a docstring with a signature, and its examples run."""
    function = getattr(xent, name)
    assert function.__doc__
    if inspect.isclass(function):
        return
    if inspect.isbuiltin(function):
        inspect.signature(function)
    test = doctest.DocTestParser().get_doctest(function.__doc__, {"np": np, "xent": xent}, name, None, 0)
    assert test.examples
    text = []
    doctest.DocTestRunner(verbose=False).run(test, out=text.append)
    assert not text, "".join(text)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(shape, dtype):
    x, t = logits_of(shape, dtype), targets_of(shape[:1], shape[1])
    loss, grad = xent.cross_entropy(x, t, reduction="none", grad=True)
    assert loss.dtype == arithmetic(dtype) and grad.dtype == dtype
    z = np.asarray(x, WIDE)
    columns = oracle.nll(z)
    exact = np.take_along_axis(columns, t[:, None], 1)[:, 0]
    assert error(loss, exact, arithmetic(dtype)) <= 4
    p = np.exp(-columns)
    hot = np.arange(shape[1]) == t[:, None]
    # p_t - 1 is the sum of the others, without cancellation.
    exact_grad = np.where(hot, -np.where(hot, 0, p).sum(1, keepdims=True), p)
    gradient_error(grad, exact_grad, dtype, 6)
    mean = xent.cross_entropy(x, t)
    assert isinstance(mean, arithmetic(dtype))
    assert error(mean, exact.mean(), arithmetic(dtype)) <= 8  # losses of 4, then their sum over N of 4
    assert error(xent.cross_entropy(x, t, reduction="sum"), exact.sum(), arithmetic(dtype)) <= 8


@pytest.mark.parametrize("dtype", [F32, F64])
def test_far_tail(dtype):
    """Losses of rows that the target dominates, down to 1e-30, against mpmath."""
    mpmath = pytest.importorskip("mpmath")
    x = np.zeros((3, 40), dtype)
    x[:, 7] = [20, 40, 65]
    loss = xent.cross_entropy(x, [7, 7, 7], reduction="none")
    with mpmath.workdps(60):
        exact = [mpmath.log1p(39 * mpmath.exp(-d)) for d in (20, 40, 65)]
        for got, want in zip(loss, exact):
            assert abs(mpmath.mpf(float(got)) - want) <= 4 * mpmath.mpf(float(np.spacing(dtype(want))))


OPTIONS = [
    dict(label_smoothing=0.1),
    dict(label_smoothing=0.2, smoothing="exclusive"),
    dict(z_loss=0.01),
    dict(label_smoothing=0.1, z_loss=0.01),
    dict(logit_scale=0.5),
    dict(softcap=5.0),
    dict(softcap=5.0, logit_scale=2.0, label_smoothing=0.1),
]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_options(options, dtype, weights):
    rows, cols = 9, 70
    x, t = logits_of((rows, cols), dtype), targets_of(rows, cols)
    rng = np.random.default_rng(3)
    w = rng.uniform(0.5, 2, cols).astype(F32) if weights else np.ones(cols, F32)
    r = rng.uniform(0.5, 2, rows).astype(F32) if weights else np.ones(rows, F32)
    extra = dict(class_weights=w, row_weights=r) if weights else {}
    loss, grad = xent.cross_entropy(x, t, reduction="none", grad=True, **options, **extra)
    scale, cap = options.get("logit_scale", 1.0), options.get("softcap", 0.0)
    z = oracle.transformed(np.asarray(x, WIDE), scale, cap)
    q = oracle.coefficients(t, cols, options.get("label_smoothing", 0.0), options.get("smoothing") == "exclusive")
    y = q * np.asarray(w, WIDE)
    columns, lse = oracle.nll(z), oracle.logsumexp(z)
    lam = WIDE(options.get("z_loss", 0.0))
    exact = np.asarray(r, WIDE) * ((y * columns).sum(1) + lam * lse**2)
    # A transformed logit may be off by 2 of its ULP, and z_loss takes lse as it is rounded.
    slack = 2 * oracle.ulp(np.abs(z).max(), arithmetic(dtype)) * y.sum(1) * r if cap else 0
    slack = slack + 4 * lam * 2 * np.abs(lse) * oracle.ulp(np.maximum(np.abs(z).max(), 5), arithmetic(dtype)) * r
    allowed = 4 * oracle.ulp(exact, arithmetic(dtype)) + 2 * slack
    assert (np.abs(np.asarray(loss, WIDE) - exact) <= allowed).all()
    slope = scale * (1 / np.cosh(np.asarray(x, WIDE) * scale / cap) ** 2 if cap else WIDE(1))
    total = y.sum(1)[:, None] + (2 * lam * lse)[:, None]
    r_column = np.asarray(r, WIDE)[:, None]
    p = np.exp(-columns)
    exact_grad = r_column * (total * p - y) * slope
    terms = r_column * np.maximum(np.maximum(y.sum(1)[:, None] * p, y), np.abs((2 * lam * lse)[:, None] * p)) * slope
    bound = 6 + (4 + 4 * np.abs(z).max() / cap if cap else 0) + 8 * oracle.ulp(8, F32) / oracle.ulp(1, F32) * bool(cap)
    gradient_error(grad, exact_grad, dtype, float(bound), terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("probs_dtype", [F32, F64, F16, BF16])
def test_probabilities(dtype, probs_dtype):
    x = logits_of((5, 20), dtype)
    q = np.random.default_rng(5).uniform(0, 0.3, (5, 20)).astype(probs_dtype)
    result = xent.cross_entropy(x, q, reduction="none", grad=True, target_grad=True)
    columns = oracle.nll(np.asarray(x, WIDE))
    wide = np.asarray(q, WIDE)
    assert error(result.loss, (wide * columns).sum(1), arithmetic(dtype)) <= 4
    p, total = np.exp(-columns), wide.sum(1, keepdims=True)
    gradient_error(result.grad, total * p - wide, dtype, 6, np.maximum(total * p, wide))
    assert result.target_grad.dtype == probs_dtype
    info = ml_dtypes.finfo(probs_dtype)
    last = np.ldexp(WIDE(1), np.frexp(columns)[1] - 1 - info.nmant)
    narrow = oracle.ulp(columns, arithmetic(dtype))
    assert (np.abs(np.asarray(result.target_grad, WIDE) - columns) <= 4 * narrow + last).all()


def test_reductions():
    x, t = logits_of((6, 10), F32), targets_of(6, 10)
    w, r = np.linspace(1, 2, 10, dtype=F32), np.linspace(0.5, 1, 6, dtype=F32)
    t[2] = -100
    losses = xent.cross_entropy(x, t, class_weights=w, row_weights=r, reduction="none")
    assert losses[2] == 0
    live = t != -100
    total = losses.astype(WIDE).sum()
    denominator = (r.astype(WIDE)[live] * w.astype(WIDE)[t[live]]).sum()
    options = dict(class_weights=w, row_weights=r)
    assert error(xent.cross_entropy(x, t, **options), total / denominator, F32) <= 1
    assert error(xent.cross_entropy(x, t, divisor=7.0, **options), total / 7, F32) <= 1
    assert error(xent.cross_entropy(x, t, divisor=7.0, reduction="sum", **options), total / 7, F32) <= 1
    assert np.isnan(xent.cross_entropy(x, np.full(6, -100)))
    assert xent.cross_entropy(x, np.full(6, -100), empty_mean="zero") == 0
    assert np.isnan(xent.cross_entropy(x[:0], t[:0])) and xent.cross_entropy(x[:0], t[:0], reduction="sum") == 0
    assert xent.cross_entropy(x[:0], t[:0], reduction="none").shape == (0,)
    loss, grad = xent.cross_entropy(x[:0], t[:0], grad=True)
    assert grad.shape == (0, 10)


def test_ignored_rows_and_valid_cols():
    x, t = logits_of((4, 12), F32), np.array([3, 1, 255, 0])
    x[2] = np.nan
    x[:, 9:] = np.nan
    loss, grad = xent.cross_entropy(x, t, ignore_index=255, valid_cols=9, grad=True)
    exact = [oracle.nll(np.asarray(x[i, :9], WIDE))[t[i]] for i in (0, 1, 3)]
    assert error(loss, np.mean(exact), F32) <= 8
    assert (grad[2] == 0).all() and (grad[:, 9:] == 0).all() and (grad[0, :9] != 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics(dtype):
    x, t = logits_of((5, 40), dtype), targets_of(5, 40)
    t[1] = -100
    columns = np.array([[0, 39, 7]] * 5)
    names = ["row_losses", "lse", "logprobs", "argmax", "hits", "rank", "entropy", "perplexity", "live_rows"]
    result = xent.cross_entropy(x, t, statistics=names, top_k=3, gather=columns)
    z = np.asarray(x, WIDE)
    nlls, live = oracle.nll(z), t != -100
    chosen = np.where(live, np.take_along_axis(nlls, np.where(live, t, 0)[:, None], 1)[:, 0], 0)
    kind = arithmetic(dtype)
    assert error(result.row_losses, chosen, kind) <= 4 and error(result.logprobs, -chosen, kind) <= 4
    assert error(result.lse, np.where(live, oracle.logsumexp(z), 0), kind, np.maximum(np.abs(z).max(1), 4)) <= 4
    assert error(result.entropy, np.where(live, (np.exp(-nlls) * nlls).sum(1), 0), kind) <= 8
    order = np.argsort(-z, axis=1, kind="stable")
    np.testing.assert_array_equal(result.argmax, np.where(live, order[:, 0], -1))
    np.testing.assert_array_equal(result.hits, live & (order[:, 0] == t))
    rank = np.array([list(order[i]).index(t[i]) if live[i] else -1 for i in range(5)])
    np.testing.assert_array_equal(result.rank, rank)
    np.testing.assert_array_equal(result.topk_indices[live], order[live, :3])
    assert error(result.topk_logprobs[live], -np.take_along_axis(nlls, order[:, :3], 1)[live], kind) <= 4
    assert error(result.gathered[live], -nlls[:, [0, 39, 7]][live], kind) <= 4
    assert result.live_rows == 4 and result.hits.dtype == bool
    perplexity = np.exp(chosen.sum() / 4)
    assert abs(result.perplexity / perplexity - 1) < 8 * float(np.finfo(kind).eps) * float(chosen.max())
    assert result.grad is None and result.target_grad is None
    scores = xent.score(x, t)
    for name in ("logprobs", "entropy", "rank", "argmax", "perplexity", "live_rows"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(result, name))
    of_ignored = xent.cross_entropy(x, t, statistics="lse", stats_of_ignored=True)
    assert error(of_ignored.lse, oracle.logsumexp(z), kind, np.maximum(np.abs(z).max(1), 4)) <= 4
    assert of_ignored.rank is None


def test_statistics_without_reduction():
    x, t = logits_of((3, 5), F32), targets_of(3, 5)
    result = xent.cross_entropy(x, t, reduction="none", statistics=["row_losses", "lse"])
    np.testing.assert_array_equal(result.row_losses, result.loss)
    np.testing.assert_array_equal(result.loss, xent.cross_entropy(x, t, reduction="none"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_functions_of_rows(shape, dtype):
    x = logits_of(shape, dtype)
    columns, kind = oracle.nll(np.asarray(x, WIDE)), arithmetic(dtype)
    gradient_error(xent.softmax(x), np.exp(-columns), dtype, 6)
    gradient_error(xent.log_softmax(x), -columns, dtype, 4)
    scale = np.maximum(np.abs(np.asarray(x, WIDE)).max(1), np.log(WIDE(shape[1])))
    lse = xent.logsumexp(x)
    assert lse.dtype == kind and error(lse, oracle.logsumexp(x), kind, scale) <= 4
    np.testing.assert_array_equal(xent.logsumexp(x, keepdims=True), lse[:, None])
    out = np.empty_like(lse)
    assert xent.logsumexp(x, out=out) is out
    np.testing.assert_array_equal(out, lse)
    probabilities = xent.softmax(x)
    assert xent.softmax(x, out=x) is x
    np.testing.assert_array_equal(x, probabilities)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_functions_of_elements(dtype):
    x = np.concatenate([np.linspace(-80, 80, 1001), [0.0, 1e-30]]).astype(dtype)
    wide = np.asarray(x, WIDE)
    positive = np.abs(x) + dtype(1e-3)
    assert error(xent.exp(x), np.exp(wide), dtype) <= 1.001  # the oracle's own roundings
    assert error(xent.log(positive), np.log(np.asarray(positive, WIDE)), dtype) <= 1.001
    assert error(xent.log1p(positive), np.log1p(np.asarray(positive, WIDE)), dtype) <= 1.001
    np.testing.assert_array_equal(xent.exp(x[::2]), xent.exp(x)[::2])
    square = x[:900].reshape(30, 30)
    np.testing.assert_array_equal(xent.exp(square.T), xent.exp(square).T)
    out = x.copy()
    assert xent.exp(out, out=out) is out
    np.testing.assert_array_equal(out, xent.exp(x))
    late = np.zeros(2 * x.size, dtype)[::2]
    xent.exp(x, out=late)
    np.testing.assert_array_equal(late, out)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(xent.log(np.array([0, -1, np.inf], dtype)), [-np.inf, np.nan, np.inf])
    assert isinstance(xent.exp(dtype(1)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weights", [False, True])
def test_binary(dtype, weights):
    rng = np.random.default_rng(8)
    shape = (6, 11)
    x = logits_of(shape, dtype, scale=4)
    y = rng.uniform(0, 1, shape).astype(F32)
    kind = arithmetic(dtype)
    pos, w, r, e = (rng.uniform(0.5, 2, n).astype(F32) if weights else np.ones(n, F32) for n in (11, 11, 6, shape))
    names = dict(pos_weight=pos, class_weights=w, row_weights=r, element_weights=e) if weights else {}
    z, t = np.asarray(x, WIDE), np.asarray(y, WIDE)
    weight = np.asarray(w, WIDE) * np.asarray(r, WIDE)[:, None] * np.asarray(e, WIDE)
    up, down = oracle.softplus(z), oracle.softplus(-z)
    exact = weight * ((1 - t) * up + pos * t * down)
    result = xent.binary_cross_entropy_with_logits(x, y, reduction="none", grad=True, target_grad=True, **names)
    assert error(result.loss, exact, kind) <= 4
    s, o = oracle.sigmoid(z), oracle.sigmoid(-z)
    larger = weight * np.maximum((1 - t) * s, pos * t * o)
    gradient_error(result.grad, weight * ((1 - t) * s - pos * t * o), dtype, 4, larger)
    gradient_error(result.target_grad, weight * (pos * down - up), F32, 4, weight * np.maximum(pos * down, up))
    assert error(xent.binary_cross_entropy_with_logits(x, y, **names), exact.mean(), kind) <= 8
    loss, grad = xent.binary_cross_entropy_with_logits(x, y, grad=True, **names)
    gradient_error(grad, weight * ((1 - t) * s - pos * t * o) / z.size, dtype, 6, larger / z.size)


def test_binary_probabilities_and_focal():
    p = np.array([0.7, 0.99, 0.01, 0.0, 1.0])
    loss, grad = xent.binary_cross_entropy(p, np.ones(5), reduction="none", grad=True)
    with np.errstate(divide="ignore"):
        exact = np.minimum(-np.log(np.asarray(p, WIDE)), 100)
    assert error(loss, exact, F64) <= 4
    assert error(grad[:3], -1 / np.asarray(p[:3], WIDE), F64) <= 8
    z = logits_of((5, 9), F64, scale=3)
    y = np.random.default_rng(1).integers(0, 2, (5, 9))
    got = xent.sigmoid_focal_loss(z, y, reduction="none")
    signed = np.where(y, np.asarray(z, WIDE), -np.asarray(z, WIDE))
    factor = np.where(y, WIDE(0.25), WIDE(0.75))
    assert error(got, factor * oracle.sigmoid(-signed) ** 2 * oracle.softplus(-signed), F64) <= 16
    plain = xent.sigmoid_focal_loss(z, y, gamma=0, alpha=None)
    assert error(plain, oracle.softplus(-signed).mean(), F64) <= 16
    for shape in [(), (3,), (2, 3, 4), (0,), (5, 0)]:
        x = np.zeros(shape)
        losses = xent.binary_cross_entropy_with_logits(x, x, reduction="none")
        assert np.shape(losses) == shape
    np.testing.assert_array_equal(xent.binary_cross_entropy_with_logits(z, y == 1), xent.sigmoid_focal_loss(
        z, y, gamma=0, alpha=None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergences(dtype, temperature):
    student, teacher = logits_of((4, 30), dtype, 1), logits_of((4, 30), F32, 2)
    kind = arithmetic(dtype)
    lq = -oracle.nll(np.asarray(student, WIDE) / temperature)
    lp = -oracle.nll(np.asarray(teacher, WIDE) / temperature)
    p, q = np.exp(lp), np.exp(lq)
    lm = np.log((p + q) / 2)
    exact = {
        "forward": (p * (lp - lq)).sum(1),
        "reverse": (q * (lq - lp)).sum(1),
        "cross_entropy": -(p * lq).sum(1),
    }
    for name, want in exact.items():
        options = dict(kind=name, temperature=temperature, reduction="none")
        loss, grad = xent.kl_div(student, teacher, grad=True, **options)
        leading = p if name != "reverse" else q
        scale = (leading * (np.abs(lp) + np.abs(lq))).sum(1)
        assert error(loss, want, kind, scale) <= 8
        if name == "reverse":
            exact_grad = q * (lq - lp - want[:, None]) / temperature
            terms = q * np.maximum(np.maximum(np.abs(lq), np.abs(lp)), np.abs(want[:, None])) / temperature
        else:
            exact_grad, terms = (q - p) / temperature, np.maximum(p, q) / temperature
        gradient_error(grad, exact_grad, dtype, 6, terms)
    loss = xent.js_div(student, teacher, temperature=temperature, reduction="none")
    want = (p * (lp - lm) + q * (lq - lm)).sum(1) / 2
    scale = (p * (np.abs(lp) + np.abs(lm)) + q * (np.abs(lq) + np.abs(lm))).sum(1) / 2
    assert error(loss, want, kind, scale) <= 8
    assert error(xent.js_div(student, teacher, temperature=temperature), want.mean(), kind, scale.max()) <= 12


def test_check_logits():
    x = logits_of((3, 7), F32)
    assert xent.check_logits(x) == "logits"
    assert xent.check_logits(xent.softmax(x)) == "probabilities"
    assert xent.check_logits(xent.log_softmax(x)) == "log_probabilities"
    assert xent.check_logits(xent.softmax(x, axis=0), axis=0) == "probabilities"


def test_info():
    info = xent.info()
    assert info["version"] == xent.__version__
    assert info["target"] in info["available_targets"] and info["threads"] >= 1


# ---------------------------------------------------------------- layouts


def views(x):
    """Arrays that are equal to x and lie differently: with gaps, out of order, backwards, unaligned, byteswapped."""
    yield "C", x.copy()
    yield "Fortran", x.copy(order="F")
    for axis in range(x.ndim):
        yield f"last {axis}", np.moveaxis(np.moveaxis(x, axis, -1).copy(), -1, axis)
        wide = np.zeros([n + 3 * (i == axis) for i, n in enumerate(x.shape)], x.dtype)
        cut = wide[tuple(slice(1, 1 + n) if i == axis else slice(None) for i, n in enumerate(x.shape))]
        cut[...] = x
        yield f"gap {axis}", cut
        steps = np.zeros([n * (2 if i == axis else 1) for i, n in enumerate(x.shape)], x.dtype)
        strided = steps[tuple(slice(None, None, 2 if i == axis else 1) for i in range(x.ndim))]
        strided[...] = x
        yield f"steps {axis}", strided
        backwards = np.flip(np.flip(x, axis).copy(), axis)
        yield f"backwards {axis}", backwards
    memory = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    yield "unaligned", unaligned
    if x.dtype != BF16:
        yield "byteswapped", x.astype(x.dtype.newbyteorder())
    read_only = x.copy()
    read_only.flags.writeable = False
    yield "read-only", read_only


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype, axis):
    """Every layout and axis has the values of the plain one, and neither inputs nor gaps are written."""
    x = logits_of((3, 5, 4), dtype)
    rows = np.moveaxis(x, axis, -1).shape[:-1]
    t = targets_of(rows, x.shape[axis])
    plain = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    want, want_grad = xent.cross_entropy(plain, t, reduction="none", grad=True)
    want_grad = np.moveaxis(want_grad, -1, axis).astype(F64)
    want_softmax = np.moveaxis(xent.softmax(plain), -1, axis).astype(F64)
    # Class-major layouts have bits of their own, each within its bound; a half is rounded once more.
    eps = float(ml_dtypes.finfo(dtype).eps)
    near = dict(rtol=12 * float(np.finfo(arithmetic(dtype)).eps) + (eps if dtype in (F16, BF16) else 0), atol=1e-7)
    for name, view in views(x):
        np.testing.assert_array_equal(view, x, err_msg=name)
        loss, grad = xent.cross_entropy(view, t, axis=axis, reduction="none", grad=True)
        np.testing.assert_allclose(loss, want, err_msg=name, **near)
        np.testing.assert_allclose(grad.astype(F64), want_grad, err_msg=name, **near)
        np.testing.assert_array_equal(view, x, err_msg=name)
        assert grad.shape == x.shape
        np.testing.assert_allclose(xent.softmax(view, axis).astype(F64), want_softmax, err_msg=name, **near)
        np.testing.assert_allclose(xent.logsumexp(view, axis), xent.logsumexp(plain), err_msg=name, **near)
        for out_name, out in views(np.zeros_like(x)):
            if out_name == "read-only" or out.dtype != dtype:
                continue
            around = out.base if out.base is not None else out
            assert xent.softmax(view, axis, out=out) is out
            np.testing.assert_allclose(out.astype(F64), want_softmax, err_msg=f"{name}, {out_name}", **near)
            if around.dtype == dtype and around.size > out.size:
                assert np.count_nonzero(np.asarray(around, F32)) <= out.size
        if view.flags.writeable:
            loss, grad = xent.cross_entropy(view, t, axis=axis, reduction="none", grad=view)
            assert grad is view
            np.testing.assert_allclose(view.astype(F64), want_grad, err_msg=name, **near)


def test_layouts_of_others():
    """Teachers, probabilities and weights of elements may lie otherwise than the first matrix."""
    x, u = logits_of((3, 5, 4), F64, 1), logits_of((3, 5, 4), F64, 2)
    q = xent.softmax(u, 1)
    for name, a in views(x):
        for other, b in views(u):
            got = xent.kl_div(a, b, axis=1, reduction="none")
            np.testing.assert_allclose(got, xent.kl_div(x, u, axis=1, reduction="none"), rtol=1e-13,
                                       err_msg=f"{name}, {other}")
        for other, b in views(q):
            result = xent.cross_entropy(a, b, axis=1, grad=True, target_grad=True)
            want = xent.cross_entropy(x, q, axis=1, grad=True, target_grad=True)
            for got, expected in zip(result[:3], want[:3]):
                np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14, err_msg=f"{name}, {other}")
            weighted = xent.binary_cross_entropy_with_logits(a, b, element_weights=b, reduction="none")
            np.testing.assert_allclose(
                weighted, xent.binary_cross_entropy_with_logits(x, q, element_weights=q, reduction="none"), rtol=1e-13)


def test_overlap():
    """An output that overlaps an input is as right as any other."""
    rows, cols = 40, 300  # rows of up to 64 columns are read before any of them is written
    memory = logits_of(rows * cols + 1, F32)
    x, t = memory[:-1].reshape(rows, cols).copy(), targets_of(rows, cols)
    want = xent.softmax(x)
    shifted_in, shifted_out = memory[:-1].reshape(rows, cols), memory[1:].reshape(rows, cols)
    xent.softmax(shifted_in, out=shifted_out)
    np.testing.assert_array_equal(shifted_out, want)
    both = np.concatenate([x, x], axis=1)
    xent.cross_entropy(both[:, :cols], t, grad=both[:, cols:])
    np.testing.assert_array_equal(both[:, :cols], x)
    np.testing.assert_array_equal(both[:, cols:], xent.cross_entropy(x, t, grad=True)[1])
    reversed_rows = x.copy()
    xent.softmax(reversed_rows, out=reversed_rows[::-1])
    np.testing.assert_array_equal(reversed_rows[::-1], want)
    probabilities = want.copy()
    got = xent.cross_entropy(x, probabilities, grad=probabilities)[1]
    np.testing.assert_array_equal(got, xent.cross_entropy(x, want, grad=True)[1])


def test_large_arrays_release_the_lock():
    """Rows and columns past what one task holds, and a workspace."""
    x, t = logits_of((300, 2000), F32), targets_of(300, 2000)
    loss, grad = xent.cross_entropy(x, t, grad=True)
    one, one_grad = xent.cross_entropy(x, t, grad=True, threads=1)
    assert loss == one
    np.testing.assert_array_equal(grad, one_grad)
    in_place = x.copy()
    xent.cross_entropy(in_place, t, grad=in_place)
    np.testing.assert_array_equal(in_place, grad)


# ---------------------------------------------------------------- inputs of other kinds


@pytest.mark.parametrize("dtype", "bBhHiIlLqQ")
def test_integer_targets(dtype):
    x = logits_of((5, 9), F32)
    t = targets_of(5, 9)
    want = xent.cross_entropy(x, t)
    assert xent.cross_entropy(x, t.astype(dtype)) == want
    assert xent.cross_entropy(x, t.astype(np.dtype(dtype).newbyteorder())) == want
    assert xent.cross_entropy(x, np.repeat(t.astype(dtype), 2)[::2]) == want
    assert xent.cross_entropy(x, list(map(int, t))) == want


def test_bool_targets_and_one_row():
    x = logits_of((4, 2), F32)
    t = np.array([True, False, True, True])
    assert xent.cross_entropy(x, t) == xent.cross_entropy(x, t.astype(int))
    loss = xent.cross_entropy(x[0], 1, reduction="none")
    assert isinstance(loss, F32) and loss == xent.cross_entropy(x[:1], [1])
    assert xent.cross_entropy(x.astype(F64).tolist(), t.tolist()) == xent.cross_entropy(x.astype(F64), t)


def test_buffers_and_dlpack():
    import array

    x, t = logits_of((3, 4), F32), targets_of(3, 4)
    want = xent.cross_entropy(x, t)
    assert xent.cross_entropy(memoryview(x), memoryview(t)) == want
    assert xent.softmax(array.array("f", [1, 2, 3])).shape == (3,)
    out = array.array("f", [0, 0, 0])
    assert xent.softmax(array.array("f", [1, 2, 3]), out=out) is out
    np.testing.assert_array_equal(np.array(out), xent.softmax(np.array([1, 2, 3], F32)))

    class Exporter:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    assert xent.cross_entropy(Exporter(x), Exporter(t)) == want
    in_place = Exporter(x.copy())
    assert xent.softmax(in_place, out=in_place) is in_place
    np.testing.assert_array_equal(in_place.array, xent.softmax(x))
    read_only = x.copy()
    read_only.flags.writeable = False
    assert xent.cross_entropy(memoryview(read_only), t) == want
    with pytest.raises(ValueError, match="out is read-only"):
        xent.softmax(x, out=memoryview(read_only))
    with pytest.raises(ValueError, match="out is read-only"):
        xent.softmax([1.0, 2.0], out=[0.0, 0.0])


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_torch_tensors(name):
    torch = pytest.importorskip("torch")
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).to(getattr(torch, name))
    t = torch.tensor([0, 4, 2])
    array = x.float().numpy().astype(getattr(ml_dtypes, name, name)) if name == "bfloat16" else x.numpy()
    loss, grad = xent.cross_entropy(x, t, grad=True)
    want, want_grad = xent.cross_entropy(array, t.numpy(), grad=True)
    assert loss == want
    np.testing.assert_array_equal(grad, want_grad)
    out = torch.empty_like(x)
    assert xent.cross_entropy(x, t, grad=out)[1] is out
    np.testing.assert_array_equal(out.float().numpy(), want_grad.astype(F32))
