"""patch(): a program's own calls of torch.nn.functional.cross_entropy."""

import torch
import torch.nn.functional as F

from xent.torch._cross_entropy import cross_entropy
from xent.torch._layout import CODES, PLAIN

_original = F.cross_entropy


# Without functools.wraps: a function that says it is of torch.nn.functional is an operation to torch.compile, which
# then puts PyTorch's in its place.
def _patched(input, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean",
             label_smoothing=0.0):
    if (type(input) in PLAIN and type(target) in PLAIN and input.dtype in CODES and input.device.type == "cpu"
            and input.layout is torch.strided and (weight is None or not weight.requires_grad)):
        return cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    return _original(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)


_patched.__name__, _patched.__doc__ = _original.__name__, _original.__doc__


class Patch:
    """The swap that :func:`patch` made; undo() or the end of a with statement takes it back."""

    def __init__(self):
        self._before = F.cross_entropy
        F.cross_entropy = _patched

    def undo(self):
        if self._before is not None:
            F.cross_entropy, self._before = self._before, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.undo()


def patch():
    """Swaps torch.nn.functional.cross_entropy, and with it torch.nn.CrossEntropyLoss, for xent's on CPU tensors.

    Tensors on other devices, tensor subclasses, other dtypes and weights that require a gradient keep PyTorch's
    function. It stays swapped until undo() of the result, or to the end of a with statement:

    >>> import torch, xent.torch
    >>> with xent.torch.patch():
    ...     torch.nn.CrossEntropyLoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    """
    return Patch()
