"""binary_cross_entropy_with_logits."""

import functools

import torch
import torch.nn.functional as F
from torch.nn import _reduction

from xent import _core
from xent.torch import _layout
from xent.torch._autograd import Deferred, apply_scaled
from xent.torch._cross_entropy import REDUCTIONS, choice, use_dispatcher
from xent.torch._layout import CODES, PLAIN, address, arithmetic

_theirs = F.binary_cross_entropy_with_logits


@functools.lru_cache(maxsize=64)
def _options(reduction):
    return _core.BinaryOptions(reduction=choice(reduction, REDUCTIONS, "reduction"))


def _broadcast(w, name, input):
    """Whether w broadcasts to the input's shape, and the one dimension along which it varies (None: none, -1: several).
    """
    if not isinstance(w, torch.Tensor):
        raise TypeError(f"{name} is a {type(w).__name__}, expected a tensor")
    _layout.check_same_device(w, name, input)
    if w.dtype is not input.dtype and w.dtype is not arithmetic(input.dtype):
        raise TypeError(f"{name} has dtype {w.dtype}, expected {input.dtype} as the input")
    if w.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} requires a gradient, which xent does not compute; pass {name}.detach()")
    offset = input.dim() - w.dim()
    if offset < 0 or any(n != 1 and n != input.shape[offset + i] for i, n in enumerate(w.shape)):
        raise ValueError(f"{name} has shape {list(w.shape)}, expected one that broadcasts to {list(input.shape)}")
    dims = [offset + i for i, n in enumerate(w.shape) if n != 1]
    return None if not dims else dims[0] if len(dims) == 1 else -1


class _Problem:
    def __init__(self, input, target, weight, pos_weight, reduction):
        self.options, self.reduction = _options(reduction), reduction
        x = input.detach()
        dim_of_weight = None if weight is None else _broadcast(weight, "weight", input)
        dim_of_pos = None if pos_weight is None else _broadcast(pos_weight, "pos_weight", input)
        self.supported = dim_of_pos != -1
        if not self.supported:
            return
        wide = arithmetic(input.dtype)
        dims = [d for d in (dim_of_pos, dim_of_weight) if d is not None and d >= 0]
        if x.dim() == 0:
            x = x.reshape(1)
        self.view = x.shape
        # Without a vector of weights the classes mean nothing, and the last dimension will do.
        self.dim = dims[0] if dims else x.dim() - 1
        self.x, (self.rows, self.cols, self.inner, self.stride) = _layout.with_layout(x, self.dim)
        self.t, self.t_stride = _layout.beside(target.detach().reshape(x.shape), self.dim, self.inner)
        self.pos = self.classes = self.elements = None
        self.elements_stride = 0

        def vector(w):
            return w.detach().to(wide).reshape(-1).expand(self.cols).contiguous()

        if pos_weight is not None:
            self.pos = vector(pos_weight)
        if weight is not None:
            if dim_of_weight is None or dim_of_weight == self.dim:
                self.classes = vector(weight)
            else:
                full = weight.detach().to(wide).expand(input.shape).reshape(x.shape)
                self.elements, self.elements_stride = _layout.beside(full.contiguous(), self.dim, self.inner)

    def call(self, function, losses=None, losses_stride=0, loss=None, of_input=False, of_target=False, upstream=None):
        grad, stride = _layout.empty_beside(self.x, self.dim, self.inner) if of_input else (None, 0)
        other, other_stride = _layout.empty_beside(self.t, self.dim, self.inner) if of_target else (None, 0)
        kind = upstream_stride = 0
        if upstream is not None:
            upstream = upstream.to(arithmetic(self.x.dtype))
            if upstream.dim() > 0:
                kind = 2
                upstream, upstream_stride = _layout.beside(upstream.reshape(self.view), self.dim, self.inner)
        function(
            self.options, 0, self.rows, self.cols, self.inner, CODES[self.x.dtype], self.x.data_ptr(), self.stride,
            CODES[self.t.dtype], self.t.data_ptr(), self.t_stride, address(losses), losses_stride, address(loss),
            0 if loss is None else CODES[loss.dtype], address(grad), stride, address(other), other_stride,
            address(self.pos), address(self.classes), 0, address(self.elements), self.elements_stride,
            address(upstream), kind, upstream_stride)
        return grad, other

    def forward(self, shape):
        if self.reduction == "none":
            losses, stride = _layout.empty_beside(self.x, self.dim, self.inner, arithmetic(self.x.dtype))
            self.call(_core.raw_binary_forward, losses, stride)
            return losses.to(self.x.dtype).reshape(shape)
        loss = torch.empty((), dtype=self.x.dtype)
        self.call(_core.raw_binary_forward, loss=loss)
        return loss


def binary_cross_entropy_with_logits(input, target, weight=None, size_average=None, reduce=None, reduction="mean",
                                     pos_weight=None):
    """Binary cross-entropy of logits, as torch.nn.functional.binary_cross_entropy_with_logits has it.

    Shapes: input and target of one shape; weight and pos_weight broadcast to it. A pos_weight that varies along several
    dimensions is computed by PyTorch. Gradients reach the input and the target.
    Raises ValueError for shapes, TypeError for dtypes, RuntimeError for a device other than the CPU.

    >>> import torch, xent.torch
    >>> xent.torch.binary_cross_entropy_with_logits(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    _layout.check_float(input, "input")
    _layout.check_float(target, "target")
    _layout.check_same_device(target, "target", input)
    if target.shape != input.shape:
        raise ValueError(f"target has shape {list(target.shape)}, expected {list(input.shape)} as the input")
    choice(reduction, REDUCTIONS, "reduction")
    if use_dispatcher() or type(input) not in PLAIN or type(target) not in PLAIN or input.is_meta or input.numel() == 0:
        return _theirs(input, target, weight, reduction=reduction, pos_weight=pos_weight)
    problem = _Problem(input, target, weight, pos_weight, reduction)
    if not problem.supported:
        return _theirs(input, target, weight, reduction=reduction, pos_weight=pos_weight)
    of_input = of_target = False
    if torch.is_grad_enabled():
        of_input, of_target = input.requires_grad, target.requires_grad
    if not (of_input or of_target):
        return problem.forward(input.shape)
    if reduction != "none" and input.dtype is not torch.float16:
        loss = torch.empty((), dtype=input.dtype)
        grad, other = problem.call(_core.raw_binary_forward_backward, loss=loss, of_input=of_input, of_target=of_target)
        return apply_scaled([loss, grad if grad is None else grad.reshape(input.shape),
                             other if other is None else other.reshape(target.shape)], input, target)
    loss = problem.forward(input.shape)

    def backward(saved, upstream, keep_graph, needs):
        del saved, keep_graph
        grads = problem.call(_core.raw_binary_backward, of_input=needs[0], of_target=needs[1], upstream=upstream)
        return [None if g is None else g.reshape(input.shape) for g in grads]

    return Deferred.apply((loss, backward, [input, target]), input, target)
