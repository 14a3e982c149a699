"""xent's C structs by ctypes: those of include/xent/xent.h that the comparisons call with.

A member that is left out is 0, which xent.h makes the default of every member but those in DEFAULTS. The
library refuses a struct whose struct_size is smaller than its own.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt

Array = npt.NDArray[Any]
F32, F64, BF16, F16 = range(4)
I64 = 0


class Matrix(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class Targets(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class Upstream(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class Reduction(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("empty_mean", ctypes.c_int32),
        ("divisor", ctypes.c_double),
    ]


class Exec(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("parallel_for", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class Error(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("status", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("row", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("value", ctypes.c_double),
        ("message", ctypes.c_char * 216),
    ]


class Statistics(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("lse", ctypes.c_void_p),
        ("logprobs", ctypes.c_void_p),
        ("argmax", ctypes.c_void_p),
        ("hits", ctypes.c_void_p),
        ("rank", ctypes.c_void_p),
        ("entropy", ctypes.c_void_p),
        ("top_k", ctypes.c_int64),
        ("topk_logprobs", ctypes.c_void_p),
        ("topk_indices", ctypes.c_void_p),
        ("gather_count", ctypes.c_int64),
        ("gather_cols", ctypes.c_void_p),
        ("gathered", ctypes.c_void_p),
        ("perplexity", ctypes.c_void_p),
        ("live_rows", ctypes.c_void_p),
        ("of_ignored", ctypes.c_int64),
    ]


class CrossEntropyOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("ignore_index", ctypes.c_int64),
        ("valid_cols", ctypes.c_int64),
        ("logit_scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
        ("label_smoothing", ctypes.c_double),
        ("z_loss", ctypes.c_double),
        ("smoothing", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("reduction", Reduction),
    ]


class CrossEntropy(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("logits", Matrix),
        ("targets", Targets),
        ("target_probs", Matrix),
        ("class_weights", ctypes.c_void_p),
        ("row_weights", ctypes.c_void_p),
        ("row_losses", ctypes.c_void_p),
        ("reduced_loss", ctypes.c_void_p),
        ("statistics", ctypes.POINTER(Statistics)),
        ("records", ctypes.c_void_p),
        ("upstream", Upstream),
        ("grad", Matrix),
        ("target_grad", Matrix),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
    ]


class DivergenceOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("kind", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("temperature", ctypes.c_double),
        ("beta", ctypes.c_double),
        ("valid_cols", ctypes.c_int64),
        ("reduction", Reduction),
    ]


class Divergence(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("student", Matrix),
        ("teacher", Matrix),
        ("row_weights", ctypes.c_void_p),
        ("row_losses", ctypes.c_void_p),
        ("reduced_loss", ctypes.c_void_p),
        ("upstream", Upstream),
        ("grad", Matrix),
    ]


class BinaryOptions(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("input", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("focal_gamma", ctypes.c_double),
        ("focal_alpha", ctypes.c_double),
        ("reduction", Reduction),
    ]


class Binary(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("rows", ctypes.c_int64),
        ("cols", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("input", Matrix),
        ("targets", Matrix),
        ("pos_weight", ctypes.c_void_p),
        ("class_weights", ctypes.c_void_p),
        ("row_weights", ctypes.c_void_p),
        ("element_weights", Matrix),
        ("element_losses", Matrix),
        ("reduced_loss", ctypes.c_void_p),
        ("upstream", Upstream),
        ("grad", Matrix),
        ("target_grad", Matrix),
    ]


DEFAULTS: dict[type[ctypes.Structure], dict[str, Any]] = {
    Error: {"row": -1, "column": -1},
    CrossEntropyOptions: {"ignore_index": -100, "logit_scale": 1.0},
    DivergenceOptions: {"temperature": 1.0, "beta": 0.5},
    BinaryOptions: {"focal_alpha": -1.0},
}
Struct = TypeVar("Struct", bound=ctypes.Structure)


def init(struct: type[Struct], **members: Any) -> Struct:
    """What the header's _INIT macro gives, and the members over it."""
    return struct(struct_size=ctypes.sizeof(struct), **(DEFAULTS.get(struct, {}) | members))


def pointer(array: Array) -> int:
    return int(array.ctypes.data)


def matrix(array: Array, dtype: int = F32) -> Matrix:
    return Matrix(data=pointer(array), dtype=dtype)


def load(path: Path) -> ctypes.CDLL:
    """The shared library, with the types of what returns or takes more than an int or a pointer."""
    library = ctypes.CDLL(str(path))
    size, address = ctypes.c_int64, ctypes.c_void_p
    library.xent_workspace_bytes.restype = ctypes.c_size_t
    library.xent_workspace_bytes.argtypes = [size, ctypes.c_int, ctypes.c_int32]
    library.xent_active_target.restype = ctypes.c_char_p
    library.xent_version.restype = ctypes.c_char_p
    library.xent_highway_version.restype = ctypes.c_char_p
    library.xent_logsumexp.argtypes = [size, size, size, Matrix, address, address, address]
    for function in (library.xent_softmax, library.xent_log_softmax):
        function.argtypes = [size, size, size, Matrix, Matrix, address, address]
    for function in (library.xent_softmax_backward, library.xent_log_softmax_backward):
        function.argtypes = [size, size, size, Matrix, Matrix, Matrix, address, address]
    for function in (library.xent_exp_f32, library.xent_log_f32, library.xent_log1p_f32):
        function.argtypes = [address, address, size]
    return library
