"""cross_entropy as operators of torch.library: for torch.compile, functorch, fake tensors and dispatch modes.

In eager mode a plain autograd.Function costs a third of a custom operator's call, so cross_entropy comes here only when
somebody else than the CPU's kernels is to see the call.
"""

from typing import Optional, Tuple

import torch
from torch import Tensor

from xent.torch import _layout
from xent.torch._autograd import TWICE
from xent.torch._cross_entropy import REDUCTIONS, Problem, check, choice, defers, loss_dtype_of, options_of
from xent.torch._linear import _Head


def _problem(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap,
             logit_scale, smoothing, valid_cols, empty_mean, divisor, threads):
    options = options_of(ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale, smoothing, valid_cols,
                         empty_mean, divisor)
    return Problem(input, target, weight, row_weights, options, reduction, ignore_index, threads)


def _like(x, tensor):
    """The gradient with the strides that a compiler was told: those of empty_like(x)."""
    if tensor is None:
        return x.new_empty(0)
    expected = torch.empty_like(x, device="meta").stride()
    if tensor.stride() == expected:
        return tensor
    return torch.empty_like(x).copy_(tensor)


@torch.library.custom_op("xent::cross_entropy", mutates_args=(), device_types="cpu")
def _fused(input: Tensor, target: Tensor, weight: Optional[Tensor], row_weights: Optional[Tensor], ignore_index: int,
           reduction: str, label_smoothing: float, z_loss: float, softcap: float, logit_scale: float, smoothing: str,
           valid_cols: Optional[int], empty_mean: str, divisor: Optional[float], threads: int,
           loss_dtype: torch.dtype, of_input: bool, of_target: bool) -> Tuple[Tensor, Tensor, Tensor]:
    problem = _problem(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap,
                       logit_scale, smoothing, valid_cols, empty_mean, divisor, threads)
    if not (of_input or of_target):
        return problem.forward(loss_dtype), input.new_empty(0), target.new_empty(0)
    loss, grad, other = problem.forward_backward(loss_dtype, of_input, of_target)
    return loss, _like(input, grad), _like(target, other)


@_fused.register_fake
def _(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale,
      smoothing, valid_cols, empty_mean, divisor, threads, loss_dtype, of_input, of_target):
    _, shape = check(input, target, ignore_index)
    loss = input.new_empty(shape if reduction == "none" else (), dtype=loss_dtype)
    return (loss, torch.empty_like(input) if of_input else input.new_empty(0),
            torch.empty_like(target) if of_target else target.new_empty(0))


@torch.library.custom_op("xent::once_differentiable", mutates_args=(), device_types="cpu")
def _once(grad: Tensor, of: Tensor) -> Tensor:
    """A copy of grad, which as a function of `of` has no derivative: asking for it is an error."""
    return grad.clone()


@_once.register_fake
def _(grad, of):
    return torch.empty_like(grad)


def _raise_twice(ctx, upstream):
    raise RuntimeError(TWICE)


_once.register_autograd(_raise_twice)


def _save_fused(ctx, inputs, output):
    _, grad, other = output
    ctx.mark_non_differentiable(grad, other)
    ctx.set_materialize_grads(False)
    ctx.of_input, ctx.of_target = inputs[-2:]
    ctx.save_for_backward(grad, other, inputs[0], inputs[1])


def _scaled(grad, upstream, of):
    # Rows without a gradient keep their zeros whatever the upstream gradient is; a compiler fuses the three.
    grad = torch.where(grad == 0, grad, (grad * upstream).to(grad.dtype))
    if not (torch.is_grad_enabled() and of.requires_grad):
        return grad
    return _OnceFunction.apply(grad, of) if torch._C._are_functorch_transforms_active() else _once(grad, of)


def _scale_fused(ctx, upstream, *_):
    none = (None,) * 16
    if upstream is None:
        return (None, None, *none)
    grad, other, input, target = ctx.saved_tensors
    return (_scaled(grad, upstream, input) if ctx.of_input else None,
            _scaled(other, upstream, target) if ctx.of_target else None, *none)


_fused.register_autograd(_scale_fused, setup_context=_save_fused)


