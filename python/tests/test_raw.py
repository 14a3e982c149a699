"""The calls on addresses: every option reaches the C API, and shards combine to the whole.

No PyTorch: arrays are NumPy's. Oracle: the formulas of xent.h in float64. Tolerances: float64's own, 1e-12, since the
kernels have tests of their own; what is tested here is that each argument arrives in its place.
"""

import numpy as np
import pytest

from xent import _core

F64, F32, BF16, F16 = 1, 0, 2, 3
N, V = 6, 40


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, V)) * 3, rng.integers(0, V, N)


def address(array):
    return 0 if array is None else array.ctypes.data


def forward(x, t, options, mode="forward", **kw):
    """Calls raw_cross_entropy_`mode` on float64 rows with addresses of keyword arrays."""
    call = getattr(_core, "raw_cross_entropy_" + mode)
    positional = [kw.pop(k, None) for k in ("row_losses", "reduced_loss", "grad")]
    rows, cols = x.shape
    extra = {k: address(v) if isinstance(v, np.ndarray) else v for k, v in kw.items()}
    call(options, 1, rows, cols, 1, F64, address(x), cols, address(t), 0, address(positional[0]),
         address(positional[1]), F64, address(positional[2]), cols if positional[2] is not None else 0, **extra)


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def losses_of(x, t, r=None, w=None, scale=1.0, cap=0.0, e=0.0, z_loss=0.0, exclusive=False, valid=None, ignore=-100):
    z = x * scale
    z = cap * np.tanh(z / cap) if cap else z
    z = z[:, :valid]
    logp = log_softmax(z)
    lse = z[:, 0] - logp[:, 0]
    n = z.shape[1]
    live = t != ignore
    one = np.zeros_like(z)
    one[np.arange(len(t)), np.where(live, t, 0)] = 1
    q = (1 - e) * one + (e / (n - 1) * (1 - one) if exclusive else e / n)
    y = q * (1 if w is None else w[:n])
    loss = -(y * logp).sum(1) + z_loss * lse**2
    return np.where(live, loss * (1 if r is None else r), 0.0)


