/* xent: fused softmax cross-entropy, and what stands around it, on the CPU.
 *
 * This file is the whole border: C11, usable from C++, stable ABI. xent.hpp is a C++20 layer over it.
 *
 * Notation, everywhere below: N rows, V columns (classes), logits z[N,V], target class t of a row,
 *   m = max_j z_j,   lse = m + log sum_j exp(z_j - m),   p_j = exp(z_j - lse),   nll = lse - z_t.
 * "Arithmetic type" is float32, or float64 for float64 logits; one ULP of v is the spacing of that type's
 * numbers at the exact |v|. Losses, lse and reduced losses have the arithmetic type; gradients, softmax and
 * log_softmax have the dtype of the logits, rounded once, to nearest even.
 *
 * What holds for every function here:
 *   Rows     Row i of a matrix starts at data + i*stride elements; stride 0 means V. Padding between rows is
 *            neither read nor written. Pointers need the alignment of their element type, which is checked, no more.
 *   Checks   All arguments are checked before the first write; a refused call has changed nothing.
 *   Bits     The result depends neither on the number of threads nor on how rows are cut up, batched,
 *            aligned or strided, and is the same on every target with fused multiply-add (AVX2, AVX-512,
 *            NEON, SVE). A row alone gives the bits that it gives in a batch.
 *   Zeros    Where an exact result lies below the smallest normal number of the arithmetic type, zero is
 *            stored (the array functions exp, log, log1p keep subnormals). Every NaN written is the
 *            canonical positive quiet NaN.
 *   Memory   Nothing is taken from the heap (the OpenMP runtime may, for its own team); scratch is at most
 *            16 KB of stack a thread.
 *   Process  Nothing throws, aborts, prints or sets errno. The caller's floating-point mode (rounding,
 *            flush-to-zero, exceptions) neither matters nor changes.
 *   Threads  Every function may be called from any number of threads at once.
 *   Aliasing Unless stated otherwise no output may overlap an input or another output; overlap that is not
 *            detected is undefined.
 */
#ifndef XENT_XENT_H_
#define XENT_XENT_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#if defined(XENT_BUILDING_SHARED)
#define XENT_API __declspec(dllexport)
#elif defined(XENT_SHARED)
#define XENT_API __declspec(dllimport)
#else
#define XENT_API
#endif
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
#define XENT_VERSION_MINOR 1
#define XENT_VERSION_PATCH 0

/* ------------------------------------------------------------------ status and error ---------------- */

typedef enum xent_status {
  XENT_OK = 0,
  XENT_INVALID_ARGUMENT = 1,    /* an argument or option is out of range; outputs untouched */
  XENT_TARGET_OUT_OF_RANGE = 2, /* a target is neither in [0, V) nor ignore_index; outputs untouched */
  XENT_DOMAIN_ERROR = 3,        /* reserved: a value outside a function's domain */
  XENT_INCOMPLETE = 4           /* the caller's parallel_for left a task out; outputs unspecified */
} xent_status;

/* What went wrong, filled only when a call fails and the caller passed one. Initialise it with
 * XENT_ERROR_INIT. `row` and `value` are -1 and 0 where no position is known. `message` names the argument,
 * the row, the value and what was expected. */
typedef struct xent_error {
  size_t struct_size;
  int32_t status; /* xent_status */
  int32_t reserved;
  int64_t row;
  int64_t value;
  char message[232];
} xent_error;
#define XENT_ERROR_INIT {sizeof(xent_error), 0, 0, -1, 0, {0}}

/* A short English name of a status ("invalid argument"), never NULL. */
XENT_API const char *xent_status_string(xent_status status) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ types and options --------------- */

typedef enum xent_dtype { XENT_F32 = 1, XENT_F64 = 2, XENT_BF16 = 3, XENT_F16 = 4 } xent_dtype;
typedef enum xent_index_type { XENT_I32 = 1, XENT_I64 = 2 } xent_index_type;
typedef enum xent_reduction { XENT_REDUCTION_NONE = 0, XENT_REDUCTION_SUM = 1, XENT_REDUCTION_MEAN = 2 } xent_reduction;
typedef enum xent_smoothing { XENT_SMOOTHING_UNIFORM = 0, XENT_SMOOTHING_EXCLUSIVE = 1 } xent_smoothing;
typedef enum xent_empty_mean { XENT_EMPTY_MEAN_NAN = 0, XENT_EMPTY_MEAN_ZERO = 1 } xent_empty_mean;

/* Options of the loss. NULL in a call's place, and XENT_OPTIONS_INIT, mean PyTorch's defaults. A struct whose
 * struct_size is 0 (or too small) is refused; bytes beyond the fields this library knows must be zero.
 * Every enumeration is stored as int32_t. */
