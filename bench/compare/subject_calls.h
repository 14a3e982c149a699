// What every subject does alike: it loads its library's functions and walks over the problems of a call.
#ifndef XENT_BENCH_COMPARE_SUBJECT_CALLS_H_
#define XENT_BENCH_COMPARE_SUBJECT_CALLS_H_

#include <dlfcn.h>

#include <cstddef>
#include <cstdint>

#include "bench/compare/subject.h"

#define XENT_SUBJECT_EXPORT extern "C" [[gnu::visibility("default")]]

namespace xent_compare {

// The three functions of the library that subjects call, with the types of the header that this is compiled with.
template <class Forward, class ForwardBackward, class Backward>
struct Functions {
  Forward forward;
  ForwardBackward forward_backward;
  Backward backward;

  // Returns null, or what is wrong. The path must have a slash, else the loader would take another library of that
  // name.
  const char *Load(const char *library) {
    void *const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return dlerror();
    forward = reinterpret_cast<Forward>(dlsym(handle, "xent_cross_entropy_forward"));
    forward_backward = reinterpret_cast<ForwardBackward>(dlsym(handle, "xent_cross_entropy_forward_backward"));
    backward = reinterpret_cast<Backward>(dlsym(handle, "xent_cross_entropy_backward"));
    const bool found = forward != nullptr && forward_backward != nullptr && backward != nullptr;
    return found ? nullptr : "the library lacks a function";
  }

  auto Of(Operation operation) const {
    return operation == Operation::kForward ? forward : operation == Operation::kBackward ? backward : forward_backward;
  }
};

inline bool HasOptions(const Call &call) {
  return call.passes_options != 0 || call.operation == Operation::kSmoothing || call.operation == Operation::kSoftcap;
}

// The arrays of one problem, null where the call has none.
struct Arrays {
  char *logits;
  const int64_t *targets;
  char *row_losses, *reduced_loss, *records, *grad;
};

// Calls run(arrays) for one problem after the other, `calls` times. Returns the first status that is not 0, or 0.
template <class Run>
int32_t ForEachCall(const Call &call, int64_t calls, const Run &run) {
  const auto at = [](char *array, int64_t bytes) { return array == nullptr ? nullptr : array + bytes; };
  int64_t problem = 0;
  for (int64_t i = 0; i < calls; ++i) {
    const int64_t row = problem * call.rows;
    const int32_t status = run(Arrays{.logits = call.logits + problem * call.matrix_bytes,
                                      .targets = call.targets + row,
                                      .row_losses = at(call.row_losses, row * call.value_bytes),
                                      .reduced_loss = at(call.reduced_losses, problem * call.value_bytes),
                                      .records = at(call.records, row * kRecordBytes),
                                      .grad = at(call.grad, problem * call.matrix_bytes)});
    if (status != 0) return status;
    if (++problem == call.problems) problem = 0;
  }
  return 0;
}

}  // namespace xent_compare

#endif  // XENT_BENCH_COMPARE_SUBJECT_CALLS_H_
