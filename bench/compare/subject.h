// A subject is a small module that knows one version of xent's header and calls one build of the library. xent_compare
// loads two subjects and times them by turns. They share this interface, which has none of xent's types in it.
#ifndef XENT_BENCH_COMPARE_SUBJECT_H_
#define XENT_BENCH_COMPARE_SUBJECT_H_

#include <cstddef>
#include <cstdint>

namespace xent_compare {

enum class Operation : int32_t {
  kForward,
  kForwardBackward,
  kInPlace,
  kBackward,   // from the records of a forward call
  kWorkspace,  // kForwardBackward with a workspace
  kSmoothing,  // kForwardBackward with kLabelSmoothing
  kSoftcap     // kForwardBackward with kSoftcap, which is computed in double lanes
};
inline constexpr double kLabelSmoothing = 0.1;
inline constexpr double kSoftcap = 30;

// XENT_RECORD_BYTES, which is the same in every version.
inline constexpr int64_t kRecordBytes = 64;

enum class Dtype : int32_t { kF32, kF64, kBf16, kF16 };

// The buffers of a call, which both subjects share. Each array holds the values of `problems` problems, one problem
// after the other, and call i works on problem i % problems.
struct Call {
  Operation operation;
  Dtype dtype;
  int32_t threads;         // 1: the calling thread alone; 0: the library's default
  int32_t passes_options;  // 1: the call gets a struct of options that holds the defaults; 0: it gets null
  int64_t rows, cols, problems;
  int64_t matrix_bytes;    // of one problem's logits
  int64_t value_bytes;     // of one loss
  char *logits;            // [problems, rows, cols]; kInPlace overwrites them
  const int64_t *targets;  // [problems, rows]
  char *row_losses;        // [problems, rows]; null for kBackward
  char *reduced_losses;    // [problems]; null for kBackward
  char *records;           // [problems, rows] of kRecordBytes; in of kBackward, else out; null: none
  char *grad;              // [problems, rows, cols]; the logits themselves for kInPlace
  char *workspace;         // of kWorkspace
  size_t workspace_bytes;
};

// What a subject exports. Open loads the library and returns null, or says why that failed. Run makes `calls` calls and
// returns the status of the first one that failed, or 0.
using OpenFunction = const char *(*)(const char *library);
using RunFunction = int32_t (*)(const Call *call, int64_t calls);
inline constexpr const char *kOpenName = "xent_subject_open";
inline constexpr const char *kRunName = "xent_subject_run";

}  // namespace xent_compare

#endif  // XENT_BENCH_COMPARE_SUBJECT_H_
