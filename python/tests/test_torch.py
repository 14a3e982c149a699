"""xent.torch.cross_entropy has PyTorch's semantics and xent's accuracy.

Oracle: torch.nn.functional.cross_entropy in float64 on the logits as stored. Tolerances: the bounds of xent.h (row loss
4 ULP of the exact loss, gradient 6 of the larger of its terms), then the roundings to half precision that _autograd
counts, then what float64 itself loses in the reference.
"""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch_checks import DTYPES, assert_close, class_dim, indices, logits, probabilities  # noqa: E402

import xent.torch as xt  # noqa: E402

SHAPES = [(10,), (1, 10), (5, 7), (33, 257), (4, 1000), (3, 7, 5), (2, 19, 3, 4), (2, 3, 2, 2, 3)]
REDUCTIONS = ("mean", "sum", "none")


def upstream_like(loss, dtype):
    # Powers of two and others, exact in every dtype.
    values = torch.tensor([1.5, -0.25, 3.0, 1.0], dtype=torch.float64)
    return values[torch.arange(loss.numel()) % 4].reshape(loss.shape).to(dtype)


def larger_terms(x, target, options, u, loss):
    """The larger of the gradient's terms Q p and w q', times the upstream gradient over the mean's denominator."""
    dim, cols = class_dim(x.shape), x.shape[class_dim(x.shape)]
    epsilon, weight = options.get("label_smoothing", 0.0), options.get("weight")
    if target.is_floating_point():
        q = target
    else:
        live = target != options.get("ignore_index", -100)
        q = F.one_hot(torch.where(live, target, 0), cols).double().movedim(-1, dim)
    y = (1 - epsilon) * q + epsilon / cols
    if weight is not None:
        y = y * weight.reshape([-1 if d == dim else 1 for d in range(x.dim())])
    terms = torch.maximum(y.sum(dim, keepdim=True) * x.softmax(dim), y)
    if not target.is_floating_point():
        terms = terms * live.unsqueeze(dim)
    if options.get("reduction") == "none":
        return terms * u.abs().unsqueeze(dim)
    denominator = F.cross_entropy(x, target, **dict(options, reduction="sum")) / loss
    return terms * u.abs() / denominator.abs()


def compare(x, target, of_target=False, **options):
    """Loss and gradients of xent and of PyTorch in float64."""
    dtype = x.dtype
    x = x.detach().requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    if of_target:
        target = target.detach().requires_grad_()
        exact_target = target.detach().double().requires_grad_()
    else:
        exact_target = target.double() if target.is_floating_point() else target
    weight = options.get("weight")
    exact_options = dict(options, weight=None if weight is None else weight.double())
    loss = xt.cross_entropy(x, target, **options)
    exact = F.cross_entropy(exact_x, exact_target, **exact_options)
    assert loss.dtype is dtype
    assert_close(loss, exact, 4, dtype, logits=x)
    u = upstream_like(exact, dtype)
    wanted = (x, target) if of_target else (x,)
    exact_wanted = (exact_x, exact_target) if of_target else (exact_x,)
    grads = torch.autograd.grad(loss, wanted, u)
    exact_grads = torch.autograd.grad(exact, exact_wanted, u.double())
    terms = larger_terms(exact_x.detach(), exact_target.detach(), exact_options, u.double(), exact.detach())
    for g, e, of in zip(grads, exact_grads, wanted):
        assert g.dtype is of.dtype and g.shape == of.shape
        plain = options.get("label_smoothing", 0.0) == 0.0 and weight is None and not target.is_floating_point()
        # The exact value is the bound's measure for plain targets, and for the target's gradient, which has one term.
        magnitude = terms if of is x and not plain else None
        roundings = 1 if options.get("reduction") == "none" or dtype is torch.float16 else 2
        assert_close(g, e, 6, dtype, magnitude, roundings, logits=x)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_index_targets(shape, dtype, reduction):
    compare(logits(shape, dtype), indices(shape), reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 7, 5), (4, 300)])
