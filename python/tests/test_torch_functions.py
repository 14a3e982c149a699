"""softmax and its relatives, binary cross-entropy and divergences of xent.torch.

Oracle: PyTorch in float64 on the inputs as stored, gradients by gradcheck in float64. Tolerances: xent.h.
"""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch_checks import DTYPES, assert_close, indices, logits, probabilities  # noqa: E402

import xent.torch as xt  # noqa: E402
from xent.torch._divergence import _reference  # noqa: E402

gradcheck = torch.autograd.gradcheck
SHAPES = [(10,), (5, 7), (33, 257), (2, 5, 3, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_log_softmax_logsumexp(shape, dtype):
    x = logits(shape, dtype)
    for dim in range(-len(shape), len(shape)):
        assert_close(xt.softmax(x, dim), x.double().softmax(dim), 6, dtype, logits=x)
        assert_close(xt.log_softmax(x, dim), x.double().log_softmax(dim), 4, dtype, logits=x)
        largest = x.double().abs().amax(dim).clamp_min(1.0) + 3.0
        assert_close(xt.logsumexp(x, dim), x.double().logsumexp(dim), 4, dtype, largest)
        assert xt.logsumexp(x, dim, keepdim=True).shape == x.logsumexp(dim, keepdim=True).shape
    dims = tuple(range(len(shape)))
    assert_close(xt.logsumexp(x, dims), x.double().logsumexp(dims), 8, dtype, torch.tensor(20.0), 2)
    assert xt.logsumexp(x, dims, keepdim=True).shape == (1,) * len(shape)
    if len(shape) == 4:
        assert_close(xt.logsumexp(x, (1, 3)), x.double().logsumexp((1, 3)), 4, dtype, torch.tensor(20.0))
        assert xt.softmax(x.to(memory_format=torch.channels_last), 1).is_contiguous(memory_format=torch.channels_last)


def test_dtype_argument_scalars_and_empty():
    x = logits((5, 7), torch.bfloat16)
    assert xt.softmax(x, dtype=torch.float32).dtype is torch.float32
    scalar = torch.tensor(3.0)
    assert xt.softmax(scalar, 0).item() == 1.0 and xt.log_softmax(scalar, 0).item() == 0.0
    assert xt.logsumexp(scalar, 0).item() == 3.0
    for shape in ((0, 5), (5, 0)):
        empty = torch.empty(shape, requires_grad=True)
        for ours, theirs in ((xt.softmax, torch.softmax), (xt.logsumexp, torch.logsumexp)):
            assert torch.equal(ours(empty, 1), theirs(empty, 1))


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_gradients_of_row_functions(dim):
    x = logits((2, 3, 4), torch.float64).requires_grad_()
    for f in (xt.softmax, xt.log_softmax, xt.logsumexp, xt.entropy):
        assert gradcheck(lambda a: f(a, dim), (x,))
        g, = torch.autograd.grad(f(x, dim).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(g.square().sum(), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selective_log_softmax(dtype):
    for shape in ((7,), (5, 300), (2, 3, 11)):
        x = logits(shape, dtype)
        exact = x.double().log_softmax(-1)
        one = torch.randint(0, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(0))
        assert_close(xt.selective_log_softmax(x, one), exact.gather(-1, one[..., None])[..., 0], 4, dtype, logits=x)
        several = torch.randint(0, shape[-1], (*shape[:-1], 3), generator=torch.Generator().manual_seed(1))
        assert_close(xt.selective_log_softmax(x, several), exact.gather(-1, several), 4, dtype, logits=x)
    x = logits((4, 5), torch.float64).requires_grad_()
    one, several = indices((4, 5)), indices((4, 5))[:, None].repeat(1, 2)
    assert gradcheck(lambda a: xt.selective_log_softmax(a, one), (x,))
    assert gradcheck(lambda a: xt.selective_log_softmax(a, several), (x,))
    assert gradcheck(lambda a: xt.selective_log_softmax(a, one, logit_scale=0.5, softcap=4.0), (x,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy(dtype):
    for shape, dim in (((5, 300), -1), ((2, 5, 3), 1)):
        x = logits(shape, dtype)
        p = x.double().softmax(dim)
        assert_close(xt.entropy(x, dim), torch.special.entr(p).sum(dim), 8, dtype, logits=x)
    masked = torch.tensor([[0.0, 0.0, float("-inf")]]).requires_grad_()
    h = xt.entropy(masked)
    assert_close(h, torch.tensor([2.0]).log(), 8, torch.float32)
    h.sum().backward()
    assert torch.equal(masked.grad, torch.zeros(1, 3))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_with_logits(dtype, reduction):
    shape = (2, 5, 3, 4)
    x, y = logits(shape, dtype), probabilities(shape, dtype)
    generator = torch.Generator().manual_seed(5)

    def w(*size):
        return torch.rand(size, generator=generator).to(dtype)

    for weight, pos_weight in [(None, None), (w(4), None), (w(*shape), w(4)), (w(5, 1, 1), w(5, 1, 1)), (w(1), w(1)),
                               (w(4), w(5, 1, 1)), (w(2, 1, 1, 1), None), (None, w(2, 1, 1, 1)), (None, w(5, 3, 4))]:
        if pos_weight is not None and pos_weight.dim() == 3 and pos_weight.shape[1] > 1 and dtype is not torch.float64:
            continue  # PyTorch's own, with its rounding
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        c, d = x.double().requires_grad_(), y.double().requires_grad_()
        loss = xt.binary_cross_entropy_with_logits(a, b, weight, reduction=reduction, pos_weight=pos_weight)
        exact = F.binary_cross_entropy_with_logits(c, d, None if weight is None else weight.double(),
                                                   reduction=reduction,
                                                   pos_weight=None if pos_weight is None else pos_weight.double())
        assert_close(loss, exact, 4, dtype, logits=x)
        u = torch.full_like(exact, 1.5).to(dtype)
        for g, e in zip(torch.autograd.grad(loss, (a, b), u), torch.autograd.grad(exact, (c, d), u.double())):
            terms = e.abs().amax() + e.abs()
            assert_close(g, e, 6, dtype, terms, 1 if reduction == "none" or dtype is torch.float16 else 2, logits=x)


def test_binary_shapes_and_empty():
    for shape in ((), (3,), (3, 1), (0, 4)):
        x, y = torch.zeros(shape, requires_grad=True), torch.ones(shape)
        for reduction in ("mean", "sum", "none"):
            ours = xt.binary_cross_entropy_with_logits(x, y, reduction=reduction)
            theirs = F.binary_cross_entropy_with_logits(x, y, reduction=reduction)
            assert ours.shape == theirs.shape and torch.allclose(ours, theirs, equal_nan=True)
            ours.sum().backward()


def test_binary_gradcheck():
    x, y = logits((3, 4), torch.float64).requires_grad_(), probabilities((3, 4), torch.float64).requires_grad_()
    pos = torch.linspace(0.5, 2.0, 4, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert gradcheck(lambda a, b: xt.binary_cross_entropy_with_logits(a, b, reduction=reduction, pos_weight=pos),
                         (x, y))


@pytest.mark.parametrize("kind", ["forward", "reverse", "js", "cross_entropy"])
def test_kl_div(kind):
    row_weights = torch.tensor([[0.5, 1.0, 2.0]] * 2, dtype=torch.float64)
    for reduction in ("batchmean", "sum", "none"):
        for dim, r in ((1, None), (-1, None), (1, row_weights)):
            if dim == 1:
                s, t = logits((2, 5, 3), torch.float64), logits((2, 5, 3), torch.float64, 9)
            else:
                s, t = logits((4, 6), torch.float64), logits((4, 6), torch.float64, 9)
            s.requires_grad_()
            beta = 0.25 if kind == "js" else 0.5
            options = {"kind": kind, "temperature": 2.0, "beta": beta, "reduction": reduction, "row_weights": r}
            got = xt.kl_div(s, t, dim, **options)
            want = _reference(s, t, dim % s.dim(), kind, 2.0, beta, None, reduction, r, None)
            assert torch.allclose(got, want, rtol=1e-12, atol=1e-14)
            assert gradcheck(lambda a: xt.kl_div(a, t, dim, **options), (s,))
    for dtype in DTYPES:
        s, t = logits((4, 6), dtype), logits((4, 6), dtype, 9)
        exact = _reference(s.double(), t.double(), 1, kind, 1.0, 0.5, None, "batchmean", None, None)
        assert_close(xt.kl_div(s, t, kind=kind), exact, 32, dtype, exact + 8.0, logits=s)


def test_kl_div_agrees_with_pytorchs():
    s, t = logits((4, 6)), logits((4, 6), seed=9)
    want = F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
    assert torch.allclose(xt.kl_div(s, t), want, rtol=1e-5)
    assert torch.equal(xt.kl_div(s, t, reduction="mean"), xt.kl_div(s, t))  # over the rows: a departure
