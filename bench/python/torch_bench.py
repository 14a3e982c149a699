#!/usr/bin/env python3
"""xent.torch beside PyTorch, in one process and in turns: time of a call, and the ratio.

usage: torch_bench.py [--threads 1,0] [--dtypes float32,bfloat16] [--shapes NAME,...] [--compile] [--linear]
                      [--seconds S] [--malloc tuned|default]

Peers: torch.nn.functional.cross_entropy eager and, with --compile, under torch.compile(fullgraph=True). Forward is
without a gradient, forward+backward is `loss.backward()` into a fresh .grad. Results are compared before anything is
timed; a shape whose results disagree is not timed, and the script then ends with 1.

Both allocate from the same malloc, tuned such that freed blocks stay with the process (MALLOC_TOP_PAD_,
MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_=0): with glibc's defaults every large tensor is mapped anew, and what is timed
is the kernel clearing pages. The script starts itself anew with these set; --malloc default leaves them alone.

--linear: linear_cross_entropy beside its three matrix products alone, F.linear and F.cross_entropy, and, where PyTorch
has it, F.linear_cross_entropy with chunks; peak memory of each beyond inputs and gradients in a process of its own.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

TUNED = {"MALLOC_TOP_PAD_": str(256 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0"}
SHAPES = {"1x10": (1, 10), "32x10": (32, 10), "64x1000": (64, 1000), "65536x10": (65536, 10),
          "8192x1000": (8192, 1000), "2048x32000": (2048, 32000), "512x128256": (512, 128256),
          "4x19x256x256": (4, 19, 256, 256)}
HEADS = {"1024x768x50257": (1024, 768, 50257), "512x2048x128256": (512, 2048, 128256)}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default="1,0", help="counts, 0 for all")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--shapes", default="")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--linear", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0, help="for all peers of one line together")
    parser.add_argument("--malloc", choices=("tuned", "default"), default="tuned")
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


args = arguments()
if args.malloc == "tuned" and any(os.environ.get(k) != v for k, v in TUNED.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED})

import torch  # noqa: E402  the environment comes first
import torch.nn.functional as F  # noqa: E402

import xent  # noqa: E402
import xent.torch  # noqa: E402

failed = False


def cpu():
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def in_turns(functions, seconds):
    """Times of each function, in microseconds: rounds in which each runs in turn, as often as fills its share."""
    repeats = []
    for f in functions:
        f()
        begin = time.perf_counter()
        f()
        once = time.perf_counter() - begin
        repeats.append(max(1, int(2e-3 / max(once, 1e-7))))
    times = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or (time.perf_counter() < end and len(times[0]) < 1000):
        for f, n, out in zip(functions, repeats, times):
            begin = time.perf_counter()
            for _ in range(n):
                f()
            out.append((time.perf_counter() - begin) / n * 1e6)
    return times


def close(a, b, dtype):
    # float32: what PyTorch's float32 sums lose. bfloat16: one rounding, 2^-9, and as much again of the reference's.
    # Peers in half precision (int8 stands for them) are compared to tell a wrong result, not to judge its digits.
    relative, absolute = {torch.float32: (1e-4, 1e-6), torch.bfloat16: (2.0**-8, 1e-6)}.get(dtype, (0.25, 0.05))
    a, b = a.detach().float(), b.detach().float()
    return bool(((a - b).abs() <= relative * b.abs() + absolute * b.abs().max()).all())


def line(name, dtype, what, peers, times):
    ours = min(times[0])
    median = statistics.median(times[0])
    text = f"{name:14} {str(dtype)[6:]:9} {what:9} xent {ours:12.2f} {median:12.2f}"
    for peer, out in zip(peers, times[1:]):
        text += f"   {peer} {min(out):12.2f} {statistics.median(out):12.2f}"
        text += f"  ratio {min(out) / ours:6.2f} {statistics.median(out) / median:6.2f}"
    print(text, flush=True)


def losses(name, shape, dtype):
    global failed
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(shape, generator=generator).to(dtype)
    t = torch.randint(0, shape[1], shape[:1] + shape[2:], generator=generator)
    leaf = x.clone().requires_grad_()
    functions = {"xent": xent.torch.cross_entropy, "eager": F.cross_entropy}
    if args.compile:
        torch._dynamo.reset()
        functions["compile"] = torch.compile(lambda a, b: F.cross_entropy(a, b), fullgraph=True)

    def both(f):
        def run():
            leaf.grad = None
            f(leaf, t).backward()

        return run

    # The reference is PyTorch in float32: in bfloat16 it rounds log-probabilities, and loses two digits of a gradient.
    exact = x.float().requires_grad_()
    expected = F.cross_entropy(exact, t)
    expected.backward()
    for peer, f in functions.items():
        leaf.grad = None
        loss = f(leaf, t)
        loss.backward()
        allowed = dtype if peer == "xent" else torch.int8
        if not close(loss, expected, allowed) or not close(leaf.grad, exact.grad, allowed):
            print(f"{name} {dtype}: {peer} differs from PyTorch in float32")
            failed = True
            return
    del exact, expected, loss
    peers = list(functions)[1:]
    with torch.no_grad():
        times = in_turns([lambda f=f: f(x, t) for f in functions.values()], args.seconds)
    line(name, dtype, "forward", peers, times)
    line(name, dtype, "fwd+bwd", peers, in_turns([both(f) for f in functions.values()], args.seconds))


def head_functions(shape, dtype):
    n, d, v = shape
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, d, generator=generator).to(dtype).requires_grad_()
    w = (torch.randn(v, d, generator=generator) / d**0.5).to(dtype).requires_grad_()
    t = torch.randint(0, v, (n,), generator=generator)
    functions = {"xent": lambda: xent.torch.linear_cross_entropy(x, w, t),
                 "linear+loss": lambda: F.cross_entropy(F.linear(x, w), t)}
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        functions["F.linear_ce"] = lambda: F.linear_cross_entropy(x, w, t, options=options)
    return x, w, functions


def heads(name, shape, dtype):
    global failed
    x, w, functions = head_functions(shape, dtype)
    n, d, v = shape
    results = {}
    for peer, f in functions.items():
        x.grad = w.grad = None
        loss = f()
        loss.backward()
        results[peer] = loss.detach(), x.grad, w.grad
    for peer in results:
        scale = [r.detach().float().abs().max() for r in results["linear+loss"]]
        worst = max(((a.float() - b.float()).abs().max() / s).item()
                    for a, b, s in zip(results[peer], results["linear+loss"], scale))
        if worst > (1e-3 if dtype is torch.float32 else 0.05):
            print(f"{name} {dtype}: {peer} differs from linear+loss by {worst:.2g} of the largest element")
            failed = True
    del results
    logits = torch.empty(n, v, dtype=dtype)
    grad_x, grad_w = torch.empty(n, d, dtype=dtype), torch.empty(v, d, dtype=dtype)

    def products():
        with torch.no_grad():
            torch.mm(x, w.t(), out=logits)
            torch.mm(logits, w, out=grad_x)
            torch.mm(logits.t(), x, out=grad_w)

    def both(f):
        def run():
            x.grad = w.grad = None
            f().backward()

        return run

    times = in_turns([both(f) for f in functions.values()] + [products], args.seconds)
    ours = min(times[0])
    print(f"{name:16} {str(dtype)[6:]:9} fwd+bwd  products alone {min(times[-1]) / 1e3:9.1f} ms"
          f"  xent {ours / 1e3:9.1f} ms = {ours / min(times[-1]):.3f} of it"
          f" (median {statistics.median(times[0]) / statistics.median(times[-1]):.3f})", end="")
    for peer, out in list(zip(functions, times))[1:]:
        print(f"  {peer} {min(out) / 1e3:.1f} ms ratio {min(out) / ours:.2f}", end="")
    print(flush=True)


def memory_of(peer, name, dtype):
    """Prints the growth of the process's peak memory over inputs and gradients, in MiB, of one call."""
    x, w, functions = head_functions(HEADS[name], dtype)
    # Threads' stacks, code and the products' own buffers are there before.
    small = torch.randn(64, 64, dtype=dtype)
    torch.mm(small, small)
    x.grad, w.grad = torch.zeros_like(x), torch.zeros_like(w)
    gradients = (x.numel() + w.numel()) * x.element_size()
    x.grad = w.grad = None

    def peak(key):
        with open("/proc/self/status") as file:
            return next(int(row.split()[1]) for row in file if row.startswith(key)) / 1024

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak("VmRSS")
    functions[peer]().backward()
    print(f"{peak('VmHWM') - before - gradients / 2**20:.0f}")


