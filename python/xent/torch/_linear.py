"""linear_cross_entropy: a linear head and its loss without the array of all logits.

Rows go through in stripes. A stripe's logits are a product into one buffer, which xent overwrites with their gradient;
two more products take it to the input and to the weight. The buffer is all the memory that there is beside the inputs,
their gradients and a few numbers a row.
"""

import torch
import torch.nn.functional as F

from xent import _core
from xent.torch import _layout
from xent.torch._autograd import Deferred, apply_scaled
from xent.torch._cross_entropy import (EMPTY_MEANS, REDUCTIONS, SMOOTHINGS, choice, cross_entropy, defers,
                                       loss_dtype_of, options_of, use_dispatcher)
from xent.torch._layout import CODES, PLAIN, address, arithmetic

# The part of the weight's gradient that is widened at a time.
_BLOCK_BYTES = 8 << 20


class _Head:
    """The tensors of a call, checked and flat: x [N, D], weight [V, D], target [N]."""

    def __init__(self, input, weight, target, bias, class_weights, row_weights, loss_dtype, limit, threads, options):
        self.options, self.limit, self.threads = options, limit, threads
        self.loss_dtype, self.reduction, self.ignore_index = loss_dtype, options["reduction"], options["ignore_index"]
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        self.cols, self.width = weight.shape
        self.x = input.detach().reshape(-1, self.width)
        self.shape = input.shape[:-1]
        self.wide = arithmetic(input.dtype)
        self.class_weights = _layout.weights(class_weights, "class_weights", input, (self.cols,))
        row_weights = _layout.weights(row_weights, "row_weights", input, self.shape)
        target, self.index_code = _layout.indices(target.detach().reshape(-1))
        valid = options["valid_cols"] or self.cols
        bad = _core.first_bad_target(target.data_ptr(), self.index_code, target.numel(), valid, self.ignore_index)
        if bad >= 0:
            raise IndexError(f"targets: row {bad} is {target[bad].item()}, expected 0 <= target < {valid} or "
                             f"ignore_index, which is {self.ignore_index}")
        # Ignored rows take no part in any product.
        live = (target != self.ignore_index).nonzero().squeeze(1)
        self.live = None if live.numel() == target.numel() else live
        self.rows = live.numel()
        self.all_rows = target.numel()
        self.target = target if self.live is None else target[live]
        if row_weights is not None:
            row_weights = row_weights.reshape(-1)
            row_weights = row_weights if self.live is None else row_weights[live]
        self.row_weights = row_weights

    def denominator(self):
        """The number that the sum of the losses is divided by; None: none."""
        if self.options["divisor"]:
            return float(self.options["divisor"])
        if self.reduction != "mean":
            return None
        if self.class_weights is None and self.row_weights is None:
            return float(self.rows)
        total = torch.ones((), dtype=torch.float64)
        if self.class_weights is not None:
            total = total * self.class_weights.double()[self.target.long()]
        if self.row_weights is not None:
            total = total * self.row_weights.double()
        return total.sum().item()

    def stripes(self):
        """Boundaries of stripes of nearly one size, each of at most `limit` bytes of logits or of one row."""
        row_bytes = self.cols * self.x.element_size()
        most = max(1, min(self.rows, self.limit // row_bytes))
        count = -(-self.rows // most)
        return [self.rows * i // count for i in range(count + 1)] if count else [0]

    def run(self, of_input, of_weight, of_bias, upstream=None):
        """Row losses of the live rows and the gradients asked for. upstream: a number, one a row, or None for 1."""
        x, weight, dtype = self.x, self.weight, self.x.dtype
        losses = torch.empty(self.rows, dtype=self.wide)
        new = torch.empty if self.rows and self.live is None else torch.zeros
        grad_x = new(self.all_rows, self.width, dtype=dtype) if of_input else None
        grad_w = (torch.empty if self.rows else torch.zeros)(weight.shape, dtype=dtype) if of_weight else None
        grad_b = torch.zeros(self.cols, dtype=self.wide) if of_bias else None
        wants = of_input or of_weight or of_bias
        divisor = self.denominator()
        if divisor == 0.0:  # the mean over nothing: no gradients
            wants = False
            for g in (grad_x, grad_w, grad_b):
                if g is not None:
                    g.zero_()
        sign = 1.0
        if divisor is not None and divisor < 0.0:
            divisor, sign = -divisor, -1.0
        if sign < 0.0:
            upstream = -upstream if upstream is not None else torch.full((), sign, dtype=self.wide)
        options = dict(self.options, reduction="none" if self.reduction == "none" else "sum", divisor=divisor or None)
        options = options_of(**options)
        bounds = self.stripes()
        most = max((b - a for a, b in zip(bounds, bounds[1:])), default=0)
        logits = torch.empty(most, self.cols, dtype=dtype)
        rows_of_x = torch.empty(most, self.width, dtype=dtype) if self.live is not None else None
        half = dtype in (torch.bfloat16, torch.float16)
        # One sum of two products rounds as often in half precision as in float32; more of them gain from a wide sum.
        wide_w = torch.zeros(weight.shape, dtype=torch.float32) if of_weight and half and len(bounds) > 3 else None
        function = _core.raw_cross_entropy_forward_backward if wants else _core.raw_cross_entropy_forward
        for a, b in zip(bounds, bounds[1:]):
            z, t, n = logits[: b - a], self.target[a:b], b - a
            if self.live is None:
                xs = x[a:b]
            else:
                xs = torch.index_select(x, 0, self.live[a:b], out=rows_of_x[:n])
            if self.bias is None:
                torch.mm(xs, weight.t(), out=z)
            else:
                torch.addmm(self.bias, xs, weight.t(), out=z)
            u = upstream if upstream is None or upstream.dim() == 0 else upstream[a:b]
            function(options, self.threads, n, self.cols, 1, CODES[dtype], z.data_ptr(), self.cols, t.data_ptr(),
                     self.index_code, losses[a:b].data_ptr(), 0, 0, z.data_ptr() if wants else 0, self.cols,
                     address(self.class_weights), 0 if self.row_weights is None else self.row_weights[a:b].data_ptr(),
                     0, address(u) if wants else 0, 0 if u is None or u.dim() == 0 else 1)
            if not wants:
                continue
            if of_input:
                if self.live is None:
                    torch.mm(z, weight, out=grad_x[a:b])
                else:
                    grad_x.index_copy_(0, self.live[a:b], torch.mm(z, weight))
            if of_weight:
                if wide_w is not None:
                    block = max(1, _BLOCK_BYTES // (2 * self.width))
                    for c in range(0, self.cols, block):
                        wide_w[c : c + block] += torch.mm(z[:, c : c + block].t(), xs)
                elif a == 0:
                    torch.mm(z.t(), xs, out=grad_w)
                else:
                    grad_w.addmm_(z.t(), xs)
            if of_bias:
                grad_b += z.sum(0, dtype=self.wide)
        if wide_w is not None and wants:
            grad_w.copy_(wide_w)
        return losses, grad_x, grad_w, None if grad_b is None else grad_b.to(dtype)

    def reduced(self, losses):
        """The call's loss from the losses of its live rows."""
        if self.reduction == "none":
            if self.live is not None:
                losses = torch.zeros(self.all_rows, dtype=self.wide).index_copy_(0, self.live, losses)
            return losses.reshape(self.shape).to(self.loss_dtype)
        loss = torch.empty((), dtype=self.wide)
        _core.raw_reduce(options_of(**self.options), self.rows, self.cols, CODES[self.wide], losses.data_ptr(),
                         self.target.data_ptr(), self.index_code, address(self.class_weights),
                         address(self.row_weights), loss.data_ptr())
        return loss.to(self.loss_dtype)


def _check(input, weight, target, bias, limit):
    for tensor, name in ((input, "input"), (weight, "weight"), (bias, "bias")):
        if tensor is None and name == "bias":
            continue
        _layout.check_float(tensor, name)
        _layout.check_same_device(tensor, name, input)
        if tensor.dtype is not input.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}, expected {input.dtype} as the input")
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target is a {type(target).__name__}, expected a tensor")
    _layout.check_same_device(target, "target", input)
    if target.dtype not in _layout.INTEGERS:
        raise TypeError(f"target has dtype {target.dtype}, expected class indices of an integer dtype")
    if weight.dim() != 2 or weight.shape[0] < 1:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected [classes, width]")
    if input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(f"input has shape {list(input.shape)}, expected [..., {weight.shape[1]}] for a weight of "
                         f"{list(weight.shape)}")
    if target.shape != input.shape[:-1]:
        raise ValueError(f"target has shape {list(target.shape)}, expected {list(input.shape[:-1])} for an input of "
                         f"{list(input.shape)}")
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise ValueError(f"bias has shape {list(bias.shape)}, expected {[weight.shape[0]]}")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"limit is {limit!r}, expected a number of bytes")


def linear_cross_entropy(input, weight, target, bias=None, *, class_weights=None, ignore_index=-100, reduction="mean",
                         label_smoothing=0.0, row_weights=None, z_loss=0.0, softcap=0.0, logit_scale=1.0,
                         smoothing="uniform", valid_cols=None, empty_mean="nan", divisor=None, loss_dtype=None,
                         limit=64 << 20, threads=0):
    """``cross_entropy(input @ weight.T + bias, target)`` and its gradients without the array of all logits.

    Shapes: input ``(..., D)``, weight ``(V, D)``, bias ``(V)``, target ``(...)`` of class indices; one float dtype.
    limit: bytes of the buffer of logits, the only memory that grows with the vocabulary beside the gradients; at least
    a row. In half precision a weight's gradient of more than two stripes is summed in float32, in memory of its own.
    Where weight, input or bias needs no gradient, its product is not made. Ignored rows take part in no product.
    Reduction ``"none"`` and float16 compute their gradients in backward, for which the logits are made once more.
    The other options are those of :func:`cross_entropy`; class_weights is its weight. Autocast does not reach inside.
    Raises as :func:`cross_entropy`.

    >>> import torch, xent.torch
    >>> hidden, head = torch.zeros(3, 8), torch.zeros(5, 8)
    >>> xent.torch.linear_cross_entropy(hidden, head, torch.tensor([0, 4, -100]))
    tensor(1.6094)
    """
    _check(input, weight, target, bias, limit)
    choice(reduction, REDUCTIONS, "reduction")
    choice(smoothing, SMOOTHINGS, "smoothing")
    choice(empty_mean, EMPTY_MEANS, "empty_mean")
    options = dict(ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss,
                   softcap=softcap, logit_scale=logit_scale, smoothing=smoothing, valid_cols=valid_cols,
                   empty_mean=empty_mean, divisor=divisor)
    loss_dtype = loss_dtype_of(input, loss_dtype)
    tensors = [t for t in (input, weight, target, bias, class_weights, row_weights) if t is not None]
    if use_dispatcher() or any(type(t) not in PLAIN or t.is_meta for t in tensors):
        if defers(input.dtype, reduction) or torch._C._are_functorch_transforms_active():
            logits = F.linear(input, weight, bias).reshape(-1, weight.shape[0])
            rows = None if row_weights is None else row_weights.reshape(-1)
            loss = cross_entropy(logits, target.reshape(-1), class_weights, row_weights=rows, loss_dtype=loss_dtype,
                                 threads=threads, **options)
            return loss.reshape(target.shape) if reduction == "none" else loss
        from xent.torch import _ops  # which imports this module

        return _ops.linear_cross_entropy(input, weight, target, bias, class_weights, row_weights, options, loss_dtype,
                                         limit, threads)
    head = _Head(input, weight, target, bias, class_weights, row_weights, loss_dtype, limit, threads, options)
    needs = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in (input, weight, bias)]
    with torch.no_grad():
        if not any(needs):
            return head.reduced(head.run(False, False, False)[0])
        if not defers(input.dtype, reduction):
            losses, grad_x, grad_w, grad_b = head.run(*needs)
            grads = [None if grad_x is None else grad_x.reshape(input.shape), grad_w, grad_b]
            loss = head.reduced(losses)
        else:
            loss = head.reduced(head.run(False, False, False)[0])
            grads = None
    if grads is not None:
        return apply_scaled([loss, *grads], input, weight, bias)
    shape = input.shape

    def backward(saved, upstream, keep_graph, needs):
        del saved, keep_graph
        upstream = upstream.to(head.wide)
        if upstream.dim() > 0:
            upstream = upstream.reshape(-1)
            upstream = upstream.contiguous() if head.live is None else upstream[head.live]
        grad_x, grad_w, grad_b = head.run(*needs, upstream=upstream)[1:]
        return None if grad_x is None else grad_x.reshape(shape), grad_w, grad_b

    return Deferred.apply((loss, backward, [t for t in (input, weight, bias) if t is not None]), input, weight, bias)
