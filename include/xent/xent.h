/* xent: fused softmax cross-entropy, and what stands around it, on the CPU.
 *
 * This file is the whole border: C11, usable from C++, stable ABI (docs/abi.md). xent.hpp is a C++20 layer over it.
 *
 * Notation, everywhere below: N rows, V columns (classes), logits z[N,V], target class t of a row,
 *   m = max_j z_j,   lse = m + log sum_j exp(z_j - m),   p_j = exp(z_j - lse),   nll = lse - z_t.
 * The arithmetic type is float64 for float64 logits, else float32. Losses, lse, weights, statistics and upstream
 * gradients have it; below it is written "float". Gradients, softmax and log_softmax have the dtype of the logits,
 * rounded once, to nearest even. One ULP of v is the spacing of the arithmetic type's numbers at the exact |v|.
 *
 * What holds for every function here:
 *   Layout   A matrix is xent_matrix: data, stride, dtype. Row i begins at data + i*stride elements; stride 0 means V.
 *            With inner = d > 1 a call's matrices are [N/d, V, d], the class dimension in the middle ([N, C, H, W] with
 *            d = H W): row i = b d + s, column c is data[b*stride + c*d + s]; stride 0 then means V*d, and N is a
 *            multiple of d. inner 0 means 1. The elements between rows are neither read nor written.
 *   Checks   All arguments are checked before the first write; a refused call has changed nothing. Pointers need the
 *            alignment of their element type. Sizes whose products in bytes exceed 2^63 - 1 are refused, columns
 *            counted as 8 bytes and rows as 64.
 *   Bits     The result depends neither on the number of threads nor on how rows are cut up, batched, aligned or
 *            strided, and is the same on every target with fused multiply-add (AVX2, AVX-512, NEON, SVE). A row alone
 *            gives the bits that it gives in a batch. Class-major layouts have bits of their own.
 *   Zeros    Where an exact result lies below the smallest normal number of the arithmetic type, zero is stored (the
 *            array functions exp, log, log1p keep subnormals). Every NaN written is the canonical positive quiet NaN.
 *   Memory   Nothing is taken from the heap (the OpenMP runtime may for its own team, and the C library for its
 *            threads); scratch is at most 16 KB of stack a thread.
 *   Process  Nothing throws, aborts, prints or sets errno. The caller's floating-point mode (rounding, flush-to-zero,
 *            exceptions) neither matters nor changes. One thing is in other hands: the OpenMP runtime prints and ends
 *            the process where the system refuses it a thread. So the first call of a thread that wants a team of some
 *            size tries whether there are so many threads to be had, with stacks of the default size, and runs on the
 *            calling thread where there are not. What is left are limits that are reached later, and a larger
 *            OMP_STACKSIZE. With threads = 1 or a parallel_for the library starts no thread.
 *   Threads  Every function may be called from any number of threads at once. How one call is spread: xent_exec.
 *   Aliasing Unless stated otherwise no output may overlap an input or another output; overlap that is not detected is
 *            undefined.
 *   Status   XENT_INVALID_ARGUMENT covers, for every function: rows < 0, cols < 1, a stride smaller than a row, an
 *            unknown enumerator, NULL for a required array that is not empty, misaligned pointers, sizes past 2^63 - 1
 *            bytes, a struct_size this library does not know, an input or output that the function has no use for.
 *            XENT_INCOMPLETE: the caller's parallel_for left a task out; outputs are then unspecified.
 *   NULL     options, exec and error may be NULL: defaults, the library's own threads, no message.
 */
#ifndef XENT_XENT_H_
#define XENT_XENT_H_

#include <stddef.h>
#include <stdint.h>

/* XENT_STATIC: the archive is linked; its symbols stay inside of the program or plug-in that they are linked into. */
#if defined(XENT_STATIC)
#define XENT_API __attribute__((visibility("hidden")))
#else
#define XENT_API __attribute__((visibility("default")))
#endif

