"""linear_cross_entropy is cross_entropy of a linear layer, for every number of stripes.

Oracle: F.cross_entropy(F.linear(...)) in float64. Tolerances: float64 1e-12; float32 the products' own rounding; half
precision its rounding of the logits (as F.linear has it) and of partial sums.
"""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

import xent.torch as xt  # noqa: E402

N, D, V = 9, 6, 11
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 0.1, torch.float16: 0.01}


def tensors(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return normal(3, 3, D), normal(V, D), normal(V), torch.randint(0, V, (3, 3), generator=generator)


@pytest.mark.parametrize("limit", [1, 3 * V * 4, 64 << 20])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_against_pytorch(dtype, reduction, limit):
    x, w, b, target = tensors(dtype)
    for ignored in (0, 4, 9):
        target = target.clone()
        target.view(-1)[:ignored] = -100
        for class_weights in (None, torch.linspace(0.5, 1.5, V).to(dtype)):
            got = xt.linear_cross_entropy(x, w, target, b, reduction=reduction, limit=limit,
                                          class_weights=class_weights, label_smoothing=0.1)
            exact = [t.detach().double().requires_grad_() for t in (x, w, b)]
            want = F.cross_entropy(F.linear(*exact).flatten(0, 1), target.flatten(),
                                   None if class_weights is None else class_weights.double(), reduction=reduction,
                                   label_smoothing=0.1)
            want = want.reshape(3, 3) if reduction == "none" else want
            tol = TOLERANCE[dtype]
            assert got.dtype is dtype
            assert torch.allclose(got.double(), want, rtol=tol, atol=tol, equal_nan=True)
            u = torch.full_like(want, 1.5)
            grads = torch.autograd.grad(got, (x, w, b), u.to(dtype))
            wanted = torch.autograd.grad(want, exact, u)
            for g, e in zip(grads, wanted):
                assert g.dtype is dtype and torch.allclose(g.double(), e.nan_to_num(), rtol=tol, atol=3 * tol)


@pytest.mark.parametrize("needs", range(8))
def test_what_is_frozen_gets_nothing(needs):
    tensors_ = tensors(torch.float64)
    target = tensors_[3]
    leaves = [t.detach().requires_grad_(bool(needs >> i & 1)) for i, t in enumerate(tensors_[:3])]
    loss = xt.linear_cross_entropy(leaves[0], leaves[1], target, leaves[2], limit=3 * V * 8)
    assert loss.requires_grad == (needs > 0)
    if needs:
        loss.backward()
    exact = [t.detach().requires_grad_() for t in leaves]
    F.cross_entropy(F.linear(*exact).flatten(0, 1), target.flatten()).backward()
    for leaf, e in zip(leaves, exact):
        assert (leaf.grad is None) == (not leaf.requires_grad)
        assert leaf.grad is None or torch.allclose(leaf.grad, e.grad)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(reduction):
    x, w, b, target = tensors(torch.float64)
    target[1, 1] = -100
    weights = torch.linspace(0.5, 2.0, 9, dtype=torch.float64).reshape(3, 3)
    assert torch.autograd.gradcheck(
        lambda *a: xt.linear_cross_entropy(*a[:2], target, a[2], limit=300, softcap=3.0, logit_scale=0.5, z_loss=0.1,
                                           reduction=reduction, row_weights=weights), (x, w, b))


def test_negative_and_empty_denominators():
    x, w, b, target = tensors(torch.float64)
    for weight in (-torch.ones(V, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)):
        got = xt.linear_cross_entropy(x, w, target, b, class_weights=weight)
        want = xt.cross_entropy(F.linear(x, w, b).flatten(0, 1), target.flatten(), weight)
        assert torch.allclose(got, want, equal_nan=True)
        for g, e in zip(torch.autograd.grad(got, (x, w, b)), torch.autograd.grad(want, (x, w, b))):
            assert torch.allclose(g, e)
    empty = xt.linear_cross_entropy(x[:0], w, target[:0])
    assert empty.isnan()
    grads = torch.autograd.grad(empty, (x, w), allow_unused=True)
    assert torch.equal(grads[0], torch.zeros(3, 3, D)) and torch.equal(grads[1], torch.zeros(V, D))


def test_many_stripes_in_half_precision_lose_nothing():
    """The weight's gradient of 64 stripes is as good as that of one: the sum is made in float32."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 16, generator=generator).bfloat16()
    w = torch.randn(32, 16, generator=generator).bfloat16().requires_grad_()
    target = torch.randint(0, 32, (64,), generator=generator)
    exact = w.detach().double().requires_grad_()
    want, = torch.autograd.grad(F.cross_entropy(F.linear(x.double(), exact), target), exact)
    errors = []
    for limit in (1, 1 << 20):
        g, = torch.autograd.grad(xt.linear_cross_entropy(x, w, target, limit=limit), w)
        errors.append((g.double() - want).abs().max().item())
    assert errors[0] < 2 * errors[1]


def test_stripes_respect_the_limit():
    from xent.torch._linear import _Head

    x, w, b, target = tensors(torch.float32)
    options = {"ignore_index": -100, "reduction": "mean", "valid_cols": None, "divisor": None}
    for limit in range(1, 12 * V * 4, 17):
        bounds = _Head(x, w, target, b, None, None, torch.float32, limit, 0, options).stripes()
        assert bounds[0] == 0 and bounds[-1] == N
        longest = max(b - a for a, b in zip(bounds, bounds[1:]))
        assert longest == 1 or longest * V * 4 <= limit


def test_retained_graph_and_second_derivatives():
    x, w, b, target = tensors(torch.float64)
    for reduction in ("mean", "none"):
        loss = xt.linear_cross_entropy(x, w, target, b, reduction=reduction).sum() * 2
        first = torch.autograd.grad(loss, (x, w, b), retain_graph=True)
        again = torch.autograd.grad(loss, (x, w, b))
        assert all(torch.equal(f, a) for f, a in zip(first, again))
        loss = xt.linear_cross_entropy(x, w, target, b, reduction=reduction).sum()
        g, = torch.autograd.grad(loss, w, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.autograd.grad(g.square().sum(), w)
