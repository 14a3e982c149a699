#!/usr/bin/env python3
"""Writes performance.md and its plots from what scripts/bench.sh measured.

usage: report.py RESULTS_DIR DOCS_DIR. What was not measured is said to be so; nothing is estimated. Where the folder
has matrix.json alone, the matrix is written and the rest of performance.md stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matrix_table import matrix_section

DATA = ["normal", "margin", "ascending", "masked"]
DTYPES = ["f32", "bf16", "f16", "f64"]
LARGE, LARGE_HALF, L1, L2 = "2048x32000", "4096x32000", "1x4096", "1x32000"
REAL = [LARGE, "2048x30522", "1024x50257", "512x128256", "512x151936", "256x262144"]
SMALL = ["65536x2", "65536x4", "65536x10", "65536x16", "65536x64", "65536x100", "8192x1000"]
FEW = ["1x10", "1x128256", "1x262144", "8x128256"]
AVX2 = {kind: "avx2" if kind == "normal" else f"avx2_{kind}" for kind in DATA}  # the files of runs capped there
LOSS_OPS = ["forward", "forward_backward_inplace", "forward_backward_workspace", "forward_backward"]
# The yardstick of each operation, and what its time is divided by.
YARDSTICK = {
    "forward": "x_sweep",
    "logsumexp": "x_sweep",
    "forward_backward_inplace": "x_scale",
    "forward_backward_workspace": "x_copy",
    "forward_backward": "x_copy",
    "softmax": "x_copy",
    "log_softmax": "x_copy",
    "backward": "x_copy",
    "onednn_softmax": "x_copy",
    "onednn_log_softmax": "x_copy",
}
YARDSTICK_NAME = {"x_sweep": "read sweep", "x_scale": "in-place scale", "x_copy": "streaming copy"}
BEST_PEERS = ["torch_compile", "torch_eager_tuned", "torch_compile_tuned", "jax", "jax_tuned"]
ABSENT = "not measured"


# ---------------------------------------------------------------- what was measured


@dataclass
class Case:
    """The repetitions of one benchmark: seconds of a call, seconds per logit, and the counters of each."""

    op: str
    dtype: str
    shape: str
    threads: int
    label: str
    logits: list[float] = field(default_factory=list)  # seconds per logit
    counters: list[dict[str, float]] = field(default_factory=list)

    @property
    def per_logit(self) -> float:
        return statistics.median(self.logits)

    @property
    def seconds(self) -> float:
        return self.per_logit * size(self.shape)

    def counter(self, name: str) -> Spread | None:
        return Spread.of(c[name] for c in self.counters if name in c)

    def over(self, yardstick: str, own: Case | None = None, threads: int = 1) -> Spread | None:
        """Time divided by the larger of the yardstick's, which the same repetition read, and `own` over the threads."""
        floor = own.per_logit / threads if own else 0.0
        return Spread.of(
            time / max(time / c[yardstick], floor) for time, c in zip(self.logits, self.counters) if c.get(yardstick)
        )


@dataclass
class Spread:
    median: float
    minimum: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread | None:
        known = list(values)
        return Spread(statistics.median(known), min(known)) if known else None

    def __str__(self) -> str:
        return f"{self.median:.2f}; {self.minimum:.2f}"


Key = tuple[str, str, str, int]


@dataclass
class Results:
    benches: dict[str, dict[Key, Case]]  # by the file's name: the kinds of data, and avx2
    contexts: dict[str, dict[str, Any]]
    errors: list[str]
    peers: list[dict[str, Any]]
    memory: Any
    matrix: Any

    def case(self, file: str, op: str, dtype: str, shape: str, threads: int = 1) -> Case | None:
        return self.benches.get(file, {}).get((op, dtype, shape, threads))

    def own(self, file: str, op: str, dtype: str) -> Case | None:
        """What an operation takes by itself, its data in cache. Forward needs no more than L1; but a single call has an
        overhead that is no arithmetic, and where it makes the longer row of L2 the faster, that one is the limit."""
        shapes = (L1, L2) if op == "forward" else (L2,)
        known = [c for shape in shapes if (c := self.case(file, op, dtype, shape))]
        return min(known, key=lambda c: c.per_logit, default=None)

    def cases(self, file: str) -> list[Case]:
        return list(self.benches.get(file, {}).values())

    def all_threads(self) -> int:
        """Threads of "all threads" where the benchmark ran."""
        return max((int(c.get("threads", 1)) for c in self.contexts.values()), default=1)

    def thread_counts(self) -> list[int]:
        return sorted({1, self.all_threads()})


