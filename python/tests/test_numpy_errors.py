"""What the functions on arrays refuse: the exception, and that its message names the argument, the row and the value.
Nothing is written by a call that is refused, and nothing that Python can pass crashes."""

import itertools

import numpy as np
import pytest

import xent

N, V = 3, 5
X = np.arange(N * V, dtype=np.float32).reshape(N, V) / 7
T = np.array([0, 4, 2])
Q = np.full((N, V), 0.2, np.float32)


def ce(*args, **options):
    return lambda: xent.cross_entropy(*args, **options)


def bce(*args, **options):
    return lambda: xent.binary_cross_entropy_with_logits(*args, **options)


def kl(*args, **options):
    return lambda: xent.kl_div(*args, **options)


def read_only():
    array = np.zeros((N, V), np.float32)
    array.flags.writeable = False
    return array


def nan_at(shape, index, value=np.nan):
    array = np.ones(shape, np.float32)
    array[index] = value
    return array


CASES = [
    # arguments
    (lambda: xent.cross_entropy(), TypeError, r"cross_entropy\(\) missing required argument: 'logits'"),
    (ce(X), TypeError, r"cross_entropy\(\) missing required argument: 'targets'"),
    (ce(X, T, 1), TypeError, r"cross_entropy\(\) takes 2 positional arguments but 3 were given"),
    (ce(X, T, weight=1), TypeError, r"cross_entropy\(\) got an unexpected keyword argument 'weight'"),
    (ce(X, T, targets=T), TypeError, r"cross_entropy\(\) got multiple values for argument 'targets'"),
    (lambda: xent.info(1), TypeError, r"info\(\) takes 0 positional arguments but 1 were given"),
    # kinds and dtypes
    (ce(None, T), TypeError, "logits is a NoneType, expected an array"),
    (ce("x", T), TypeError, "logits is a str, expected an array"),
    (ce({}, T), TypeError, "logits is a dict, expected an array"),
    (ce(X.astype(int), T), TypeError, "logits has dtype int64, expected float32, float64, float16 or bfloat16"),
    (ce(X.astype(complex), T), TypeError, "logits has dtype complex128"),
    (ce(X.astype(object), T), TypeError, "logits has dtype object"),
    (ce(X.astype(np.longdouble), T), TypeError, "logits has dtype"),
    (ce(X, None), TypeError, "targets is a NoneType, expected an array"),
    (ce(X, T.astype(complex)), TypeError, "targets has dtype complex128, expected integers"),
    (ce(X, np.array(["a"] * N)), TypeError, "targets has dtype .*, expected integers"),
    (ce(X, T, class_weights="abcde"), TypeError, "class_weights is a str, expected an array"),
    (ce(X, T, class_weights=np.array(["a"] * V)), TypeError, "class_weights has dtype .*, expected numbers"),
    (ce(X, T, class_weights=np.ones(V, complex)), TypeError, "class_weights has dtype complex128, expected numbers"),
    (ce(X, T, axis=1.5), TypeError, "axis is a float, expected an integer"),
    (ce(X, T, label_smoothing="much"), TypeError, "label_smoothing is a str, expected a number"),
    (ce(X, T, ignore_index=2.0), TypeError, "ignore_index is a float, expected an integer"),
    (ce(X, T, stats_of_ignored=1), TypeError, "stats_of_ignored is a int, expected True or False"),
    (ce(X, T, threads="all"), TypeError, "threads is a str, expected an integer"),
    (ce(X, T, statistics=3), TypeError, "statistics is 3, expected names"),
    (ce(X, T, gather=np.zeros((N, 2))), TypeError, "gather has dtype float64, expected integers"),
    (ce(X, T, grad=np.zeros((N, V))), TypeError, "grad has dtype float64, expected float32 as logits has it"),
    (ce(X, T, grad=3), TypeError, "grad has dtype int64, expected float32"),
    (lambda: xent.softmax(X, out=X.astype(np.float64)), TypeError, "out has dtype float64, expected float32 as x"),
    (lambda: xent.logsumexp(X, out=np.zeros(N)), TypeError, "out has dtype float64, expected float32"),
    (lambda: xent.exp(X.astype(np.float16)), TypeError, "x has dtype float16, expected float32 or float64"),
    (kl(X, T), TypeError, "teacher has dtype int64"),
    # shapes
    (ce(np.float32(1), T), ValueError, "logits has no dimension, expected one of classes"),
    (ce(X[:, :0], T), ValueError, r"logits has shape \(3, 0\), expected at least one class along axis 1"),
    (ce(X, T, axis=2), ValueError, r"axis is 2, expected -2 to 1 for logits of shape \(3, 5\)"),
    (ce(X, T, axis=-3), ValueError, "axis is -3, expected -2 to 1"),
    (ce(X, T[:2]), ValueError, r"targets has shape \(2,\), expected \(3,\): class indices, one for each row"),
    (ce(X, T[0]), ValueError, r"targets has shape \(\), expected \(3,\)"),
    (ce(X, Q[:, :4]), ValueError, r"targets has shape \(3, 4\), expected \(3, 5\): .* probabilities"),
    (ce(X, T.astype(np.float32)), ValueError, r"targets has shape \(3,\), expected \(3, 5\): .* probabilities"),
    (ce(X, T, class_weights=np.ones(4)), ValueError, r"class_weights has shape \(4,\), expected \(5,\)"),
    (ce(X, T, row_weights=np.ones(4)), ValueError, r"row_weights has shape \(4,\), expected \(3,\)"),
    (ce(X, T, grad=True, upstream=np.ones(4)), ValueError, r"upstream has shape \(4,\), expected \(3,\)"),
    (ce(X, T, grad=X[:2].copy()), ValueError, r"grad has shape \(2, 5\), expected \(3, 5\)"),
    (ce(X, T, grad=read_only()), ValueError, "grad is read-only, expected an array to write to"),
    (ce(X, T, gather=np.zeros((2, 2), int)), ValueError, r"gather has shape \(2, 2\), expected \(3, 2\)"),
    (ce(X, T, gather=0), ValueError, r"gather has shape \(\), expected \(3, 1\)"),
    (kl(X, X[:2]), ValueError, r"teacher has shape \(2, 5\), expected \(3, 5\)"),
    (bce(X, X[0]), ValueError, r"targets has shape \(5,\), expected \(3, 5\)"),
    (bce(X, Q, pos_weight=np.ones(3)), ValueError, r"pos_weight has shape \(3,\), expected \(5,\)"),
    (bce(X, Q, element_weights=np.ones(3)), ValueError, r"element_weights has shape \(3,\), expected \(3, 5\)"),
    (bce(X, Q, grad=True, upstream=Q[:, :4]), ValueError, r"upstream has shape \(3, 4\), expected \(3, 5\)"),
    (lambda: xent.softmax(X, out=read_only()), ValueError, "out is read-only"),
    (lambda: xent.softmax(X, out=X[:2].copy()), ValueError, r"out has shape \(2, 5\), expected \(3, 5\)"),
    (lambda: xent.logsumexp(X, keepdims=True, out=X[:, 0].copy()), ValueError, r"out has shape \(3,\), .* \(3, 1\)"),
    (lambda: xent.exp(X, out=X[:2].copy()), ValueError, r"out has shape \(2, 5\), expected \(3, 5\)"),
    # numbers
    (ce(X, np.array([0, 5, 2])), IndexError, r"targets: row 1 is 5, expected 0 <= target < 5 or ignore_index"),
    (ce(X, np.array([0, 1, -1], np.int8)), IndexError, "targets: row 2 is -1"),
    (ce(X, np.array([0, 4, 2]), valid_cols=4), IndexError, "targets: row 1 is 4, expected 0 <= target < 4"),
    (ce(X, np.array([0, 2**64 - 100, 1], np.uint64)), IndexError, "targets: row 1 is 18446744073709551516"),
    (ce(X, T, class_weights=nan_at(V, 3)), ValueError, "class_weights: column 3 is nan, expected a finite number"),
    (ce(X, T, row_weights=nan_at(N, 1, np.inf)), ValueError, "row_weights: row 1 is inf, expected a finite number"),
    (ce(X, T, row_weights=[1.0, 1e300, 1.0]), ValueError, "row_weights: row 1 is inf"),
    (ce(X, T, label_smoothing=1.5), ValueError, "label_smoothing is 1.5, expected"),
    (ce(X, T, label_smoothing=float("nan")), ValueError, "label_smoothing is nan"),
    (ce(X, T, smoothing="some"), ValueError, "smoothing is 'some', expected 'uniform' or 'exclusive'"),
    (ce(X[:, :1], [0] * N, label_smoothing=0.1, smoothing="exclusive"), ValueError, "exclusive"),
    (ce(X, T, z_loss=-1), ValueError, "z_loss is -1, expected"),
    (ce(X, T, softcap=-1), ValueError, "softcap is -1, expected"),
    (ce(X, T, logit_scale=0), ValueError, "logit_scale is 0, expected"),
    (ce(X, T, valid_cols=0), ValueError, "valid_cols is 0, expected 1 or more"),
    (ce(X, T, valid_cols=6), ValueError, "valid_cols is 6, expected"),
    (ce(X, T, ignore_index=2**70), ValueError, "ignore_index is 1180591620717411303424, expected a number of 64 bits"),
    (ce(X, T, reduction="max"), ValueError, "reduction is 'max', expected 'mean', 'sum' or 'none'"),
    (ce(X, T, reduction=0), ValueError, "reduction is 0, expected 'mean'"),
    (ce(X, T, empty_mean="one"), ValueError, "empty_mean is 'one', expected 'nan' or 'zero'"),
    (ce(X, T, divisor=0), ValueError, "divisor is 0, expected a finite number > 0"),
    (ce(X, T, divisor=float("inf")), ValueError, "divisor is inf"),
    (ce(X, T, statistics=["lse", "mode"]), ValueError, "statistics is 'mode', expected 'row_losses', .*'live_rows'"),
    (ce(X, T, top_k=0), ValueError, "top_k is 0, expected 1 to 64"),
    (ce(X, T, top_k=65), ValueError, "top_k is 65, expected 1 to 64"),
    (ce(X, T, top_k=6), ValueError, "top_k is 6, expected"),
    (ce(X, T, gather=[[0], [5], [0]]), ValueError, "gather_cols.* 5"),
    (ce(X, T, threads=-1), ValueError, "threads is -1, expected 0 to 256"),
    (ce(X, T, threads=1000), ValueError, "threads is 1000, expected 0 to 256"),
    (lambda: xent.set_num_threads(-1), ValueError, "threads is -1, expected 0 to 256"),
    (lambda: xent.softmax(X, threads=-1), ValueError, "threads is -1"),
    (lambda: xent.binary_cross_entropy(nan_at((2, 3), (1, 2), 1.5), np.ones((2, 3))), ValueError,
     "row 1, column 2 is 1.5"),
    (lambda: xent.sigmoid_focal_loss(X, Q, gamma=-1), ValueError, "focal_gamma is -1"),
    (lambda: xent.sigmoid_focal_loss(X, Q, alpha=-1), ValueError, "alpha is -1, expected 0 to 1 or None"),
    (lambda: xent.sigmoid_focal_loss(X, Q, alpha=2), ValueError, "focal_alpha is 2"),
    (kl(X, X, temperature=0), ValueError, "temperature is 0"),
    (kl(X, X, kind="js"), ValueError, "kind is 'js', expected 'forward', 'reverse' or 'cross_entropy'"),
    (lambda: xent.js_div(X, X, beta=1), ValueError, "beta is 1"),
    # what does not go together
    (ce(X, T, reduction="none", divisor=2), ValueError, "divisor and reduction 'none' do not go together"),
    (ce(X, T, target_grad=True), ValueError, "target_grad and class indices do not go together"),
    (ce(X, T, upstream=2.0), ValueError, "upstream"),
    (bce(X, Q, upstream=2.0), ValueError, "upstream"),
    (ce(X, Q, ignore_index=3), ValueError, "ignore_index and target_probs do not go together"),
    (ce(X, Q, statistics="rank"), ValueError, "statistics.rank and target_probs do not go together"),
    (ce(X, Q, label_smoothing=0.1, smoothing="exclusive"), ValueError, "exclusive smoothing and target_probs"),
]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("call, exception, message", CASES, ids=[case[2] for case in CASES])
def test_refusals(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_nothing_is_written():
    grad = np.full((N, V), 7, np.float32)
    x = X.copy()
    for call in (ce(x, np.array([0, 1, 9]), grad=grad), ce(x, np.array([0, 1, 9]), grad=x),
                 ce(x[:, ::2], np.array([0, 1, 9]), grad=grad[:, ::2])):
        with pytest.raises(IndexError):
            call()
    assert (grad == 7).all() and (x == X).all()


STRANGE = [None, True, 0, -1, 2**80, 1.5, float("nan"), "", "none", b"abcd", (), [], [[]], [1, [2]], {}, object(), X,
           X.T, X[0], X[:0], X[:, :0], T, T.astype(np.uint8), np.float16(2), np.zeros((1,) * 12, np.float32),
           np.zeros((2, 0, 3)), np.array("text"), np.array([None]), np.zeros(3, "i4,f4"), memoryview(b"1234"),
           np.broadcast_to(np.float32(1), (4, 5)), np.ma.masked_array(X, X > 1), np.datetime64("2000-01-01")]


def test_strange_arguments_raise_and_do_not_crash():
    functions = [getattr(xent, name) for name in xent.__all__ if getattr(getattr(xent, name), "__text_signature__", "")]
    accepted = 0
    for function in functions:
        names = [part.split("=")[0].strip() for part in function.__text_signature__.strip("()").split(",")]
        names = [name for name in names if name.isidentifier()]
        if not names:
            continue
        needed = 2 if names[1] in ("targets", "teacher") else 1
        for pair in itertools.product(STRANGE, repeat=needed):
            try:
                function(*pair)
                accepted += 1
            except (TypeError, ValueError, IndexError):
                pass
        good = {1: (X,), 2: (X, X if names[1] == "teacher" or "binary" in function.__name__ else T)}[needed]
        for name, value in itertools.product(names[needed:], STRANGE):
            if name in ("grad", "target_grad", "out") and isinstance(value, np.ndarray):
                value = value.copy()
            try:
                function(*good, **{name: value})
                accepted += 1
            except (TypeError, ValueError, IndexError):
                pass
    assert accepted > 100
