"""xent for PyTorch, on the CPU: losses with their gradients in one pass, and a linear head that never holds its logits.

Drop-in: :func:`cross_entropy`, :class:`CrossEntropyLoss`, or :func:`patch` for a program's own calls.
"""

import ctypes as _ctypes
import os as _os

import torch as _torch

from xent import _core
from xent.torch._binary import binary_cross_entropy_with_logits
from xent.torch._cross_entropy import CrossEntropyLoss, cross_entropy
from xent.torch._divergence import kl_div
from xent.torch._linear import linear_cross_entropy
from xent.torch._patch import patch
from xent.torch._rows import entropy, log_softmax, logsumexp, selective_log_softmax, softmax

__all__ = [
    "CrossEntropyLoss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "entropy",
    "kl_div",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "patch",
    "selective_log_softmax",
    "softmax",
]


def _lend_threads():
    """Hands PyTorch's pool to the library, where PyTorch has it to lend (2.10 and newer)."""
    path = _os.path.join(_os.path.dirname(_torch.__file__), "lib", "libtorch_cpu.so")
    try:
        library = _ctypes.CDLL(path)
        functions = library.torch_parallel_for, library.torch_get_num_threads
    except (OSError, AttributeError):
        return False
    _core.use_torch(*(_ctypes.cast(f, _ctypes.c_void_p).value for f in functions))
    return True


_lend_threads()
