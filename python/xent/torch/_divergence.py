"""kl_div on logits, and its relatives."""

import functools

import torch

from xent import _core
from xent.torch import _layout
from xent.torch._autograd import Deferred, apply_scaled
from xent.torch._cross_entropy import choice, use_dispatcher
from xent.torch._layout import CODES, PLAIN, address, arithmetic

_KINDS = {"forward": 0, "reverse": 1, "js": 2, "cross_entropy": 3}
_REDUCTIONS = {"batchmean": 0, "mean": 0, "sum": 1, "none": 2}


@functools.lru_cache(maxsize=256)
def _options(kind, temperature, beta, valid_cols, reduction, divisor):
    return _core.DivergenceOptions(
        kind=choice(kind, _KINDS, "kind"), temperature=temperature, beta=beta, valid_cols=valid_cols or 0,
        reduction=choice(reduction, _REDUCTIONS, "reduction"), divisor=divisor or 0.0)


def _reference(input, target, dim, kind, temperature, beta, valid_cols, reduction, row_weights, divisor):
    """The same in PyTorch's operations, for compilers and transforms."""
    if valid_cols:
        input, target = input.narrow(dim, 0, valid_cols), target.narrow(dim, 0, valid_cols)
    wide = arithmetic(input.dtype)
    logq = torch.log_softmax(input.to(wide) / temperature, dim)
    logp = torch.log_softmax(target.detach().to(wide) / temperature, dim)
    q, p = logq.exp(), logp.exp()

    def sum_of(weights, logs):
        return torch.where(weights == 0, 0.0, weights * logs).sum(dim)

    if kind == "forward":
        losses = sum_of(p, logp - logq)
    elif kind == "reverse":
        losses = sum_of(q, logq - logp)
    elif kind == "cross_entropy":
        losses = -sum_of(p, logq)
    else:
        m = (beta * p + (1 - beta) * q).log()
        losses = beta * sum_of(p, logp - m) + (1 - beta) * sum_of(q, logq - m)
    if row_weights is not None:
        losses = losses * row_weights
    if reduction == "none":
        return losses.to(input.dtype)
    total = losses.sum()
    if divisor:
        total = total / divisor
    elif reduction != "sum":
        total = total / losses.numel()
    return total.to(input.dtype)


def kl_div(input, target, dim=-1, *, kind="forward", temperature=1.0, beta=0.5, reduction="batchmean",
           row_weights=None, valid_cols=None, divisor=None):
    """Divergence of softmax(input / temperature), the student q, from softmax(target / temperature), the teacher p.

    Both are logits: neither softmax is stored. kind: ``"forward"`` sum p log(p/q), ``"reverse"`` sum q log(q/p),
    ``"js"`` the Jensen-Shannon divergence with weight beta of the teacher, ``"cross_entropy"`` -sum p log q.
    reduction: ``"batchmean"`` or ``"mean"``, both over the rows, ``"sum"``, or ``"none"``: one number a row.
    There is no factor temperature**2. Gradients reach the input alone.
    Raises ValueError for shapes and options, TypeError for dtypes, RuntimeError for a device other than the CPU and for
    a target that requires a gradient.

    >>> import torch, xent.torch
    >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> xent.torch.kl_div(student, teacher)
    tensor(0.1109)
    """
    _layout.check_float(input, "input")
    _layout.check_float(target, "target")
    _layout.check_same_device(target, "target", input)
    if target.shape != input.shape:
        raise ValueError(f"target has shape {list(target.shape)}, expected {list(input.shape)} as the input")
    if input.dim() == 0:
        raise ValueError("input has no dimension, expected one of classes")
    if not -input.dim() <= dim < input.dim():
        raise IndexError(f"dim is {dim}, expected one in [{-input.dim()}, {input.dim() - 1}]")
    if target.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("target requires a gradient, which xent does not compute; pass target.detach()")
    dim %= input.dim()
    choice(kind, _KINDS, "kind")
    choice(reduction, _REDUCTIONS, "reduction")
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    weights = _layout.weights(row_weights, "row_weights", input, shape)
    if (use_dispatcher() or type(input) not in PLAIN or type(target) not in PLAIN or input.is_meta
            or input.numel() == 0):
        return _reference(input, target, dim, kind, temperature, beta, valid_cols, reduction, weights, divisor)
    options = _options(kind, temperature, beta, valid_cols, reduction, divisor)
    x, (rows, cols, inner, stride) = _layout.with_layout(input.detach(), dim)
    t, t_stride = _layout.beside(target.detach(), dim, inner)

    def call(function, losses=None, loss=None, grad=None, grad_stride=0, upstream=None):
        function(options, 0, rows, cols, inner, CODES[x.dtype], x.data_ptr(), stride, CODES[t.dtype], t.data_ptr(),
                 t_stride, address(losses), address(loss), 0 if loss is None else CODES[loss.dtype], address(grad),
                 grad_stride, address(weights), address(upstream), 0 if upstream is None or upstream.dim() == 0 else 1)

    needs_grad = input.requires_grad and torch.is_grad_enabled()
    none = reduction == "none"
    if needs_grad and not none and input.dtype is not torch.float16:
        loss = torch.empty((), dtype=x.dtype)
        grad, grad_stride = _layout.empty_beside(x, dim, inner)
        call(_core.raw_divergence_forward_backward, loss=loss, grad=grad, grad_stride=grad_stride)
        return apply_scaled([loss, grad], input)
    if none:
        losses = torch.empty(shape, dtype=arithmetic(x.dtype))
        call(_core.raw_divergence_forward, losses=losses)
        loss = losses.to(x.dtype)
    else:
        loss = torch.empty((), dtype=x.dtype)
        call(_core.raw_divergence_forward, loss=loss)
    if not needs_grad:
        return loss

    def backward(saved, upstream, keep_graph, needs):
        del saved, keep_graph, needs
        grad, grad_stride = _layout.empty_beside(x, dim, inner)
        upstream = upstream.to(arithmetic(x.dtype)).contiguous()
        call(_core.raw_divergence_forward_backward, grad=grad, grad_stride=grad_stride, upstream=upstream)
        return (grad,)

    return Deferred.apply((loss, backward, [input, target]), input)
