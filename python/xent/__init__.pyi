"""Types of the functions on arrays. Losses are scalars of NumPy, or with reduction "none" arrays."""

from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeVar, TypedDict, Union, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from xent._results import BinaryCrossEntropyResult as BinaryCrossEntropyResult
from xent._results import CrossEntropyResult as CrossEntropyResult
from xent._results import Scores as Scores

__version__: str
__all__: list[str]

class _SupportsDLPack(Protocol):
    def __dlpack__(self, *args: Any, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...

_In = Union[npt.ArrayLike, _SupportsDLPack]
_Array = npt.NDArray[Any]
_Scalar = np.floating[Any]
_Out = TypeVar("_Out")
_Smoothing = Literal["uniform", "exclusive"]
_Reduced = Literal["mean", "sum"]
_EmptyMean = Literal["nan", "zero"]
_Statistic = Literal[
    "row_losses", "lse", "logprobs", "argmax", "hits", "rank", "entropy", "perplexity", "live_rows"
]

class _CrossEntropyOptions(TypedDict, total=False):
    axis: int
    class_weights: _In | None
    row_weights: _In | None
    ignore_index: int
    label_smoothing: float
    smoothing: _Smoothing
    z_loss: float
    softcap: float
    logit_scale: float
    valid_cols: int | None
    divisor: float | None
    empty_mean: _EmptyMean
    upstream: _In | None
    threads: int

@overload
def cross_entropy(  # type: ignore[overload-overlap]
    logits: _In, targets: _In, *, reduction: _Reduced = ..., grad: Literal[False] | None = ...,
    **options: Unpack[_CrossEntropyOptions],
) -> _Scalar: ...
@overload
def cross_entropy(  # type: ignore[overload-overlap]
    logits: _In, targets: _In, *, reduction: Literal["none"], grad: Literal[False] | None = ...,
    **options: Unpack[_CrossEntropyOptions],
) -> _Array: ...
@overload
def cross_entropy(  # type: ignore[overload-overlap]
    logits: _In, targets: _In, *, reduction: _Reduced = ..., grad: Literal[True],
    **options: Unpack[_CrossEntropyOptions],
) -> tuple[_Scalar, _Array]: ...
@overload
def cross_entropy(  # type: ignore[overload-overlap]
    logits: _In, targets: _In, *, reduction: Literal["none"], grad: Literal[True],
    **options: Unpack[_CrossEntropyOptions],
) -> tuple[_Array, _Array]: ...
@overload
def cross_entropy(
    logits: _In, targets: _In, *, reduction: _Reduced = ..., grad: _Out, **options: Unpack[_CrossEntropyOptions]
) -> tuple[_Scalar, _Out]: ...
@overload
def cross_entropy(  # type: ignore[overload-overlap]
    logits: _In, targets: _In, *, reduction: Literal["none"], grad: _Out, **options: Unpack[_CrossEntropyOptions]
) -> tuple[_Array, _Out]: ...
@overload
def cross_entropy(
    logits: _In,
    targets: _In,
    *,
    reduction: Literal["mean", "sum", "none"] = ...,
    grad: bool | _In | None = ...,
    target_grad: bool | _In | None = ...,
    statistics: _Statistic | Iterable[_Statistic] = ...,
    top_k: int | None = ...,
    gather: _In | None = ...,
    stats_of_ignored: bool = ...,
    **options: Unpack[_CrossEntropyOptions],
) -> CrossEntropyResult: ...
def score(
    logits: _In,
    targets: _In,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    softcap: float = 0.0,
    valid_cols: int | None = None,
    threads: int = 0,
) -> Scores: ...
@overload
def softmax(x: _In, axis: int = -1, *, out: None = None, threads: int = 0) -> _Array: ...
@overload
def softmax(x: _In, axis: int = -1, *, out: _Out, threads: int = 0) -> _Out: ...
@overload
def log_softmax(x: _In, axis: int = -1, *, out: None = None, threads: int = 0) -> _Array: ...
@overload
def log_softmax(x: _In, axis: int = -1, *, out: _Out, threads: int = 0) -> _Out: ...
@overload
def logsumexp(x: _In, axis: int = -1, *, keepdims: bool = False, out: None = None, threads: int = 0) -> Any: ...
@overload
def logsumexp(x: _In, axis: int = -1, *, keepdims: bool = False, out: _Out, threads: int = 0) -> _Out: ...
def check_logits(
    logits: _In, *, axis: int = -1, threads: int = 0
) -> Literal["logits", "probabilities", "log_probabilities"]: ...
@overload
def exp(x: _In, *, out: None = None) -> Any: ...
@overload
def exp(x: _In, *, out: _Out) -> _Out: ...
@overload
def log(x: _In, *, out: None = None) -> Any: ...
@overload
def log(x: _In, *, out: _Out) -> _Out: ...
@overload
def log1p(x: _In, *, out: None = None) -> Any: ...
@overload
def log1p(x: _In, *, out: _Out) -> _Out: ...

class _ElementOptions(TypedDict, total=False):
    axis: int
    class_weights: _In | None
    row_weights: _In | None
    element_weights: _In | None
    reduction: Literal["mean", "sum", "none"]
    divisor: float | None
    empty_mean: _EmptyMean
    upstream: _In | None
    threads: int

class _LogitOptions(_ElementOptions, total=False):
    pos_weight: _In | None

class _FocalOptions(_LogitOptions, total=False):
    gamma: float
    alpha: float | None

@overload
def binary_cross_entropy_with_logits(
    logits: _In, targets: _In, *, grad: Literal[False] | None = ..., target_grad: Literal[False] | None = ...,
    **options: Unpack[_LogitOptions],
) -> Any: ...
@overload
def binary_cross_entropy_with_logits(
    logits: _In, targets: _In, *, grad: Literal[True] | _In, target_grad: Literal[False] | None = ...,
    **options: Unpack[_LogitOptions],
) -> tuple[Any, Any]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: _In, targets: _In, *, grad: bool | _In | None = ..., target_grad: Literal[True] | _In,
    **options: Unpack[_LogitOptions],
) -> BinaryCrossEntropyResult: ...
@overload
def binary_cross_entropy(
    probabilities: _In, targets: _In, *, grad: Literal[False] | None = ..., target_grad: Literal[False] | None = ...,
    **options: Unpack[_ElementOptions],
) -> Any: ...
@overload
def binary_cross_entropy(
    probabilities: _In, targets: _In, *, grad: Literal[True] | _In, target_grad: Literal[False] | None = ...,
    **options: Unpack[_ElementOptions],
) -> tuple[Any, Any]: ...
@overload
def binary_cross_entropy(
    probabilities: _In, targets: _In, *, grad: bool | _In | None = ..., target_grad: Literal[True] | _In,
    **options: Unpack[_ElementOptions],
) -> BinaryCrossEntropyResult: ...
@overload
def sigmoid_focal_loss(
    logits: _In, targets: _In, *, grad: Literal[False] | None = ..., target_grad: Literal[False] | None = ...,
    **options: Unpack[_FocalOptions],
) -> Any: ...
@overload
def sigmoid_focal_loss(
    logits: _In, targets: _In, *, grad: Literal[True] | _In, target_grad: Literal[False] | None = ...,
    **options: Unpack[_FocalOptions],
) -> tuple[Any, Any]: ...
@overload
def sigmoid_focal_loss(
    logits: _In, targets: _In, *, grad: bool | _In | None = ..., target_grad: Literal[True] | _In,
    **options: Unpack[_FocalOptions],
) -> BinaryCrossEntropyResult: ...