#if defined(__cplusplus)
#define XENT_NOEXCEPT noexcept
extern "C" {
#else
#define XENT_NOEXCEPT
#endif

#define XENT_VERSION_MAJOR 0
#define XENT_VERSION_MINOR 2
#define XENT_VERSION_PATCH 0

/* ------------------------------------------------------------------ status and error ---------------------------- */

typedef enum xent_status {
  XENT_OK = 0,
  XENT_INVALID_ARGUMENT = 1,    /* an argument or option is out of range; outputs untouched */
  XENT_TARGET_OUT_OF_RANGE = 2, /* a target is neither in [0, V) nor ignore_index; outputs untouched */
  XENT_DOMAIN_ERROR = 3,        /* a value outside a function's domain; outputs untouched */
  XENT_INCOMPLETE = 4           /* the caller's parallel_for left a task out; outputs unspecified */
} xent_status;

/* What went wrong; written only when a call fails. Initialise with XENT_ERROR_INIT. */
typedef struct xent_error {
  size_t struct_size;
  int32_t status;    /* xent_status */
  int32_t reserved;  /* 0 */
  int64_t row;       /* of the offending element, from 0; -1: none is known */
  int64_t column;    /* of the offending element, from 0; -1: none is known */
  double value;      /* the offending number; exact up to 2^53, `message` has all its digits; 0: none is known */
  char message[216]; /* names the argument, the row or column, the value and what was expected; zero-terminated */
} xent_error;
#define XENT_ERROR_INIT {sizeof(xent_error), 0, 0, -1, -1, 0.0, {0}}

/* A short English name of a status ("invalid argument"), never NULL. */
XENT_API const char *xent_status_string(xent_status status) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ matrices, targets, reduction ---------------- */

/* Enumerations are stored as int32_t. */
typedef enum xent_dtype { XENT_F32 = 0, XENT_F64 = 1, XENT_BF16 = 2, XENT_F16 = 3 } xent_dtype;
typedef enum xent_index_type { XENT_I64 = 0, XENT_I32 = 1 } xent_index_type;

/* [N, V] in the layout of the call. A matrix with data NULL is absent, or empty where N = 0; an absent one has no
 * stride, and its dtype is not read. The library writes only to the matrices that are called outputs. */
typedef struct xent_matrix {
  void *data;
  int64_t stride;   /* elements from row to row (inner > 1: from group to group); 0: no gap */
  int32_t dtype;    /* xent_dtype */
  int32_t reserved; /* 0 */
} xent_matrix;

/* [N] class indices. */
typedef struct xent_targets {
  const void *data; /* NULL: none */
  int32_t type;     /* xent_index_type */
  int32_t reserved; /* 0 */
} xent_targets;

typedef enum xent_upstream_kind {
  XENT_UPSTREAM_SCALAR = 0,  /* u = data[0] */
  XENT_UPSTREAM_ROWS = 1,    /* u = data[row] */
  XENT_UPSTREAM_ELEMENTS = 2 /* u = element [row, column]; binary cross-entropy only */
} xent_upstream_kind;

/* u, the gradient of whatever follows the reduced loss (reduction none: each loss); float. */
typedef struct xent_upstream {
  const void *data; /* NULL: u = 1; stride and kind must be 0 then, unless N = 0 */
  int64_t stride;   /* of XENT_UPSTREAM_ELEMENTS, as a matrix has it; else 0 */
  int32_t kind;     /* xent_upstream_kind */
  int32_t reserved; /* 0 */
} xent_upstream;

typedef enum xent_reduction_kind {
  XENT_REDUCTION_MEAN = 0,
  XENT_REDUCTION_SUM = 1,
  XENT_REDUCTION_NONE = 2
} xent_reduction_kind;
typedef enum xent_empty_mean { XENT_EMPTY_MEAN_NAN = 0, XENT_EMPTY_MEAN_ZERO = 1 } xent_empty_mean;

/* How losses become one number. Zeros: the mean, NaN over nothing. */
typedef struct xent_reduction {
  int32_t kind;       /* xent_reduction_kind */
  int32_t empty_mean; /* xent_empty_mean: the mean over no (or no weighted) row */
  double divisor;     /* D, finite, > 0: sum and mean are sum / D; 0: none. Refused with XENT_REDUCTION_NONE */
} xent_reduction;

/* Nothing; for the initialisers below. */
#define XENT_NO_MATRIX {NULL, 0, XENT_F32, 0}
#define XENT_NO_TARGETS {NULL, XENT_I64, 0}
#define XENT_NO_UPSTREAM {NULL, 0, XENT_UPSTREAM_SCALAR, 0}
#define XENT_MEAN {XENT_REDUCTION_MEAN, XENT_EMPTY_MEAN_NAN, 0.0}

/* ------------------------------------------------------------------ execution ----------------------------------- */

/* The caller's thread pool: calls task(arg, i) once for each i in [0, n), in any order, on any thread, and returns when
 * all are done. It must not return while a task runs, start one later, or throw. */
typedef void (*xent_task)(void *arg, int64_t i);
typedef void (*xent_parallel_for)(void *ctx, int64_t n, xent_task task, void *arg);

/* How a call is spread over threads; NULL means XENT_EXEC_INIT. Small work, work inside an OpenMP parallel region, work
 * in a forked child and work that the system has no threads for runs on the calling thread. The result never depends on
 * any of it. */
typedef struct xent_exec {
  size_t struct_size;
  xent_parallel_for parallel_for; /* NULL: the library's own OpenMP team */
  void *ctx;                      /* first argument of parallel_for */
  int32_t threads;                /* 1: the calling thread alone; 0: as many as the team or the pool has */
  int32_t reserved;               /* 0 */
} xent_exec;
#define XENT_EXEC_INIT {sizeof(xent_exec), NULL, NULL, 0, 0}

/* ------------------------------------------------------------------ library ------------------------------------- */

/* "0.2.0" */
XENT_API const char *xent_version(void) XENT_NOEXCEPT;
/* The SIMD target that calls run on now, in Highway's words: "SSE2", "SSSE3", "SSE4", "AVX2", "AVX3" (AVX-512), "NEON",
 * "SVE", ... Chosen once per process: the best that the processor has, capped by the environment variable
 * XENT_MAX_TARGET (one of Highway's names; an unknown name caps nothing and is reported by `xent info`). */
XENT_API const char *xent_active_target(void) XENT_NOEXCEPT;
/* Name of the i-th target that this build holds and this processor can run, best first; NULL past the last. */
XENT_API const char *xent_available_target(int32_t i) XENT_NOEXCEPT;
/* Name of the i-th target that this build holds, best first; NULL past the last. */
XENT_API const char *xent_compiled_target(int32_t i) XENT_NOEXCEPT;
/* The value of XENT_MAX_TARGET where it was not understood, else NULL. */
XENT_API const char *xent_unknown_max_target(void) XENT_NOEXCEPT;
/* Threads that a call with the default policy would use now. */
XENT_API int32_t xent_default_threads(void) XENT_NOEXCEPT;
/* Version of Highway that the library was built with, "1.2.0". */
XENT_API const char *xent_highway_version(void) XENT_NOEXCEPT;

/* Columns of one chunk of a row of V logits: V/16 rounded up to whole blocks of 1024. Threads (and shards of a
 * vocabulary) cut a row at multiples of it only. 0 for V <= 0. */
XENT_API int64_t xent_chunk_cols(int64_t cols) XENT_NOEXCEPT;

/* Bytes of workspace with which xent_cross_entropy_forward_backward is at its fastest: threads (0: those of the default
 * policy) times one row of the arithmetic type. 0 where an argument is out of range or the product exceeds 2^63 - 1.
 * A row's exponentials are then kept in the workspace, in cache, until the row's sum is known, so that a gradient in a
 * buffer of its own is written once, and one of half precision costs one exponential a logit instead of two. In place
 * float32 and float64 gain nothing and leave the workspace alone, as do all other functions and the rows that are
 * computed side by side or in double lanes. Any size and alignment will do; threads that find no room work without. No
 * bit of any result depends on it. Its contents are unspecified before and after; calls that run at once need one each.
 */
XENT_API size_t xent_workspace_bytes(int64_t cols, xent_dtype dtype, int32_t threads) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ array functions ----------------------------- */

/* Formula   y[i] = exp(x[i]), log(x[i]), log(1 + x[i]) for i in [0, n).
 * Special   exp(-inf) = 0, exp(+inf) = +inf, overflow +inf; log(+-0) = -inf, log(x < 0) = NaN, log(+inf) = +inf;
 *           log1p(+-0) = +-0, log1p(-1) = -inf, log1p(x < -1) = NaN; NaN gives NaN. Subnormals are never flushed.
 * Error     1.0 ULP (float32: tests/numbers/sweep_long_test.cc visits every one; float64: those of functions_test.cc).
 * Memory    One pass. The calling thread.
 * Aliasing  y may be x.
 * Status    XENT_INVALID_ARGUMENT: n < 0, or a pointer is NULL and n > 0.
 * Source    Argument reduction after Tang (1989); polynomials by scripts/coefficients.py. */
XENT_API xent_status xent_exp_f32(const float *x, float *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_exp_f64(const double *x, double *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log_f32(const float *x, float *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log_f64(const double *x, double *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log1p_f32(const float *x, float *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log1p_f64(const double *x, double *y, int64_t n) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ row functions ------------------------------- */

/* Formula   lse[i] = log sum_j exp(x[i,j]).
 * Shapes    x [N, V]; lse out, float [N].
 * Special   A row of -inf gives -inf, one with +inf gives +inf, one with a NaN gives NaN.
 * Error     4 ULP of the larger of |m| and log V.
 * Memory    One pass over x.
 * Aliasing  None.
 * Status    As every function. */
XENT_API xent_status xent_logsumexp(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, void *lse,
                                    const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   y[i,j] = exp(x[i,j] - lse[i]).
 * Shapes    x, y [N, V], one dtype.
 * Special   A row of -inf, or with +inf or NaN, gives NaN throughout.
 * Error     6 ULP of the exact value, in the far tail too, before the one rounding to a half-precision dtype.
 * Memory    float32 and float64 take one exponential a logit, kept in y; half precision two.
 * Aliasing  y may be x where their strides are equal.
 * Status    As every function; XENT_INVALID_ARGUMENT: the dtypes differ. */
XENT_API xent_status xent_softmax(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, xent_matrix y,
                                  const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   y[i,j] = x[i,j] - lse[i].
 * Shapes    x, y [N, V], one dtype.
 * Special   -inf where x is -inf; a row of -inf, or with +inf or NaN, gives NaN throughout.
 * Error     4 ULP of the exact value: the row's maximum is -log1p of the others, and keeps its digits near 0.
 * Memory    Three passes over a row in cache.
 * Aliasing  y may be x where their strides are equal.
 * Status    As xent_softmax. */
XENT_API xent_status xent_log_softmax(int64_t rows, int64_t cols, int64_t inner, xent_matrix x, xent_matrix y,
                                      const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   dx[i,j] = y[i,j] (g[i,j] - sum_k g[i,k] y[i,k]), g the upstream gradient, y the saved output of softmax.
 * Shapes    g, y, dx [N, V], one dtype.
 * Special   NaN and infinities go through the formula. A stored y near 1 has lost the digits of 1 - y, and dx there has
 *           lost its own with them: xent_cross_entropy_forward_backward, fused, keeps them.
 * Error     4 ULP of the sum of the terms' magnitudes.
 * Memory    Two passes over g and y.
 * Aliasing  dx may be g or y where the strides are equal.
 * Status    As xent_softmax. */
XENT_API xent_status xent_softmax_backward(int64_t rows, int64_t cols, int64_t inner, xent_matrix g, xent_matrix y,
                                           xent_matrix dx, const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   dx[i,j] = g[i,j] - exp(y[i,j]) sum_k g[i,k], g the upstream gradient, y the saved output of log_softmax.
 * Shapes    g, y, dx [N, V], one dtype.
 * Special   NaN and infinities go through the formula. Where exp(y) is near 1 the terms may cancel, and dx lose its
 *           digits as that of xent_softmax_backward does.
 * Error     4 ULP of the sum of the terms' magnitudes, plus what the rounding of the stored y is worth.
 * Memory    Two passes over g, one over y.
 * Aliasing  dx may be g or y where the strides are equal.
 * Status    As xent_softmax. */
XENT_API xent_status xent_log_softmax_backward(int64_t rows, int64_t cols, int64_t inner, xent_matrix g, xent_matrix y,
                                               xent_matrix dx, const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* What a batch of supposed logits looks like. Probabilities where logits belong (softmax twice) do not crash, they
 * train slowly; log-probabilities there are harmless. */
typedef enum xent_diagnosis {
  XENT_DIAGNOSIS_LOGITS = 0,
  XENT_DIAGNOSIS_PROBABILITIES = 1,
  XENT_DIAGNOSIS_LOG_PROBABILITIES = 2
} xent_diagnosis;

/* Formula   PROBABILITIES: every value in [0,1] and every row's sum within 1e-3 of 1 (bfloat16: 2^-7).
 *           LOG_PROBABILITIES: every row's logsumexp that near 0. LOGITS: otherwise.
 * Shapes    x [N, V]; diagnosis out.
 * Special   LOGITS for no rows, V = 1 or a NaN.
 * Error     None: a judgement within the tolerances above.
 * Memory    At most one pass over x; usually the first row decides.
 * Aliasing  None.
 * Status    As every function. */
XENT_API xent_status xent_check_logits(int64_t rows, int64_t cols, int64_t inner, xent_matrix x,
                                       xent_diagnosis *diagnosis, const xent_exec *exec,
                                       xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ cross-entropy ------------------------------- */

typedef enum xent_smoothing { XENT_SMOOTHING_UNIFORM = 0, XENT_SMOOTHING_EXCLUSIVE = 1 } xent_smoothing;

/* NULL and XENT_CROSS_ENTROPY_OPTIONS_INIT mean PyTorch's defaults. */
typedef struct xent_cross_entropy_options {
  size_t struct_size;
  int64_t ignore_index;   /* rows with this target count for nothing; default -100; index targets only */
  int64_t valid_cols;     /* in [1, V]: columns from here on are padding, never read, gradient 0; 0 means V */
  double logit_scale;     /* finite, > 0; default 1. A temperature T is the scale 1/T */
  double softcap;         /* cap, finite, >= 0: z' = cap tanh(logit_scale z / cap); 0: off */
  double label_smoothing; /* epsilon in [0, 1] */
  double z_loss;          /* lambda, finite, >= 0: adds lambda lse^2 to the loss of a row */
  int32_t smoothing;      /* xent_smoothing: where epsilon's mass goes; exclusive: index targets only */
  int32_t reserved;       /* 0 */
  xent_reduction reduction;
} xent_cross_entropy_options;
#define XENT_CROSS_ENTROPY_OPTIONS_INIT \
  {sizeof(xent_cross_entropy_options), -100, 0, 1.0, 0.0, 0.0, 0.0, XENT_SMOOTHING_UNIFORM, 0, XENT_MEAN}

/* What may be asked of the rows beside the loss, out of the forward functions. All of it concerns the transformed
 * logits z'; NULL: not wanted. Initialise with XENT_STATISTICS_INIT. */
typedef struct xent_statistics {
  size_t struct_size;
  void *lse;                  /* out, float [N] */
  void *logprobs;             /* out, float [N]: z'_t - lse; index targets only */
  int64_t *argmax;            /* out [N]: column of the largest logit, the lowest among equals */
  uint8_t *hits;              /* out [N]: 1 where argmax is the target; index targets only */
  int64_t *rank;              /* out [N]: of the target: columns greater, plus equal ones of smaller index */
  void *entropy;              /* out, float [N]: lse - sum p z' */
  int64_t top_k;              /* k in [0, 64], at most valid_cols */
  void *topk_logprobs;        /* out, float [N, k]: descending, the lower index first among equals */
  int64_t *topk_indices;      /* out [N, k] */
  int64_t gather_count;       /* K >= 0 */
  const int64_t *gather_cols; /* [N, K], each in [0, valid_cols) */
  void *gathered;             /* out, float [N, K]: z'_c - lse at the columns of gather_cols */
  double *perplexity;         /* out [1]: exp(sum of nll / live rows); NaN without live rows and with target_probs */
  int64_t *live_rows;         /* out [1]: rows that are not ignored */
  int64_t of_ignored;         /* 1: ignored rows are read, and have what needs no target; default 0 */
} xent_statistics;
#define XENT_STATISTICS_INIT \
  {sizeof(xent_statistics), NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, 0, NULL, NULL, NULL, NULL, 0}

/* Bytes of the opaque record that forward saves per row for backward; the same for ever. Records need 8-byte
 * alignment. A record belongs to its row's logits, target, weights and options (all but reduction). */
#define XENT_RECORD_BYTES 64

/* The tensors of a call. Initialise with XENT_CROSS_ENTROPY_INIT, then set what is used. An output that is NULL is not
 * computed. */
typedef struct xent_cross_entropy {
  size_t struct_size;
  int64_t rows, cols, inner;         /* N >= 0, V >= 1, layout */
  xent_matrix logits;                /* [N, V] */
  xent_targets targets;              /* [N]; absent where target_probs is set */
  xent_matrix target_probs;          /* [N, V], any dtype: probability targets in place of `targets` */
  const void *class_weights;         /* float [V], finite; NULL: 1 */
  const void *row_weights;           /* float [N], finite; NULL: 1 */
  void *row_losses;                  /* out, float [N] */
  void *reduced_loss;                /* out, float [1]; must be NULL with XENT_REDUCTION_NONE */
  const xent_statistics *statistics; /* NULL: none */
  void *records;                     /* N * XENT_RECORD_BYTES; out of forward, in of backward */
  xent_upstream upstream;            /* backward functions only, as are the two gradients */
  xent_matrix grad;                  /* out, [N, V], dtype of the logits */
  xent_matrix target_grad;           /* out, [N, V], dtype of target_probs */
  void *workspace;                   /* speed alone, see xent_workspace_bytes; NULL: none */
  size_t workspace_bytes;            /* of it */
} xent_cross_entropy;
/* clang-format off */
#define XENT_CROSS_ENTROPY_INIT                                                                                 \
  {sizeof(xent_cross_entropy), 0, 0, 0, XENT_NO_MATRIX, XENT_NO_TARGETS, XENT_NO_MATRIX, NULL, NULL, NULL, NULL, \
   NULL, NULL, XENT_NO_UPSTREAM, XENT_NO_MATRIX, XENT_NO_MATRIX, NULL, 0}
/* clang-format on */

/* Formula   row loss = r ( sum_c w_c q'_c (lse - z'_c) + lambda lse^2 ), w class weights, r row weight,
 *             z' = logit_scale z, or cap tanh(logit_scale z / cap) with softcap = cap > 0; lse and p are those of z',
 *             q' uniform:   (1-e) q_c + e/V; index targets: q the one-hot of t, e = label_smoothing, V = valid_cols
 *             q' exclusive: 1-e at t, e/(V-1) elsewhere.
 *           Nothing is normalised, and q need not sum to one.
 *           reduced loss: sum of the row losses; mean: over the sum of r w_t of the live rows (target_probs: over N);
 *           with a divisor D: sum / D.
 * Shapes    logits, target_probs [N, V]; targets, row_losses [N]; reduced_loss [1]; statistics: there.
 * Special   In this order: a target equal to ignore_index gives loss 0, statistics 0 and -1, does not count, and its
 *           logits are never read; a NaN or +inf in the row, or a row of -inf, gives NaN (statistics NaN and -1) for
 *           that row alone; a target whose logit is -inf gives +inf. A coefficient that is exactly 0 beats infinity.
 *           Mean over a denominator of 0: NaN, or 0 under XENT_EMPTY_MEAN_ZERO or with a divisor.
 * Error     Row loss 4 ULP of the exact loss, however small it is (negative weights: of the sum of the terms'
 *           magnitudes); reduced loss 4 of sum |loss| over the denominator; lse 4 of the larger of |max z'| and log V;
 *           log-probabilities 4 of the exact value; entropy 8 of the exact value. softcap: as above for a z' that is
 *           itself within 2 of its ULP. z_loss: for an lse within its own bound.
 * Memory    Reads the logits once. Rows of up to 64 columns (with options 128 or 256), and all with inner > 1, are
 *           computed 16 side by side (not float64, nor target_probs of float64). On longer rows softcap, logit_scale,
 * class weights under smoothing, z_loss under smoothing and target_probs look at each part of a row for its maximum
 * first; float64 computes them, and inner > 1, in double lanes. Statistics add a pass over a longer row in cache.
 * Aliasing  None.
 * Status    As every function. XENT_INVALID_ARGUMENT: an option, weight or gather column out of range, two things that
 *           do not go together, upstream, grad or target_grad set. XENT_TARGET_OUT_OF_RANGE: row and value.
 * Source    Milakov & Gimelshein 2018 (one-sweep normaliser); exact exponents: docs/numerics.md; z-loss: Chowdhery et
 *           al. 2022 (PaLM); softcap: Gemma Team 2024. */
XENT_API xent_status xent_cross_entropy_forward(const xent_cross_entropy *args,
                                                const xent_cross_entropy_options *options, const xent_exec *exec,
                                                xent_error *error) XENT_NOEXCEPT;

/* Formula   xent_cross_entropy_forward, and the gradients of the reduced loss (XENT_REDUCTION_NONE: of each row loss).
 *           With y_c = w_c q'_c, Q = sum y_c, u the upstream gradient over the denominator, dz_j = logit_scale, times
 *           sech^2(logit_scale z_j / cap) when capped:
 *             grad[i,j] = u r ( (Q + 2 lambda lse) p_j - y_j ) dz_j,
 *             target_grad[i,c] = u r w_c (1-e) (lse - z'_c).
 * Shapes    grad [N, V], dtype of the logits; target_grad [N, V], dtype of target_probs; one of the two may be absent.
 * Special   Ignored rows, and every row when the mean's denominator is 0, get zeros whatever u is. A row of NaN loss
 *           gets NaN. p and grad are 0 at -inf logits, and grad past valid_cols. An infinite u gives infinities of the
 *           formula's signs, and 0 where its other factor is 0; a NaN u makes the gradients of its live rows NaN.
 * Error     grad 6 ULP of the largest of its terms; with an index target, no smoothing and no z_loss of the exact
 *           value, at the target too; half precision: then one rounding. p below 2^-198 (float64, and in double lanes:
 *           2^-1532) counts as 0, which shows only where |u dz| is above 2^72 (2^510), and a cap's slope below
 *           2^-1022. target_grad is 0 below the smallest normal number of its own arithmetic type.
 * Memory    float32 and float64 take one exponential a logit, half precision without a workspace, the options just
 *           named and double lanes two; rows side by side one, with inner > 1 and V > 64 two. A gradient in a buffer of
 *           its own is written twice without a workspace and once with one, or side by side.
 * Aliasing  grad may be logits where the strides are equal.
 * Status    As xent_cross_entropy_forward. */
XENT_API xent_status xent_cross_entropy_forward_backward(const xent_cross_entropy *args,
                                                         const xent_cross_entropy_options *options,
                                                         const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   The gradients alone, with the bits of xent_cross_entropy_forward_backward, from the records that a forward
 *           call with the same logits, targets, weights and options saved.
 * Shapes    records: N * XENT_RECORD_BYTES, in; row_losses, reduced_loss and all outputs of statistics must be NULL.
 * Special   As xent_cross_entropy_forward_backward.
 * Error     As xent_cross_entropy_forward_backward.
 * Memory    Reads the logits once and writes the gradients once.
 * Aliasing  grad may be logits where the strides are equal.
 * Status    As xent_cross_entropy_forward. XENT_INVALID_ARGUMENT: a record that no forward call of this dtype and these
 *           options wrote, or one with class_weights where there are none now, or the reverse (row). */
XENT_API xent_status xent_cross_entropy_backward(const xent_cross_entropy *args,
                                                 const xent_cross_entropy_options *options, const xent_exec *exec,
                                                 xent_error *error) XENT_NOEXCEPT;

/* Row losses that were stored earlier. */
typedef struct xent_stored_losses {
  size_t struct_size;
  int64_t rows;              /* N >= 0 */
  int64_t cols;              /* V; read with class_weights only */
  const void *row_losses;    /* [N], of dtype */
  xent_targets targets;      /* [N]: which rows are ignored, and their class weights; absent: none is ignored */
  const void *class_weights; /* [V], of dtype, finite; NULL: 1 */
  const void *row_weights;   /* [N], of dtype, finite; NULL: 1 */
  void *reduced_loss;        /* out, [1], of dtype */
  int32_t dtype;             /* XENT_F32 or XENT_F64 */
  int32_t reserved;          /* 0 */
} xent_stored_losses;
#define XENT_STORED_LOSSES_INIT {sizeof(xent_stored_losses), 0, 0, NULL, XENT_NO_TARGETS, NULL, NULL, NULL, XENT_F32, 0}

/* Formula   The reduced loss that one call over these rows gives, with its bits. The losses have their weights already;
 *           weights here are those of the mean's denominator, sum of r w_t over the live rows.
 * Shapes    As the struct says.
 * Special   Losses of ignored rows are not looked at.
 * Error     4 ULP of sum |loss| over the denominator.
 * Memory    One pass. The calling thread.
 * Aliasing  None.
 * Status    As every function. Of options only reduction (not none) and ignore_index are read. With class_weights
 *           targets are required: XENT_TARGET_OUT_OF_RANGE: row and value; without, their range is not checked. */
XENT_API xent_status xent_reduce(const xent_stored_losses *args, const xent_cross_entropy_options *options,
                                 xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ vocabulary shards --------------------------- */

/* Several processes (or machines) each hold a slice of the columns. Each calls xent_shard_forward on its slice, which
 * gives a list of chunk records per row; the lists, brought together by whatever transport there is, go through
 * xent_shard_combine (everywhere, or in one place), which gives losses and one record per row; each slice's gradient
 * then comes from xent_shard_backward. Cut at multiples of xent_chunk_cols(total) the results have the bits of the
 * unsharded call of more than 256 columns, or of float64. Of fewer columns, or cut elsewhere losses, lse and logprobs
 * are within 2 ULP of them, gradients within 2 of their larger term (4 where logits lie beyond 2^20 or hundreds apart).
 * The three take the same options (all but reduction) and the same class_weights. Not with inner > 1. */

/* Bytes of one chunk record; the same for ever. 8-byte alignment. Plain bytes: they may be sent to a machine of the
 * same byte order that runs the same version of the library. */
#define XENT_CHUNK_RECORD_BYTES 128

/* Chunk records per row of a slice of `cols` columns from `first_col` on, of `total_cols`, which is valid_cols where
 * that option is set: columns from there on have no records. 0 where nothing of the slice lies inside, or where a size
 * is out of range. */
XENT_API int64_t xent_shard_chunks(int64_t total_cols, int64_t first_col, int64_t cols) XENT_NOEXCEPT;

typedef struct xent_shard {
  size_t struct_size;
  int64_t total_cols; /* V of the whole vocabulary */
  int64_t first_col;  /* of this slice, which has args->cols columns */
} xent_shard;
#define XENT_SHARD_INIT {sizeof(xent_shard), 0, 0}

/* Formula   The chunk records of a slice.
 * Shapes    args: rows, cols of the slice, logits and target_probs the slice, targets columns of the whole vocabulary,
 *           class_weights of the whole vocabulary; every output NULL. options->valid_cols counts columns of the whole
 *           vocabulary. chunk_records: out, [N, xent_shard_chunks(...)] records.
 * Special   As xent_cross_entropy_forward.
 * Error     None of its own.
 * Memory    Reads the slice once.
 * Aliasing  None.
 * Status    As xent_cross_entropy_forward. XENT_INVALID_ARGUMENT: a slice that is not inside of total_cols. */
XENT_API xent_status xent_shard_forward(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                                        const xent_shard *shard, void *chunk_records, const xent_exec *exec,
                                        xent_error *error) XENT_NOEXCEPT;

/* Formula   Losses and records of whole rows from the chunk records of all slices.
 * Shapes    lists[s]: the records of slice s, [N, list_chunks[s]], slices in the order of their columns. args: rows,
 *           cols of the whole vocabulary, logits.dtype alone of the logits, targets (absent: the targets are
 *           probabilities, target_probs absent too), weights, row_losses, reduced_loss, records, and of statistics
 *           lse, logprobs, perplexity and live_rows.
 * Special   As xent_cross_entropy_forward.
 * Error     As xent_cross_entropy_forward.
 * Memory    Reads the records once. The calling thread.
 * Aliasing  None.
 * Status    As xent_cross_entropy_forward. XENT_INVALID_ARGUMENT: the records leave a gap, overlap, or were written for
 *           other targets, options or dtypes, or with class_weights where there are none now, or the reverse (row). */
XENT_API xent_status xent_shard_combine(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                                        const void *const *lists, const int64_t *list_chunks, int64_t shards,
                                        xent_error *error) XENT_NOEXCEPT;

/* Formula   The slice's gradients from the records of xent_shard_combine.
 * Shapes    args: the slice as in xent_shard_forward, row_weights, records, upstream, grad [N, cols of the slice],
 *           target_grad. The mean's denominator is that of the whole batch.
 * Special   As xent_cross_entropy_forward_backward.
 * Error     As xent_cross_entropy_forward_backward.
 * Memory    Reads the slice once and writes its gradients once.
 * Aliasing  grad may be logits where the strides are equal.
 * Status    As xent_cross_entropy_backward and xent_shard_forward. */
XENT_API xent_status xent_shard_backward(const xent_cross_entropy *args, const xent_cross_entropy_options *options,
                                         const xent_shard *shard, const xent_exec *exec,
                                         xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ divergences --------------------------------- */

typedef enum xent_divergence_kind {
  XENT_DIVERGENCE_FORWARD_KL = 0,     /* sum p (log p - log q) */
  XENT_DIVERGENCE_REVERSE_KL = 1,     /* sum q (log q - log p) */
  XENT_DIVERGENCE_JENSEN_SHANNON = 2, /* b sum p log(p/m) + (1-b) sum q log(q/m), m = b p + (1-b) q, b = beta */
  XENT_DIVERGENCE_CROSS_ENTROPY = 3   /* -sum p log q */
} xent_divergence_kind;

typedef struct xent_divergence_options {
  size_t struct_size;
  int32_t kind;       /* xent_divergence_kind */
  int32_t reserved;   /* 0 */
  double temperature; /* T, finite, > 0; default 1 */
  double beta;        /* in (0, 1), default 0.5; another value only with Jensen-Shannon */
  int64_t valid_cols; /* as in xent_cross_entropy_options */
  xent_reduction reduction;
} xent_divergence_options;
#define XENT_DIVERGENCE_OPTIONS_INIT \
  {sizeof(xent_divergence_options), XENT_DIVERGENCE_FORWARD_KL, 0, 1.0, 0.5, 0, XENT_MEAN}

/* Student logits s, teacher logits u: q = softmax(s/T), p = softmax(u/T). "float" goes by the student's dtype. */
typedef struct xent_divergence {
  size_t struct_size;
  int64_t rows, cols, inner; /* N >= 0, V >= 1, layout */
  xent_matrix student;       /* [N, V] */
  xent_matrix teacher;       /* [N, V], any dtype */
  const void *row_weights;   /* float [N], finite; NULL: 1 */
  void *row_losses;          /* out, float [N] */
  void *reduced_loss;        /* out, float [1]; must be NULL with XENT_REDUCTION_NONE */
  xent_upstream upstream;    /* forward_backward only, as is the gradient */
  xent_matrix grad;          /* out, [N, V], dtype of the student: for the student's logits */
} xent_divergence;
#define XENT_DIVERGENCE_INIT \
  {sizeof(xent_divergence), 0, 0, 0, XENT_NO_MATRIX, XENT_NO_MATRIX, NULL, NULL, NULL, XENT_NO_UPSTREAM, XENT_NO_MATRIX}

/* Formula   Row loss as the kinds say, times the row weight; no factor T^2 (the weight or the upstream gradient carries
 *           it). Neither softmax is stored. mean divides by N.
 * Shapes    student, teacher [N, V]; row_losses [N]; reduced_loss [1].
 * Special   Terms with p = 0 (reverse: q = 0) are 0. +inf where the student's logit is -inf and p > 0 (reverse: the
 *           teacher's is -inf and q > 0), never by underflow. NaN or +inf in either row, or a row of -inf, gives NaN.
 *           A row of weight 0 is not read: loss 0, gradient 0.
 * Error     8 ULP of the sum of the terms' magnitudes, a term being p (|log p| + |log q|); reduced loss as
 *           xent_cross_entropy_forward.
 * Memory    Reads both matrices twice (Jensen-Shannon three times), the row in cache. float64 on either side, and rows
 *           that float32 lanes are not made for, in double lanes.
 * Aliasing  None.
 * Status    As every function. XENT_INVALID_ARGUMENT: an option or weight out of range, upstream or grad set.
 * Source    Hinton, Vinyals & Dean 2015; generalised Jensen-Shannon: Agarwal et al. 2024. */
XENT_API xent_status xent_divergence_forward(const xent_divergence *args, const xent_divergence_options *options,
                                             const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   xent_divergence_forward (row_losses and reduced_loss may both be NULL), and the gradient for the student's
 *           logits, u the upstream gradient over the denominator, r the row weight:
 *             forward KL, cross-entropy  u r (q - p)/T        reverse KL  u r q (log q - log p - loss)/T
 *             Jensen-Shannon             u r (1-b) q (log(q/m) - sum q log(q/m))/T
 * Shapes    grad [N, V], dtype of the student.
 * Special   Where a reverse KL is +inf its gradient row is NaN; otherwise as xent_cross_entropy_forward_backward.
 * Error     6 ULP of the larger of the terms, logarithms counted one by one (log q and log p, log m).
 * Memory    One more pass over both matrices.
 * Aliasing  grad may be student where the strides are equal.
 * Status    As xent_divergence_forward. */
XENT_API xent_status xent_divergence_forward_backward(const xent_divergence *args,
                                                      const xent_divergence_options *options, const xent_exec *exec,
                                                      xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ binary cross-entropy ------------------------ */

typedef enum xent_binary_input { XENT_BINARY_LOGITS = 0, XENT_BINARY_PROBABILITIES = 1 } xent_binary_input;

typedef struct xent_binary_cross_entropy_options {
  size_t struct_size;
  int32_t input;      /* xent_binary_input: what the input is */
  int32_t reserved;   /* 0 */
  double focal_gamma; /* finite, >= 0; default 0; logits only */
  double focal_alpha; /* in [0, 1], logits only; default -1: the factor a_y is 1 */
  xent_reduction reduction;
} xent_binary_cross_entropy_options;
#define XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT \
  {sizeof(xent_binary_cross_entropy_options), XENT_BINARY_LOGITS, 0, 0.0, -1.0, XENT_MEAN}

/* Elements x[i,c] (logits z or probabilities p) and targets y[i,c]. N = 0 is an empty batch. */
typedef struct xent_binary_cross_entropy {
  size_t struct_size;
  int64_t rows, cols, inner;   /* N >= 0, V >= 1, layout */
  xent_matrix input;           /* [N, V] */
  xent_matrix targets;         /* [N, V], any dtype; not checked: outside [0,1] the formula decides */
  const void *pos_weight;      /* float [V], finite; NULL: 1; logits only */
  const void *class_weights;   /* float [V], finite; NULL: 1 */
  const void *row_weights;     /* float [N], finite; NULL: 1 */
  xent_matrix element_weights; /* float [N, V], finite; absent: 1 */
  xent_matrix element_losses;  /* out, float [N, V] */
  void *reduced_loss;          /* out, float [1]; must be NULL with XENT_REDUCTION_NONE */
  xent_upstream upstream;      /* backward functions only, as are the two gradients */
  xent_matrix grad;            /* out, [N, V], dtype of the input */
  xent_matrix target_grad;     /* out, [N, V], dtype of the targets */
} xent_binary_cross_entropy;
/* clang-format off */
#define XENT_BINARY_CROSS_ENTROPY_INIT                                                                               \
  {sizeof(xent_binary_cross_entropy), 0, 0, 0, XENT_NO_MATRIX, XENT_NO_MATRIX, NULL, NULL, NULL, XENT_NO_MATRIX, \
   XENT_NO_MATRIX, NULL, XENT_NO_UPSTREAM, XENT_NO_MATRIX, XENT_NO_MATRIX}
/* clang-format on */

/* Formula   With w the product of element, row and class weight, softplus(x) = max(x,0) + log1p(exp(-|x|)), and
 *           s = sigmoid(z):
 *             logits         bce = (1-y) softplus(z) + pos_weight y softplus(-z),   loss = w bce
 *             focal          loss = w a_y (1-p_y)^gamma bce, p_y = y s + (1-y)(1-s), a_y = alpha y + (1-alpha)(1-y)
 *             probabilities  loss = -w ( y log p + (1-y) log(1-p) ), each log at least -100, as PyTorch
 *           reduced loss: sum over all elements, mean over N V, or sum / D; summed in double over the losses as stored.
 * Shapes    input, targets, element_weights, element_losses [N, V]; reduced_loss [1].
 * Special   0 * inf = 0: z = +-inf with a hard target gives 0 or +inf. A NaN makes its element NaN.
 * Error     4 ULP of the sum of the terms' magnitudes, focal 16; reduced loss as xent_cross_entropy_forward.
 * Memory    One pass. float32 and half precision in float32 lanes, float64 in pairs of doubles, about 20 ns an element,
 *           its focal loss in scalar double-double, about 0.4 us. The pairs also compute float32 elements of unusual
 *           numbers: NaN, targets outside [0,1], float64 targets that are no float32, weights beyond 2^-16 to 2^10.
 * Aliasing  None.
 * Status    As every function. XENT_INVALID_ARGUMENT: an option or weight out of range, upstream, grad or target_grad
 *           set. XENT_DOMAIN_ERROR: a probability outside [0,1] or NaN (row, column, value).
 * Source    PyTorch's binary_cross_entropy(_with_logits); focal: Lin et al. 2017. */
XENT_API xent_status xent_binary_cross_entropy_forward(const xent_binary_cross_entropy *args,
                                                       const xent_binary_cross_entropy_options *options,
                                                       const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   xent_binary_cross_entropy_forward, and the gradients of the reduced loss (XENT_REDUCTION_NONE: of each
 *           element's), u the upstream gradient over the denominator:
 *             grad, logits          u w ( (1-y) s - pos_weight y (1-s) ); focal: the derivative of its formula
 *             grad, probabilities   u w (p - y) / max(p (1-p), 1e-12)
 *             target_grad, logits   u w ( pos_weight softplus(-z) - softplus(z) ); focal: the derivative
 *             target_grad, probabilities   u w ( log(1-p) - log p ), each log at least -100
 * Shapes    grad [N, V], dtype of the input; target_grad [N, V], dtype of the targets; one of the two may be absent.
 * Special   The focal gradient is finite for gamma < 1 at p_y = 1 too. An infinite u gives infinities of the formula's
 *           signs, and 0 where its other factor is 0 or cancels to 0. In float64 without focal, sigmoid and softplus
 *           below 2^-1532 count as 0, which shows only where |u w| is above 2^510.
 * Error     4 ULP of the larger term, focal 16.
 * Memory    One pass.
 * Aliasing  grad may be input where the strides are equal.
 * Status    As xent_binary_cross_entropy_forward. */
XENT_API xent_status xent_binary_cross_entropy_forward_backward(const xent_binary_cross_entropy *args,
                                                                const xent_binary_cross_entropy_options *options,
                                                                const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Formula   The gradients alone, with the bits of xent_binary_cross_entropy_forward_backward. Nothing is saved between
 *           forward and backward: the inputs are read again.
 * Shapes    element_losses and reduced_loss must be absent.
 * Special   As xent_binary_cross_entropy_forward_backward.
 * Error     As xent_binary_cross_entropy_forward_backward.
 * Memory    One pass.
 * Aliasing  grad may be input where the strides are equal.
 * Status    As xent_binary_cross_entropy_forward. */
XENT_API xent_status xent_binary_cross_entropy_backward(const xent_binary_cross_entropy *args,
                                                        const xent_binary_cross_entropy_options *options,
                                                        const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

#if defined(__cplusplus)
}
#endif
#endif /* XENT_XENT_H_ */
