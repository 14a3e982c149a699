"""PyTorch's own sample inputs (torch.testing._internal, which ships with it) through xent.torch.

Each sample's result and gradients are compared with PyTorch's on the same numbers in float64.
`python python/tests/test_torch_opinfo.py` prints how many passed, failed and departed, and each
departure with its reason.
"""

import collections
import sys
import warnings

import pytest

torch = pytest.importorskip("torch")

import xent.torch as xt  # noqa: E402

try:
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
except ImportError as error:  # a package that PyTorch's own tests need is missing
    pytest.skip(f"torch.testing._internal: {error}", allow_module_level=True)

FUNCTIONS = {
    "nn.functional.cross_entropy": xt.cross_entropy,
    "softmax": xt.softmax,
    "log_softmax": xt.log_softmax,
    "logsumexp": xt.logsumexp,
    "nn.functional.binary_cross_entropy_with_logits": xt.binary_cross_entropy_with_logits,
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# One rounding of the result, two of the gradient; sums of large terms that cancel.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


def departure(error):
    """Why a sample may differ, or None."""
    text = str(error)
    if isinstance(error, TypeError) and "dtype torch.complex" in text:
        return "complex numbers are refused"
    if isinstance(error, TypeError) and ("dtype torch.int" in text or "dtype torch.bool" in text):
        return "integer inputs are refused"
    if isinstance(error, RuntimeError) and "requires a gradient, which xent does not compute" in text:
        return "weights receive no gradient"
    if "has nan where PyTorch has" in text or "PyTorch has nan where xent has" in text:
        return "0 times infinity is 0"
    return None


def tensors_of(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_of(v)]
    return []


def fresh(value, wide):
    if isinstance(value, torch.Tensor):
        copy = value.detach().clone()
        return (copy.double() if wide and copy.is_floating_point() else copy).requires_grad_(value.requires_grad)
    if isinstance(value, (tuple, list)):
        return type(value)(fresh(v, wide) for v in value)
    return torch.float64 if wide and isinstance(value, torch.dtype) else value


def outcome(f, input, args, kwargs, wide=False):
    """Result and gradients of f; wide: of the same numbers in float64."""
    input, args = fresh(input, wide), fresh(tuple(args), wide)
    kwargs = {k: fresh(v, wide) for k, v in kwargs.items()}
    result = f(input, *args, **kwargs)
    leaves = [t for t in tensors_of([input, args, list(kwargs.values())]) if t.requires_grad]
    grads = []
    if leaves and result.requires_grad:
        grads = torch.autograd.grad(result, leaves, torch.ones_like(result), allow_unused=True)
    return [result, *grads]


def differ(got, theirs, exact, dtype):
    """Compares shapes and dtypes with PyTorch's results, and values with its results in float64."""
    for g, t, w in zip(got, theirs, exact):
        if (g is None) != (t is None):
            raise AssertionError(f"gradient is {g}, PyTorch's {t}")
        if g is None:
            continue
        if g.shape != t.shape or g.dtype != t.dtype:
            raise AssertionError(f"{g.dtype} {list(g.shape)}, PyTorch's {t.dtype} {list(t.shape)}")
        if bool((w.isnan() & ~g.isnan()).any()):
            raise AssertionError("PyTorch has nan where xent has none")
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(g.double(), w, rtol=tolerance, atol=tolerance, equal_nan=True)


def samples_of(name, dtype):
    for op in op_db:
        if op.name == name and dtype in op.dtypes:
            for sample in op.sample_inputs("cpu", dtype, requires_grad=True):
                yield op, sample


def run(name, dtype):
    """(passed, failures, departures) over the samples of an operator."""
    passed, failures, departures = 0, [], collections.Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op, sample in samples_of(name, dtype):
            theirs, exact = (outcome(op.op, sample.input, sample.args, sample.kwargs, wide) for wide in (False, True))
            try:
                differ(outcome(FUNCTIONS[name], sample.input, sample.args, sample.kwargs), theirs, exact, dtype)
                passed += 1
            except Exception as error:  # whatever it is, it is what this script reports
                reason = departure(error)
                if reason is None:
                    failures.append(f"{sample}: {type(error).__name__}: {error}")
                else:
                    departures[reason] += 1
    return passed, failures, departures


def run_module(dtype):
    """The samples of torch.nn.CrossEntropyLoss through xent.torch.CrossEntropyLoss."""
    passed, failures, departures = 0, [], collections.Counter()
    info = next(m for m in module_db if m.module_cls is torch.nn.CrossEntropyLoss)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sample in info.module_inputs_func(info, "cpu", dtype, requires_grad=True, training=True):
            made, called = sample.constructor_input, sample.forward_input
            module = torch.nn.CrossEntropyLoss(*made.args, **made.kwargs)
            theirs = outcome(module, called.args[0], called.args[1:], called.kwargs)
            exact = outcome(module.double(), called.args[0], called.args[1:], called.kwargs, True)
            try:
                ours = xt.CrossEntropyLoss(*made.args, **made.kwargs)
                differ(outcome(ours, called.args[0], called.args[1:], called.kwargs), theirs, exact, dtype)
                passed += 1
            except Exception as error:
                reason = departure(error)
                if reason is None:
                    failures.append(f"{sample.desc}: {type(error).__name__}: {error}")
                else:
                    departures[reason] += 1
    return passed, failures, departures


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_samples(name, dtype):
    passed, failures, _ = run(name, dtype)
    assert not failures, failures[0]
    assert passed > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_module_samples(dtype):
    passed, failures, _ = run_module(dtype)
    assert not failures, failures[0]
    assert passed > 0


def main():
    bad = 0
    for name in [*FUNCTIONS, "CrossEntropyLoss (module)"]:
        for dtype in DTYPES:
            passed, failures, departures = run(name, dtype) if name in FUNCTIONS else run_module(dtype)
            bad += len(failures)
            print(f"{name:48} {str(dtype)[6:]:9} passed {passed:4}  failed {len(failures):3}  "
                  f"departed {sum(departures.values()):3}")
            for failure in failures:
                print("    failed:", failure[:1500])
            for reason, count in departures.items():
                print(f"    departed: {count} times: {reason}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
