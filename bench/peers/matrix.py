#!/usr/bin/env python3
"""Times every case of xent beside what people call instead: options, layouts, row functions, dtypes, in one run.

A case is a function of logits [N, C] or [N, C, positions...] with its classes in axis 1. xent and all peers read
the same NumPy buffers and are timed in the same rounds, one after the other. A process has one setting of threads, SIMD
target and malloc ("tuned": glibc keeps its pages). Before that every result is compared with float64; a wrong one is
not timed.
One thread is timed by the CPU time of the process, which other processes do not count in; more by the wall clock.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import capi
from capi import Array, init, matrix, pointer
from peers import ONE_THREAD, ROOT, TUNED_MALLOC, aligned, version

Shape = tuple[int, ...]
SHAPES: list[Shape] = [
    (65536, 2),
    (65536, 3),
    (65536, 10),
    (65536, 16),
    (65536, 64),
    (65536, 100),
    (8192, 1000),
    (1024, 32000),
    (512, 128256),
    (8, 2, 256, 256),
    (4, 19, 256, 256),
    (8, 21, 64, 64),
    (2, 150, 128, 128),
    (64, 1000, 7, 7),
    (32, 81, 8732),
]
QUICK_SHAPES: list[Shape] = [(65536, 10), (1024, 32000), (4, 19, 256, 256), (8, 2, 256, 256)]
BINARY_SHAPE: Shape = (1000000, 1)
ARRAY_SHAPE: Shape = (1 << 22, 1)

ROUNDS, LEAST_ROUNDS, ENOUGH = 5, 3, 0.3  # fewer rounds where these seconds are spent
SLICE = 0.01  # seconds that one side has of a round, or one call


@dataclass(frozen=True)
class Case:
    name: str
    family: str  # what computes it: loss, statistics, row, backward, divergence, binary or array
    options: dict[str, float] = field(default_factory=dict)  # by their names in xent.h
    inputs: tuple[str, ...] = ()  # beside the logits
    terms: int = 1  # magnitudes of the terms that the result is a sum of, over the result

    @property
    def has_backward(self) -> bool:
        return self.family in ("loss", "divergence", "binary")


# Two normal rows differ by 1 or 2 a column, their log-probabilities are up to 20: hence 32 for the divergences. The
# backwards' sums of normal numbers cancel.
MATRIX_CASES = [
    Case("plain", "loss", inputs=("t",)),
    Case("smoothing", "loss", {"label_smoothing": 0.1}, ("t",)),
    Case("weights + smoothing", "loss", {"label_smoothing": 0.1}, ("t", "weights")),
    Case("probability targets", "loss", inputs=("probs",)),
    Case("softcap", "loss", {"softcap": 30}, ("t",)),
    Case("logit_scale", "loss", {"logit_scale": 0.5}, ("t",)),
    Case("z-loss", "loss", {"z_loss": 1e-4}, ("t",)),
    Case("logprob + entropy + argmax", "statistics", inputs=("t",)),
    Case("softmax", "row"),
    Case("log_softmax", "row"),
    Case("logsumexp", "row"),
    Case("softmax, backward", "backward", inputs=("g", "probs"), terms=8),
    Case("log_softmax, backward", "backward", inputs=("g", "log_probs"), terms=8),
    Case("KL, T = 2", "divergence", {"temperature": 2}, ("teacher",), 32),
    Case("Jensen-Shannon", "divergence", {"kind": 2}, ("teacher",), 32),
]
BINARY_CASES = [
    Case("BCE", "binary", inputs=("y",)),
    Case("BCE, pos_weight", "binary", inputs=("y", "pos_weight")),
    Case("BCE, focal", "binary", {"focal_gamma": 2, "focal_alpha": 0.25}, ("y",)),
]
ARRAY_CASES = [
    Case("exp", "array"),
    Case("log", "array", inputs=("positive",)),
    Case("log1p", "array", inputs=("positive",)),
]


# ---------------------------------------------------------------- inputs and outputs


DTYPES: dict[str, tuple[Any, int]] = {"f32": (np.float32, capi.F32), "bf16": (ml_dtypes.bfloat16, capi.BF16)}
PER_ITEM = ("z", "t", "probs", "log_probs", "teacher", "g", "y", "positive")  # the others belong to classes


class Problem:
    """Normal logits of deviation 2, what the cases need beside them, and buffers for xent's results."""

    def __init__(self, shape: Shape, dtype: str) -> None:
        self.shape, self.dtype = shape, dtype
        self.numpy_dtype, self.code = DTYPES[dtype]
        self.items, self.cols, self.inner = shape[0], shape[1], math.prod(shape[2:])
        self.rows = self.items * self.inner
        self.random = np.random.default_rng(1)
        self.z = self.normal(2)
        self.ends = min(self.items, max(1, (1 << 16) // math.prod(shape[1:])))  # items compared at either end
        self.loss = aligned(1)

    def buffer(self, dtype: Any = None) -> Array:
        count = math.prod(self.shape)
        numbers: Array = aligned(count).view(dtype or self.numpy_dtype)[:count].reshape(self.shape)
        return numbers

    def normal(self, deviation: float) -> Array:
        z = self.buffer()
        for item in z:
            item[...] = self.random.standard_normal(item.shape, np.float32) * np.float32(deviation)
        return z

    @cached_property
    def t(self) -> Array:
        return self.random.integers(0, self.cols, (self.items, *self.shape[2:]), dtype=np.int64)

    @cached_property
    def probs(self) -> Array:
        p = self.buffer()
        for item in p:
            e = np.exp(self.random.standard_normal(item.shape, np.float32))
            item[...] = e / e.sum(axis=0)
        return p

    @cached_property
    def log_probs(self) -> Array:
        p = self.buffer()
        p[...] = np.log(self.probs)
        return p

    @cached_property
    def g(self) -> Array:
        return self.normal(1)

    @cached_property
    def weights(self) -> Array:
        """From 1/2 to 2; numbers of bfloat16, which PyTorch wants beside such logits."""
        w = np.exp2(self.random.uniform(-1, 1, self.cols))
        return np.asarray(w.astype(ml_dtypes.bfloat16).astype(np.float32))

    @cached_property
    def teacher(self) -> Array:
        return self.normal(2)

    @cached_property
    def y(self) -> Array:
        y = self.buffer()
        y[...] = self.random.integers(0, 2, self.shape)
        return y

    @cached_property
    def pos_weight(self) -> Array:
        return np.full(self.cols, 3, np.float32)

    @cached_property
    def positive(self) -> Array:
        y = self.buffer()
        y[...] = np.exp(self.z)
        return y

    @cached_property
    def out(self) -> Array:
        return self.buffer()

    @cached_property
    def row_results(self) -> tuple[Array, Array, Array]:
        """Of logsumexp, or logprob, entropy and argmax."""
        shape = self.t.shape
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int64)


# ---------------------------------------------------------------- xent


Run = Callable[[], Any]


class Xent:
    def __init__(self, path: Path, threads: int) -> None:
        self.library = capi.load(path)
        self.threads = threads
        self.execution = init(capi.Exec, threads=threads)
        self.error = init(capi.Error)

    def bind(self, case: Case, both: bool, p: Problem) -> tuple[Run, list[Array]]:
        """The call, and where its results are."""
        last = (ctypes.byref(self.execution), ctypes.byref(self.error))
        if case.family in ("array", "row", "backward"):
            return self.direct(case, p, last)
        function, args, options = self.structs(case, "forward_backward" if both else "forward", p)
        results: list[Array] = [p.loss.reshape(())]
        keep: list[Any] = []  # what `args` points to
        if case.family == "statistics":
            logprobs, entropy, argmax = results = list(p.row_results)
            wanted = init(capi.Statistics, logprobs=pointer(logprobs), entropy=pointer(entropy), argmax=pointer(argmax))
            args.statistics = ctypes.pointer(wanted)
            keep.append(wanted)
        else:
            args.reduced_loss = pointer(p.loss)
        if both:
            args.grad = matrix(p.out, p.code)
            results.append(p.out)
        if both and case.family == "loss":
            workspace = aligned(int(self.library.xent_workspace_bytes(p.cols, p.code, self.threads)) // 4 + 1)
            args.workspace, args.workspace_bytes = pointer(workspace), workspace.nbytes
            keep.append(workspace)
        given = ctypes.byref(options) if case.options else None

        def run(_: object = keep) -> None:
            self.check(function(ctypes.byref(args), given, *last))

        return run, results

    def direct(self, case: Case, p: Problem, last: tuple[Any, ...]) -> tuple[Run, list[Array]]:
        """The functions without structs."""
        out, result = matrix(p.out, p.code), p.out
        name = case.name.replace(", ", "_")
        call: tuple[Any, ...]
        if case.family == "array":
            name += "_f32"
            call = (pointer(p.positive if case.inputs else p.z), pointer(p.out), p.z.size)
        else:
            call = (p.rows, p.cols, p.inner)
            call += tuple(matrix(getattr(p, name), p.code) for name in case.inputs or ("z",))
            if case.name == "logsumexp":
                result = p.row_results[0]
            call += (pointer(result) if case.name == "logsumexp" else out, *last)
        function = getattr(self.library, f"xent_{name}")
        return lambda: self.check(function(*call)), [result]

    def structs(self, case: Case, suffix: str, p: Problem) -> tuple[Any, Any, Any]:
        """The function, its inputs and its options."""
        z, size = matrix(p.z, p.code), {"rows": p.rows, "cols": p.cols, "inner": p.inner}
        args: Any
        options: Any
        if case.family == "divergence":
            name, options = "divergence", init(capi.DivergenceOptions, **case.options)
            args = init(capi.Divergence, **size, student=z, teacher=matrix(p.teacher, p.code))
        elif case.family == "binary":
            name, options = "binary_cross_entropy", init(capi.BinaryOptions, **case.options)
            args = init(capi.Binary, **size, input=z, targets=matrix(p.y, p.code))
            if "pos_weight" in case.inputs:
                args.pos_weight = pointer(p.pos_weight)
        else:
            name, options = "cross_entropy", init(capi.CrossEntropyOptions, **case.options)
            args = init(capi.CrossEntropy, **size, logits=z)
            if "t" in case.inputs:
                args.targets = capi.Targets(data=pointer(p.t), type=capi.I64)
            if "probs" in case.inputs:
                args.target_probs = matrix(p.probs, p.code)
            if "weights" in case.inputs:
                args.class_weights = pointer(p.weights)
        return getattr(self.library, f"xent_{name}_{suffix}"), args, options

    def check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"xent: {self.error.message.decode()}")


# ---------------------------------------------------------------- peers, as their users write them


@dataclass
class Call:
    source: str
    run: Run  # returns its results


def as_torch(a: Array) -> Any:
    import torch

    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def torch_inputs(case: Case, p: Problem) -> dict[str, Any]:
    x = {name: as_torch(getattr(p, name)) for name in case.inputs}
    for name in {"weights", "pos_weight"} & x.keys():
        x[name] = x[name].to(as_torch(p.z).dtype)
    return x


def torch_function(case: Case) -> Callable[..., Any]:
    """The case as a function of logits, other inputs and a reduction, "mean" or "sum"; row functions reduce nothing."""
    import torch
    import torch.nn.functional as F

    option = case.options.get

    def loss(z: Any, x: dict[str, Any], reduction: str = "mean") -> Any:
        if "logit_scale" in case.options:
            z = z * option("logit_scale")
        if cap := option("softcap"):
            z = cap * torch.tanh(z / cap)
        target = x["probs"] if "probs" in case.inputs else x["t"]
        smoothing = option("label_smoothing", 0.0)
        value = F.cross_entropy(z, target, weight=x.get("weights"), label_smoothing=smoothing, reduction=reduction)
        if factor := option("z_loss"):
            squares = torch.logsumexp(z, 1).square()
            value = value + factor * (squares.mean() if reduction == "mean" else squares.sum())
        return value

    def row_statistics(z: Any, x: dict[str, Any], _: str = "") -> Any:
        log_p = F.log_softmax(z, 1)
        entropy = -(log_p.exp() * log_p).sum(1)
        return log_p.gather(1, x["t"].unsqueeze(1)).squeeze(1), entropy, z.argmax(1)

    def divergence(z: Any, x: dict[str, Any], reduction: str = "mean") -> Any:
        temperature = option("temperature", 1)
        log_q, log_p = F.log_softmax(z / temperature, 1), F.log_softmax(x["teacher"] / temperature, 1)
        if option("kind"):
            log_m = torch.logaddexp(log_p, log_q) - math.log(2)
            total = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
            total = (total + F.kl_div(log_m, log_q, reduction="sum", log_target=True)) / 2
        else:
            total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return total / (z.numel() // z.shape[1]) if reduction == "mean" else total

    def binary(z: Any, x: dict[str, Any], reduction: str = "mean") -> Any:
        y, gamma, alpha = x["y"], option("focal_gamma"), option("focal_alpha", 0)
        if gamma is None:
            return F.binary_cross_entropy_with_logits(z, y, pos_weight=x.get("pos_weight"), reduction=reduction)
        p = torch.sigmoid(z)
        p_y = p * y + (1 - p) * (1 - y)
        value = F.binary_cross_entropy_with_logits(z, y, reduction="none") * (1 - p_y) ** gamma
        value = (alpha * y + (1 - alpha) * (1 - y)) * value
        return value.mean() if reduction == "mean" else value.sum()

    def row(z: Any, x: dict[str, Any], _: str = "") -> Any:
        return getattr(torch, case.name)(z, 1)

    def backward(z: Any, x: dict[str, Any], _: str = "") -> Any:
        # What autograd calls.
        if "probs" in x:
            return torch.ops.aten._softmax_backward_data(x["g"], x["probs"], 1, z.dtype)
        return torch.ops.aten._log_softmax_backward_data(x["g"], x["log_probs"], 1, z.dtype)

    def array(z: Any, x: dict[str, Any], _: str = "") -> Any:
        return getattr(torch, case.name)(x.get("positive", z))

    families = {"loss": loss, "statistics": row_statistics, "divergence": divergence, "binary": binary}
    return (families | {"row": row, "backward": backward, "array": array})[case.family]


def torch_calls(case: Case, both: bool, p: Problem, compiled: bool) -> Iterator[Call]:
    import torch

    source, function = "torch_eager", torch_function(case)
    if compiled:
        torch._dynamo.reset()
        source, function = "torch_compile", torch.compile(function, dynamic=False)
    z, x = as_torch(p.z), torch_inputs(case, p)

    def forward() -> Any:
        with torch.no_grad():
            return function(z, x)

    if not both:
        yield Call(source, forward)
        return
    leaf = z.detach().requires_grad_()

    def forward_backward() -> Any:
        loss = function(leaf, x)
        return loss, torch.autograd.grad(loss, leaf)[0]

    yield Call(source, forward_backward)


def torch_out_calls(case: Case, both: bool, p: Problem) -> Iterator[Call]:
    """PyTorch eager into a buffer that the caller keeps, where it can."""
    import torch

    z, out = as_torch(p.z), as_torch(p.buffer())
    if case.name == "softmax":
        yield Call("torch_out", lambda: torch.softmax(z, 1, out=out))
    elif case.name == "log_softmax":
        yield Call("torch_out", lambda: torch.log_softmax(z, 1, out=out))
    elif case.family == "array":
        function, x = getattr(torch, case.name), as_torch(p.positive) if case.inputs else z
        yield Call("torch_out", lambda: function(x, out=out))


def jax_function(case: Case) -> Callable[..., Any]:
    import jax
    import jax.numpy as jnp
    import optax

    option = case.options.get

    def loss(z: Any, x: dict[str, Any]) -> Any:
        if "logit_scale" in case.options:
            z = z * option("logit_scale")
        if cap := option("softcap"):
            z = cap * jnp.tanh(z / cap)
        smoothing, classes = option("label_smoothing", 0.0), z.shape[1]
        if "weights" in x:
            log_p, w = jax.nn.log_softmax(z, axis=1), x["weights"]
            nll = -jnp.take_along_axis(log_p, x["t"][:, None], axis=1)[:, 0]
            spread = -(log_p * w.reshape((-1,) + (1,) * (z.ndim - 2))).sum(axis=1)
            w_t = w[x["t"]]
            return ((1 - smoothing) * w_t * nll + smoothing / classes * spread).sum() / w_t.sum()
        if "probs" in x:
            losses = optax.softmax_cross_entropy(z, x["probs"], axis=1)
        elif smoothing:
            labels = (1 - smoothing) * jax.nn.one_hot(x["t"], classes, axis=1, dtype=z.dtype) + smoothing / classes
            losses = optax.softmax_cross_entropy(z, labels, axis=1)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(z, x["t"], axis=1)
        if factor := option("z_loss"):
            losses = losses + factor * jnp.square(jax.nn.logsumexp(z, axis=1))
        return losses.mean()

    def row_statistics(z: Any, x: dict[str, Any]) -> Any:
        log_p = jax.nn.log_softmax(z, axis=1)
        entropy = -(jnp.exp(log_p) * log_p).sum(axis=1)
        return jnp.take_along_axis(log_p, x["t"][:, None], axis=1)[:, 0], entropy, z.argmax(axis=1)

    def divergence(z: Any, x: dict[str, Any]) -> Any:
        temperature = option("temperature", 1)
        log_q = jax.nn.log_softmax(z / temperature, axis=1)
        log_p = jax.nn.log_softmax(x["teacher"] / temperature, axis=1)
        if option("kind"):
            log_m = jnp.logaddexp(log_p, log_q) - math.log(2)
            terms = (jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)) / 2
        else:
            terms = jnp.exp(log_p) * (log_p - log_q)
        return terms.sum(axis=1).mean()

    def binary(z: Any, x: dict[str, Any]) -> Any:
        y = x["y"]
        if "focal_gamma" in case.options:
            return optax.sigmoid_focal_loss(z, y, alpha=option("focal_alpha"), gamma=option("focal_gamma")).mean()
        if "pos_weight" in x:
            return -(x["pos_weight"] * y * jax.nn.log_sigmoid(z) + (1 - y) * jax.nn.log_sigmoid(-z)).mean()
        return optax.sigmoid_binary_cross_entropy(z, y).mean()

    def row(z: Any, x: dict[str, Any]) -> Any:
        return getattr(jax.nn, case.name)(z, axis=1)

    def backward(z: Any, x: dict[str, Any]) -> Any:
        g = x["g"]
        if "probs" in x:
            return x["probs"] * (g - (g * x["probs"]).sum(axis=1, keepdims=True))
        return g - jnp.exp(x["log_probs"]) * g.sum(axis=1, keepdims=True)

    def array(z: Any, x: dict[str, Any]) -> Any:
        return getattr(jnp, case.name)(x.get("positive", z))

    families = {"loss": loss, "statistics": row_statistics, "divergence": divergence, "binary": binary}
    return (families | {"row": row, "backward": backward, "array": array})[case.family]


def jax_calls(case: Case, both: bool, p: Problem) -> Iterator[Call]:
    import jax
    import jax.numpy as jnp

    function = jax_function(case)
    run = jax.jit(jax.value_and_grad(function) if both else function)
    z = jnp.from_dlpack(as_torch(p.z))
    x = {name: jnp.from_dlpack(value) for name, value in torch_inputs(case, p).items() if name != "t"}
    if "t" in case.inputs:
        x["t"] = jnp.asarray(p.t.astype(np.int32))  # the size of JAX's integers by default
    wait: Callable[[Any], Any] = jax.block_until_ready
    yield Call("jax", lambda: wait(run(z, x)))


def onnxruntime_calls(case: Case, both: bool, p: Problem) -> Iterator[Call]:
    """The operators that ONNX has, float32."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    rows = [p.items, *p.shape[2:]]
    operators: dict[str, tuple[str, list[int], dict[str, Any]]] = {
        "plain": ("SoftmaxCrossEntropyLoss", [], {"reduction": "mean"}),
        "softmax": ("Softmax", list(p.shape), {"axis": 1}),
        "log_softmax": ("LogSoftmax", list(p.shape), {"axis": 1}),
        "logsumexp": ("ReduceLogSumExp", rows, {"axes": [1], "keepdims": 0}),
        "exp": ("Exp", list(p.shape), {}),
        "log": ("Log", list(p.shape), {}),
    }
    if both or p.dtype != "f32" or case.name not in operators:
        return
    operator, out, attributes = operators[case.name]
    inputs = {"z": p.positive if "positive" in case.inputs else p.z} | ({"t": p.t} if operator.endswith("Loss") else {})
    types = {"z": TensorProto.FLOAT, "t": TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node(operator, list(inputs), ["y"], **attributes)],
        "one",
        [helper.make_tensor_value_info(name, types[name], list(a.shape)) for name, a in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "0"))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in inputs.items()}
    yield Call("onnxruntime", lambda: session.run_with_ort_values(["y"], values)[0])


def scipy_calls(case: Case, both: bool, p: Problem) -> Iterator[Call]:
    import scipy.special

    if case.family == "row" and p.dtype == "f32":
        function = getattr(scipy.special, case.name)
        yield Call("scipy", lambda: function(p.z, axis=1))


def numpy_calls(case: Case, both: bool, p: Problem) -> Iterator[Call]:
    if case.family == "array":
        function, x, out = getattr(np, case.name), p.positive if case.inputs else p.z, p.buffer()
        yield Call("numpy", lambda: function(x, out=out))


PEERS: dict[str, Callable[[Case, bool, Problem], Iterator[Call]]] = {
    "torch_eager": lambda case, both, p: torch_calls(case, both, p, False),
    "torch_out": torch_out_calls,
    "torch_compile": lambda case, both, p: torch_calls(case, both, p, True),
    "jax": jax_calls,
    "onnxruntime": onnxruntime_calls,
    "scipy": scipy_calls,
    "numpy": numpy_calls,
}
TUNED_PEERS = ("torch_eager", "torch_compile", "jax")


# ---------------------------------------------------------------- what is right


def reference(case: Case, both: bool, p: Problem) -> list[Array]:
    """The results in float64, a gradient or matrix at the ends of the batch only; PyTorch's formulas, eager."""
    import torch

    function, inputs = torch_function(case), {"z": as_torch(p.z)} | torch_inputs(case, p)

    def part(begin: int, end: int) -> tuple[Any, dict[str, Any]]:
        cut = {k: v[begin:end] if k in PER_ITEM else v for k, v in inputs.items()}
        cut = {k: v if k == "t" else v.double() for k, v in cut.items()}
        return cut.pop("z"), cut

    ends = [part(0, p.ends), part(p.items - p.ends, p.items)]
    if not case.has_backward:
        values = [function(z, x) for z, x in ends]
        if case.family != "statistics":
            return [np.concatenate([v.numpy() for v in values])]
        return [np.concatenate([v[i].numpy() for v in values]) for i in range(3)]
    step = max(1, (1 << 22) // math.prod(p.shape[1:]))
    parts = (part(i, min(i + step, p.items)) for i in range(0, p.items, step))
    total = sum(float(function(z, x, "sum")) for z, x in parts)
    count = float(p.rows)
    if "weights" in case.inputs:
        count = float(p.weights.astype(np.float64)[p.t].sum())
    gradients = []
    for z, x in ends if both else []:
        leaf = z.requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf, x, "sum"), leaf)[0].numpy() / count)
    return [np.array(total / count), *([np.concatenate(gradients)] if both else [])]


