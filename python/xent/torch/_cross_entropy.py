"""cross_entropy and CrossEntropyLoss."""

import functools

import torch
from torch.nn import _reduction
from torch.autograd.graph import increment_version

from xent import _core
from xent.torch import _layout
from xent.torch._autograd import Deferred, apply_scaled, apply_scaled_one
from xent.torch._layout import CODES, INTEGERS, PLAIN, address, arithmetic

REDUCTIONS = {"mean": 0, "sum": 1, "none": 2}
SMOOTHINGS = {"uniform": 0, "exclusive": 1}
EMPTY_MEANS = {"nan": 0, "zero": 1}

_forward = _core.raw_cross_entropy_forward
_forward_backward = _core.raw_cross_entropy_forward_backward
_backward = _core.raw_cross_entropy_backward
_is_compiling = torch.compiler.is_compiling
_functorch = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_grad_enabled = torch.is_grad_enabled
_empty_like = torch.empty_like
_FUSED = frozenset((torch.float32, torch.float64, torch.bfloat16))
# Older versions of PyTorch lend no quick view of a tensor.
_plain = hasattr(torch.Tensor, "__dlpack_c_exchange_api__") and _core.use_dlpack(
    torch.Tensor.__dlpack_c_exchange_api__)
_plain_forward, _plain_forward_backward = _core.plain_forward, _core.plain_forward_backward
_SCALARS = {dtype: torch.empty((), dtype=dtype) for dtype in CODES}


def choice(value, names, name):
    try:
        return names[value]
    except (KeyError, TypeError):
        raise ValueError(f"{name} is {value!r}, expected " + " or ".join(map(repr, names))) from None


def use_dispatcher():
    """Whether somebody watches or transforms the operations: a compiler, functorch, a dispatch mode."""
    return _is_compiling() or _functorch() or _dispatch_modes() > 0


@functools.lru_cache(maxsize=1024)
def options_of(ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=0.0, logit_scale=1.0,
               smoothing="uniform", valid_cols=None, empty_mean="nan", divisor=None):
    """The C API's options, built once for each set of them."""
    return _core.CrossEntropyOptions(
        ignore_index=ignore_index,
        reduction=choice(reduction, REDUCTIONS, "reduction"),
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap or 0.0,
        logit_scale=logit_scale,
        smoothing=choice(smoothing, SMOOTHINGS, "smoothing"),
        valid_cols=valid_cols or 0,
        empty_mean=choice(empty_mean, EMPTY_MEANS, "empty_mean"),
        divisor=divisor or 0.0,
    )


def check(input, target, ignore_index):
    """Checks dtypes, devices and shapes. Returns the dimension of the classes and the shape of the rows."""
    _layout.check_float(input, "input")
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target is a {type(target).__name__}, expected a tensor")
    _layout.check_same_device(target, "target", input)
    if input.dim() == 0:
        raise ValueError("input has no dimension, expected one of classes")
    dim = 0 if input.dim() == 1 else 1
    shape = input.shape[:dim] + input.shape[dim + 1 :]
    if target.dtype in CODES:
        if target.shape != input.shape:
            raise ValueError(f"target has shape {list(target.shape)}, expected {list(input.shape)} as the input: "
                             f"{target.dtype} targets are probabilities")
        if ignore_index >= 0:
            raise ValueError(f"ignore_index is {ignore_index}, expected none beside probability targets")
    elif target.shape != shape:
        text = f"target has shape {list(target.shape)}, expected {list(shape)} for an input of {list(input.shape)}"
        if target.shape == input.shape:
            text += f"; targets of the input's shape are probabilities, and {target.dtype} is no float dtype"
        raise ValueError(text)
    elif target.dtype not in INTEGERS:
        raise TypeError(f"target has dtype {target.dtype}, expected class indices of an integer dtype")
    if input.shape[dim] == 0 and target.numel() > 0:
        raise IndexError(f"input has 0 classes, expected at least 1 for a target of {list(target.shape)}")
    return dim, shape


