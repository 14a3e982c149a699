"""Bounds of include/xent/xent.h for comparisons with PyTorch's float64 results, and inputs. Not a test itself."""

import torch

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Relative error of one rounding to nearest.
ROUNDING = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def ulp(v, dtype):
    """Spacing of the arithmetic type's numbers at |v|, as float64."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    v = v.double().abs().to(wide)
    return torch.nextafter(v, torch.full_like(v, float("inf"))).double() - v.double()


def assert_close(actual, exact, ulps, dtype, magnitude=None, roundings=1, logits=None):
    """|actual - exact| within `ulps` of the arithmetic type at `magnitude` (default: the exact value), and then, in
    half precision, `roundings` of the output. PyTorch's float64 adds what its differences of logits lose.
    """
    assert actual.shape == exact.shape, (actual.shape, exact.shape)
    exact = exact.detach().double()
    magnitude = exact if magnitude is None else magnitude.detach().double()
    bound = ulps * ulp(magnitude, dtype)
    if actual.dtype in (torch.bfloat16, torch.float16):
        smallest = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
        bound = (bound + roundings * (ROUNDING[actual.dtype] * exact.abs() + smallest / 2)) * (1 + 2.0**-7)
    largest = 1.0 if logits is None else max(1.0, logits.detach().double().abs().max().item())
    bound = bound + 64 * 2.0**-53 * largest
    error = (actual.detach().double() - exact).abs()
    same = (actual.detach().double() == exact) | (actual.isnan() & exact.isnan())
    bad = ~((error <= bound) | same)
    if bad.any():
        worst = torch.where(bad, error / bound, torch.zeros_like(error)).flatten().argmax()
        raise AssertionError(f"{actual.dtype} {list(actual.shape)} element {worst.item()}: got "
                             f"{actual.flatten()[worst].item()!r}, want {exact.flatten()[worst].item()!r}, "
                             f"error {error.flatten()[worst].item():.3g}, allowed {bound.flatten()[worst].item():.3g}")


def logits(shape, dtype=torch.float32, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def class_dim(shape):
    return 0 if len(shape) == 1 else 1


def indices(shape, seed=1):
    """Targets for logits of this shape."""
    dim = class_dim(shape)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, shape[dim], shape[:dim] + shape[dim + 1 :], generator=generator)


def probabilities(shape, dtype=torch.float32, seed=2):
    return torch.softmax(logits(shape, torch.float64, seed), class_dim(shape)).to(dtype)