def main():
    if args.memory_of:
        peer, name, dtype = args.memory_of.split("/")
        memory_of(peer, name, getattr(torch, dtype))
        return
    tuned = args.malloc == "tuned"
    allocator = " ".join(f"{k}={v}" for k, v in TUNED.items()) if tuned else "glibc's defaults"
    print(f"CPU: {cpu()}, {os.cpu_count()} CPUs")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, xent {xent._core.__version__}")
    print(f"malloc: {allocator}")
    print("microseconds: minimum and median of each; ratio: peer over xent, of minima and of medians")
    everything = torch.get_num_threads()
    chosen = [s for s in args.shapes.split(",") if s]
    for threads in args.threads.split(","):
        count = int(threads) or everything
        torch.set_num_threads(count)
        print(f"\nthreads: {count}")
        for dtype in args.dtypes.split(","):
            dtype = getattr(torch, dtype)
            if args.linear:
                for name, shape in HEADS.items():
                    if not chosen or name in chosen:
                        heads(name, shape, dtype)
            else:
                for name, shape in SHAPES.items():
                    if not chosen or name in chosen:
                        losses(name, shape, dtype)
    if args.linear and sys.platform == "linux":
        print("\npeak memory of one call beyond inputs and gradients, MiB")
        environment = {k: v for k, v in os.environ.items() if k not in TUNED}
        for dtype in args.dtypes.split(","):
            for name in HEADS:
                if chosen and name not in chosen:
                    continue
                for peer in head_functions((1, 1, 1), torch.float32)[2]:
                    out = subprocess.run([sys.executable, __file__, "--malloc", "default", "--memory-of",
                                          f"{peer}/{name}/{dtype}"], env=environment, capture_output=True, text=True)
                    text = out.stdout.strip() or out.stderr.strip()[-200:]
                    print(f"{name:16} {dtype:9} {peer:12} {text}", flush=True)
    sys.exit(1 if failed else 0)


main()