def size(shape: str) -> int:
    return math.prod(int(n) for n in shape.split("x"))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


NAME = re.compile(r"^([a-z0-9_]+)/([a-z0-9]+)/(\d+x\d+(?:x\d+)?)/threads:(\d+)$")


def load(folder: Path) -> Results:
    others = [read_json(folder / f"{name}.json") for name in ("peers", "memory", "matrix")]
    results = Results({}, {}, [], others[0] or [], *others[1:])
    for file in [*DATA, *AVX2.values()]:
        document = read_json(folder / f"{file}.json")
        if document is None:
            continue
        results.contexts[file] = document.get("context", {})
        cases = results.benches.setdefault(file, {})
        for run in document.get("benchmarks", []):
            match = NAME.match(run.get("run_name", run["name"]))
            if match is None or run.get("run_type") == "aggregate":
                continue
            if run.get("error_occurred"):
                results.errors.append(f"`{run['name']}` ({file}): {run.get('error_message', 'failed')}")
                continue
            key = (match[1], match[2], match[3], int(match[4]))
            # A label is the target, and after a semicolon the plan.
            case = cases.setdefault(key, Case(*key, label=run.get("label", "").split(";")[0]))
            case.logits.append(1 / run["logits_per_second"])
            case.counters.append({k: float(v) for k, v in run.items() if k.startswith(("x_", "speedup_"))})
    return results


# ---------------------------------------------------------------- goals


@dataclass
class Goal:
    """A row of the table: one value for each kind of data it was measured on."""

    work: str
    bound: str
    values: dict[str, Spread | None]
    met: Callable[[float], bool]
    unit: str = ""
    kinds: list[str] = field(default_factory=lambda: list(DATA))
    form: str = "{0.median:.2f}; {0.minimum:.2f}"

    def cells(self) -> list[str]:
        known = [v for kind in self.kinds if (v := self.values.get(kind)) is not None]
        cells = []
        for kind in DATA:
            value = self.values.get(kind)
            cells.append(f"{self.form.format(value)}{self.unit}" if value else ABSENT if kind in self.kinds else "")
        if not known:
            verdict = ABSENT
        else:
            verdict = "met" if all(self.met(v.median) for v in known) else "**not met**"
            if len(known) < len(self.kinds):
                verdict += f" ({len(known)} of {len(self.kinds)} kinds of data)"
        return [self.work, self.bound, *cells, verdict]


def at_most(bound: float) -> Callable[[float], bool]:
    return lambda value: value <= bound


def at_least(bound: float) -> Callable[[float], bool]:
    return lambda value: value >= bound