def test_ignored_rows_weights_and_smoothing(shape, dtype, reduction):
    target = indices(shape)
    if target.dim() > 0:
        target.view(-1)[::3] = 2
    weight = torch.linspace(0.5, 1.5, shape[class_dim(shape)]).to(dtype)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.25}):
        compare(logits(shape, dtype), target, reduction=reduction, ignore_index=2, **options)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 7, 5), (4, 300)])
def test_probability_targets(shape, dtype, reduction):
    x, q = logits(shape, dtype), probabilities(shape, dtype)
    weight = torch.linspace(0.5, 1.5, shape[class_dim(shape)]).to(dtype)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}):
        compare(x, q, reduction=reduction, **options)
        compare(x, q, of_target=True, reduction=reduction, **options)


def test_gradient_of_the_target_alone():
    x, q = logits((5, 7), torch.float64), probabilities((5, 7), torch.float64).requires_grad_()
    for reduction in REDUCTIONS:
        u = torch.ones(5, dtype=torch.float64) if reduction == "none" else None
        got = torch.autograd.grad(xt.cross_entropy(x, q, reduction=reduction), q, u)
        want = torch.autograd.grad(F.cross_entropy(x, q, reduction=reduction), q, u)
        assert torch.allclose(got[0], want[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_formats_and_strides(dtype):
    """The same numbers whatever the strides, and gradients in the input's memory format."""
    x, target = logits((2, 5, 3, 4), dtype), indices((2, 5, 3, 4))
    rows, row_target = logits((6, 5), dtype), indices((6, 5))
    forms = [
        (x.to(memory_format=torch.channels_last), target),
        (torch.cat([x, x], 1)[:, :5], target),
        (torch.cat([x, x], 3)[..., :4], target),
        (x.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), target),
        (rows.t().contiguous().t(), row_target),
        (torch.cat([rows, rows], 1)[:, :5], row_target),
        (rows[::2], row_target[::2]),
        (rows.flip(0), row_target.flip(0)),
        (rows[:1].expand(6, 5), row_target),
        (x.transpose(0, 2).contiguous().transpose(0, 2), target),
    ]
    for form, t in forms:
        for reduction in ("mean", "none"):
            compare(form, t, reduction=reduction)
            for layout in (form, form.contiguous()):
                leaf = layout.detach().requires_grad_()
                g, = torch.autograd.grad(xt.cross_entropy(leaf, t, reduction=reduction).sum(), leaf)
                assert g.shape == leaf.shape
    leaf = x.to(memory_format=torch.channels_last).requires_grad_()
    xt.cross_entropy(leaf, target).backward()
    assert leaf.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(0, 5), (0, 5, 3), (2, 5, 0), (0, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(shape, reduction):
    for dtype in DTYPES:
        x = torch.empty(shape, dtype=dtype, requires_grad=True)
        target = torch.empty(shape[:1] + shape[2:], dtype=torch.int64)
        loss, expected = (f(x, target, reduction=reduction) for f in (xt.cross_entropy, F.cross_entropy))
        assert loss.shape == expected.shape and loss.dtype is dtype
        assert torch.equal(loss.isnan(), expected.isnan()) and torch.equal(loss.nan_to_num(), expected.nan_to_num())
        loss.sum().backward()
        assert x.grad.shape == x.shape


def test_every_row_ignored():
    x = logits((3, 4)).requires_grad_()
    target = torch.full((3,), -100)
    loss = xt.cross_entropy(x, target)
    assert loss.isnan()
    loss.backward()
    assert torch.equal(x.grad, torch.zeros(3, 4))
    assert xt.cross_entropy(x, target, reduction="sum").item() == 0.0
    assert xt.cross_entropy(x, target, empty_mean="zero").item() == 0.0


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integer_types_of_targets(dtype):
    x, target = logits((6, 5)), indices((6, 5))
    assert torch.equal(xt.cross_entropy(x, target.to(dtype)), xt.cross_entropy(x, target))
    assert torch.equal(xt.cross_entropy(x, torch.stack([target, target], 1).to(dtype)[:, 0]),
                       xt.cross_entropy(x, target))


def reference(x, target, row_weights=None, z_loss=0.0, softcap=0.0, logit_scale=1.0, smoothing="uniform", label=0.0,
              valid=None):
    """Losses of rows [N, C] by the formulas of xent.h, in float64."""
    z = x.double() * logit_scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    z = z[:, :valid]
    lse = z.logsumexp(1)
    logp = z - lse[:, None]
    n = z.shape[1]
    q = F.one_hot(target, n).double()
    q = (1 - label) * q + (label / n if smoothing == "uniform" else label / (n - 1) * (1 - q))
    losses = -(q * logp).sum(1) + z_loss * lse**2
    return losses if row_weights is None else losses * row_weights.double()


@pytest.mark.parametrize("dtype", DTYPES)
def test_options_beyond_pytorch(dtype):
    x, target = logits((6, 9), dtype), indices((6, 5))
    r = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 4.0], dtype=dtype)
    for options, formula in [
        ({"row_weights": r}, {"row_weights": r}),
        ({"z_loss": 0.25}, {"z_loss": 0.25}),
        ({"softcap": 5.0}, {"softcap": 5.0}),
        ({"logit_scale": 0.5}, {"logit_scale": 0.5}),
        ({"softcap": 3.0, "logit_scale": 2.0, "z_loss": 0.125}, {"softcap": 3.0, "logit_scale": 2.0, "z_loss": 0.125}),
        ({"smoothing": "exclusive", "label_smoothing": 0.125}, {"smoothing": "exclusive", "label": 0.125}),
        ({"valid_cols": 6, "label_smoothing": 0.125}, {"valid": 6, "label": 0.125}),
    ]:
        for reduction in REDUCTIONS:
            leaf, exact_leaf = x.detach().requires_grad_(), x.detach().double().requires_grad_()
            loss = xt.cross_entropy(leaf, target, reduction=reduction, **options)
            exact = reference(exact_leaf, target, **formula)
            if reduction == "sum":
                exact = exact.sum()
            elif reduction == "mean":
                exact = exact.sum() / (r.double().sum() if "row_weights" in options else 6)
            # softcap: the transformed logits are themselves within 2 ULP, of 5 at most.
            assert_close(loss, exact, 12, dtype, exact.abs() + 3.0, logits=x)
            u = upstream_like(exact, dtype)
            g, = torch.autograd.grad(loss, leaf, u)
            e, = torch.autograd.grad(exact, exact_leaf, u.double())
            assert_close(g, e, 64, dtype, e.abs() + e.abs().amax(1, keepdim=True), 2, logits=x)