@pytest.mark.parametrize("options, formula", [
    ({}, {}),
    ({"ignore_index": 3}, {"ignore": 3}),
    ({"valid_cols": 30}, {"valid": 30}),
    ({"logit_scale": 0.5}, {"scale": 0.5}),
    ({"softcap": 4.0}, {"cap": 4.0}),
    ({"label_smoothing": 0.1}, {"e": 0.1}),
    ({"label_smoothing": 0.1, "smoothing": 1}, {"e": 0.1, "exclusive": True}),
    ({"z_loss": 0.25}, {"z_loss": 0.25}),
])
def test_options(options, formula):
    x, t = arrays()
    t[2] = 3
    t %= formula.get("valid", V)
    w, r = np.linspace(0.5, 1.5, V), np.linspace(1.0, 2.0, N)
    for weights, row_weights in ((None, None), (w, r)):
        want = losses_of(x, t, r=row_weights, w=weights, **formula)
        rows, total = np.full(N, np.nan), np.full(1, np.nan)
        forward(x, t, _core.CrossEntropyOptions(reduction=1, **options), row_losses=rows, reduced_loss=total,
                class_weights=0 if weights is None else weights, row_weights=0 if row_weights is None else row_weights)
        np.testing.assert_allclose(rows, want, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(total[0], want.sum(), rtol=1e-12)
        again = np.full(1, np.nan)
        _core.raw_reduce(_core.CrossEntropyOptions(reduction=1, **options), N, V, F64, address(rows), address(t), 0,
                         address(weights), address(row_weights), address(again))
        assert again[0] == total[0]


def test_reductions():
    x, t = arrays()
    want = losses_of(x, t)
    total = np.zeros(1)
    for options, expected in (({}, want.mean()), ({"reduction": 1}, want.sum()), ({"divisor": 4.0}, want.sum() / 4)):
        forward(x, t, _core.CrossEntropyOptions(**options), reduced_loss=total)
        np.testing.assert_allclose(total[0], expected, rtol=1e-12)
    t[:] = -100
    forward(x, t, _core.CrossEntropyOptions(empty_mean=1), reduced_loss=total)
    assert total[0] == 0.0
    forward(x, t, _core.CrossEntropyOptions(), reduced_loss=total)
    assert np.isnan(total[0])


def test_backward_from_records_has_the_bits_of_forward_backward():
    x, t = arrays()
    options = _core.CrossEntropyOptions()
    records = np.zeros(N * _core.RECORD_BYTES // 8, np.int64)
    total, first, second = np.zeros(1), np.zeros((N, V)), np.zeros((N, V))
    u = np.full(1, 1.5)
    forward(x, t, options, reduced_loss=total, records=records)
    forward(x, t, options, "backward", grad=second, records=records, upstream=u)
    forward(x, t, options, "forward_backward", reduced_loss=total, grad=first, upstream=u)
    np.testing.assert_array_equal(first, second)
    p = np.exp(log_softmax(x))
    p[np.arange(N), t] -= 1
    np.testing.assert_allclose(first, 1.5 * p / N, rtol=1e-12, atol=1e-14)
    rows = np.linspace(-1, 1, N)
    forward(x, t, options, "backward", grad=second, records=records, upstream=rows, upstream_kind=1)
    np.testing.assert_allclose(second, rows[:, None] * p / N, rtol=1e-12, atol=1e-14)


def test_probabilities_and_their_gradient():
    x, _ = arrays()
    q = np.exp(log_softmax(arrays(1)[0]))
    grad, other, total = np.zeros((N, V)), np.zeros((N, V)), np.zeros(1)
    forward(x, None, _core.CrossEntropyOptions(), "forward_backward", reduced_loss=total, grad=grad, probs=q,
            probs_stride=V, probs_dtype=F64, target_grad=other, target_grad_stride=V)
    logp = log_softmax(x)
    np.testing.assert_allclose(total[0], -(q * logp).sum(1).mean(), rtol=1e-12)
    np.testing.assert_allclose(grad, (np.exp(logp) - q) / N, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(other, -logp / N, rtol=1e-12)


def test_statistics():
    x, t = arrays()
    t[1] = -100
    lse, logprobs, entropy = np.zeros(N), np.zeros(N), np.zeros(N)
    argmax, rank, top, columns = np.zeros(N, np.int64), np.zeros(N, np.int64), np.zeros((N, 3), np.int64), None
    hits, perplexity, live = np.zeros(N, np.uint8), np.zeros(1), np.zeros(1, np.int64)
    top_logprobs, gathered = np.zeros((N, 3)), np.zeros((N, 2))
    columns = np.tile(np.array([0, V - 1]), (N, 1))
    statistics = _core.Statistics(
        lse=address(lse), logprobs=address(logprobs), argmax=address(argmax), hits=address(hits), rank=address(rank),
        entropy=address(entropy), top_k=3, topk_logprobs=address(top_logprobs), topk_indices=address(top),
        gather_count=2, gather_cols=address(columns), gathered=address(gathered), perplexity=address(perplexity),
        live_rows=address(live), of_ignored=True)
    forward(x, t, _core.CrossEntropyOptions(reduction=2), statistics=statistics)
    logp = log_softmax(x)
    order = np.argsort(-x, 1, kind="stable")
    np.testing.assert_allclose(lse, x[:, 0] - logp[:, 0], rtol=1e-12)
    np.testing.assert_allclose(entropy, -(np.exp(logp) * logp).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(argmax, order[:, 0])
    np.testing.assert_array_equal(top, order[:, :3])
    np.testing.assert_allclose(top_logprobs, np.take_along_axis(logp, order[:, :3], 1), rtol=1e-11)
    np.testing.assert_allclose(gathered, logp[:, [0, V - 1]], rtol=1e-12)
    rows = t >= 0
    np.testing.assert_allclose(logprobs[rows], logp[rows, t[rows]], rtol=1e-12)
    np.testing.assert_array_equal(hits[rows], order[rows, 0] == t[rows])
    np.testing.assert_array_equal(rank[rows], [list(o).index(c) for o, c in zip(order[rows], t[rows])])
    assert live[0] == N - 1
    np.testing.assert_allclose(perplexity[0], np.exp(-logp[rows, t[rows]].mean()), rtol=1e-12)


@pytest.mark.parametrize("cols", [40, 3000])
def test_shards_have_the_bits_of_the_whole(cols):
    rng = np.random.default_rng(3)
    x, t = rng.normal(size=(N, cols)), rng.integers(0, cols, N)
    options = _core.CrossEntropyOptions(z_loss=0.1)
    whole, grad, total = np.zeros(N), np.zeros((N, cols)), np.zeros(1)
    forward(x, t, options, "forward_backward", row_losses=whole, reduced_loss=total, grad=grad)
    chunk = _core.chunk_cols(cols)
    bounds = sorted({0, min(chunk, cols), cols})
    lists, counts = [], []
    for a, b in zip(bounds, bounds[1:]):
        counts.append(_core.shard_chunks(cols, a, b - a))
        lists.append(np.zeros(N * counts[-1] * _core.CHUNK_RECORD_BYTES // 8, np.int64))
        _core.shard_forward(options, 1, N, b - a, F64, address(x) + 8 * a, cols, address(t), 0, cols, a,
                            address(lists[-1]))
    losses, combined, records = np.zeros(N), np.zeros(1), np.zeros(N * _core.RECORD_BYTES // 8, np.int64)
    _core.shard_combine(options, N, cols, F64, address(t), 0, [address(a) for a in lists], counts, address(losses),
                        address(combined), address(records))
    np.testing.assert_array_equal(losses, whole)
    assert combined[0] == total[0]
    for a, b in zip(bounds, bounds[1:]):
        part = np.zeros((N, b - a))
        _core.shard_backward(options, 1, N, b - a, F64, address(x) + 8 * a, cols, address(t), 0, cols, a,
                             address(records), address(part), b - a)
        np.testing.assert_array_equal(part, grad[:, a:b])
    with pytest.raises(ValueError, match="lists and list_chunks"):
        _core.shard_combine(options, N, cols, F64, address(t), 0, [address(a) for a in lists], [], address(losses),
                            address(combined), address(records))


def test_a_loss_in_half_precision_is_rounded_to_nearest_even():
    rng = np.random.default_rng(4)
    for dtype, code in ((np.float16, F16), ("bfloat16", BF16)):
        if code == BF16:
            dtype = pytest.importorskip("ml_dtypes").bfloat16
        for scale in (1e-6, 1e-3, 1.0, 1e3, 1e5):
            for _ in range(50):
                losses = (rng.normal(size=1) * scale).astype(np.float32)
                x = np.zeros((1, 2), np.float32)
                t, out = np.zeros(1, np.int64), np.zeros(1, dtype)
                # log 2 times the row weight is the loss, whose rounding is looked at.
                wide = np.zeros(1, np.float32)
                args = (_core.CrossEntropyOptions(reduction=1), 1, 1, 2, 1, F32, address(x), 2, address(t), 0, 0)
                _core.raw_cross_entropy_forward(*args, address(wide), F32, 0, 0, row_weights=address(losses))
                _core.raw_cross_entropy_forward(*args, address(out), code, 0, 0, row_weights=address(losses))
                assert out[0] == wide.astype(dtype)[0] or (np.isinf(out[0]) and np.isinf(wide.astype(dtype)[0]))


def test_errors():
    x, t = arrays()
    t[4] = V
    with pytest.raises(IndexError, match=f"row 4 is {V}"):
        forward(x, t, _core.CrossEntropyOptions(), reduced_loss=np.zeros(1))
    assert _core.first_bad_target(address(t), 0, N, V, -100) == 4
    assert _core.first_bad_target(address(t), 0, N, V, V) == -1
    with pytest.raises(ValueError, match="label_smoothing"):
        forward(x, t, _core.CrossEntropyOptions(label_smoothing=2.0), reduced_loss=np.zeros(1))
    with pytest.raises(ValueError):
        _core.raw_logsumexp(1, N, V, 1, 9, address(x), V, address(np.zeros(N)))