typedef struct xent_options {
  size_t struct_size;
  int64_t ignore_index;    /* rows with this target count for nothing (below); default -100 */
  double label_smoothing;  /* epsilon in [0, 1]; default 0 */
  int32_t smoothing;       /* xent_smoothing: where epsilon's mass goes */
  int32_t reduction;       /* xent_reduction: default mean */
  double divisor;          /* D, finite and > 0, read when has_divisor is 1; must be 0 otherwise */
  int32_t has_divisor;     /* 1: the denominator of sum and mean is D; refused with reduction none */
  int32_t empty_mean;      /* xent_empty_mean: the mean of no live row, NaN or 0 */
} xent_options;
#define XENT_OPTIONS_INIT \
  {sizeof(xent_options), -100, 0.0, XENT_SMOOTHING_UNIFORM, XENT_REDUCTION_MEAN, 0.0, 0, XENT_EMPTY_MEAN_NAN}

/* ------------------------------------------------------------------ execution ----------------------- */

/* The caller's thread pool: calls task(arg, i) once for each i in [0, n), in any order, on any thread, and
 * returns when all are done. It must not return while a task runs, nor start one later. */
typedef void (*xent_task)(void *arg, int64_t i);
typedef void (*xent_parallel_for)(void *ctx, int64_t n, xent_task task, void *arg);

typedef enum xent_exec_mode {
  XENT_EXEC_OPENMP = 0, /* the library's own team: OMP_NUM_THREADS, or `threads` where > 0 */
  XENT_EXEC_SERIAL = 1, /* the calling thread alone */
  XENT_EXEC_CALLER = 2  /* the caller's parallel_for; `threads` > 0 says how many it has */
} xent_exec_mode;

/* How a call is executed; NULL means XENT_EXEC_INIT (OpenMP). Small work, work inside an OpenMP parallel
 * region and work in a forked child runs on the calling thread. The result never depends on any of it. */
typedef struct xent_exec {
  size_t struct_size;
  int32_t mode;    /* xent_exec_mode */
  int32_t threads; /* 0: as many as the team or the pool has */
  xent_parallel_for parallel_for;
  void *ctx;
} xent_exec;
#define XENT_EXEC_INIT {sizeof(xent_exec), XENT_EXEC_OPENMP, 0, NULL, NULL}

/* ------------------------------------------------------------------ library ------------------------- */

/* "0.1.0" */
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

/* ------------------------------------------------------------------ array functions ----------------- */

/* y[i] = exp(x[i]), log(x[i]), log(1 + x[i]) for i in [0, n). y may be x; any other overlap is undefined.
 *   Error: at most 1.0 ULP (measured: float32 0.5001 over every input, tests/math/sweep_long_test.cc prints the worst; float64
 *     below 1.0 on what tests/math visits). Subnormal inputs and results are exact in that sense, never flushed.
 *   Special values: exp(-inf) = 0, exp(+inf) = +inf, overflow +inf; log(+-0) = -inf, log(x < 0) = NaN,
 *     log(+inf) = +inf; log1p(+-0) = +-0, log1p(-1) = -inf, log1p(x < -1) = NaN; NaN gives the canonical NaN.
 *   Threads: the calling thread. Allocates: nothing.
 *   Returns XENT_OK; XENT_INVALID_ARGUMENT when n < 0, or a pointer is NULL and n > 0.
 *   Source: argument reduction after Tang (1989); polynomials by scripts/coefficients.py. */