def test_divisor():
    x, target = logits((6, 5)), indices((6, 5))
    for reduction in ("mean", "sum"):
        got = xt.cross_entropy(x, target, reduction=reduction, divisor=12)
        assert_close(got, F.cross_entropy(x.double(), target, reduction="sum") / 12, 4, torch.float32)


def test_loss_dtype():
    x, target = logits((6, 5), torch.bfloat16).requires_grad_(), indices((6, 5))
    for reduction in REDUCTIONS:
        loss = xt.cross_entropy(x, target, reduction=reduction, loss_dtype=torch.float32)
        assert loss.dtype is torch.float32
        assert_close(loss, F.cross_entropy(x.double(), target, reduction=reduction), 4, torch.float32)
        loss.sum().backward()
        assert x.grad.dtype is torch.bfloat16
        x.grad = None


def test_legacy_reductions():
    x, target = logits((6, 5)), indices((6, 5))
    with pytest.warns(UserWarning):
        legacy = xt.cross_entropy(x, target, size_average=False)
    assert torch.equal(legacy, xt.cross_entropy(x, target, reduction="sum"))
    with pytest.warns(UserWarning):
        assert torch.equal(xt.cross_entropy(x, target, reduce=False), xt.cross_entropy(x, target, reduction="none"))


def test_module():
    x, target = logits((6, 5)), indices((6, 5))
    weight = torch.linspace(0.5, 1.5, 5)
    module = xt.CrossEntropyLoss(weight=weight, label_smoothing=0.1, z_loss=0.5, reduction="sum")
    assert isinstance(module, torch.nn.CrossEntropyLoss) and list(module.state_dict()) == ["weight"]
    assert torch.equal(module(x, target), xt.cross_entropy(x, target, weight, label_smoothing=0.1, z_loss=0.5,
                                                           reduction="sum"))
    assert torch.equal(module(x, target, z_loss=0.0), xt.cross_entropy(x, target, weight, label_smoothing=0.1,
                                                                       reduction="sum"))
    with pytest.raises(TypeError, match="unknown option 'zloss'"):
        xt.CrossEntropyLoss(zloss=1.0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    x, target = logits((4, 5), torch.float64).requires_grad_(), indices((4, 5))
    q = probabilities((4, 5), torch.float64).requires_grad_()
    options = {"reduction": reduction, "z_loss": 0.1, "softcap": 6.0, "label_smoothing": 0.1}
    weight = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: xt.cross_entropy(a, target, weight, **options), (x,))
    assert torch.autograd.gradcheck(lambda a, b: xt.cross_entropy(a, b, weight, **options), (x, q))
    y = logits((2, 3, 2, 2), torch.float64).requires_grad_()
    t = indices((2, 3, 2, 2))
    assert torch.autograd.gradcheck(lambda a: xt.cross_entropy(a, t, **options), (y,))


