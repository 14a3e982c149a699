// Docstrings of the functions on arrays. The first line is the signature, as inspect reads it. What holds for all of
// them is said once, in xent/__init__.py. The tests run the examples.
#pragma once

namespace xent_python::docs {

inline constexpr char kCrossEntropy[] =
    R"(cross_entropy(logits, targets, *, axis=-1, class_weights=None, row_weights=None, ignore_index=-100,
    label_smoothing=0.0, smoothing='uniform', z_loss=0.0, softcap=0.0, logit_scale=1.0, valid_cols=None,
    reduction='mean', divisor=None, empty_mean='nan', grad=False, target_grad=False, upstream=None, statistics=(),
    top_k=None, gather=None, stats_of_ignored=False, threads=0)
--

Cross-entropy of softmax(logits) and targets, with its gradient on request.

The loss of a row with the target t, class weights w, row weight r and label smoothing e is

    r * (sum_c w[c] * q[c] * (lse - z[c]) + z_loss * lse**2),

where z is logit_scale * logits, or softcap * tanh(logit_scale * logits / softcap) with a softcap > 0,
lse = log(sum(exp(z))), and q the one-hot of t with e spread over all V classes (smoothing 'uniform') or over
the V - 1 others ('exclusive'). It is within 4 ULP of the exact value, however small.

Args:
    logits: array [..., V, ...]; the classes lie along ``axis``, every other position is a row.
    targets: class indices of any integer dtype or bool in the shape of logits without ``axis``, or
        probabilities of a float dtype in the shape of logits. int32 and int64 are read where they lie, other
        integers are converted once.
    axis: the axis of the classes.
    class_weights: [V]; row_weights: in the shape of the rows. Finite; converted to the loss's dtype.
    ignore_index: rows with this target have loss 0 and gradient 0, and do not count.
    label_smoothing: e in [0, 1]. smoothing: 'uniform' or 'exclusive'.
    z_loss, softcap, logit_scale: as in the formula; a temperature T is the scale 1 / T.
    valid_cols: classes from here on are padding: never read, gradient 0. None: all are valid.
    reduction: 'mean' (over the sum of r * w[t] of the rows that count; with probabilities over the number of
        rows), 'sum' or 'none'.
    divisor: the sum over it replaces sum and mean.
    empty_mean: the mean over nothing, 'nan' or 'zero'.
    grad: True returns the gradient for logits as a new array; an array is written to, and may be logits itself.
    target_grad: the same for targets that are probabilities.
    upstream: the gradient of what follows, a number or one for each row; the gradients are multiplied by it.
    statistics: names of row statistics of z: 'row_losses', 'lse', 'logprobs' (of the targets), 'argmax', 'hits'
        (argmax is the target), 'rank' (of the target, from 0), 'entropy', 'perplexity', 'live_rows'.
    top_k: 1 to 64: the log-probabilities and indices of the k largest.
    gather: integers [..., K]: columns of each row whose log-probabilities are wanted.
    stats_of_ignored: ignored rows have the statistics that need no target, else 0 and -1.
    threads: 0 for :func:`get_num_threads`.

Returns:
    The loss: a scalar, or for 'none' an array of the rows' shape. float32, for float64 logits float64.
    With ``grad`` the tuple (loss, gradient). With statistics, ``top_k``, ``gather`` or ``target_grad`` a
    :class:`CrossEntropyResult`, whose fields are None where they were not asked for.

Raises:
    ValueError: a shape does not fit, an option is out of range, a weight is not finite, two options do not go
        together, an array to write to is read-only.
    IndexError: a target is neither a class nor ignore_index; the message has the row and the value.
    TypeError: an argument is of the wrong type or dtype.

Example:
    >>> logits = np.array([[2.0, 1.2, 0.3, -0.8, -2.0]], np.float32)
    >>> loss, grad = xent.cross_entropy(logits, [0], grad=True)
    >>> print(loss.round(4), grad.round(4))
    0.5372 [[-0.4156  0.2626  0.1068  0.0355  0.0107]]
    >>> result = xent.cross_entropy(logits, [1], statistics=["rank", "argmax"], top_k=2)
    >>> print(result.rank, result.argmax, result.topk_indices)
    [1] [0] [[0 1]]
)";

inline constexpr char kScore[] =
    R"(score(logits, targets, *, axis=-1, ignore_index=-100, logit_scale=1.0, softcap=0.0, valid_cols=None, threads=0)
--

Log-probability, entropy, rank and argmax of each row, and the perplexity of all: how well a model foretells.

