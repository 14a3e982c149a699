"""What calls on arrays return where one array is not enough."""

from typing import Any, NamedTuple, Optional

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


class CrossEntropyResult(NamedTuple):
    """The loss, and whatever else was asked of cross_entropy; None is what was not."""

    loss: Any
    grad: Any = None
    target_grad: Any = None
    row_losses: Optional[Floats] = None
    lse: Optional[Floats] = None
    logprobs: Optional[Floats] = None
    argmax: Optional[npt.NDArray[np.int64]] = None
    hits: Optional[npt.NDArray[np.bool_]] = None
    rank: Optional[npt.NDArray[np.int64]] = None
    entropy: Optional[Floats] = None
    topk_logprobs: Optional[Floats] = None
    topk_indices: Optional[npt.NDArray[np.int64]] = None
    gathered: Optional[Floats] = None
    perplexity: Optional[np.float64] = None
    live_rows: Optional[int] = None


class BinaryCrossEntropyResult(NamedTuple):
    """The loss and the gradients; grad is None where it was not asked for."""

    loss: Any
    grad: Any
    target_grad: Any


class Scores(NamedTuple):
    """What score gives: an array each for the rows, then two numbers for all of them."""

    logprobs: Floats
    entropy: Floats
    rank: npt.NDArray[np.int64]
    argmax: npt.NDArray[np.int64]
    perplexity: np.float64
    live_rows: int