def threads_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def loss_goals(r: Results) -> list[Goal]:
    goals: list[Goal] = []
    plans = [  # operation, whether its own time is a limit too, bound, name
        ("forward", True, 1.10, "forward / max(read sweep, own in L1)"),
        ("forward_backward_inplace", True, 1.10, "forward + backward in place / max(in-place scale, own in L2)"),
        ("forward_backward_workspace", True, 1.20, "out of place, with workspace / max(streaming copy, own in L2)"),
        ("forward_backward", False, 1.60, "out of place, without workspace / streaming copy"),
    ]

    def values(files: dict[str, str], op: str, dtype: str, own_counts: bool, threads: int) -> dict[str, Spread | None]:
        found: dict[str, Spread | None] = {}
        for kind, file in files.items():
            case = r.case(file, op, dtype, LARGE_HALF if dtype in ("bf16", "f16") else LARGE, threads)
            own = r.own(file, op, dtype) if own_counts else None
            if case and (own or not own_counts):
                found[kind] = case.over(YARDSTICK[op], own, threads)
        return found

    def in_cache(files: dict[str, str]) -> dict[str, Spread | None]:
        found: dict[str, Spread | None] = {}
        for kind, file in files.items():
            case, forward = r.own(file, "forward_backward_inplace", "f32"), r.own(file, "forward", "f32")
            if case and forward:
                found[kind] = Spread.of(time / forward.per_logit for time in case.logits)
        return found

    everything = {kind: kind for kind in DATA}
    for files, suffix in ((everything, ""), (AVX2, ", AVX2")):
        for op, own_counts, bound, name in plans:
            for threads in r.thread_counts():
                goals.append(
                    Goal(
                        f"float32 {name}, {threads_text(threads)}{suffix}",
                        f"≤ {bound:.2f}",
                        values(files, op, "f32", own_counts, threads),
                        at_most(bound),
                        kinds=list(files),
                    )
                )
            if op == "forward_backward_inplace":
                goals.append(
                    Goal(
                        f"float32 in place in L2 / forward in L1, per logit{suffix}",
                        "≤ 1.40",
                        in_cache(files),
                        at_most(1.40),
                        kinds=list(files),
                    )
                )
    for dtype in ("bf16", "f16"):
        for op, own_counts, _, name in plans[:3]:
            for threads in r.thread_counts():
                goals.append(
                    Goal(
                        f"{dtype} {name}, {threads_text(threads)}",
                        "≤ 1.15",
                        values(everything, op, dtype, own_counts, threads),
                        at_most(1.15),
                    )
                )
    return goals


def speedup(r: Results, sources: list[str] | None, op: str, shape: str, data: str) -> tuple[float, str] | None:
    """The least speed-up over any of the sources, and which it was; the ratio of medians of one interleaved run.

    None where one of the sources that are asked for is missing: the best of fewer rivals would be no verdict.
    """
    known = [
        (p["speedup"], p["source"])
        for p in r.peers
        if "absent" not in p
        and (sources is None or p["source"] in sources)
        and (p["op"], f"{p['rows']}x{p['cols']}", p["data"]) == (op, shape, data)
    ]
    if sources is not None and {source for _, source in known} != set(sources):
        return None
    return min(known, default=None)


def peer_minimum(r: Results, source: str, op: str, shape: str, data: str) -> float:
    for p in r.peers:
        if "absent" not in p and (p["source"], p["op"], f"{p['rows']}x{p['cols']}", p["data"]) == (
            source,
            op,
            shape,
            data,
        ):
            return float(p["seconds_min"] / p["xent_seconds_min"])
    return float("nan")


def peer_goals(r: Results) -> list[Goal]:
    # Processors without AVX-512 have goals of their own against PyTorch as installed.
    narrow = any(p.get("xent_target") == "AVX2" for p in r.peers)
    eager = {"forward": 12.0, "forward_backward": 18.0} if narrow else {"forward": 6.0, "forward_backward": 8.0}
    best = {"forward": 1.7, "forward_backward": 2.8}
    goals: list[Goal] = []

    def add(work: str, sources: list[str] | None, op: str, shape: str, bound: float, kinds: list[str]) -> None:
        values: dict[str, Spread | None] = {}
        slowest: set[str] = set()
        for kind in kinds:
            if found := speedup(r, sources, op, shape, kind):
                values[kind] = Spread(found[0], peer_minimum(r, found[1], op, shape, kind))
                slowest.add(found[1])
        which = f" ({', '.join(sorted(slowest))})" if slowest and (sources is None or len(sources) > 1) else ""
        name = op.replace("_", " + ")
        goals.append(Goal(f"{work}{which}, {name}, {shape}", f"≥ {bound:g} ×", values, at_least(bound), " ×", kinds))

    for shape in (LARGE, "1024x50257", "512x128256"):
        kinds = DATA if shape == LARGE else ["normal"]
        for op in ("forward", "forward_backward"):
            add("faster than PyTorch eager as installed", ["torch_eager"], op, shape, eager[op], kinds)
            add("faster than the best of compiled, tuned and JAX", BEST_PEERS, op, shape, best[op], kinds)
    for shape in ("65536x2", "65536x10", "65536x100"):
        for op in ("forward", "forward_backward"):
            add("small V: faster than the best peer", None, op, shape, 3.0, ["normal"])
    return goals