def test_retained_graph():
    """A kept graph gives the same gradient again, though the first was scaled, or written to by its owner."""
    for dtype in DTYPES:
        for reduction in REDUCTIONS:
            x, target = logits((4, 5), dtype).requires_grad_(), indices((4, 5))
            loss = (xt.cross_entropy(x, target, reduction=reduction) * 3).sum()
            first, = torch.autograd.grad(loss, x, retain_graph=True)
            kept = first.clone()
            first.fill_(7.0)
            again, = torch.autograd.grad(loss, x, retain_graph=True)
            assert torch.equal(kept, again)
            last, = torch.autograd.grad(loss, x)
            assert torch.equal(kept, last)
            with pytest.raises(RuntimeError, match="second time"):
                torch.autograd.grad(loss, x)


def test_upstream_one_hands_the_gradient_over():
    """.grad is the memory that forward wrote: nothing was copied or multiplied."""
    x, target = logits((64, 100)).requires_grad_(), indices((64, 100))
    loss = xt.cross_entropy(x, target)
    written = loss.grad_fn.grad.data_ptr()
    loss.backward()
    assert x.grad.data_ptr() == written


@pytest.mark.parametrize("u", [float("inf"), float("nan"), float("-inf")])
def test_upstream_that_is_not_finite_leaves_ignored_rows(u):
    for reduction in REDUCTIONS:
        x, target = logits((4, 5)).requires_grad_(), indices((4, 5))
        target[1] = -100
        loss = xt.cross_entropy(x, target, reduction=reduction)
        g, = torch.autograd.grad(loss, x, torch.full_like(loss, u))
        assert torch.equal(g[1], torch.zeros(5)) and not g[[0, 2, 3]].isfinite().any()


def test_float16_gradients_survive_a_loss_scale():
    """A gradient below float16's numbers is there when the loss was scaled up: it is computed with the scale."""
    x = torch.zeros(4096, 4, dtype=torch.float16)
    x[:, 0] = 10
    target = torch.zeros(4096, dtype=torch.int64)
    x.requires_grad_()
    g, = torch.autograd.grad(xt.cross_entropy(x, target) * 1024, x)
    exact = x.detach().double().requires_grad_()
    e, = torch.autograd.grad(F.cross_entropy(exact, target) * 1024, exact)
    assert (g != 0).all()
    assert_close(g, e, 8, torch.float16)