@torch.library.custom_op("xent::cross_entropy_forward", mutates_args=(), device_types="cpu")
def _forward(input: Tensor, target: Tensor, weight: Optional[Tensor], row_weights: Optional[Tensor], ignore_index: int,
             reduction: str, label_smoothing: float, z_loss: float, softcap: float, logit_scale: float, smoothing: str,
             valid_cols: Optional[int], empty_mean: str, divisor: Optional[float], threads: int,
             loss_dtype: torch.dtype, of_input: bool, of_target: bool) -> Tuple[Tensor, Tensor]:
    problem = _problem(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap,
                       logit_scale, smoothing, valid_cols, empty_mean, divisor, threads)
    records = problem.new_records()
    return problem.forward(loss_dtype, records), records


@_forward.register_fake
def _(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap, logit_scale,
      smoothing, valid_cols, empty_mean, divisor, threads, loss_dtype, of_input, of_target):
    dim, shape = check(input, target, ignore_index)
    loss = input.new_empty(shape if reduction == "none" else (), dtype=loss_dtype)
    rows = 1
    for n in shape:
        rows = rows * n
    return loss, input.new_empty((rows * 8,), dtype=torch.int64)


@torch.library.custom_op("xent::cross_entropy_backward", mutates_args=(), device_types="cpu")
def _backward(upstream: Tensor, records: Tensor, input: Tensor, target: Tensor, weight: Optional[Tensor],
              row_weights: Optional[Tensor], ignore_index: int, reduction: str, label_smoothing: float, z_loss: float,
              softcap: float, logit_scale: float, smoothing: str, valid_cols: Optional[int], empty_mean: str,
              divisor: Optional[float], threads: int, of_input: bool, of_target: bool) -> Tuple[Tensor, Tensor]:
    problem = _problem(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap,
                       logit_scale, smoothing, valid_cols, empty_mean, divisor, threads)
    grad, other = problem.backward(records, upstream, of_input, of_target)
    return _like(input, grad), _like(target, other)


@_backward.register_fake
def _(upstream, records, input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap,
      logit_scale, smoothing, valid_cols, empty_mean, divisor, threads, of_input, of_target):
    return (torch.empty_like(input) if of_input else input.new_empty(0),
            torch.empty_like(target) if of_target else target.new_empty(0))


def _raise_twice_of_two(ctx, *_):
    raise RuntimeError(TWICE)


_backward.register_autograd(_raise_twice_of_two)