def clock(r: Results) -> float | None:
    """GHz of a core, where the benchmark measured it."""
    number = re.match(r"[0-9.]+", str(r.contexts.get("normal", {}).get("ghz", "")))
    return float(number[0]) if number and float(number[0]) > 0 else None


def memory_records(r: Results) -> list[dict[str, Any]]:
    calls = r.memory.get("calls", []) if isinstance(r.memory, dict) else []
    return [c for c in calls if isinstance(c, dict) and {"op", "dtype", "rows", "cols"} <= c.keys()]


def other_goals(r: Results) -> list[Goal]:
    goals: list[Goal] = []
    for file, suffix in (("normal", ""), ("avx2", ", AVX2")):
        for shape in (L1, "64x4096"):
            for counter, name in (("x_contrib", "Highway's contrib Exp"), ("x_sleef", "SLEEF expf_u10")):
                case = r.case(file, "exp_sum", "f32", shape)
                values = {"normal": case.counter(counter) if case else None}
                goals.append(
                    Goal(
                        f"exp-sum in cache, {shape}{suffix} / {name}", "≤ 0.52", values, at_most(0.52), kinds=["normal"]
                    )
                )
    threads = r.all_threads()
    one, many = (r.case("normal", "forward", "f32", "1x262144", t) for t in (1, threads))
    if one and many and threads > 1:
        share = Spread(one.per_logit / many.per_logit / threads, min(one.logits) / min(many.logits) / threads)
        values = {"normal": share}
    else:
        values = {}
    goals.append(
        Goal(
            f"forward, one row of 262144, {threads_text(threads)}: speed-up / threads",
            "≥ 0.80",
            values,
            at_least(0.8),
            kinds=["normal"],
        )
    )
    call = r.case("normal", "forward", "f32", "1x10")
    values = {"normal": Spread.of(10e9 * t for t in call.logits) if call else None}
    ghz = clock(r)
    bound, text = (100.0, "< 100 ns") if ghz is None else (350 / ghz, f"< {350 / ghz:.0f} ns (100 at 3.5 GHz)")
    goals.append(
        Goal(
            "1x10 forward call through the C API",
            text,
            values,
            lambda ns: ns < bound,
            " ns",
            ["normal"],
            "{0.median:.0f}; {0.minimum:.0f}",
        )
    )
    for work, keys, most in (
        ("heap, bytes of a call", ["heap_bytes"], 0),
        ("stack of a thread, bytes", ["stack_calling_thread", "stack_worker"], 16384),
    ):
        used = [float(c[key]) for c in memory_records(r) for key in keys if key in c]
        values = {"normal": Spread(max(used), max(used)) if used else None}
        goals.append(
            Goal(
                f"{work}, the most of any shape",
                f"≤ {most}",
                values,
                at_most(most),
                kinds=["normal"],
                form="{0.median:.0f}",
            )
        )
    for axis in ("rows", "cols"):
        growth = r.memory.get(f"most_growth_with_{axis}") if isinstance(r.memory, dict) else None
        values = {"normal": Spread(float(growth), float(growth)) if growth is not None else None}
        goals.append(
            Goal(
                f"growth of either with 16 times the {axis}, bytes",
                "≤ 64",  # a frame's alignment
                values,
                at_most(64),
                kinds=["normal"],
                form="{0.median:.0f}",
            )
        )
    return goals