With z the logits after scale and softcap and lse = log(sum(exp(z))): logprobs = z[t] - lse, entropy =
lse - sum(p * z), rank = the number of classes before the target (0: it is the best), perplexity =
exp(-mean(logprobs)).

Args:
    logits: array [..., V, ...].
    targets: class indices in the shape of logits without ``axis``. Rows of ignore_index have 0, 0, -1 and -1, and
        do not count.
    axis, ignore_index, logit_scale, softcap, valid_cols, threads: as :func:`cross_entropy` has them.

Returns:
    :class:`Scores` (logprobs, entropy, rank, argmax, perplexity, live_rows).

Raises:
    ValueError, IndexError, TypeError: as :func:`cross_entropy`.

Example:
    >>> scores = xent.score(np.zeros((2, 4), np.float32), [0, 3])
    >>> print(scores.rank, scores.perplexity.round(6), scores.live_rows)
    [0 3] 4.0 2
)";

inline constexpr char kSoftmax[] =
    R"(softmax(x, axis=-1, *, out=None, threads=0)
--

exp(x) / sum(exp(x)) along an axis, within 6 ULP of the exact value in the far tail too.

Args:
    x: array [..., V, ...].
    axis: the axis of the sum.
    out: an array of x's shape and dtype to write to; it may be x.
    threads: 0 for :func:`get_num_threads`.

Returns:
    An array of x's shape and dtype, or out. Rows of -inf, or with +inf or NaN, are NaN.

Raises:
    ValueError: a shape does not fit, or out is read-only.
    TypeError: a dtype is none of the four, or out has another than x.

Example:
    >>> xent.softmax(np.array([2.0, 1.0, 0.1])).round(4)
    array([0.659 , 0.2424, 0.0986])
)";

inline constexpr char kLogSoftmax[] =
    R"(log_softmax(x, axis=-1, *, out=None, threads=0)
--

x - log(sum(exp(x))) along an axis, within 4 ULP of the exact value, near 0 too.

Args:
    x: array [..., V, ...].
    axis: the axis of the sum.
    out: an array of x's shape and dtype to write to; it may be x.
    threads: 0 for :func:`get_num_threads`.

Returns:
    An array of x's shape and dtype, or out. Rows of -inf, or with +inf or NaN, are NaN.

Raises:
    ValueError: a shape does not fit, or out is read-only.
    TypeError: a dtype is none of the four, or out has another than x.

Example:
    >>> xent.log_softmax(np.array([2.0, 1.0, 0.1])).round(4)
    array([-0.417, -1.417, -2.317])
)";

inline constexpr char kLogSumExp[] =
    R"(logsumexp(x, axis=-1, *, keepdims=False, out=None, threads=0)
--

log(sum(exp(x))) along an axis, within 4 ULP of the larger of max(abs(x)) and log(V).

Args:
    x: array [..., V, ...].
    axis: the axis of the sum.
    keepdims: the axis stays, with one element.
    out: an array of the result's shape and dtype to write to.
    threads: 0 for :func:`get_num_threads`.

Returns:
    An array of x's shape without the axis, or out; float32, for float64 float64. A row of -inf gives -inf, one with
    +inf gives +inf, one with NaN gives NaN.

Raises:
    ValueError: a shape does not fit, or out is read-only.
    TypeError: a dtype is none of the four, or out's is not the result's.

Example:
    >>> xent.logsumexp(np.zeros((2, 5))).round(4)
    array([1.6094, 1.6094])
)";

inline constexpr char kCheckLogits[] =
    R"(check_logits(logits, *, axis=-1, threads=0)
--

What a batch of supposed logits looks like: 'logits', 'probabilities' or 'log_probabilities'.

Probabilities where logits belong (softmax twice) do not fail, they train slowly. They are told by values in [0, 1] and
rows whose sum is within 1e-3 of 1 (bfloat16: 2**-7); log-probabilities by a logsumexp that near 0.

Args:
    logits: array [..., V, ...].
    axis: the axis of the classes.
    threads: 0 for :func:`get_num_threads`.

Raises:
    ValueError, TypeError: as :func:`softmax`.

Example:
    >>> xent.check_logits(xent.softmax(np.array([[2.0, 1.0, 0.1]])))
    'probabilities'
)";

