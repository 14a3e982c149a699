"""Fused softmax cross-entropy on the CPU, for NumPy arrays. xent.torch is the same for PyTorch.

What holds for every function:

- Arrays are NumPy's, or anything with DLPack or the buffer protocol on the CPU; they are read where they lie. Lists
  become arrays.
- dtypes: float32, float64, float16, and bfloat16 of ml_dtypes. Losses and statistics are float32, for float64 logits
  float64; gradients have the dtype of what they belong to.
- Layout: rows may lie apart, and the classes along any axis ("NCHW" as it is). What no stride from row to row
  describes (steps between classes, overlapping or reversed rows, elements off their alignment, the other byte order) is
  copied once. Weights, and targets of a dtype other than int32 and int64, are copied where they have to be converted.
- Arrays to write to (``out``, ``grad``) are NumPy's or as above, and writable. One that overlaps an input other than
  the one that it may replace, or whose layout is not the call's, is written at the end, from a copy.
- Threads: the interpreter's lock is released while a call runs, unless it is tiny. No result depends on the number of
  threads.
- Errors: TypeError, ValueError and IndexError name the argument, and where there is one the row and the value.
  Nothing has been written then.
"""

from xent._core import (
    __version__,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    check_logits,
    cross_entropy,
    exp,
    get_num_threads,
    info,
    js_div,
    kl_div,
    log,
    log1p,
    log_softmax,
    logsumexp,
    score,
    set_num_threads,
    sigmoid_focal_loss,
    softmax,
)
from xent._results import BinaryCrossEntropyResult, CrossEntropyResult, Scores

__all__ = [
    "BinaryCrossEntropyResult",
    "CrossEntropyResult",
    "Scores",
    "__version__",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "check_logits",
    "cross_entropy",
    "exp",
    "get_num_threads",
    "info",
    "js_div",
    "kl_div",
    "log",
    "log1p",
    "log_softmax",
    "logsumexp",
    "score",
    "set_num_threads",
    "sigmoid_focal_loss",
    "softmax",
]