def test_second_derivatives_are_refused():
    x, target = logits((4, 5)).requires_grad_(), indices((4, 5))
    head = logits((5, 5), seed=3).requires_grad_()
    for reduction in REDUCTIONS:
        for leaf, z in ((x, x), (head, x.detach() @ head)):
            loss = xt.cross_entropy(z, target, reduction=reduction).sum()
            g, = torch.autograd.grad(loss, leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="no second derivatives"):
                torch.autograd.grad(g.square().sum(), leaf)
            loss = xt.cross_entropy(z, target, reduction=reduction).sum()
            g, = torch.autograd.grad(loss, leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="no second derivatives"):
                g.square().sum().backward()


def test_in_place():
    for dtype in DTYPES:
        for reduction in REDUCTIONS:
            for shape in ((6, 5), (2, 5, 3, 4)):
                leaf, target = logits(shape, dtype).requires_grad_(), indices(shape)
                want, = torch.autograd.grad(xt.cross_entropy(leaf * 1, target, reduction=reduction).sum(), leaf)
                z = leaf * 1
                version = z._version
                xt.cross_entropy(z, target, reduction=reduction, inplace=True).sum().backward()
                assert torch.equal(leaf.grad, want)
                assert torch.equal(z.detach(), want) and z._version > version


def test_in_place_is_seen_by_whoever_needs_the_logits():
    leaf, target = logits((6, 5)).requires_grad_(), indices((6, 5))
    z = leaf.exp()  # whose gradient needs z
    loss = xt.cross_entropy(z, target, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_changed_input_is_seen_where_backward_needs_it():
    leaf, target = logits((6, 5)).requires_grad_(), indices((6, 5))
    z = leaf * 1
    loss = xt.cross_entropy(z, target, reduction="none").sum()
    z.data.add_(0)  # not counted
    z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_grad_and_inference_mode():
    x, target = logits((6, 5)).requires_grad_(), indices((6, 5))
    with torch.no_grad():
        assert not xt.cross_entropy(x, target).requires_grad
    with torch.inference_mode():
        assert not xt.cross_entropy(x, target).requires_grad
    assert xt.cross_entropy(x, target).requires_grad


def test_threads_change_no_bit():
    x, target = logits((300, 2000)), indices((300, 2000))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            loss = xt.cross_entropy(leaf, target)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        for loss, grad in results[1:]:
            assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])
    finally:
        torch.set_num_threads(before)


def test_row_alone_has_the_bits_it_has_in_a_batch():
    x, target = logits((7, 300)), indices((7, 300))
    together = xt.cross_entropy(x, target, reduction="none")
    alone = torch.stack([xt.cross_entropy(x[i], target[i]) for i in range(7)])
    assert torch.equal(together, alone)


def test_patch():
    x, target = logits((6, 5)), indices((6, 5))
    before = F.cross_entropy
    want = xt.cross_entropy(x, target)
    with xt.patch():
        assert F.cross_entropy is not before
        assert torch.equal(F.cross_entropy(x, target), want)
        assert torch.equal(torch.nn.CrossEntropyLoss()(x, target), want)
        leaf = x.clone().requires_grad_()
        assert "Scaled" in type(F.cross_entropy(leaf, target).grad_fn).__name__
        # Other devices keep PyTorch's function.
        meta = F.cross_entropy(x.to("meta").requires_grad_(), target.to("meta"))
        assert meta.is_meta and "Scaled" not in type(meta.grad_fn).__name__
        with xt.patch():
            pass
        assert F.cross_entropy is not before
    assert F.cross_entropy is before
    undo = xt.patch()
    assert F.cross_entropy is not before
    undo.undo()
    undo.undo()
    assert F.cross_entropy is before


