"""xent.torch under torch.compile, functorch, fake tensors and dispatch modes: one graph, eager's numbers."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch_checks import indices, logits, probabilities  # noqa: E402

import xent.torch as xt  # noqa: E402
from xent.torch import _ops  # noqa: E402


def compiled(f):
    torch._dynamo.reset()
    # aot_eager traces all that inductor traces, and needs no C++ compiler.
    return torch.compile(f, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(dtype, reduction):
    for shape in ((6, 5), (5,), (2, 5, 3, 4)):
        for target in (indices(shape), probabilities(shape, dtype).requires_grad_()):
            x = logits(shape, dtype).requires_grad_()
            wanted = (x, target) if target.requires_grad else (x,)

            def f(a, b):
                return (xt.cross_entropy(a * 2, b, reduction=reduction, z_loss=0.1) * 1.5).sum()

            eager, graph = f(x, target), compiled(f)(x, target)
            assert torch.allclose(eager, graph)
            for g, e in zip(torch.autograd.grad(graph, wanted), torch.autograd.grad(eager, wanted)):
                assert torch.allclose(g, e, rtol=2e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-6, atol=1e-6)


def test_other_functions():
    x, y = logits((4, 6)).requires_grad_(), probabilities((4, 6))
    t, rows = indices((4, 6)), indices((4, 4))
    module = xt.CrossEntropyLoss(label_smoothing=0.1)
    for f in (lambda a: xt.softmax(a), lambda a: xt.log_softmax(a, 0), lambda a: xt.logsumexp(a, 1),
              lambda a: xt.entropy(a), lambda a: xt.selective_log_softmax(a, t),
              lambda a: xt.binary_cross_entropy_with_logits(a, y), lambda a: xt.kl_div(a, y, kind="js"),
              lambda a: xt.linear_cross_entropy(a, y, rows, limit=20),
              lambda a: xt.linear_cross_entropy(a, y, rows, reduction="none"),
              lambda a: module(a, t)):
        eager, graph = f(x).sum(), compiled(lambda a: f(a).sum())(x)
        assert torch.allclose(eager, graph, rtol=1e-5)
        e, g = torch.autograd.grad(eager, x)[0], torch.autograd.grad(graph, x)[0]
        assert torch.allclose(e, g, rtol=1e-4, atol=1e-6)


def test_patched_program():
    x, target = logits((6, 5)).requires_grad_(), indices((6, 5))
    graphs = []

    def backend(graph, _):
        graphs.append(graph.code)
        return graph

    torch._dynamo.reset()
    with xt.patch():
        got = torch.compile(lambda a: F.cross_entropy(a, target), fullgraph=True, backend=backend)(x)
        assert torch.equal(compiled(lambda a: F.cross_entropy(a, target))(x), got)
    assert torch.equal(got, xt.cross_entropy(x, target))
    assert len(graphs) == 1 and "ops.xent.cross_entropy" in graphs[0]


def test_dynamic_shapes():
    torch._dynamo.reset()
    f = torch.compile(lambda a, t: xt.cross_entropy(a, t, reduction="none").sum(), fullgraph=True, dynamic=True,
                      backend="aot_eager")
    for rows in (3, 5, 8):
        x, target = logits((rows, 6)).requires_grad_(), indices((rows, 6))
        f(x, target).backward()
        assert torch.allclose(x.grad, x.softmax(1) - F.one_hot(target, 6), atol=1e-6)


OPTIONS = (None, None, -100, "mean", 0.1, 0.25, 0.0, 1.0, "uniform", None, "nan", None, 0, torch.float64)


@pytest.mark.parametrize("of_target", [False, True])
def test_opcheck(of_target):
    x = logits((4, 5), torch.float64)
    target = probabilities((4, 5), torch.float64) if of_target else indices((4, 5))
    for leaf in (x, x.clone().requires_grad_()):
        torch.library.opcheck(_ops._fused, (leaf, target, *OPTIONS, leaf.requires_grad, of_target))
    options = list(OPTIONS)
    options[3] = "none"
    torch.library.opcheck(_ops._forward, (x.clone().requires_grad_(), target, *options, True, False))
    records = _ops._forward(x, target, *options, True, False)[1]
    torch.library.opcheck(_ops._backward, (torch.ones(4, dtype=torch.float64), records, x, target, *options[:-1], True,
                                           of_target))
    torch.library.opcheck(_ops._linear, (x.clone().requires_grad_(), logits((7, 5), torch.float64), indices((4, 7)),
                                         None, None, None, *OPTIONS[2:12], torch.float64, 100, 0, True, False, False))


def test_functorch():
    x, target = logits((4, 5), torch.float64), indices((4, 5))
    for reduction in ("mean", "none"):

        def ours(a, t):
            return xt.cross_entropy(a, t, reduction=reduction).sum()

        def theirs(a, t):
            return F.cross_entropy(a, t, reduction=reduction).sum()

        assert torch.allclose(torch.func.grad(ours)(x, target), torch.func.grad(theirs)(x, target))
        batch, targets = logits((3, 4, 5), torch.float64), indices((4, 5)).repeat(3, 1)
        assert torch.allclose(torch.vmap(ours)(batch, targets), torch.vmap(theirs)(batch, targets))
        assert torch.allclose(torch.vmap(torch.func.grad(ours))(batch, targets),
                              torch.vmap(torch.func.grad(theirs))(batch, targets))
        with pytest.raises(RuntimeError, match="no second derivatives"):
            torch.func.grad(lambda a: torch.func.grad(ours)(a, target).square().sum())(x)


def test_fake_and_meta_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, target = torch.empty(6, 5, dtype=torch.bfloat16, requires_grad=True), torch.empty(6, dtype=torch.int64)
        loss = xt.cross_entropy(x, target)
        assert loss.shape == () and loss.dtype is torch.bfloat16
        loss.backward()
        assert x.grad.shape == (6, 5)
        assert xt.cross_entropy(x, target, reduction="none").shape == (6,)
        with pytest.raises(ValueError, match="target has shape"):
            xt.cross_entropy(x, target[:3])
    meta = xt.cross_entropy(torch.empty(2, 5, 3, device="meta"), torch.empty(2, 3, dtype=torch.int64, device="meta"),
                            reduction="none")
    assert meta.is_meta and meta.shape == (2, 3)


def test_dispatch_mode_sees_the_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, target = logits((6, 5)), indices((6, 5))
    with Mode():
        got = xt.cross_entropy(x, target)
    assert "xent.cross_entropy.default" in seen and torch.equal(got, xt.cross_entropy(x, target))
