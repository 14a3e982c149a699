// What every part of the extension module needs: a call's threads, and what its status means in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "xent/xent.h"

namespace xent_python {

// Where a call's threads come from. kOwn: the library's OpenMP team, or threads of the call's own where the package is
// built without OpenMP (a wheel must not bring a second OpenMP runtime into a process that has PyTorch's). kTorch:
// PyTorch's pool where use_torch was called, else as kOwn.
enum class Pool { kOwn, kTorch };

// Returns the threads of a call on `bytes` of memory. `threads` is that of xent_exec: 0 asks for as many as
// set_num_threads (kTorch: PyTorch) says. The number of bytes tells whether a call is worth threads that have to be
// started first; the library itself decides as if they were waiting.
xent_exec ExecOf(Pool pool, int64_t threads = 0, int64_t bytes = INT64_MAX);

// Returns the threads of a large call on kOwn.
int32_t NumThreads();

// Throws the exception that a status other than XENT_OK means, with the message of the library: IndexError for a target
// out of range, RuntimeError for an incomplete call, else ValueError.
[[noreturn]] void Raise(xent_status status, const xent_error &error);
inline void RaiseIf(xent_status status, const xent_error &error) {
  if (status != XENT_OK) [[unlikely]]
    Raise(status, error);
}

// Registers functions on the module; one of each file.
void DefineThreads(nanobind::module_ &m);  // set_num_threads, get_num_threads, use_torch(parallel_for, num_threads)
void DefineRaw(nanobind::module_ &m);      // calls on addresses, for xent.torch and xent.jax
void DefineNumpy(nanobind::module_ &m);    // calls on arrays

}  // namespace xent_python
