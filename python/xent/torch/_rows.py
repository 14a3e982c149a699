"""softmax, log_softmax, logsumexp, selective_log_softmax, entropy.

Under torch.compile, functorch, fake tensors and dispatch modes these are PyTorch's own operations, which a compiler
fuses with what stands around them; selective_log_softmax is xent's operator there too.
"""

import torch

from xent import _core
from xent.torch import _layout
from xent.torch._autograd import without_second_derivative
from xent.torch._cross_entropy import cross_entropy, options_of, use_dispatcher
from xent.torch._layout import CODES, PLAIN, arithmetic

_NO_IGNORE = -(2**63)


def _checked(input, dim, name="input"):
    """The input with at least one dimension, and the dimension of the classes, not negative."""
    _layout.check_float(input, name)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim is {dim!r}, expected an integer")
    dims = max(input.dim(), 1)
    if not -dims <= dim < dims:
        raise IndexError(f"dim is {dim}, expected one in [{-dims}, {dims - 1}]")
    return dim % dims


def _dispatched(*tensors):
    return use_dispatcher() or any(type(t) not in PLAIN or t.is_meta for t in tensors)


def _map(function, x, dim, out=None):
    """softmax or log_softmax of x, which has at least one element and one dimension; out may be x."""
    x, (rows, cols, inner, stride) = _layout.with_layout(x, dim)
    y, y_stride = (x, stride) if out is x else _layout.empty_beside(x, dim, inner)
    function(0, rows, cols, inner, CODES[x.dtype], x.data_ptr(), stride, y.data_ptr(), y_stride)
    return y


def _map_backward(function, g, y, dim):
    y, (rows, cols, inner, y_stride) = _layout.with_layout(y, dim)
    g, g_stride = _layout.beside(g.to(y.dtype), dim, inner)
    dx, dx_stride = _layout.empty_beside(y, dim, inner)
    function(0, rows, cols, inner, CODES[y.dtype], g.data_ptr(), g_stride, y.data_ptr(), y_stride, dx.data_ptr(),
             dx_stride)
    return dx


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, dim, forward, backward):
        y = _map(forward, input, dim)
        ctx.save_for_backward(y)
        ctx.dim, ctx.function = dim, backward
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        with torch.no_grad():
            dx = _map_backward(ctx.function, g, y, ctx.dim)
        if torch.is_grad_enabled():
            (dx,) = without_second_derivative((dx,), ctx)
        return dx, None, None, None


def _softmax_like(input, dim, dtype, forward, backward, theirs):
    dim = _checked(input, dim)
    if dtype is not None:
        input = input.to(dtype)
        _layout.check_float(input, "input")
    if _dispatched(input):
        return theirs(input, dim)
    if input.numel() == 0:
        return theirs(input, dim)  # nothing, with PyTorch's graph
    if input.dim() == 0:
        return _softmax_like(input.reshape(1), 0, None, forward, backward, theirs).reshape(())
    if input.requires_grad and torch.is_grad_enabled():
        return _Map.apply(input, dim, forward, backward)
    return _map(forward, input.detach(), dim)