def host(value: Any, ends: int) -> Array:
    """A result in float64, of its first and last items."""
    if hasattr(value, "detach"):
        value = value.detach()
    if type(value).__name__ == "OrtValue":
        value = value.numpy()
    pieces = [value[:ends], value[-ends:]] if value.ndim else [value[None]]
    wide = [v.double().numpy() if hasattr(v, "double") else np.asarray(v).astype(np.float64) for v in pieces]
    return np.concatenate(wide).reshape(-1 if value.ndim else ())


def error(case: Case, p: Problem, results: Any, wanted: list[Array]) -> float:
    """The largest error of any result, over the largest magnitude in it."""
    if not isinstance(results, (list, tuple)):
        results = [results]
    got = [host(r, p.ends) for r in results]
    want = [w.reshape(-1 if w.ndim else ()) for w in wanted]
    if case.family == "statistics":
        # Of equal logits either column may be named, so the logit there is what counts.
        z = np.concatenate([p.z[: p.ends], p.z[-p.ends :]]).astype(np.float64)
        for values in (got, want):
            column = values[2].reshape(-1, *p.shape[2:]).astype(np.int64)
            values[2] = np.take_along_axis(z, column[:, None], axis=1)
    worst = [float(np.max(np.abs(g - w)) / np.max(np.abs(w))) for g, w in zip(got, want, strict=True)]
    return max(math.inf if math.isnan(e) else e for e in worst)


