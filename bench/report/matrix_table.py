"""The Markdown of what bench/peers/matrix.py measured: the cases that lose first, in red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

GOAL, EAGER_GOAL = 1.5, 2.0  # peer's time / xent's: of any peer, and of PyTorch eager
PEERS = {
    "torch_eager": "PyTorch eager",
    "torch_eager_tuned": "eager, tuned",
    "torch_out": "eager, out=",
    "torch_compile": "compiled",
    "torch_compile_tuned": "compiled, tuned",
    "jax": "JAX",
    "jax_tuned": "JAX, tuned",
    "onnxruntime": "ONNX Runtime",
    "scipy": "SciPy",
    "numpy": "NumPy",
}
Record = dict[str, Any]


def ratios(record: Record) -> dict[str, float]:
    return {name: side["ratio"] for name, side in record["peers"].items()}


def slowest(record: Record) -> float:
    return min(ratios(record).values(), default=float("inf"))


def is_short(record: Record) -> bool:
    """Whether a goal is missed."""
    return any(
        r < (EAGER_GOAL if name.startswith(("torch_eager", "torch_out")) else GOAL)
        for name, r in ratios(record).items()
    )


def cell(ratio: float | None) -> str:
    if ratio is None:
        return ""
    text = f"{ratio:.3g}" if ratio >= 100 else f"{ratio:.1f}" if ratio >= 10 else f"{ratio:.2f}"
    return f"🟥 **{text}**" if ratio < 1 else text


def names_of(record: Record) -> dict[str, str]:
    return {
        "case": record["case"],
        "": record["op"].replace("_", " + "),
        "shape": record["shape"],
        "dtype": record["dtype"],
        "threads": str(record["threads"]),
        "target": record["target"],
    }


def matrix_section(
    document: dict[str, Any], table: Callable[[list[str], list[list[str]]], str], time_text: Callable[[float], str]
) -> str:
    context, records = document["context"], document["records"]
    measured = sorted((r for r in records if r["peers"]), key=slowest)
    peers = [name for name in PEERS if any(name in r["peers"] for r in measured)]
    # What is the same everywhere is said once.
    varying = [
        n for n in ("case", "", "shape", "dtype", "threads", "target") if len({names_of(r)[n] for r in measured}) > 1
    ]
    constant = {n: names_of(measured[0])[n] for n in ("dtype", "threads", "target") if measured and n not in varying}

    def part(title: str, chosen: list[Record]) -> list[str]:
        if not chosen:
            return []
        rows = [
            [names_of(r)[n] for n in varying]
            + [time_text(r["xent"]["median"])]
            + [cell(ratios(r).get(name)) for name in peers]
            for r in chosen
        ]
        return [
            f"### {title}: {len(chosen)} of {len(measured)}\n",
            table([*varying, "xent", *(PEERS[p] for p in peers)], rows),
        ]

    losing = [r for r in measured if slowest(r) < 1]
    short = [r for r in measured if slowest(r) >= 1 and is_short(r)]
    load = [" ".join(map(str, context[name])) for name in ("load", "load_after") if name in context]
    rows = [
        ["date", context["date"]],
        ["processor", f"{context['cpu']}, {context['cores']} cores"],
        ["load of the machine", ", after the run ".join(load)],
        ["compiler", context["compiler"]],
        ["xent", f"{context['xent']}, commit {context['commit']}"],
        ["targets", ", ".join(context["targets"])],
        ["threads", ", ".join(map(str, context["threads"]))],
        ["peers", ", ".join(context["peers"])],
        *([name, value] for name, value in constant.items() if name == "dtype"),
    ]
    wrong = [r for r in records if "wrong" in r]
    absent = {f"{name}: {reason}" for r in records for name, reason in r["absent"].items()}
    return "\n".join(
        [
            "## Beside other libraries\n",
            "The peer's time divided by xent's, medians of the same rounds in one process; 🟥 below 1, where the peer "
            f"is faster. The goals are {GOAL:g} against every peer and {EAGER_GOAL:g} against PyTorch eager. Tuned: "
            "glibc's malloc keeps its pages. The peers' gradients and matrices are new arrays, as their users have "
            "them, but in the column `out=`; xent writes into one that the caller keeps. An empty cell: not measured, "
            "or the peer has no such function.\n",
            table(["", ""], rows),
            *part("Slower than a peer", losing),
            *part("Below a goal", short),
            *part("At the goals", [r for r in measured if slowest(r) >= 1 and not is_short(r)]),
            *(
                ["Wrong, and not timed:\n", "\n".join(f"- {' '.join(names_of(r).values())}" for r in wrong) + "\n"]
                if wrong
                else []
            ),
            *(["Peers that failed:\n", "\n".join(f"- {a}" for a in sorted(absent)) + "\n"] if absent else []),
        ]
    )
