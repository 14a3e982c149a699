// What every part of the extension module needs: a call's threads, and what its status means in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "xent/xent.h"

namespace xent_python {

// Where a call's threads come from: the library's own OpenMP team, threads of the call's own where the package is built
// without OpenMP (a wheel: it must not bring a second OpenMP runtime into a process that has PyTorch's), or PyTorch's
// pool for xent.torch.
enum class Pool { kOwn, kTorch };

// `threads` as in xent_exec, counted as set_num_threads says where it is 0. Logits of fewer than `bytes` small enough
// run on the calling thread.
xent_exec ExecOf(Pool pool, int64_t threads = 0);

// Throws what a status other than XENT_OK means: IndexError for a target out of range, MemoryError, RuntimeError for an
// incomplete call, else ValueError, with the message of the library.
void RaiseIf(xent_status status, const xent_error &error);

// Registers functions on the module; one of each file.
void DefineThreads(nanobind::module_ &m);  // set_num_threads, get_num_threads, use_torch(parallel_for, num_threads)
void DefineRaw(nanobind::module_ &m);      // calls on addresses, for xent.torch and xent.jax
void DefineNumpy(nanobind::module_ &m);    // calls on arrays

}  // namespace xent_python