class Problem:
    """The tensors of a call, checked, and what the C API needs to know of them."""

    __slots__ = ("x", "dim", "rows", "cols", "inner", "stride", "code", "target", "index_code", "probs", "probs_stride",
                 "probs_code", "weight", "row_weights", "shape", "options", "threads", "reduction")

    def __init__(self, input, target, weight, row_weights, options, reduction, ignore_index, threads):
        self.dim, self.shape = dim, shape = check(input, target, ignore_index)
        self.options, self.reduction, self.threads = options, reduction, threads
        cols = input.shape[dim]
        self.x, (self.rows, self.cols, self.inner, self.stride) = _layout.with_layout(input.detach(), dim)
        self.code = CODES[input.dtype]
        if target.dtype in CODES:
            self.target, self.index_code, self.probs_code = None, 0, CODES[target.dtype]
            self.probs, self.probs_stride = _layout.beside(target.detach(), dim, self.inner)
        else:
            self.probs, self.probs_stride, self.probs_code = None, 0, 0
            self.target, self.index_code = _layout.indices(target)
        self.weight = _layout.weights(weight, "weight", input, (cols,))
        self.row_weights = _layout.weights(row_weights, "row_weights", input, shape)

    def call(self, function, row_losses=None, loss=None, grad=None, grad_stride=0, records=None, upstream=None,
             target_grad=None, target_grad_stride=0, statistics=None):
        function(
            self.options, self.threads, self.rows, self.cols, self.inner, self.code, self.x.data_ptr(), self.stride,
            address(self.target), self.index_code, address(row_losses), address(loss),
            0 if loss is None else CODES[loss.dtype], address(grad), grad_stride, address(self.weight),
            address(self.row_weights), address(records), address(upstream),
            0 if upstream is None or upstream.dim() == 0 else 1, address(self.probs), self.probs_stride,
            self.probs_code, address(target_grad), target_grad_stride, statistics)

    def forward(self, loss_dtype, records=None):
        """The loss, of loss_dtype."""
        if self.reduction == "none":
            losses = torch.empty(self.shape, dtype=arithmetic(self.x.dtype))
            self.call(_forward, row_losses=losses, records=records)
            return losses.to(loss_dtype)
        loss = torch.empty((), dtype=loss_dtype)
        self.call(_forward, loss=loss, records=records)
        return loss

    def new_records(self):
        return torch.empty(self.rows * (_core.RECORD_BYTES // 8), dtype=torch.int64)

    def new_grads(self, of_input, of_probs, in_place=False):
        if in_place and of_input:
            grad, stride = self.x, self.stride
        elif of_input:
            grad, stride = _layout.empty_beside(self.x, self.dim, self.inner)
        else:
            grad, stride = None, 0
        other, other_stride = _layout.empty_beside(self.probs, self.dim, self.inner) if of_probs else (None, 0)
        return grad, stride, other, other_stride

    def forward_backward(self, loss_dtype, of_input, of_probs, in_place=False):
        """The reduced loss, and its gradients for the input and for probability targets, or None."""
        grad, stride, other, other_stride = self.new_grads(of_input, of_probs, in_place)
        loss = torch.empty((), dtype=loss_dtype)
        self.call(_forward_backward, loss=loss, grad=grad, grad_stride=stride, target_grad=other,
                  target_grad_stride=other_stride)
        return loss, grad, other

    def backward(self, records, upstream, of_input, of_probs, in_place=False):
        """The gradients from the records that forward wrote."""
        upstream = upstream.to(arithmetic(self.x.dtype)).contiguous()
        grad, stride, other, other_stride = self.new_grads(of_input, of_probs, in_place)
        self.call(_backward, records=records, upstream=upstream, grad=grad, grad_stride=stride, target_grad=other,
                  target_grad_stride=other_stride)
        return grad, other


def loss_dtype_of(input, loss_dtype):
    if loss_dtype is None:
        return input.dtype
    if loss_dtype not in CODES:
        raise TypeError(f"loss_dtype is {loss_dtype}, expected float32, float64, bfloat16 or float16")
    return loss_dtype


def defers(dtype, reduction):
    """Whether the gradient is computed in backward, from the records: see _autograd."""
    return reduction == "none" or dtype is torch.float16


def _check_in_place(problem, input):
    if input.is_leaf:
        raise RuntimeError("input is a leaf that requires a gradient, which cannot be overwritten: inplace=True wants "
                           "the result of an operation")
    if problem.x.data_ptr() != input.data_ptr():
        raise ValueError(f"input has shape {list(input.shape)} and strides {list(input.stride())}, expected rows or "
                         "classes side by side in memory for inplace=True")


def _deferred(problem, input, target, loss_dtype, of_input, of_probs, inplace):
    records = problem.new_records()
    loss = problem.forward(loss_dtype, records)
    saved = [problem.x if problem.x.data_ptr() != input.data_ptr() else input]
    saved.append(problem.target if problem.probs is None else problem.probs)

    def backward(saved_tensors, upstream, keep_graph, needs):
        x = saved_tensors[0].detach()
        if x.data_ptr() != problem.x.data_ptr():  # a saved-tensor hook brought another
            x, stride = _layout.beside(x, problem.dim, problem.inner)
            problem.x, problem.stride = x, stride
        in_place = inplace and not keep_graph and of_input
        grads = problem.backward(records, upstream, of_input, of_probs, in_place)
        if in_place:
            increment_version(input)
        return grads

    return Deferred.apply((loss, backward, saved), input, target if of_probs else None)


def _dispatched(*arguments):
    from xent.torch import _ops  # which imports this module

    return _ops.cross_entropy(*arguments)


def cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
                  label_smoothing=0.0, *, row_weights=None, z_loss=0.0, softcap=0.0, logit_scale=1.0,
                  smoothing="uniform", valid_cols=None, empty_mean="nan", divisor=None, loss_dtype=None, inplace=False,
                  threads=0):
    """Cross-entropy of logits and class indices or probabilities, as torch.nn.functional.cross_entropy has it.

    Shapes:
        input: ``(C)``, ``(N, C)`` or ``(N, C, d1, ...)``, float32, float64, bfloat16 or float16, on the CPU. Rows of
            adjacent classes and class-major memory need no copy.
        target: ``()``, ``(N)`` or ``(N, d1, ...)`` of integers, or the input's shape of probabilities, which receive
            gradients.
        weight: ``(C)``; row_weights: the shape of index targets. Both of the input's dtype or of float32.
        Result: a number, or with ``reduction="none"`` the shape of index targets; dtype of the input or loss_dtype.

    Options beyond PyTorch's:
        row_weights: multiplies each row's loss; the mean divides by the sum of the weights.
        z_loss: adds ``z_loss * logsumexp**2`` to each row's loss.
        logit_scale, softcap: the logits are ``softcap * tanh(logit_scale * input / softcap)``, or
            ``logit_scale * input`` with softcap 0.
        smoothing: ``"uniform"``, or ``"exclusive"``, which spreads label_smoothing over the other classes alone.
        valid_cols: classes from here on are padding; never read, gradient 0.
        empty_mean: ``"nan"`` or ``"zero"``: the mean over no rows.
        divisor: replaces the mean's denominator, and divides the sum.
        inplace: the gradient takes the memory of the input, which is then gone. The input must not be a leaf. Without a
            gradient, and under torch.compile, the input stays as it is.
        threads: 1 is the calling thread; 0 as many as PyTorch has.

    Raises:
        IndexError: a target is neither a class nor ignore_index; names row and value.
        ValueError: shapes, options or weights that do not go together.
        TypeError: a dtype; RuntimeError: a device other than the CPU, weights that require a gradient.

    >>> import torch, xent.torch
    >>> logits = torch.tensor([[2.0, 1.2, 0.3, -0.8, -2.0]], requires_grad=True)
    >>> loss = xent.torch.cross_entropy(logits, torch.tensor([0]))
    >>> f"{loss.item():.4f}"
    '0.5372'
    >>> loss.backward()
    >>> [f"{g:.3f}" for g in logits.grad[0].tolist()]
    ['-0.416', '0.263', '0.107', '0.036', '0.011']
    """
    if _is_compiling() or type(input) not in PLAIN or _functorch() or _dispatch_modes():
        direct = False
    else:
        direct = type(target) in PLAIN
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    if not direct:
        return _dispatched(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss,
                           softcap, logit_scale, smoothing, valid_cols, empty_mean, divisor, loss_dtype, threads)
    options = options_of(ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale, smoothing, valid_cols,
                         empty_mean, divisor)
    # The usual call, [N, C] and int64 targets, without the cost of looking at anything else.
    if weight is None and row_weights is None and loss_dtype is None and not inplace and reduction != "none" and _plain:
        dtype = input.dtype
        if not (input.requires_grad and _is_grad_enabled()):
            if dtype in CODES:
                loss = _empty_like(_SCALARS[dtype])
                if _plain_forward(options, threads, input, target, loss):
                    return loss
        elif dtype in _FUSED:
            loss, grad = _empty_like(_SCALARS[dtype]), _empty_like(input)
            if _plain_forward_backward(options, threads, input, target, loss, grad):
                return apply_scaled_one(input, (loss, grad))
    dtype = input.dtype
    if input.is_meta:
        return _dispatched(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss,
                           softcap, logit_scale, smoothing, valid_cols, empty_mean, divisor, loss_dtype, threads)
    problem = Problem(input, target, weight, row_weights, options, reduction, ignore_index, threads)
    loss_dtype = loss_dtype_of(input, loss_dtype)
    of_input = of_probs = False
    if _is_grad_enabled():
        of_input, of_probs = input.requires_grad, target.requires_grad
    if not (of_input or of_probs):
        return problem.forward(loss_dtype)
    inplace = inplace and of_input
    if inplace:
        _check_in_place(problem, input)
    if defers(dtype, reduction):
        return _deferred(problem, input, target, loss_dtype, of_input, of_probs, inplace)
    loss, grad, target_grad = problem.forward_backward(loss_dtype, of_input, of_probs, inplace)
    if inplace:
        increment_version(input)
    return apply_scaled([loss, grad, target_grad], input, target)


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss, computed by :func:`xent.torch.cross_entropy`; takes its options too.

    >>> import torch, xent.torch
    >>> loss = xent.torch.CrossEntropyLoss(z_loss=1e-4)
    >>> loss(torch.zeros(2, 4), torch.tensor([0, 3])).shape
    torch.Size([])
    """

    def __init__(self, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
                 label_smoothing=0.0, **options):
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        unknown = set(options) - set(cross_entropy.__kwdefaults__)
        if unknown:
            raise TypeError(f"unknown option {sorted(unknown)[0]!r}, expected one of "
                            f"{sorted(cross_entropy.__kwdefaults__)}")
        self.options = options

    def forward(self, input, target, **options):
        return cross_entropy(input, target, weight=self.weight, ignore_index=self.ignore_index,
                             reduction=self.reduction, label_smoothing=self.label_smoothing,
                             **{**self.options, **options})
