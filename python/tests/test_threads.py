"""Threads: the same bits with any number of them, in any number of callers, in forked children, beside PyTorch's."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import xent
from xent import _core

ROWS, COLS = 256, 3000  # enough for several tasks


def problem():
    rng = np.random.default_rng(1)
    return rng.standard_normal((ROWS, COLS)).astype(np.float32), rng.integers(0, COLS, ROWS)


def result(threads=0):
    x, t = problem()
    loss, grad = xent.cross_entropy(x, t, grad=True, threads=threads)
    return loss.tobytes() + grad.tobytes()


@pytest.fixture(autouse=True)
def default_threads():
    yield
    xent.set_num_threads(0)


def test_number_of_threads():
    default = xent.get_num_threads()
    assert default >= 1
    xent.set_num_threads(3)
    assert xent.get_num_threads() == 3 and xent.info()["threads"] == 3
    xent.set_num_threads(0)
    assert xent.get_num_threads() == default


def test_same_bits():
    one = result(1)
    for threads in (2, 3, 16):
        assert result(threads) == one
        xent.set_num_threads(threads)
        assert result() == one


def test_more_threads_are_used():
    """Counted by the system while calls run."""
    x, t = problem()
    most = 0
    running = True

    def call():
        nonlocal running
        for _ in range(30):
            xent.cross_entropy(x, t, grad=True, threads=3)
        running = False

    caller = threading.Thread(target=call)
    before = len(os.listdir("/proc/self/task"))
    caller.start()
    while running:
        most = max(most, len(os.listdir("/proc/self/task")))
    caller.join()
    assert most - before >= 2  # the caller and another, if not two: a thread that is late finds nothing to do


def test_callers_at_once():
    one = result(1)
    results = [None] * 6

    def call(i):
        results[i] = result(2)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [one] * 6


def test_lock_is_released():
    """Another thread of Python's runs while a call does."""
    x = np.zeros((2000, 3000), np.float32)
    seen = []
    done = threading.Event()

    def watch():
        while not done.is_set():
            seen.append(1)
            time.sleep(0.0001)  # gives the lock up

    watcher = threading.Thread(target=watch)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)  # nobody takes the lock from a thread that does not give it up
    try:
        watcher.start()
        before = len(seen)
        xent.softmax(x, threads=1)
        after = len(seen)
        done.set()
    finally:
        sys.setswitchinterval(interval)
        watcher.join()
    assert after > before


def test_fork():
    """A child computes after its parent did, with threads of its own."""
    one = result(2)
    for threads in (0, 2):
        child = os.fork()
        if child == 0:
            os._exit(0 if result(threads) == one else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert result(2) == one


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing():
    one = result(2)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(result, [0, 1, 2], chunksize=1) == [one] * 3


def run(code):
    package = os.path.dirname(os.path.dirname(xent.__file__))
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env=dict(os.environ, PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


COMPUTE = """
import numpy as np
def compute():
    x = np.random.default_rng(1).standard_normal((512, 4000)).astype(np.float32)
    xent.cross_entropy(x, np.zeros(512, int), grad=True, threads=2)
    torch.mm(torch.ones(600, 600), torch.ones(600, 600))
    y = torch.from_numpy(x)
    xent.torch.cross_entropy(y, torch.zeros(512, dtype=torch.int64))
"""


@pytest.mark.parametrize("imports", ["import torch; import xent.torch", "import xent; import xent.torch; import torch"])
def test_one_openmp_runtime_beside_torch(imports):
    pytest.importorskip("torch")
    mapped = run(f"{imports}\nimport xent, torch\n{COMPUTE}\ncompute()\n"
                 "lines = open('/proc/self/maps').readlines()\n"
                 "names = {line.split()[-1] for line in lines if 'gomp' in line or 'libomp' in line}\n"
                 "print(*names)")
    assert len(mapped) == 1, mapped


def test_fork_beside_torch():
    """A child of a process that computed with PyTorch's threads and xent's."""
    torch = pytest.importorskip("torch")
    assert torch.__version__
    assert run(f"""
import os, torch, xent, xent.torch
torch.set_num_threads(2)
{COMPUTE}
compute()
child = os.fork()
if child == 0:
    x = torch.randn(512, 4000)
    xent.torch.cross_entropy(x, torch.zeros(512, dtype=torch.int64))
    xent.cross_entropy(x, np.zeros(512, int), grad=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""") == ["0"]


def test_use_torch_refuses_null():
    with pytest.raises(ValueError, match="use_torch: an address is 0"):
        _core.use_torch(0, 0)