XENT_API xent_status xent_exp_f32(const float *x, float *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_exp_f64(const double *x, double *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log_f32(const float *x, float *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log_f64(const double *x, double *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log1p_f32(const float *x, float *y, int64_t n) XENT_NOEXCEPT;
XENT_API xent_status xent_log1p_f64(const double *x, double *y, int64_t n) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ row functions ------------------- */

/* lse[i] = log sum_j exp(x[i,j]), shape [rows], arithmetic type.
 *   Error: 4 ULP of the larger of |m| and log V. A row of -inf gives -inf, one with +inf gives +inf, one with a
 *   NaN gives NaN. Threads: exec. Returns XENT_OK, XENT_INVALID_ARGUMENT (rows < 0, cols <= 0, stride < cols, an
 *   unknown dtype, NULL with rows > 0, rows*stride past int64), XENT_INCOMPLETE. error may be NULL. */
XENT_API xent_status xent_logsumexp(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t stride,
                                    void *lse, const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* y[i,j] = exp(x[i,j] - lse[i]), dtype of x. y may be x where y_stride equals x_stride.
 *   Error: 6 ULP of the exact value, in the far tail too, before the one rounding to a half-precision dtype.
 *   A row of -inf, or with +inf or NaN, gives NaN throughout. Otherwise as xent_logsumexp. */
XENT_API xent_status xent_softmax(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t x_stride,
                                  void *y, int64_t y_stride, const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* y[i,j] = x[i,j] - lse[i], dtype of x. y may be x where y_stride equals x_stride.
 *   Error: 4 ULP of the exact value (the row's maximum is -log1p of the others, so it keeps its digits near
 *   0). -inf where x is -inf. Otherwise as xent_softmax. */
XENT_API xent_status xent_log_softmax(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t x_stride,
                                      void *y, int64_t y_stride, const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* From the upstream gradient g and the saved output y of softmax:
 *   dx[i,j] = y[i,j] * (g[i,j] - sum_k g[i,k] y[i,k]);
 * and of log_softmax:
 *   dx[i,j] = g[i,j] - exp(y[i,j]) * sum_k g[i,k].
 * One dtype for all three; dx may be g or y where the strides are equal.
 *   Error: 4 ULP of the sum of the terms' magnitudes; for log_softmax plus what the rounding of the stored y is
 *   worth. NaN and infinities go through the formula. Otherwise as xent_softmax. */
XENT_API xent_status xent_softmax_backward(int64_t rows, int64_t cols, const void *g, int64_t g_stride, const void *y,
                                           int64_t y_stride, xent_dtype dtype, void *dx, int64_t dx_stride,
                                           const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;
XENT_API xent_status xent_log_softmax_backward(int64_t rows, int64_t cols, const void *g, int64_t g_stride, const void *y,
                                               int64_t y_stride, xent_dtype dtype, void *dx, int64_t dx_stride,
                                               const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* What a batch of supposed logits looks like. Probabilities fed where logits belong (softmax twice) do not
 * crash, they train slowly. PROBABILITIES: every value in [0,1] and every row's sum within 1e-3 of 1 (2^-7 for
 * bfloat16). LOG_PROBABILITIES, which are harmless: every row's logsumexp that near 0. Otherwise, and for no
 * rows, V = 1 or a NaN: LOGITS. Reads only. Otherwise as xent_logsumexp. */
typedef enum xent_diagnosis {
  XENT_DIAGNOSIS_LOGITS = 0,
  XENT_DIAGNOSIS_PROBABILITIES = 1,
  XENT_DIAGNOSIS_LOG_PROBABILITIES = 2
} xent_diagnosis;
XENT_API xent_status xent_check_logits(int64_t rows, int64_t cols, const void *x, xent_dtype dtype, int64_t stride,
                                       xent_diagnosis *diagnosis, const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ cross-entropy ------------------- */

/* Bytes of the opaque record that forward saves per row for backward; the same for ever. Records need 8-byte
 * alignment. A record belongs to its row's logits and target. */
#define XENT_RECORD_BYTES 64

typedef enum xent_upstream {
  XENT_UPSTREAM_ONE = 0,    /* u = 1; `upstream` is not read and must be NULL */
  XENT_UPSTREAM_SCALAR = 1, /* u = upstream[0] */
  XENT_UPSTREAM_ROWS = 2    /* u = upstream[row] */
} xent_upstream;

/* The tensors of a cross-entropy call. Initialise with XENT_CROSS_ENTROPY_INIT, then set what is used. An output
 * that is NULL is not computed. "float" below stands for the arithmetic type. */
typedef struct xent_cross_entropy {
  size_t struct_size;
  int64_t rows, cols;    /* N >= 0, V >= 1 */
  const void *logits;    /* [N, V] */
  int64_t logits_stride; /* elements; 0 means V */
  const void *targets;   /* [N] */
  int32_t dtype;         /* xent_dtype of logits and grad */
  int32_t targets_type;  /* xent_index_type */

  void *losses;         /* out, float [N]: the loss of each row; 0 where ignored */
  void *lse;            /* out, float [N]; 0 where ignored */
  void *loss;           /* out, float [1]: the reduced loss; must be NULL with reduction none */
  double *perplexity;   /* out [1]: exp(sum of nll / live rows), NaN without live rows */
  int64_t *live_rows;   /* out [1]: rows that are not ignored */
  void *records;        /* N * XENT_RECORD_BYTES; out of forward, in of backward */

  void *grad;           /* out of the backward functions, [N, V], dtype of the logits */
  int64_t grad_stride;  /* elements; 0 means V */
  const void *upstream; /* float [1] or [N]: gradient of whatever follows the reduced (or row) loss */
  int32_t upstream_kind; /* xent_upstream */
  int32_t in_place;      /* 1 allows grad == logits (same stride); otherwise that is refused */
} xent_cross_entropy;
#define XENT_CROSS_ENTROPY_INIT \
  {sizeof(xent_cross_entropy), 0, 0, NULL, 0, NULL, XENT_F32, XENT_I64, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, XENT_UPSTREAM_ONE, 0}

/* Loss of a row whose target is t, with e = label_smoothing:
 *   uniform    (1-e) * nll + (e/V)     * sum_c      (lse - z_c)
 *   exclusive  (1-e) * nll + (e/(V-1)) * sum_{c!=t} (lse - z_c)       (V = 1 with e > 0 is refused)
 * A coefficient that is exactly 0 beats infinity. A target equal to ignore_index gives loss 0 and lse 0, does not
 * count, and its logits are never read; otherwise a NaN or +inf in the row, or a row of -inf, gives NaN for that
 * row alone; a target whose logit is -inf gives +inf.
 * Reduced: sum = sum of losses, mean = sum / live rows; with a divisor D both are sum / D. Summed in double over the
 * losses as stored (float64: with the rounding error carried along), in an order that depends on N alone, and
 * rounded once. Mean without live rows: NaN, or 0 under empty_mean zero, or 0 with a divisor.
 *   Error: loss 4 ULP of the exact loss however small it is (log1p of the others' sum, not lse - z_t); lse 4 ULP
 *   of the larger of |m| and log V; reduced 4 ULP of sum |loss| over the denominator.
 *   grad, grad_stride, upstream, upstream_kind and in_place are not used and must be unset.
 *   Returns XENT_OK, XENT_INVALID_ARGUMENT, XENT_TARGET_OUT_OF_RANGE (error->row, error->value), XENT_INCOMPLETE.
 *   options, exec and error may be NULL.
 *   Source: Milakov & Gimelshein 2018 (one-sweep normaliser); exact exponents: docs/numerics.md. */
XENT_API xent_status xent_cross_entropy_forward(const xent_cross_entropy *args, const xent_options *options,
                                                const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* The same and the gradient of the reduced loss (reduction none: of each row's loss) in one call:
 *   grad[i,j] = u/denominator * (p_j - y_j),   y_t = 1-e (+ e/V uniform), y_j = e/V or e/(V-1) elsewhere.
 * u is args->upstream, 1 by default. Ignored rows, and every row when the mean has no live row, are stored as
 * zeros whatever u is. A row of NaN loss has a gradient row of NaN; -inf logits have p = 0.
 *   Error: 6 ULP of the larger of its terms; without smoothing of the exact value, at the target too
 *   (-sum_{j!=t} p_j, never p_t - 1). float16 and bfloat16: then one rounding. p below 2^-198 (float64: 2^-1532)
 *   counts as 0, which shows only where |u/denominator| is above 2^72 (2^510). An infinite u gives infinities of the
 *   formula's signs, and 0 where p - y is 0; a NaN makes the gradients of its live rows NaN.
 *   float32 and float64 take one exp per logit (the exponentials are stored in grad, then scaled), half precision
 *   two. grad may be logits where in_place is 1 and the strides are equal. */
XENT_API xent_status xent_cross_entropy_forward_backward(const xent_cross_entropy *args, const xent_options *options,
                                                         const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* The gradient alone, from the records that a forward call with the same logits, targets and options saved; the
 * bits are those of xent_cross_entropy_forward_backward. Reads logits, targets, records, upstream and the options, writes
 * grad; the loss outputs must be NULL. A record that no forward call of this dtype wrote is XENT_INVALID_ARGUMENT. */
XENT_API xent_status xent_cross_entropy_backward(const xent_cross_entropy *args, const xent_options *options,
                                                 const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Reduces row losses stored earlier, with the bits that one call gives. losses: dtype XENT_F32 or XENT_F64 [rows].
 * targets [rows] says which rows are ignored (NULL: none); they are not range-checked. loss: out, dtype [1].
 * Only reduction (not none), ignore_index, divisor and empty_mean of the options are used; losses of ignored rows are not
 * looked at.
 *   Error: 4 ULP of sum |loss| over the denominator. Serial. */
XENT_API xent_status xent_reduce(int64_t rows, const void *losses, xent_dtype dtype, const void *targets,
                                 xent_index_type targets_type, const xent_options *options, void *loss,
                                 xent_error *error) XENT_NOEXCEPT;

#if defined(__cplusplus)
}
#endif
#endif /* XENT_XENT_H_ */
