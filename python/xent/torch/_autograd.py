"""What every loss shares with PyTorch's autograd.

A loss whose input requires a gradient computes it in the forward pass, while a row is in cache, for an upstream
gradient of 1. Backward multiplies it by the upstream gradient that it meets, in place unless the graph is kept, and
not at all where that is 1. In half precision that is a second rounding; float16, in which gradients for 1 may
underflow before a loss scale lifts them, and reduction "none" compute their gradients in backward instead, with one
rounding.
"""

import math

import torch

_keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
_is_grad_enabled = torch.is_grad_enabled

SECOND = "trying to backward through {} a second time: its gradients are gone. Pass retain_graph=True the first time"
TWICE = "xent.torch computes no second derivatives: it cannot differentiate the gradient of a loss"


class _Once(torch.autograd.Function):
    """apply(gradient, *tensors) is the gradient, which as a function of the tensors has no derivative."""

    @staticmethod
    def forward(ctx, grad, *tensors):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(TWICE)


def _leaves(node):
    """The leaf tensors that a node of the graph leads to."""
    found, seen, todo = [], set(), [node]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(n for n, _ in node.next_functions)
    return found


def without_second_derivative(grads, ctx):
    """The gradients, made under create_graph=True, such that asking for their derivatives is an error, not nothing."""
    leaves = _leaves(ctx)
    return tuple(g if g is None else _Once.apply(g, *leaves) for g in grads)


def scaled(g, u, in_place):
    """u * g for a number u, where 0 is 0 whatever u is: rows without a gradient keep theirs."""
    if u == 1.0:
        return g
    if math.isfinite(u):
        return g.mul_(u) if in_place else g * u
    return torch.where(g == 0, g, g * u)


class Scaled(torch.autograd.Function):
    """apply([loss, gradients for tensors...], *tensors) is the loss, differentiable in the tensors."""

    @staticmethod
    def forward(ctx, box, *tensors):
        loss = box.pop(0)  # ctx must not refer to its own output
        ctx.box = box
        return loss

    @staticmethod
    def backward(ctx, upstream):
        box = ctx.box
        if box is None:
            raise RuntimeError(SECOND.format("a loss of xent.torch"))
        keep = _keep_graph()
        if not keep:
            ctx.box = None  # the caller's .grad then takes the tensor itself instead of a copy
        u = upstream.item()
        if u == 1.0:
            # A graph that is kept hands out its gradients again, and whoever has them now may write into them.
            grads = [g.clone() if keep and g is not None else g for g in box]
        else:
            grads = [g if g is None else scaled(g, u, not keep) for g in box]
        if _is_grad_enabled():
            grads = without_second_derivative(grads, ctx)
        return (None, *grads)


class ScaledOne(torch.autograd.Function):
    """apply(tensor, (loss, gradient)): Scaled for one tensor, 1 us cheaper."""

    @staticmethod
    def forward(ctx, tensor, pair):
        loss, ctx.grad = pair
        return loss

    @staticmethod
    def backward(ctx, upstream):
        g = ctx.grad
        if g is None:
            raise RuntimeError(SECOND.format("a loss of xent.torch"))
        u = upstream.item()
        if _keep_graph():
            g = g.clone() if u == 1.0 else scaled(g, u, False)
            if _is_grad_enabled():
                (g,) = without_second_derivative((g,), ctx)
        else:
            ctx.grad = None
            if u != 1.0:
                g = scaled(g, u, True)
        return g, None


# Function.apply looks for setup_context and functorch's wrappers first, which costs 2 us. Callers have looked.
apply_scaled = super(torch.autograd.Function, Scaled).apply
apply_scaled_one = super(torch.autograd.Function, ScaledOne).apply
# The engine calls apply of a node, which looks whether backward or vjp was overridden and calls it: 1 us of the 26 that
# forward and backward of ten logits take, and the difference between faster and slower than PyTorch's own.
if hasattr(ScaledOne, "_backward_cls"):
    ScaledOne._backward_cls.apply = ScaledOne.__dict__["backward"].__func__


class Deferred(torch.autograd.Function):
    """apply((loss, backward, saved), *tensors) is the loss; backward(saved, upstream, keep_graph, needs) has a
    gradient, or None, for each of the tensors."""

    @staticmethod
    def forward(ctx, box, *tensors):
        loss, ctx.compute, saved = box
        ctx.save_for_backward(*saved)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        with torch.no_grad():
            grads = ctx.compute(ctx.saved_tensors, upstream, _keep_graph(), ctx.needs_input_grad[1:])
        if _is_grad_enabled():
            grads = without_second_derivative(grads, ctx)
        return (None, *grads)