#define XENT_PYTHON_ELEMENTS_DOC(name, formula, special, example)                                       \
  name "(x, *, out=None)\n--\n\n" formula                                                               \
       " of each element, within 1 ULP.\n\n"                                                            \
       "Args:\n"                                                                                        \
       "    x: array of float32 or float64, of any shape; one that is not contiguous is copied once.\n" \
       "    out: an array of x's shape and dtype to write to; it may be x.\n\n"                         \
       "Returns:\n"                                                                                     \
       "    An array of x's shape and dtype, or out. " special                                          \
       "\n\n"                                                                                           \
       "Raises:\n"                                                                                      \
       "    ValueError: out has another shape or is read-only.\n"                                       \
       "    TypeError: x is of another dtype, or out has not x's.\n\n"                                  \
       "Example:\n" example

inline constexpr char kExp[] = XENT_PYTHON_ELEMENTS_DOC("exp", "exp(x)", "Beyond the largest number: inf.",
                                                        "    >>> xent.exp(np.array([0.0, -np.inf]))\n"
                                                        "    array([1., 0.])\n");
inline constexpr char kLog[] = XENT_PYTHON_ELEMENTS_DOC("log", "log(x)", "At 0: -inf; below: NaN.",
                                                        "    >>> xent.log(np.array([1.0, 0.0]))\n"
                                                        "    array([  0., -inf])\n");
inline constexpr char kLog1p[] = XENT_PYTHON_ELEMENTS_DOC("log1p", "log(1 + x)", "At -1: -inf; below: NaN.",
                                                          "    >>> xent.log1p(np.array([0.0, -1.0]))\n"
                                                          "    array([  0., -inf])\n");

inline constexpr char kBinaryCrossEntropyWithLogits[] =
    R"(binary_cross_entropy_with_logits(logits, targets, *, axis=-1, pos_weight=None, class_weights=None,
    row_weights=None, element_weights=None, reduction='mean', divisor=None, empty_mean='nan', grad=False,
    target_grad=False, upstream=None, threads=0)
--

Binary cross-entropy of sigmoid(logits) and targets y, with its gradients on request.

The loss of an element is w * ((1 - y) * softplus(z) + pos_weight * y * softplus(-z)), with w the product of its
element's, row's and class's weight, within 4 ULP of the sum of the terms' magnitudes.

Args:
    logits: array of any shape.
    targets: array of the same shape and any dtype; integers and bools are converted once.
    axis: the axis of the classes, along which pos_weight and class_weights lie.
    pos_weight, class_weights: [V]; row_weights: the shape of logits without ``axis``; element_weights: that of
        logits. Finite; converted to the loss's dtype.
    reduction: 'mean' over the elements, 'sum' or 'none'. divisor, empty_mean: as :func:`cross_entropy` has them.
    grad: True returns the gradient for logits as a new array; an array is written to, and may be logits itself.
    target_grad: the same for targets.
    upstream: the gradient of what follows: a number, one for each row or one for each element.
    threads: 0 for :func:`get_num_threads`.

Returns:
    The loss; with ``grad`` the tuple (loss, gradient), with ``target_grad`` a :class:`BinaryCrossEntropyResult`.

Raises:
    ValueError: a shape does not fit, an option is out of range, a weight is not finite.
    TypeError: an argument is of the wrong type or dtype.

Example:
    >>> loss, grad = xent.binary_cross_entropy_with_logits(np.array([0.0, 2.0]), [1, 0], grad=True)
    >>> print(loss.round(4), grad.round(4))
    1.41 [-0.25    0.4404]
)";

inline constexpr char kBinaryCrossEntropy[] =
    R"(binary_cross_entropy(probabilities, targets, *, axis=-1, class_weights=None, row_weights=None,
    element_weights=None, reduction='mean', divisor=None, empty_mean='nan', grad=False, target_grad=False,
    upstream=None, threads=0)
--

Binary cross-entropy of probabilities p and targets y: -w * (y * log(p) + (1 - y) * log(1 - p)).

Each logarithm is at least -100, as PyTorch has it. From logits :func:`binary_cross_entropy_with_logits` is exact where
p is near 0 and 1.

Args:
    probabilities: array of any shape, with values in [0, 1].
    targets, ...: as :func:`binary_cross_entropy_with_logits` has them.

Returns:
    The loss; with ``grad`` the tuple (loss, gradient), with ``target_grad`` a :class:`BinaryCrossEntropyResult`.

Raises:
    ValueError: a probability is outside [0, 1] or NaN (row, column and value), a shape does not fit, an option is out
        of range.
    TypeError: an argument is of the wrong type or dtype.