# ---------------------------------------------------------------- tables


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return f"{ABSENT[0].upper()}{ABSENT[1:]}.\n"
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def time_text(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{number(seconds * scale)} {unit}"
    return f"{number(seconds * 1e9)} ns"


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def optional(value: Any) -> str:
    return "" if value is None else f"{value:.3g}"


def yardstick_of(op: str) -> str | None:
    """Also of an operation with an option, as forward_softcap."""
    prefixes = ("forward_backward", "forward") if op.startswith("forward") else ()
    return YARDSTICK.get(op) or next((YARDSTICK[p] for p in prefixes if op.startswith(p)), None)


def case_rows(cases: Iterable[Case | None]) -> list[list[str]]:
    rows = []
    for c in cases:
        if c is None:
            continue
        yardstick = yardstick_of(c.op)
        ratio = c.over(yardstick) if yardstick else None
        rows.append(
            [
                c.op,
                c.dtype,
                c.shape,
                str(c.threads),
                time_text(c.seconds),
                number(c.per_logit * 1e9),
                f"{ratio} × {YARDSTICK_NAME[yardstick]}" if ratio and yardstick else "",
                optional(peer.median) if (peer := c.counter("x_onednn")) else "",
                c.label,
            ]
        )
    return rows


CASE_HEAD = [
    "operation",
    "dtype",
    "shape",
    "threads",
    "call",
    "ns per logit",
    "time / yardstick",
    "time / oneDNN's",
    "target",
]


def select(r: Results, files: list[str], ops: list[str], dtypes: list[str], shapes: list[str]) -> list[Case]:
    return [
        c
        for file in files
        for shape in shapes
        for dtype in dtypes
        for op in ops
        for c in r.cases(file)
        if (c.op, c.dtype, c.shape) == (op, dtype, shape)
    ]


def peer_table(r: Results) -> str:
    rows = []
    places = list(dict.fromkeys((p["rows"], p["cols"], p["data"]) for p in r.peers if "absent" not in p))
    for p in sorted(
        (p for p in r.peers if "absent" not in p),
        key=lambda p: (places.index((p["rows"], p["cols"], p["data"])), p["op"]),
    ):
        rows.append(
            [
                p["source"],
                p["op"],
                f"{p['rows']}x{p['cols']}",
                p["data"],
                f"{time_text(p['seconds_median'])}; {time_text(p['seconds_min'])}",
                f"{time_text(p['xent_seconds_median'])}; {time_text(p['xent_seconds_min'])}",
                f"{p['speedup']:.2f}",
                optional(p.get("row_loss_ulp")),
                optional(p.get("xent_row_loss_ulp")),
                optional(p.get("loss_ulp")),
                optional(p.get("xent_loss_ulp")),
                optional(p.get("grad_ulp")),
                optional(p.get("xent_grad_ulp")),
            ]
        )
    head = ["peer", "operation", "shape", "data", "peer", "xent", "speed-up", "row loss, ULP: peer", "xent"]
    head += ["mean loss, ULP: peer", "xent", "gradient, ULP: peer", "xent"]
    text = table(head, rows)
    missing = sorted({(p["source"], p["absent"]) for p in r.peers if "absent" in p})
    if missing:
        text += "\nAbsent:\n\n" + "".join(f"- {source}: {reason}\n" for source, reason in missing)
    return text


def small_table(r: Results) -> str:
    rows = []
    for shape in SMALL:
        for op in LOSS_OPS:
            c = r.case("normal", op, "f32", shape)
            if c is None:
                continue
            cols = int(shape.split("x")[1])
            peer = speedup(r, None, op.removesuffix("_workspace"), shape, "normal") if "inplace" not in op else None
            best = f"{peer[0]:.2f} ({peer[1]})" if peer and op in ("forward", "forward_backward_workspace") else ""
            rows.append(
                [
                    op,
                    shape,
                    time_text(c.seconds),
                    number(c.per_logit * 1e9),
                    number(c.per_logit * cols * 1e9),
                    best,
                    c.label,
                ]
            )
    return table(
        ["operation", "shape", "call", "ns per logit", "ns per row", "speed-up over the best peer", "target"], rows
    )


def threads_table(r: Results) -> str:
    rows = []
    for c in select(r, ["normal"], ["forward", "forward_backward_inplace"], ["f32"], FEW):
        one = r.case("normal", c.op, c.dtype, c.shape, 1)
        gain = f"{one.per_logit / c.per_logit:.2f}" if one and c.threads > 1 else ""
        rows.append([c.op, c.shape, str(c.threads), time_text(c.seconds), gain, c.label])
    return table(["operation", "shape", "threads", "call", "speed-up over 1 thread", "target"], rows)


def memory_table(r: Results) -> str:
    """The most of any shape, of each operation."""
    records = memory_records(r)
    numbers = ["heap_calls", "heap_bytes", "stack_calling_thread", "stack_worker"]
    rows = []
    for op, dtype in dict.fromkeys((c["op"], c["dtype"]) for c in records):
        mine = [c for c in records if (c["op"], c["dtype"]) == (op, dtype)]
        rows.append([op, dtype, *(str(max(c.get(n, 0) for c in mine)) for n in numbers)])
    text = table(["operation", "dtype", *(n.replace("_", " ") for n in numbers)], rows)
    if records:
        shapes = dict.fromkeys(f"{c['rows']}x{c['cols']}" for c in records)
        text = f"In calls and bytes, the most of {', '.join(shapes)}.\n\n{text}"
        for axis in ("rows", "cols"):
            text += (
                f"\nMost growth of any number with more {axis}: {r.memory.get(f'most_growth_with_{axis}', ABSENT)}.\n"
            )
    return text


# ---------------------------------------------------------------- plots


def plots(r: Results, folder: Path) -> list[tuple[str, str]]:
    """Writes the SVG files; file names with what they show."""
    try:
        import matplotlib
    except ImportError:
        print("report.py: matplotlib is not installed, so there are no plots", file=sys.stderr)
        return []
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "xent", "svg.fonttype": "none", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    written: list[tuple[str, str]] = []

    def save(figure: Any, name: str, caption: str) -> None:
        if figure.get_layout_engine() is None:
            figure.tight_layout()
        figure.savefig(folder / name, metadata={"Date": None})
        pyplot.close(figure)
        written.append((name, caption))

    roofs = (
        ("forward", "x_sweep", "sweep time / time, forward"),
        ("forward_backward_workspace", "x_copy", "copy time / time, forward + backward"),
    )
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    drawn = False
    for axis, (op, yardstick, title) in zip(axes, roofs):
        for file in ("normal", "avx2"):
            for dtype in DTYPES:
                points = sorted(
                    (int(c.shape.split("x")[1]), 1 / ratio.median)
                    for c in select(r, [file], [op], [dtype], SMALL + REAL + [LARGE_HALF])
                    if c.threads == 1 and (ratio := c.over(yardstick))
                )
                if points:
                    drawn = True
                    target = next(c.label for c in r.cases(file) if c.op == op)
                    style = "o-" if len(points) > 1 else "s"
                    axis.plot(*zip(*points), style, markersize=4, label=f"{dtype}, {target}")
        axis.set(xscale="log", xlabel="V", ylim=(0, 1), title=title)
        axis.set_xticks([2, 10, 100, 1000, 10000, 100000], ["2", "10", "100", "1k", "10k", "100k"])
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    if drawn:
        save(
            figure,
            "roofline.svg",
            "One thread, normal data: the share of the memory's speed that is reached. The top edge is the limit. Up "
            "to V = 1000 matrices lie in a cache, where a streaming copy is no limit; what is faster than it lies "
            "above the edge.",
        )

    best = [
        p for p in r.peers if "absent" not in p and p["data"] == "normal" and p["op"] in ("forward", "forward_backward")
    ]
    if best:
        shapes = list(dict.fromkeys(f"{p['rows']}x{p['cols']}" for p in best))
        sources = list(dict.fromkeys(p["source"] for p in best))
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 7), layout="constrained")
        for axis, op in zip(axes, ("forward", "forward_backward")):
            for i, source in enumerate(sources):
                mine = {
                    f"{p['rows']}x{p['cols']}": p["speedup"] for p in best if (p["source"], p["op"]) == (source, op)
                }
                at = [k + 0.8 * (i + 0.5) / len(sources) - 0.4 for k, s in enumerate(shapes) if s in mine]
                widths = [mine[s] for s in shapes if s in mine]
                axis.barh(at, widths, 0.8 / len(sources), label=source, color=f"C{i}")
            axis.axvline(1, color="black", linewidth=0.8)
            axis.set(xscale="log", xlabel="peer's time / xent's", title=op.replace("_", " + "))
            axis.set_yticks(range(len(shapes)), shapes)
            axis.invert_yaxis()
            axis.grid(axis="x", which="both", alpha=0.3)
            axis.xaxis.set_major_formatter("{x:g}")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sources), fontsize=7)
        save(
            figure,
            "peers.svg",
            "Speed-up over each peer on the same buffer, one thread; at the line both are equally fast.",
        )

    figure, axis = pyplot.subplots(figsize=(5, 4))
    cores = r.all_threads()
    for op in ("forward", "forward_backward_inplace"):
        for shape in [LARGE, *FEW]:
            points = sorted((c.threads, 1 / c.per_logit) for c in select(r, ["normal"], [op], ["f32"], [shape]))
            points = [(t, rate / points[0][1]) for t, rate in points if t <= cores]
            if len(points) > 1 and size(shape) > 1000:
                axis.plot(*zip(*points), "o-" if op == "forward" else "s--", markersize=4, label=f"{op}, {shape}")
    if axis.lines:
        axis.plot([1, cores], [1, cores], color="black", linewidth=0.8, label="ideal")
        axis.set(xlabel="threads", ylabel="speed-up over one thread", ylim=(0, cores), xlim=(1, cores), title="scaling")
        axis.set_xticks(range(1, cores + 1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
        save(figure, "scaling.svg", "Speed-up over one thread; the top edge is as many times as there are cores.")
    pyplot.close("all")
    return written


# ---------------------------------------------------------------- the document


def versions(r: Results) -> str:
    known = {p["source"].removesuffix("_tuned"): p["version"] for p in r.peers if p.get("version")}
    return ", ".join(dict.fromkeys(known.values())) or ABSENT


def header(r: Results) -> str:
    context = r.contexts.get("normal") or next(iter(r.contexts.values()), {})
    caches = ", ".join(
        f"L{c['level']} {c['type'].lower()} {c['size'] // 1024} KB"
        for c in context.get("caches", [])
        if c["type"] != "Instruction"
    )
    targets = sorted({c["target"] for c in r.contexts.values() if "target" in c})
    rows = [
        ["date", str(context.get("date", ABSENT))[:10]],
        ["processor", f"{context.get('cpu', ABSENT)}, {context.get('num_cpus', '?')} cores; {caches}"],
        ["compiler", str(context.get("compiler", ABSENT))],
        ["xent", str(context.get("xent", ABSENT))],
        ["targets", ", ".join(targets) or ABSENT],
        ["clock", f"{clock(r):.2f} GHz, scalar code" if clock(r) else ABSENT],
        ["threads", " and ".join(str(t) for t in r.thread_counts())],
        ["peers", versions(r)],
    ]
    return table(["", ""], rows)


MATRIX = ("<!-- matrix -->\n", "<!-- end of matrix -->\n")  # around that part of the document


def matrix_part(measured: Any) -> str:
    return MATRIX[0] + (matrix_section(measured, table, time_text) if measured else "") + MATRIX[1]


def with_matrix(old: str, measured: Any) -> str:
    """The document with another matrix; it comes after the title where there was none."""
    before, marked, rest = old.partition(MATRIX[0])
    if not marked:
        before, title_end, after = old.partition("\n\n")
        return before + title_end + matrix_part(measured) + "\n" + after
    return before + matrix_part(measured) + rest.partition(MATRIX[1])[2]


def document(r: Results, docs: Path) -> str:
    images = plots(r, docs / "plots")
    notes = docs / "performance_notes.md"
    goals = [*loss_goals(r), *peer_goals(r), *other_goals(r)]
    rows = [goal.cells() for goal in goals]
    verdicts = [row[-1] for row in rows]
    unmet = sum(v.startswith("**") for v in verdicts)
    parts = [
        "# Performance\n",
        matrix_part(r.matrix),
        "Written by `scripts/bench.sh` from what it measured on one machine; do not edit. Times are medians, and "
        '"a; b" is the median and the minimum over repetitions. bench/README.md says what is timed and how.\n',
        header(r),
        "## Goals\n",
        f"{sum(v.startswith('met') for v in verdicts)} met, {unmet} not met, {verdicts.count(ABSENT)} not measured. "
        "Ratios are of two things timed in turns in the same run; the median decides. Speed-ups over peers and over "
        "threads are those of the medians; of the minima. Own time in L1 (L2) is that of the same operation "
        f"on {L1} ({L2}), per logit, over the threads; where a call's overhead makes forward slower on {L1} than on "
        f"{L2}, the latter counts.\n",
        table(["work", "goal", *DATA, ""], rows),
    ]
    if r.errors:
        parts += ["Failed:\n", "\n".join(f"- {e}" for e in r.errors) + "\n"]
    if notes.exists():
        parts += ["## Why what is not met is not met\n", notes.read_text().strip() + "\n"]
    parts += [f"![{caption}](plots/{name})\n\n{caption}\n" for name, caption in images]
    others = [
        c
        for c in r.cases("normal")
        if not c.op.endswith(("exp_sum", "read_sweep", "copy", "in_place_scale"))
        and (c.op not in LOSS_OPS or c.shape.count("x") > 1)
    ]
    exp_sums = [c for file in ("normal", "avx2") for c in r.cases(file) if c.op.endswith("exp_sum")]
    parts += [
        "## Real shapes\n",
        table(CASE_HEAD, case_rows(select(r, ["normal", "avx2"], LOSS_OPS, ["f32"], REAL))),
        "## Peers: speed and error\n",
        "One thread, CPU time, the peer and xent called in turns on the same buffer; forward + backward writes a "
        "gradient of its own (xent with a workspace). Tuned: glibc's malloc keeps its pages. Errors are against "
        "float64, in float32 ULP of the exact value, the worst of 16 rows; the mean loss counts them all.\n",
        peer_table(r),
        "## Small rows\n",
        small_table(r),
        "## Dtypes\n",
        table(CASE_HEAD, case_rows(select(r, ["normal"], LOSS_OPS, DTYPES, [LARGE, LARGE_HALF, L1, L2]))),
        "## Few rows and threads\n",
        threads_table(r),
        "## Sums of exponentials in cache\n",
        table(CASE_HEAD, case_rows(exp_sums)),
        "## Other operations\n",
        table(CASE_HEAD, case_rows(others)),
        "## Memory\n",
        memory_table(r),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the folder of JSON files")
    parser.add_argument("docs", type=Path, help="where performance.md and plots/ go")
    options = parser.parse_args()
    results = load(options.results)
    options.docs.mkdir(parents=True, exist_ok=True)
    performance = options.docs / "performance.md"
    alone = results.matrix and not results.benches and performance.exists()
    text = with_matrix(performance.read_text(), results.matrix) if alone else document(results, options.docs)
    performance.write_text(text)


if __name__ == "__main__":
    main()
