"""What the C API needs to know of a tensor: dtype codes, and rows and columns where memory has them.

A matrix of the C API has rows of adjacent columns, or, with inner = d > 1, groups of d rows whose columns lie d apart.
[N, C], [N, C, H, W] and [N, H, W, C] in any of PyTorch's memory formats are one of the two, and so need no copy.
"""

import torch

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
INDEX_CODES = {torch.int64: 0, torch.int32: 1}
INTEGERS = frozenset((*INDEX_CODES, torch.uint8, torch.int8, torch.int16, torch.bool))
# Tensors of these types have memory of their own, which may be read at data_ptr(). Every other subclass (fake tensors,
# functional ones, users' own) goes through PyTorch's dispatcher.
PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


def arithmetic(dtype):
    """The dtype of losses and weights beside logits of this dtype."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _collapse(shape, stride):
    """Size and stride of these dimensions as one, or None where they are not one. Dimensions of size 1 do not count."""
    size, step = 1, 0
    for n, s in zip(reversed(shape), reversed(stride)):
        if n == 1:
            continue
        if size == 1:
            size, step = n, s
        elif s == size * step:
            size *= n
        else:
            return None
    return size, step


def layout(x, dim):
    """(rows, cols, inner, stride) of x with the classes in dimension `dim`, or None where only a copy has that form."""
    shape, stride = x.shape, x.stride()
    cols = shape[dim]
    before, after = shape[:dim], shape[dim + 1 :]
    if x.numel() == 0:
        rows = 1
        for n in before + after:
            rows *= n
        return rows, max(cols, 1), 1, 0
    if stride[dim] == 1 or cols == 1:
        rows = _collapse(before + after, stride[:dim] + stride[dim + 1 :])
        if rows is not None and (rows[0] == 1 or rows[1] >= cols):
            return rows[0], cols, 1, rows[1] if rows[0] > 1 else cols
    inner = _collapse(after, stride[dim + 1 :])
    outer = _collapse(before, stride[:dim])
    if inner is None or outer is None:
        return None
    d = inner[0]
    if (d > 1 and inner[1] != 1) or (cols > 1 and stride[dim] != d):
        return None
    if outer[0] > 1 and outer[1] < cols * d:
        return None
    return outer[0] * d, cols, d, outer[1] if outer[0] > 1 else cols * d


def with_layout(x, dim):
    """x, or a contiguous copy of it, and its layout."""
    found = layout(x, dim)
    if found is None:
        x = x.contiguous()
        found = layout(x, dim)
    return x, found


def empty_beside(x, dim, inner, dtype=None):
    """An uninitialised tensor of x's shape whose layout has this `inner`, and its row stride."""
    y = torch.empty_like(x, dtype=dtype)
    found = layout(y, dim)
    if found is None or found[2] != inner:
        # Where x is neither dense nor in order, PyTorch chooses strides of its own.
        if inner == 1:
            order = [i for i in range(x.dim()) if i != dim] + [dim]
            y = torch.empty([x.shape[i] for i in order], dtype=dtype or x.dtype)
            y = y.permute([order.index(i) for i in range(x.dim())])
        else:
            y = torch.empty(x.shape, dtype=dtype or x.dtype)
        found = layout(y, dim)
    return y, found[3]


def beside(x, dim, inner):
    """x, or a copy of it whose layout has this `inner`, and its row stride."""
    found = layout(x, dim)
    if found is not None and found[2] == inner:
        return x, found[3]
    y, stride = empty_beside(x, dim, inner)
    return y.copy_(x), stride


def check_float(x, name):
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}, expected a tensor")
    if x.dtype not in CODES:
        raise TypeError(f"{name} has dtype {x.dtype}, expected float32, float64, bfloat16 or float16")
    check_device(x, name)


def check_device(x, name):
    if not x.is_cpu and not x.is_meta:
        raise RuntimeError(f"{name} is on device {x.device}, expected the CPU")
    if x.layout is not torch.strided:
        raise TypeError(f"{name} has layout {x.layout}, expected a strided tensor")


def check_same_device(x, name, input):
    check_device(x, name)
    if x.is_meta != input.is_meta:
        raise RuntimeError(f"{name} is on device {x.device}, expected {input.device} as the input")


def indices(target, name="target"):
    """Contiguous int64 or int32 indices of a target, and their code."""
    code = INDEX_CODES.get(target.dtype)
    if code is None:
        if target.dtype not in INTEGERS:
            raise TypeError(f"{name} has dtype {target.dtype}, expected class indices of an integer dtype")
        target, code = target.to(torch.int64), 0
    return target.contiguous(), code


def weights(weight, name, input, shape):
    """Weights in the arithmetic type, contiguous, after every check that needs no values."""
    if weight is None:
        return None
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"{name} is a {type(weight).__name__}, expected a tensor")
    check_same_device(weight, name, input)
    wide = arithmetic(input.dtype)
    if weight.dtype is not input.dtype and weight.dtype is not wide:
        raise TypeError(f"{name} has dtype {weight.dtype}, expected {input.dtype} as the input")
    if tuple(weight.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {list(weight.shape)}, expected {list(shape)}")
    if weight.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(f"{name} requires a gradient, which xent does not compute; pass {name}.detach()")
    return weight.detach().to(wide).contiguous()


def address(x):
    return 0 if x is None else x.data_ptr()
