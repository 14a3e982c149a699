#!/usr/bin/env python3
"""Times xent beside its peers on the same float32 buffers, one thread, in one process, call by call.

Each pair of a peer and xent is timed interleaved; a time is CPU time of the whole process, which other processes on the
machine do not count in. Before that, the peer's loss is checked against float64 and the errors of both are measured.
The peers run in two processes: one as installed, one with glibc's malloc told to keep its pages ("tuned").
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capi import F32, I64, Array, CrossEntropy, Error, Exec, Statistics, Targets, init, load, matrix, pointer

ROOT = Path(__file__).resolve().parents[2]

LARGE = (2048, 32000)
SHAPES = [LARGE, (1024, 50257), (512, 128256), (65536, 2), (65536, 10), (65536, 100)]
QUICK_SHAPES = [(65536, 2), (65536, 10)]
DATA = ["normal", "margin", "ascending", "masked"]
REFERENCE_ROWS = 16  # rows whose losses and gradients are compared one by one
WRONG = 1e-3  # a relative error of the mean loss beyond any rounding: the peer computes something else

# Every heap block comes from the heap proper, which never shrinks, so that no page faults twice.
TUNED_MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_MMAP_MAX_": "0",
}
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",
    "JAX_PLATFORMS": "cpu",
}


class Xent:
    """The shared library, its calls bound to one problem's buffers."""

    def __init__(self, path: Path) -> None:
        self.library = load(path)
        self.execution = init(Exec, threads=1)
        self.error = init(Error)

    def target(self) -> str:
        return str(self.library.xent_active_target().decode())

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeError(f"xent: {self.error.message.decode()}")

    def calls(self, p: Problem) -> dict[str, Callable[[], None]]:
        workspace = aligned(int(self.library.xent_workspace_bytes(p.cols, F32, 1)) // 4 + 1)
        statistics = init(Statistics, lse=pointer(p.lse))
        args = init(
            CrossEntropy,
            rows=p.rows,
            cols=p.cols,
            logits=matrix(p.logits),
            targets=Targets(data=pointer(p.targets), type=I64),
            row_losses=pointer(p.losses),
            reduced_loss=pointer(p.loss),
            statistics=ctypes.pointer(statistics),
        )
        both = CrossEntropy.from_buffer_copy(args)
        both.grad = matrix(p.grad)
        both.workspace = pointer(workspace)
        both.workspace_bytes = workspace.nbytes
        execution, error, lib = ctypes.byref(self.execution), ctypes.byref(self.error), self.library
        forward, forward_backward = ctypes.byref(args), ctypes.byref(both)
        logits, lse, out = args.logits, statistics.lse, both.grad
        keep = (workspace, statistics, args, both)  # referred to by the calls below, which hold it

        def run_forward() -> None:
            self._check(lib.xent_cross_entropy_forward(forward, None, execution, error))

        def run_forward_backward(_: object = keep) -> None:
            self._check(lib.xent_cross_entropy_forward_backward(forward_backward, None, execution, error))

        def run_softmax() -> None:
            self._check(lib.xent_softmax(p.rows, p.cols, 1, logits, out, execution, error))

        def run_logsumexp() -> None:
            self._check(lib.xent_logsumexp(p.rows, p.cols, 1, logits, lse, execution, error))

        return {
            "forward": run_forward,
            "forward_backward": run_forward_backward,
            "softmax": run_softmax,
            "logsumexp": run_logsumexp,
        }


# ---------------------------------------------------------------- problems and their float64 reference


def aligned(count: int) -> Array:
    """Floats on a boundary of 128 bytes, which XLA wants to take a buffer as it is; touched, so that no page faults."""
    raw = np.zeros(count * 4 + 128, np.uint8)
    start = -raw.ctypes.data % 128
    return raw[start : start + count * 4].view(np.float32)


class Problem:
    """Logits, targets, buffers and what float64 makes of them. The kinds of data are those of xent_bench."""

    def __init__(self, rows: int, cols: int, data: str) -> None:
        self.rows, self.cols, self.data = rows, cols, data
        random = np.random.default_rng(1)
        self.logits = aligned(rows * cols).reshape(rows, cols)
        self.targets = random.integers(0, cols, rows, dtype=np.int64)
        z = self.logits
        if data == "ascending":
            z[:] = np.linspace(-500, 500, cols, dtype=np.float32)
        else:
            random.standard_normal(out=z, dtype=np.float32)
            z *= 2
        if data == "margin":
            confident = np.arange(0, rows, 2)
            t = self.targets[confident]
            z[confident, t] = -np.inf
            z[confident, t] = z[confident].max(axis=1) + 20
        elif data == "masked":
            mask = random.random(cols) < 0.3
            mask[0] = False
            self.targets = random.choice(np.flatnonzero(~mask), rows).astype(np.int64)
            z[:, mask] = -np.inf
        self.targets32 = self.targets.astype(np.int32)
        self.losses, self.lse, self.loss = aligned(rows), aligned(rows), aligned(1)
        self.grad = aligned(rows * cols).reshape(rows, cols)
        step = max(1, (1 << 22) // cols)
        parts = [reference(z[i : i + step], self.targets[i : i + step]) for i in range(0, rows, step)]
        self.exact_losses = np.concatenate([losses for losses, _ in parts])
        self.exact_loss = float(np.mean(self.exact_losses))
        n = min(REFERENCE_ROWS, rows)
        self.exact_grad = reference_gradient(z[:n], self.targets[:n], rows)


def reference(z: Array, t: Array) -> tuple[Array, Array]:
    """Row losses and lse in float64; a confident row's tiny loss is a log1p of the others, not a difference."""
    wide = z.astype(np.float64)
    rows = np.arange(len(z))
    at_target = wide[rows, t]
    wide[rows, t] = -np.inf
    others = wide.max(axis=1)
    top = np.maximum(others, at_target)
    with np.errstate(invalid="ignore"):
        tail = np.exp(wide - top[:, None]).sum(axis=1)
    losses = np.where(at_target >= others, np.log1p(tail), (top - at_target) + np.log(tail + np.exp(at_target - top)))
    return losses, at_target + losses


def reference_gradient(z: Array, t: Array, n: int) -> Array:
    """Rows of the gradient of a mean over n rows, in float64."""
    losses, lse = reference(z, t)
    gradient = np.exp(z.astype(np.float64) - lse[:, None])
    gradient[np.arange(len(z)), t] = np.expm1(-losses)
    return np.asarray(gradient / n)


SMALLEST_NORMAL = 2.0**-126


def ulp(x: Array) -> Array:
    """Spacing of float32 at |x|."""
    exponent = np.floor(np.log2(np.maximum(np.abs(x), SMALLEST_NORMAL)))
    return np.asarray(np.exp2(exponent - 23))


def worst_ulp(measured: Array, exact: Array) -> float:
    """Largest error in ULP of the exact value; where that is subnormal a zero is right too."""
    normal = np.abs(exact) >= SMALLEST_NORMAL
    if not normal.any():
        return 0.0
    error = np.abs(measured.astype(np.float64) - exact)[normal] / ulp(exact[normal])
    return float(np.max(error)) if np.isfinite(error).all() else math.inf


# ---------------------------------------------------------------- peers


@dataclass
class Call:
    """One operation of a peer, bound to a problem."""

    source: str
    op: str
    run: Callable[[], Any]
    loss: Callable[[], float] | None = None
    row_losses: Callable[[], Array] | None = None  # of the first rows
    grad: Callable[[], Array] | None = None  # its first rows


def torch_calls(p: Problem, compiled: bool, suffix: str) -> Iterator[Call]:
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    source = ("torch_compile" if compiled else "torch_eager") + suffix
    function: Callable[..., Any] = F.cross_entropy
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(F.cross_entropy, dynamic=False)
    z = torch.from_numpy(p.logits)
    leaf = torch.from_numpy(p.logits).requires_grad_()
    t = torch.from_numpy(p.targets)
    n = REFERENCE_ROWS

    def forward() -> Any:
        with torch.no_grad():
            return function(z, t)

    def forward_backward() -> Any:
        loss = function(leaf, t)
        return loss, torch.autograd.grad(loss, leaf)[0]

    def row_losses() -> Array:
        with torch.no_grad():
            return np.asarray(function(z[:n], t[:n], reduction="none").numpy())

    yield Call(source, "forward", forward, lambda: float(forward()), row_losses)
    yield Call(
        source,
        "forward_backward",
        forward_backward,
        lambda: float(forward_backward()[0].detach()),
        row_losses,
        lambda: np.array(forward_backward()[1][:n].numpy()),
    )


def jax_calls(p: Problem, suffix: str) -> Iterator[Call]:
    import jax
    import jax.numpy as jnp
    import optax

    z = jnp.from_dlpack(p.logits)
    t = jnp.from_dlpack(p.targets32)
    wait: Callable[[Any], Any] = jax.block_until_ready
    n = REFERENCE_ROWS

    def losses(z: Any, t: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(z, t)

    def mean(z: Any, t: Any) -> Any:
        return losses(z, t).mean()

    forward = jax.jit(mean)
    both = jax.jit(jax.value_and_grad(mean))
    rows = jax.jit(losses)

    def row_losses() -> Array:
        return np.asarray(rows(z[:n], t[:n]))

    yield Call(
        "jax" + suffix,
        "forward",
        lambda: wait(forward(z, t)),
        lambda: float(forward(z, t)),
        row_losses,
    )
    yield Call(
        "jax" + suffix,
        "forward_backward",
        lambda: wait(both(z, t)),
        lambda: float(both(z, t)[0]),
        row_losses,
        lambda: np.asarray(both(z, t)[1][:n]),
    )


def onnxruntime_calls(p: Problem) -> Iterator[Call]:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper

    def session(node: Any, inputs: list[Any], output: Any) -> Any:
        graph = helper.make_graph([node], "one", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def loss_session(reduction: str) -> Any:
        return session(
            helper.make_node("SoftmaxCrossEntropyLoss", ["z", "t"], ["loss"], reduction=reduction),
            [
                helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", p.cols]),
                helper.make_tensor_value_info("t", TensorProto.INT64, ["N"]),
            ],
            helper.make_tensor_value_info("loss", TensorProto.FLOAT, [] if reduction == "mean" else ["N"]),
        )

    matrix = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", p.cols])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", p.cols])
    softmax = session(helper.make_node("Softmax", ["z"], ["y"], axis=1), [matrix], out)
    mean, rows = loss_session("mean"), loss_session("none")
    z, t = ort.OrtValue.ortvalue_from_numpy(p.logits), ort.OrtValue.ortvalue_from_numpy(p.targets)
    n = REFERENCE_ROWS

    def run_mean() -> Any:
        return mean.run_with_ort_values(["loss"], {"z": z, "t": t})[0]

    yield Call(
        "onnxruntime",
        "forward",
        run_mean,
        lambda: float(run_mean().numpy()),
        lambda: np.asarray(rows.run(None, {"z": p.logits[:n], "t": p.targets[:n]})[0]),
    )
    yield Call("onnxruntime", "softmax", lambda: softmax.run_with_ort_values(["y"], {"z": z}))


def scipy_calls(p: Problem) -> Iterator[Call]:
    import scipy.special

    if (p.rows, p.cols) == LARGE and p.data == "normal":
        yield Call("scipy", "logsumexp", lambda: scipy.special.logsumexp(p.logits, axis=1))


PEERS: dict[str, Callable[[Problem], Iterator[Call]]] = {
    "torch_eager": lambda p: torch_calls(p, False, ""),
    "torch_compile": lambda p: torch_calls(p, True, ""),
    "jax": lambda p: jax_calls(p, ""),
    "onnxruntime": onnxruntime_calls,
    "scipy": scipy_calls,
}
TUNED_PEERS: dict[str, Callable[[Problem], Iterator[Call]]] = {
    "torch_eager_tuned": lambda p: torch_calls(p, False, "_tuned"),
    "torch_compile_tuned": lambda p: torch_calls(p, True, "_tuned"),
    "jax_tuned": lambda p: jax_calls(p, "_tuned"),
}
# Timed on every kind of data.
EVERY_KIND = ("torch_eager", "torch_compile", "jax", "torch_eager_tuned", "torch_compile_tuned", "jax_tuned")


PACKAGES = {
    "torch": ["torch"],
    "jax": ["jax", "optax"],
    "onnxruntime": ["onnxruntime"],
    "scipy": ["scipy"],
    "numpy": ["numpy"],
}


def version(source: str) -> str:
    names = PACKAGES[source.split("_")[0]]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


# ---------------------------------------------------------------- timing


@dataclass
class Record:
    source: str
    op: str
    rows: int
    cols: int
    data: str
    seconds_median: float
    seconds_min: float
    xent_seconds_median: float
    xent_seconds_min: float
    speedup: float
    loss_ulp: float | None
    xent_loss_ulp: float | None
    row_loss_ulp: float | None
    xent_row_loss_ulp: float | None
    grad_ulp: float | None
    xent_grad_ulp: float | None
    calls: int
    version: str
    xent_target: str
    dtype: str = "f32"
    threads: int = 1


def seconds(run: Callable[[], Any], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - start) / calls


def calls_for(run: Callable[[], Any]) -> int:
    """Calls that take about 10 ms, so that the clock and the first call's cold caches do not matter."""
    run()
    return max(1, math.ceil(0.01 / max(seconds(run, 1), 1e-6)))


def measure(call: Call, p: Problem, xent: dict[str, Callable[[], None]], target: str, repetitions: int) -> Record:
    ours = xent[call.op]
    errors: dict[str, Any] = dict.fromkeys(
        ["loss_ulp", "xent_loss_ulp", "row_loss_ulp", "xent_row_loss_ulp", "grad_ulp", "xent_grad_ulp"]
    )
    n = REFERENCE_ROWS
    exact = np.array([p.exact_loss])
    ours()
    if call.loss:
        loss = call.loss()
        if not abs(loss - p.exact_loss) <= WRONG * abs(p.exact_loss):
            raise RuntimeError(f"its loss is {loss}, float64 gives {p.exact_loss}")
        errors["loss_ulp"] = worst_ulp(np.array([loss]), exact)
        errors["xent_loss_ulp"] = worst_ulp(p.loss[:1], exact)
    if call.row_losses:
        errors["row_loss_ulp"] = worst_ulp(call.row_losses(), p.exact_losses[:n])
        errors["xent_row_loss_ulp"] = worst_ulp(p.losses[:n], p.exact_losses[:n])
    if call.grad:
        errors["grad_ulp"] = worst_ulp(call.grad(), p.exact_grad)
        errors["xent_grad_ulp"] = worst_ulp(p.grad[:n], p.exact_grad)

    theirs_calls, our_calls = calls_for(call.run), calls_for(ours)
    theirs_times: list[float] = []
    our_times: list[float] = []
    for _ in range(repetitions):
        theirs_times.append(seconds(call.run, theirs_calls))
        our_times.append(seconds(ours, our_calls))
    theirs, mine = statistics.median(theirs_times), statistics.median(our_times)
    return Record(
        source=call.source,
        op=call.op,
        rows=p.rows,
        cols=p.cols,
        data=p.data,
        seconds_median=theirs,
        seconds_min=min(theirs_times),
        xent_seconds_median=mine,
        xent_seconds_min=min(our_times),
        speedup=theirs / mine,
        calls=theirs_calls,
        version=version(call.source),
        xent_target=target,
        **errors,
    )


def absent(source: str, reason: str, p: Problem | None = None) -> dict[str, Any]:
    place = {} if p is None else {"rows": p.rows, "cols": p.cols, "data": p.data}
    return {"source": source, **place, "absent": reason}


def work(sources: list[str], quick: bool, library: Path, output: Path) -> None:
    """Measures in this process, whose environment is set, and writes the records."""
    xent = Xent(library)
    peers = PEERS | TUNED_PEERS
    records: list[dict[str, Any]] = []
    for rows, cols in QUICK_SHAPES if quick else SHAPES:
        for data in DATA if (rows, cols) == LARGE else DATA[:1]:
            chosen = [s for s in sources if data == "normal" or s in EVERY_KIND]
            if not chosen:
                continue
            p = Problem(rows, cols, data)
            calls = xent.calls(p)
            for source in chosen:
                try:
                    for call in peers[source](p):
                        repetitions = 3 if quick else 9
                        record = measure(call, p, calls, xent.target(), repetitions)
                        records.append(asdict(record))
                        print(
                            f"{record.source} {record.op} {rows}x{cols} {data}: {record.seconds_median * 1e3:.3f} ms, "
                            f"xent {record.xent_seconds_median * 1e3:.3f} ms, {record.speedup:.2f} times; "
                            f"ULP {record.row_loss_ulp} {record.grad_ulp}, "
                            f"xent {record.xent_row_loss_ulp} {record.xent_grad_ulp}",
                            file=sys.stderr,
                            flush=True,
                        )
                except Exception as e:  # a peer that is not there or fails must not take the others along
                    reason = f"{type(e).__name__}: {e}".splitlines()[0][:300]
                    records.append(absent(source, reason, p))
                    print(f"{source} {rows}x{cols} {data}: {reason}", file=sys.stderr, flush=True)
    output.write_text(json.dumps(records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repetitions, the smallest shapes")
    parser.add_argument("--out", type=Path, help="JSON file; standard output by default")
    parser.add_argument("--only", choices=[*PEERS, *TUNED_PEERS], action="append", help="this peer; may be repeated")
    parser.add_argument("--library", type=Path, default=ROOT / "build/release/lib/libxent.so.0")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.only, options.quick, options.library, options.out)
        return

    records: list[dict[str, Any]] = []
    for sources, environment in ((PEERS, {}), (TUNED_PEERS, TUNED_MALLOC)):
        chosen = [s for s in sources if options.only is None or s in options.only]
        if not chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "records.json"
            command = [sys.executable, __file__, "--worker", "--out", str(part), "--library", str(options.library)]
            command += ["--quick"] if options.quick else []
            command += [f"--only={s}" for s in chosen]
            status = subprocess.run(command, env=os.environ | ONE_THREAD | environment, check=False).returncode
            if part.exists():
                records += json.loads(part.read_text())
            else:
                records += [absent(s, f"the process that ran it ended with {status}") for s in chosen]
    text = json.dumps(records, indent=1) + "\n"
    if options.out:
        options.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