def _save_forward(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.options = inputs[4:15]
    ctx.of = inputs[16:]
    ctx.save_for_backward(output[1], *inputs[:4])


def _backward_forward(ctx, upstream, _):
    none = (None,) * 16
    if upstream is None:
        return (None, None, *none)
    grad, other = _backward(upstream, *ctx.saved_tensors, *ctx.options, *ctx.of)
    return (grad if ctx.of[0] else None, other if ctx.of[1] else None, *none)


_forward.register_autograd(_backward_forward, setup_context=_save_forward)


def cross_entropy(input, target, weight, row_weights, ignore_index, reduction, label_smoothing, z_loss, softcap,
                  logit_scale, smoothing, valid_cols, empty_mean, divisor, loss_dtype, threads):
    check(input, target, ignore_index)
    choice(reduction, REDUCTIONS, "reduction")
    for value, name in ((weight, "weight"), (row_weights, "row_weights")):
        if value is not None and value.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{name} requires a gradient, which xent does not compute; pass {name}.detach()")
    of_input = of_target = False
    if torch.is_grad_enabled():
        of_input, of_target = input.requires_grad, target.requires_grad
    arguments = (input, target, weight, row_weights, ignore_index, reduction, float(label_smoothing), float(z_loss),
                 float(softcap or 0.0), float(logit_scale), smoothing, valid_cols, empty_mean,
                 None if divisor is None else float(divisor), threads, loss_dtype_of(input, loss_dtype), of_input,
                 of_target)
    functorch = torch._C._are_functorch_transforms_active()
    if (of_input or of_target) and defers(input.dtype, reduction):
        return (_ForwardFunction.apply if functorch else _forward)(*arguments)[0]
    return (_FusedFunction.apply if functorch else _fused)(*arguments)[0]


@torch.library.custom_op("xent::linear_cross_entropy", mutates_args=(), device_types="cpu")
def _linear(input: Tensor, weight: Tensor, target: Tensor, bias: Optional[Tensor], class_weights: Optional[Tensor],
            row_weights: Optional[Tensor], ignore_index: int, reduction: str, label_smoothing: float, z_loss: float,
            softcap: float, logit_scale: float, smoothing: str, valid_cols: Optional[int], empty_mean: str,
            divisor: Optional[float], loss_dtype: torch.dtype, limit: int, threads: int, of_input: bool,
            of_weight: bool, of_bias: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    options = dict(ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss,
                   softcap=softcap, logit_scale=logit_scale, smoothing=smoothing, valid_cols=valid_cols,
                   empty_mean=empty_mean, divisor=divisor)
    head = _Head(input, weight, target, bias, class_weights, row_weights, loss_dtype, limit, threads, options)
    losses, *grads = head.run(of_input, of_weight, of_bias)
    grads = [input.new_empty(0) if g is None else g for g in grads]
    return head.reduced(losses), grads[0].reshape(input.shape) if of_input else grads[0], grads[1], grads[2]


@_linear.register_fake
def _(input, weight, target, bias, class_weights, row_weights, ignore_index, reduction, label_smoothing, z_loss,
      softcap, logit_scale, smoothing, valid_cols, empty_mean, divisor, loss_dtype, limit, threads, of_input, of_weight,
      of_bias):
    return (input.new_empty((), dtype=loss_dtype), input.new_empty(input.shape if of_input else (0,)),
            weight.new_empty(weight.shape if of_weight else (0,)),
            input.new_empty((weight.shape[0] if of_bias else 0,)))


def _save_linear(ctx, inputs, output):
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.of = inputs[-3:]
    ctx.save_for_backward(*output[1:], inputs[0], inputs[1])


def _scale_linear(ctx, upstream, *_):
    if upstream is None:
        return (None,) * 22
    *grads, input, weight = ctx.saved_tensors
    of = weight if weight.requires_grad else input
    grads = [_scaled(g, upstream, of) if wanted else None for g, wanted in zip(grads, ctx.of)]
    return (grads[0], grads[1], None, grads[2], *(None,) * 18)


_linear.register_autograd(_scale_linear, setup_context=_save_linear)


def linear_cross_entropy(input, weight, target, bias, class_weights, row_weights, options, loss_dtype, limit, threads):
    needs = [t is not None and t.requires_grad and torch.is_grad_enabled() for t in (input, weight, bias)]
    o = options
    return _linear(input, weight, target, bias, class_weights, row_weights, o["ignore_index"], o["reduction"],
                   float(o["label_smoothing"]), float(o["z_loss"]), float(o["softcap"] or 0.0),
                   float(o["logit_scale"]), o["smoothing"], o["valid_cols"], o["empty_mean"],
                   None if o["divisor"] is None else float(o["divisor"]), loss_dtype, limit, threads, *needs)[0]


def _over_batch(function):
    """A vmap rule that calls the function once for each element of the batch."""

    def vmap(info, in_dims, *arguments):
        def element(i):
            return [a if d is None else a.select(d, i) for a, d in zip(arguments, in_dims)]

        results = [function(*element(i)) for i in range(info.batch_size)]
        return tuple(torch.stack(parts) for parts in zip(*results)), (0,) * len(results[0])

    return vmap


class _FusedFunction(torch.autograd.Function):
    """The operator for functorch, whose transforms do not see the autograd formulas of custom operators."""

    forward = staticmethod(lambda *arguments: _fused(*arguments))
    setup_context = staticmethod(_save_fused)
    backward = staticmethod(_scale_fused)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _over_batch(_FusedFunction.apply)(info, in_dims, *arguments)


class _ForwardFunction(torch.autograd.Function):
    forward = staticmethod(lambda *arguments: _forward(*arguments))
    setup_context = staticmethod(_save_forward)

    @staticmethod
    def backward(ctx, upstream, _):
        if upstream is None:
            return (None,) * 18
        grad, other = _BackwardFunction.apply(upstream, *ctx.saved_tensors, *ctx.options, *ctx.of)
        return (grad if ctx.of[0] else None, other if ctx.of[1] else None, *(None,) * 16)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _over_batch(_ForwardFunction.apply)(info, in_dims, *arguments)


class _BackwardFunction(torch.autograd.Function):
    forward = staticmethod(lambda *arguments: _backward(*arguments))
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(_raise_twice_of_two)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _over_batch(_BackwardFunction.apply)(info, in_dims, *arguments)


class _OnceFunction(torch.autograd.Function):
    forward = staticmethod(lambda grad, of: _once(grad, of))
    setup_context = staticmethod(lambda ctx, inputs, output: None)
    backward = staticmethod(_raise_twice)

    @staticmethod
    def vmap(info, in_dims, grad, of):
        parts, _ = _over_batch(lambda *a: (_OnceFunction.apply(*a),))(info, in_dims, grad, of)
        return parts[0], 0