Example:
    >>> xent.binary_cross_entropy(np.array([0.7, 0.99, 0.01]), np.ones(3), reduction="none").round(4)
    array([0.3567, 0.0101, 4.6052])
)";

inline constexpr char kSigmoidFocalLoss[] =
    R"(sigmoid_focal_loss(logits, targets, *, gamma=2.0, alpha=0.25, axis=-1, pos_weight=None, class_weights=None,
    row_weights=None, element_weights=None, reduction='mean', divisor=None, empty_mean='nan', grad=False,
    target_grad=False, upstream=None, threads=0)
--

Focal loss: w * a * (1 - p)**gamma * bce, where p is the probability of the target.

With s = sigmoid(logits): p = y * s + (1 - y) * (1 - s), a = alpha * y + (1 - alpha) * (1 - y), and bce the loss of
:func:`binary_cross_entropy_with_logits`. Within 16 ULP of the sum of the terms' magnitudes.

Args:
    logits, targets, ...: as :func:`binary_cross_entropy_with_logits` has them.
    gamma: finite, >= 0.
    alpha: in [0, 1]; None: a = 1.

Returns:
    The loss; with ``grad`` the tuple (loss, gradient), with ``target_grad`` a :class:`BinaryCrossEntropyResult`.

Raises:
    ValueError, TypeError: as :func:`binary_cross_entropy_with_logits`.

Example:
    >>> xent.sigmoid_focal_loss(np.array([0.0, 2.0]), [1, 1], reduction="none").round(4)
    array([0.0433, 0.0005])
)";

inline constexpr char kKlDiv[] =
    R"(kl_div(student, teacher, *, kind='forward', temperature=1.0, axis=-1, row_weights=None, valid_cols=None,
    reduction='mean', divisor=None, empty_mean='nan', grad=False, upstream=None, threads=0)
--

Kullback-Leibler divergence between two arrays of logits; neither softmax is stored.

With q = softmax(student / temperature) and p = softmax(teacher / temperature) a row's loss is sum(p * log(p / q))
('forward'), sum(q * log(q / p)) ('reverse') or -sum(p * log(q)) ('cross_entropy'). There is no factor
temperature**2: upstream or row_weights carry it.

Args:
    student, teacher: arrays of one shape [..., V, ...], each of any of the four dtypes.
    axis: the axis of the classes.
    row_weights: the shape of the rows. valid_cols: classes from here on are padding.
    reduction: 'mean' over the rows, 'sum' or 'none'. divisor, empty_mean: as :func:`cross_entropy` has them.
    grad: True returns the gradient for student as a new array; an array is written to, and may be student itself.
    upstream: the gradient of what follows: a number, or one for each row.
    threads: 0 for :func:`get_num_threads`.

Returns:
    The loss, of the student's arithmetic type; with ``grad`` the tuple (loss, gradient).

Raises:
    ValueError: a shape does not fit, an option is out of range, a weight is not finite.
    TypeError: an argument is of the wrong type or dtype.

Example:
    >>> student, teacher = np.array([[0.0, 0.0]]), np.log([[0.25, 0.75]])
    >>> print(xent.kl_div(student, teacher).round(4), xent.kl_div(student, teacher, kind="reverse").round(4))
    0.1308 0.1438
)";

inline constexpr char kJsDiv[] =
    R"(js_div(student, teacher, *, beta=0.5, temperature=1.0, axis=-1, row_weights=None, valid_cols=None,
    reduction='mean', divisor=None, empty_mean='nan', grad=False, upstream=None, threads=0)
--

Generalised Jensen-Shannon divergence between two arrays of logits.

With q and p as :func:`kl_div` has them and m = beta * p + (1 - beta) * q a row's loss is
beta * sum(p * log(p / m)) + (1 - beta) * sum(q * log(q / m)).

Args:
    student, teacher, ...: as :func:`kl_div` has them.
    beta: in (0, 1).

Returns:
    The loss, of the student's arithmetic type; with ``grad`` the tuple (loss, gradient).

Raises:
    ValueError, TypeError: as :func:`kl_div`.

Example:
    >>> print(xent.js_div(np.array([[0.0, 0.0]]), np.log([[0.25, 0.75]])).round(4))
    0.0338
)";

inline constexpr char kInfo[] =
    R"(info()
--

The library: its version, the SIMD target that calls run on and those there are, the threads of a large call, whether
they are an OpenMP team, and Highway's version. unknown_max_target is XENT_MAX_TARGET where it was not understood.

Example:
    >>> xent.info()["version"] == xent.__version__
    True
)";

}  // namespace xent_python::docs