class _DivergenceOptions(TypedDict, total=False):
    temperature: float
    axis: int
    row_weights: _In | None
    valid_cols: int | None
    reduction: Literal["mean", "sum", "none"]
    divisor: float | None
    empty_mean: _EmptyMean
    upstream: _In | None
    threads: int

_Kind = Literal["forward", "reverse", "cross_entropy"]

@overload
def kl_div(
    student: _In, teacher: _In, *, kind: _Kind = ..., grad: Literal[False] | None = ...,
    **options: Unpack[_DivergenceOptions],
) -> Any: ...
@overload
def kl_div(
    student: _In, teacher: _In, *, kind: _Kind = ..., grad: Literal[True] | _In, **options: Unpack[_DivergenceOptions]
) -> tuple[Any, Any]: ...
@overload
def js_div(
    student: _In, teacher: _In, *, beta: float = ..., grad: Literal[False] | None = ...,
    **options: Unpack[_DivergenceOptions],
) -> Any: ...
@overload
def js_div(
    student: _In, teacher: _In, *, beta: float = ..., grad: Literal[True] | _In, **options: Unpack[_DivergenceOptions]
) -> tuple[Any, Any]: ...
def info() -> dict[str, Any]: ...
def set_num_threads(threads: int) -> None: ...
def get_num_threads() -> int: ...