def xent_bound(case: Case, p: Problem) -> float:
    """16 ULP, the largest bound in xent.h, of the terms' magnitudes, and half an ULP of a half-precision result."""
    return 16 * 2.0**-23 * case.terms + (2.0**-8 if p.dtype == "bf16" else 0)


def peer_bound(case: Case, p: Problem) -> float:
    """What no rounding exceeds: a peer beyond it computes something else.

    float32: a sum of n terms has an error of about sqrt(n) roundings of 2^-24 (Higham and Mary 2019), of which four
    times are allowed, for the classes, the rows, and 16 for the functions. bfloat16: sixteen roundings of 2^-8, since
    peers store what lies between their steps.
    """
    f32 = 4 * (math.sqrt(p.cols) + math.sqrt(p.rows) + 16) * 2.0**-24 * case.terms
    return f32 + (16 * 2.0**-8 if p.dtype == "bf16" else 0)


# ---------------------------------------------------------------- timing


def seconds(run: Run, calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) / calls


def measure(sides: dict[str, Run], clock: Callable[[], float]) -> dict[str, list[float]]:
    """Times of all sides, in the same rounds."""
    calls = {}
    for name, run in sides.items():
        run()
        calls[name] = max(1, math.ceil(SLICE / max(seconds(run, 1, clock), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in sides}
    start = time.monotonic()
    for done in range(ROUNDS):
        if done >= LEAST_ROUNDS and time.monotonic() - start > ENOUGH:
            break
        for name, run in sides.items():
            times[name].append(seconds(run, calls[name], clock))
    return times


def one(case: Case, both: bool, p: Problem, xent: Xent, sources: list[str], tuned: bool) -> dict[str, Any]:
    """The record of one case."""
    wanted = reference(case, both, p)
    run, results = xent.bind(case, both, p)
    for result in results:
        result.fill(-1 if result.dtype == np.int64 else np.nan)  # what no earlier case has left
    run()
    record: dict[str, Any] = {
        "case": case.name,
        "op": ("forward_backward" if both else "forward") if case.has_backward else "",
        "shape": "x".join(map(str, p.shape)) if p.shape != ARRAY_SHAPE else str(p.z.size),
        "dtype": p.dtype,
        "threads": xent.threads or os.cpu_count(),
        "target": xent.library.xent_active_target().decode(),
        "peers": {},
        "absent": {},
    }
    if not (off := error(case, p, results, wanted)) <= xent_bound(case, p):
        return record | {"wrong": off}
    sides = {"xent": run}
    for source in sources:
        try:
            for call in PEERS[source](case, both, p):
                if not (off := error(case, p, call.run(), wanted)) <= peer_bound(case, p):
                    raise RuntimeError(f"its result is off by {off:.1e}")
                sides[source + ("_tuned" if tuned else "")] = call.run
        except Exception as e:  # a peer that is not there or fails must not take the others along
            record["absent"][source] = f"{type(e).__name__}: {e}".splitlines()[0][:200]
    times = measure(sides, time.process_time if xent.threads == 1 else time.perf_counter)
    spread = {n: {"median": statistics.median(t), "min": min(t), "rounds": len(t)} for n, t in times.items()}
    record["xent"] = spread.pop("xent")
    for name, s in spread.items():
        record["peers"][name] = s | {"ratio": s["median"] / record["xent"]["median"]}
    return record


def work(options: argparse.Namespace) -> None:
    """Measures in this process, whose environment is set, and writes the records."""
    import torch

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    xent = Xent(options.library, options.threads)
    records: list[dict[str, Any]] = []
    for dtype in options.dtype:
        families = [(shape, MATRIX_CASES) for shape in options.shape]
        families += [(BINARY_SHAPE, BINARY_CASES)] + ([(ARRAY_SHAPE, ARRAY_CASES)] if dtype == "f32" else [])
        for shape, cases in families:
            chosen = [c for c in cases if re.search(options.case, c.name)]
            p = Problem(shape, dtype) if chosen else None
            for case in chosen:
                for both in (False, True) if case.has_backward else (False,):
                    assert p is not None
                    record = one(case, both, p, xent, options.only, options.tuned)
                    records.append(record)
                    ratios = {n: round(s["ratio"], 2) for n, s in record["peers"].items()}
                    what = f"{case.name} {record['op']} {record['shape']} {dtype} {record['target']}"
                    wrong = f"wrong by {record['wrong']:.1e}" if "wrong" in record else ""
                    mine = wrong or f"{record['xent']['median'] * 1e3:.3f} ms"
                    print(what, mine, ratios, record["absent"] or "", file=sys.stderr, flush=True)
            options.out.write_text(json.dumps(records))  # what is there so far


# ---------------------------------------------------------------- all processes


def merge(into: dict[tuple[Any, ...], dict[str, Any]], records: list[dict[str, Any]]) -> None:
    """Adds the peers of another process to the same case; a ratio is of the times of its own process."""
    for r in records:
        known = into.setdefault(tuple(r[k] for k in ("case", "op", "shape", "dtype", "threads", "target")), r)
        known["peers"].update(r["peers"])
        known["absent"].update(r["absent"])


def capped(target: str) -> dict[str, str]:
    """Caps xent and the peers that have a switch for it; NumPy, SciPy and ONNX Runtime stay as they are."""
    if target != "AVX2":
        return {}
    return {"XENT_MAX_TARGET": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def context(library: Path, targets: list[str], threads: list[int]) -> dict[str, Any]:
    lib = capi.load(library)
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    compiler = re.search(rb"(GCC: \([^)]*\) [0-9.]+|clang version [0-9.]+)", library.read_bytes())
    git = [
        "git",
        "-C",
        str(ROOT),
        "log",
        "-1",
        "--format=%h",
        "--",
        "src",
        "include",
    ]  # the last that changed the library
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "date": date.today().isoformat(),
        "cpu": model[1] if model else "unknown",
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "compiler": compiler[1].decode() if compiler else "unknown",
        "xent": f"{lib.xent_version().decode()}, Highway {lib.xent_highway_version().decode()}",
        "commit": commit.stdout.strip(),
        "targets": targets,
        "threads": [t or os.cpu_count() for t in threads],
        "peers": [version(source) for source in ("torch", "jax", "onnxruntime", "scipy", "numpy")],
    }


def add_context(found: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Makes the context that of both runs."""
    for name in ("cpu", "cores", "compiler", "xent", "commit", "peers"):
        if found[name] != earlier[name]:
            sys.exit(f"matrix.py: the earlier run had {name} {earlier[name]}, now it is {found[name]}")
    for name in ("targets", "threads"):
        found[name] = list(dict.fromkeys([*earlier[name], *found[name]]))
    found["load"] = earlier["load"]


def shape_of(text: str) -> Shape:
    return tuple(int(n) for n in text.split("x"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="float32 on one thread, few shapes")
    parser.add_argument("--out", type=Path, help="JSON file; standard output by default")
    parser.add_argument("--library", type=Path, default=ROOT / "build/release/lib/libxent.so.0")
    parser.add_argument("--shape", type=shape_of, action="append", help="as in 8x2x256x256; may be repeated")
    parser.add_argument("--dtype", choices=list(DTYPES), action="append")
    parser.add_argument("--threads", type=int, choices=[0, 1], help="0: all; both by default")
    parser.add_argument("--target", choices=["best", "AVX2"], action="append")
    parser.add_argument("--case", default="", help="regular expression over the cases' names")
    parser.add_argument("--only", choices=list(PEERS), action="append", help="this peer; may be repeated")
    parser.add_argument("--add", type=Path, help="an earlier result, of the same library and machine, to add to")
    parser.add_argument("--tuned", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.shape = options.shape or (QUICK_SHAPES if options.quick else SHAPES)
    options.dtype = options.dtype or (["f32"] if options.quick else list(DTYPES))
    options.only = options.only or list(PEERS)
    if options.worker:
        work(options)
        return

    threads = [options.threads] if options.threads is not None else [1] if options.quick else [1, 0]
    best = capi.load(options.library).xent_active_target().decode()
    targets = sorted({best if t == "best" else t for t in options.target or ["best", "AVX2"]}, reverse=True)
    found = context(options.library, targets, threads)
    records: dict[tuple[Any, ...], dict[str, Any]] = {}
    if options.add:
        earlier = json.loads(options.add.read_text())
        add_context(found, earlier["context"])
        merge(records, earlier["records"])
    with tempfile.TemporaryDirectory() as folder:
        for target in targets:
            for count in threads:
                environment = os.environ | (ONE_THREAD if count == 1 else {"JAX_PLATFORMS": "cpu"}) | capped(target)
                if target == "AVX2":
                    environment["XLA_FLAGS"] = environment.get("XLA_FLAGS", "") + " --xla_cpu_max_isa=AVX2"
                # One cache of compiled code for both settings of malloc.
                kept = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", folder)) / f"{target}-{count}"
                environment |= {"TORCHINDUCTOR_CACHE_DIR": str(kept), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
                for tuned in (False, True):
                    part = Path(folder) / "records.json"
                    part.unlink(missing_ok=True)
                    chosen = [s for s in options.only if not tuned or s in TUNED_PEERS]
                    if not chosen:
                        continue
                    command = [sys.executable, __file__, "--worker", f"--out={part}", f"--library={options.library}"]
                    command += [f"--shape={'x'.join(map(str, s))}" for s in options.shape]
                    command += [f"--dtype={d}" for d in options.dtype] + [f"--only={s}" for s in chosen]
                    command += [f"--threads={count}", f"--case={options.case}"] + (["--tuned"] if tuned else [])
                    setting = environment | (TUNED_MALLOC if tuned else {})
                    status = subprocess.run(command, env=setting, check=False).returncode
                    if part.exists():
                        merge(records, json.loads(part.read_text()))
                    if status != 0:
                        print(f"matrix.py: {target}, {count} threads: ended with {status}", file=sys.stderr)
    found["load_after"] = [round(load, 1) for load in os.getloadavg()]
    text = json.dumps({"context": found, "records": list(records.values())}, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")
    if any("wrong" in r for r in records.values()):
        sys.exit("matrix.py: at least one result of xent was wrong")


if __name__ == "__main__":
    main()