# Call, exception, what the message says.
X, T = logits((3, 4)), torch.tensor([0, 1, 2])
REFUSALS = [
    (lambda: xt.cross_entropy(X, torch.tensor([0, 9, 1])), IndexError, "row 1 is 9, expected 0 <= target < 4"),
    (lambda: xt.cross_entropy(X, torch.tensor([0, 1, -1])), IndexError, "row 2 is -1"),
    (lambda: xt.cross_entropy(X, torch.tensor([0, 1, -1], dtype=torch.int32)), IndexError, "row 2 is -1"),
    (lambda: xt.cross_entropy(X, torch.tensor([0, 1, 3]), valid_cols=3), IndexError, "row 2 is 3"),
    (lambda: xt.cross_entropy(torch.empty(3, 0), T), IndexError, "0 classes"),
    (lambda: xt.cross_entropy(X, T[:2]), ValueError, r"target has shape \[2\], expected \[3\]"),
    (lambda: xt.cross_entropy(X, T[:, None]), ValueError, r"target has shape \[3, 1\], expected \[3\]"),
    (lambda: xt.cross_entropy(X, torch.zeros(3, 4, dtype=torch.int64)), ValueError, "are probabilities"),
    (lambda: xt.cross_entropy(X, T.float()), ValueError, "targets are probabilities"),
    (lambda: xt.cross_entropy(X, T.to(torch.complex64)), TypeError, "target has dtype torch.complex64"),
    (lambda: xt.cross_entropy(X, [0, 1, 2]), TypeError, "target is a list"),
    (lambda: xt.cross_entropy([[0.0]], T), TypeError, "input is a list"),
    (lambda: xt.cross_entropy(X.int(), T), TypeError, "input has dtype torch.int32"),
    (lambda: xt.cross_entropy(X.to(torch.complex64), T), TypeError, "input has dtype torch.complex64"),
    (lambda: xt.cross_entropy(X.to_sparse(), T), TypeError, "sparse"),
    (lambda: xt.cross_entropy(X[0, 0], T[0]), ValueError, "no dimension"),
    (lambda: xt.cross_entropy(X.to("meta"), T), RuntimeError, "target is on device cpu, expected meta"),
    (lambda: xt.cross_entropy(X, T.to("meta")), RuntimeError, "target is on device meta, expected cpu"),
    (lambda: xt.cross_entropy(X, T, torch.ones(3)), ValueError, r"weight has shape \[3\], expected \[4\]"),
    (lambda: xt.cross_entropy(X, T, torch.ones(4).double()), TypeError, "weight has dtype torch.float64"),
    (lambda: xt.cross_entropy(X, T, torch.ones(4).to("meta")), RuntimeError, "weight is on device meta"),
    (lambda: xt.cross_entropy(X, T, [1.0] * 4), TypeError, "weight is a list"),
    (lambda: xt.cross_entropy(X, T, torch.ones(4, requires_grad=True)), RuntimeError, "weight requires a gradient"),
    (lambda: xt.cross_entropy(X, T, torch.tensor([1.0, 1.0, float("nan"), 1.0])), ValueError, "nan"),
    (lambda: xt.cross_entropy(X, T, row_weights=torch.ones(4)), ValueError, r"row_weights has shape \[4\]"),
    (lambda: xt.cross_entropy(X, T, row_weights=torch.ones(3, requires_grad=True)), RuntimeError,
     "row_weights requires"),
    (lambda: xt.cross_entropy(X, T, reduction="average"), ValueError, "reduction is 'average', expected 'mean'"),
    (lambda: xt.cross_entropy(X, T, smoothing="linear"), ValueError, "smoothing is 'linear'"),
    (lambda: xt.cross_entropy(X, T, empty_mean="one"), ValueError, "empty_mean is 'one'"),
    (lambda: xt.cross_entropy(X, T, label_smoothing=1.5), ValueError, "label_smoothing"),
    (lambda: xt.cross_entropy(X, T, z_loss=-1.0), ValueError, "z_loss"),
    (lambda: xt.cross_entropy(X, T, softcap=-1.0), ValueError, "softcap"),
    (lambda: xt.cross_entropy(X, T, logit_scale=0.0), ValueError, "logit_scale"),
    (lambda: xt.cross_entropy(X, T, valid_cols=5), ValueError, "valid_cols"),
    (lambda: xt.cross_entropy(X, T, divisor=-1.0), ValueError, "divisor"),
    (lambda: xt.cross_entropy(X, T, divisor=2.0, reduction="none"), ValueError, "divisor"),
    (lambda: xt.cross_entropy(X, T, loss_dtype=torch.int32), TypeError, "loss_dtype is torch.int32"),
    (lambda: xt.cross_entropy(X, X.softmax(1), ignore_index=0), ValueError, "ignore_index is 0"),
    (lambda: xt.cross_entropy(X.clone().requires_grad_(), T, inplace=True), RuntimeError, "input is a leaf"),
    (lambda: xt.cross_entropy((X.clone().requires_grad_() * 1)[:, ::2], T % 2, inplace=True), ValueError, "strides"),
    (lambda: xt.softmax(X, 2), IndexError, "dim is 2"),
    (lambda: xt.softmax(X.int()), TypeError, "input has dtype torch.int32"),
    (lambda: xt.log_softmax(X, "x"), TypeError, "dim is 'x'"),
    (lambda: xt.logsumexp(X, 5), IndexError, "dim is 5"),
    (lambda: xt.entropy(X[0, 0]), ValueError, "no dimension"),
    (lambda: xt.selective_log_softmax(X, T[:2]), ValueError, r"index has shape \[2\]"),
    (lambda: xt.selective_log_softmax(X, T.float()), TypeError, "index has dtype torch.float32"),
    (lambda: xt.selective_log_softmax(X, torch.tensor([0, 4, 0])), IndexError, "row 1 is 4"),
    (lambda: xt.selective_log_softmax(X, torch.tensor([0, -100, 0])), IndexError, "row 1 is -100"),
    (lambda: xt.selective_log_softmax(X, torch.tensor([[0], [0], [7]])), (IndexError, ValueError), "7"),
    (lambda: xt.binary_cross_entropy_with_logits(X, X[:2]), ValueError, r"target has shape \[2, 4\]"),
    (lambda: xt.binary_cross_entropy_with_logits(X, T), TypeError, "target has dtype torch.int64"),
    (lambda: xt.binary_cross_entropy_with_logits(X, X, torch.ones(3)), ValueError, r"weight has shape \[3\]"),
    (lambda: xt.binary_cross_entropy_with_logits(X, X, pos_weight=torch.ones(3)), ValueError, "pos_weight has shape"),
    (lambda: xt.kl_div(X, X[:2]), ValueError, r"target has shape \[2, 4\]"),
    (lambda: xt.kl_div(X, X.clone().requires_grad_()), RuntimeError, "target requires a gradient"),
    (lambda: xt.kl_div(X, X, kind="backward"), ValueError, "kind is 'backward'"),
    (lambda: xt.kl_div(X, X, temperature=0.0), ValueError, "temperature"),
    (lambda: xt.kl_div(X, X, kind="js", beta=1.0), ValueError, "beta"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(5, 3), T), ValueError, r"input has shape \[3, 4\]"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(5, 4), T[:2]), ValueError, r"target has shape \[2\]"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(5, 4), T, torch.ones(4)), ValueError, r"bias has shape \[4\]"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(5, 4).double(), T), TypeError, "weight has dtype torch.float64"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(2, 4), T), IndexError, "row 2 is 2, expected 0 <= target < 2"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(5, 4), T, limit=0), ValueError, "limit is 0"),
    (lambda: xt.linear_cross_entropy(X, torch.ones(5, 4), X), TypeError, "target has dtype torch.float32"),
]


@pytest.mark.parametrize("number", range(len(REFUSALS)))
def test_refusals(number):
    call, error, message = REFUSALS[number]
    with pytest.raises(error, match=message):
        call()