def softmax(input, dim=-1, *, dtype=None):
    """``exp(input - logsumexp(input))`` along dim, each value within 6 ULP; the input's dtype, or `dtype`.

    Raises TypeError for a dtype, IndexError for a dim, RuntimeError for a device other than the CPU.

    >>> import torch, xent.torch
    >>> xent.torch.softmax(torch.zeros(2, 4))[0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    return _softmax_like(input, dim, dtype, _core.raw_softmax, _core.raw_softmax_backward, torch.softmax)


def log_softmax(input, dim=-1, *, dtype=None):
    """``input - logsumexp(input)`` along dim, each value within 4 ULP, the largest near 0 too.

    Raises as :func:`softmax`.

    >>> import torch, xent.torch
    >>> f"{xent.torch.log_softmax(torch.tensor([0.0, 40.0]))[1].item():.3e}"
    '-4.248e-18'
    """
    return _softmax_like(input, dim, dtype, _core.raw_log_softmax, _core.raw_log_softmax_backward, torch.log_softmax)


def _logsumexp(x, dim):
    x, (rows, cols, inner, stride) = _layout.with_layout(x, dim)
    lse = torch.empty(x.shape[:dim] + x.shape[dim + 1 :], dtype=arithmetic(x.dtype))
    _core.raw_logsumexp(0, rows, cols, inner, CODES[x.dtype], x.data_ptr(), stride, lse.data_ptr())
    return lse.to(x.dtype)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, dim):
        ctx.save_for_backward(input)
        ctx.dim = dim
        return _logsumexp(input, dim)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            dx = _map(_core.raw_softmax, x, ctx.dim).mul_(g.unsqueeze(ctx.dim))
        if torch.is_grad_enabled():
            (dx,) = without_second_derivative((dx,), ctx)
        return dx, None


def logsumexp(input, dim=-1, keepdim=False):
    """``log(sum(exp(input)))`` along dim, an integer or several of them.

    Raises as :func:`softmax`.

    >>> import torch, xent.torch
    >>> xent.torch.logsumexp(torch.zeros(2, 4))
    tensor([1.3863, 1.3863])
    """
    if isinstance(dim, (tuple, list)):
        dims = sorted({_checked(input, d) for d in dim})
        if len(dims) != len(dim):
            raise RuntimeError(f"dim is {tuple(dim)}, expected each dimension once")
        if len(dims) != 1:
            if not dims or input.dim() == 0:
                return torch.logsumexp(input, dim, keepdim)
            rest = [d for d in range(input.dim()) if d not in dims]
            joined = input.permute(rest + dims).flatten(len(rest))
            lse = logsumexp(joined, len(rest))
            return lse.reshape([1 if d in dims else n for d, n in enumerate(input.shape)]) if keepdim else lse
        dim = dims[0]
    dim = _checked(input, dim)
    if _dispatched(input) or input.numel() == 0 or input.dim() == 0:
        return torch.logsumexp(input, dim, keepdim)
    if input.requires_grad and torch.is_grad_enabled():
        lse = _LogSumExp.apply(input, dim)
    else:
        lse = _logsumexp(input.detach(), dim)
    return lse.unsqueeze(dim) if keepdim else lse


def _statistics(x, targets, **outputs):
    """Runs a forward call on rows [..., V] for statistics alone."""
    x, (rows, cols, inner, stride) = _layout.with_layout(x, x.dim() - 1)
    if inner != 1:
        x = x.contiguous()
        rows, cols, inner, stride = _layout.layout(x, x.dim() - 1)
    targets, code = _layout.indices(targets)
    statistics = _core.Statistics(**{k: v.data_ptr() if isinstance(v, torch.Tensor) else v for k, v in outputs.items()})
    _core.raw_cross_entropy_forward(options_of(_NO_IGNORE, "none"), 0, rows, cols, 1, CODES[x.dtype], x.data_ptr(),
                                    stride, targets.data_ptr(), code, 0, 0, 0, 0, 0, statistics=statistics)


class _Gathered(torch.autograd.Function):
    """Log-probabilities of several columns of each row."""

    @staticmethod
    def forward(ctx, logits, index):
        ctx.save_for_backward(logits, index)
        out = torch.empty(index.shape, dtype=arithmetic(logits.dtype))
        rows = torch.zeros(index.shape[:-1], dtype=torch.int64)
        _statistics(logits, rows, gather_count=index.shape[-1], gather_cols=index, gathered=out)
        return out.to(logits.dtype)

    @staticmethod
    def backward(ctx, u):
        logits, index = ctx.saved_tensors
        with torch.no_grad():
            dim = logits.dim() - 1
            dx = _map(_core.raw_softmax, logits, dim).mul_(-u.sum(-1, keepdim=True)).scatter_add_(-1, index, u)
        if torch.is_grad_enabled():
            (dx,) = without_second_derivative((dx,), ctx)
        return dx, None


def selective_log_softmax(logits, index, *, logit_scale=1.0, softcap=0.0):
    """``log_softmax(logits, -1)`` at chosen columns alone, without the array of all of them.

    Shapes: logits ``(..., V)``; index ``(...)`` for one column of each row, or ``(..., K)`` for K; the result as index.
    One column a row takes logit_scale and softcap as :func:`cross_entropy` does.
    Raises IndexError for a column out of range, ValueError for shapes that do not go together.

    >>> import torch, xent.torch
    >>> xent.torch.selective_log_softmax(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor([-1.3863, -1.3863])
    """
    _checked(logits, -1, "logits")
    if not isinstance(index, torch.Tensor):
        raise TypeError(f"index is a {type(index).__name__}, expected a tensor")
    if index.dtype not in _layout.INTEGERS:
        raise TypeError(f"index has dtype {index.dtype}, expected an integer dtype")
    lead = logits.shape[:-1]
    if logits.dim() == 0 or (index.shape != lead and index.shape[:-1] != lead):
        raise ValueError(f"index has shape {list(index.shape)}, expected {list(lead)} or one dimension more for logits "
                         f"of {list(logits.shape)}")
    if index.shape == lead:
        x = logits if logits.dim() <= 2 else logits.flatten(0, -2)
        # The log-probability is the negative loss, rounding and all: zero stays zero.
        loss = cross_entropy(x, index.reshape(x.shape[:-1]), ignore_index=_NO_IGNORE, reduction="none",
                             logit_scale=logit_scale, softcap=softcap)
        return loss.neg().reshape(lead)
    if logit_scale != 1.0 or softcap:
        raise ValueError("logit_scale and softcap go with an index of one column a row")
    if _dispatched(logits, index) or index.numel() == 0:
        return torch.log_softmax(logits, -1).gather(-1, index)
    return _Gathered.apply(logits, index.to(torch.int64).contiguous())


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        ctx.save_for_backward(logits)
        return _entropy(logits)

    @staticmethod
    def backward(ctx, u):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            wide = arithmetic(x.dtype)
            h = _entropy(x, wide)
            dim = x.dim() - 1
            logp = _map(_core.raw_log_softmax, x.to(wide), dim)
            # dH/dz = -p (log p + H), where 0 log 0 = 0.
            p = logp.exp()
            dx = logp.add_(h.unsqueeze(-1)).masked_fill_(p == 0, 0.0).mul_(p).mul_(-u.to(wide).unsqueeze(-1))
        dx = dx.to(x.dtype)
        if torch.is_grad_enabled():
            (dx,) = without_second_derivative((dx,), ctx)
        return dx


def _entropy(x, dtype=None):
    out = torch.empty(x.shape[:-1], dtype=arithmetic(x.dtype))
    _statistics(x, torch.zeros(x.shape[:-1], dtype=torch.int64), entropy=out)
    return out.to(dtype or x.dtype)


def entropy(logits, dim=-1):
    """Entropy of softmax(logits) along dim, in nats, within 8 ULP; masked logits (-inf) count for nothing.

    Raises as :func:`softmax`.

    >>> import torch, xent.torch
    >>> xent.torch.entropy(torch.tensor([[0.0, 0.0], [0.0, float("-inf")]]))
    tensor([0.6931, 0.0000])
    """
    dim = _checked(logits, dim, "logits")
    if logits.dim() == 0:
        raise ValueError("logits has no dimension, expected one of classes")
    if _dispatched(logits) or logits.numel() == 0:
        logp = torch.log_softmax(logits, dim)
        return torch.special.entr(logp.exp()).sum(dim)
    x = logits.movedim(dim, -1)
    if x.requires_grad and torch.is_grad_enabled():
        return _Entropy.apply(x)
    return _entropy(x.detach())
