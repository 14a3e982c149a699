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
#define XENT_VERSION_MINOR 2
#define XENT_VERSION_PATCH 0

/* ------------------------------------------------------------------ status and error ---------------- */

typedef enum xent_status {
  XENT_OK = 0,
  XENT_INVALID_ARGUMENT = 1,    /* an argument or option is out of range; outputs untouched */
  XENT_TARGET_OUT_OF_RANGE = 2, /* a target is neither in [0, V) nor ignore_index; outputs untouched */
  XENT_DOMAIN_ERROR = 3,        /* a value outside a function's domain (error->row, error->value: its column) */
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

typedef enum xent_dtype { XENT_F32 = 0, XENT_F64 = 1, XENT_BF16 = 2, XENT_F16 = 3 } xent_dtype;
typedef enum xent_index_type { XENT_I32 = 1, XENT_I64 = 2 } xent_index_type;
typedef enum xent_reduction { XENT_REDUCTION_NONE = 0, XENT_REDUCTION_SUM = 1, XENT_REDUCTION_MEAN = 2 } xent_reduction;
typedef enum xent_smoothing { XENT_SMOOTHING_UNIFORM = 0, XENT_SMOOTHING_EXCLUSIVE = 1 } xent_smoothing;
typedef enum xent_empty_mean { XENT_EMPTY_MEAN_NAN = 0, XENT_EMPTY_MEAN_ZERO = 1 } xent_empty_mean;

/* Options of the loss. NULL in a call's place, and XENT_OPTIONS_INIT, mean PyTorch's defaults. A struct whose
 * struct_size is 0 (or too small) is refused, that of version 0.1 is understood; bytes beyond the fields this library
 * knows must be zero. Every enumeration is stored as int32_t. A function refuses an option that it has no use for. */
typedef struct xent_options {
  size_t struct_size;
  int64_t ignore_index;   /* rows with this target count for nothing (below); default -100; index targets only */
  double label_smoothing; /* epsilon in [0, 1]; default 0 */
  int32_t smoothing;      /* xent_smoothing: where epsilon's mass goes; exclusive: index targets only */
  int32_t reduction;      /* xent_reduction: default mean */
  double divisor;         /* D, finite and > 0, read when has_divisor is 1; must be 0 otherwise */
  int32_t has_divisor;    /* 1: the denominator of sum and mean is D; refused with reduction none */
  int32_t empty_mean;     /* xent_empty_mean: the mean over no (or no weighted) row, NaN or 0 */
  /* Since 0.2. */
  double logit_scale;       /* finite, > 0; default 1. A temperature T is the scale 1/T */
  double softcap;           /* cap, finite, >= 0: z' = cap tanh(logit_scale z / cap); 0: off */
  double z_loss;            /* lambda, finite, >= 0: adds lambda lse^2 to the loss of a row */
  int64_t valid_cols;       /* in [1, V]: columns from here on are padding, never read; 0 means V */
  int32_t stats_of_ignored; /* 1: ignored rows are read, and have the statistics that need no target */
  int32_t reserved;         /* 0 */
} xent_options;
#define XENT_OPTIONS_INIT  \
  {sizeof(xent_options),   \
   -100,                   \
   0.0,                    \
   XENT_SMOOTHING_UNIFORM, \
   XENT_REDUCTION_MEAN,    \
   0.0,                    \
   0,                      \
   XENT_EMPTY_MEAN_NAN,    \
   1.0,                    \
   0.0,                    \
   0.0,                    \
   0,                      \
   0,                      \
   0}

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

/* Bytes of workspace with which xent_cross_entropy_forward_backward is at its fastest: threads times one row of the
 * arithmetic type. A row's exponentials are then kept there, in cache, until its sum is known, so that a gradient in
 * a buffer of its own is written once, past the caches where it is larger than they are, and one of half precision
 * costs one exponential a logit instead of two. In place float32 and float64 gain nothing and leave it alone, as do all
 * other functions and what computes in double lanes. Any size and alignment will do, NULL with 0 too: threads that find
 * no room work without. No bit of any result depends on it. Contents before and after are unspecified; calls that run
 * at the same time need one each. threads 0: those of the default policy. 0 where an argument is out of range. */
XENT_API size_t xent_workspace_bytes(int64_t cols, xent_dtype dtype, int32_t threads) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ array functions ----------------- */

/* y[i] = exp(x[i]), log(x[i]), log(1 + x[i]) for i in [0, n). y may be x; any other overlap is undefined.
 *   Error: at most 1.0 ULP (measured: float32 0.5001 over every input, tests/numbers/sweep_long_test.cc prints the worst;
 * float64 below 1.0 on what tests/numbers visits). Subnormal inputs and results are exact in that sense, never flushed.
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
                                      void *y, int64_t y_stride, const xent_exec *exec,
                                      xent_error *error) XENT_NOEXCEPT;

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
XENT_API xent_status xent_log_softmax_backward(int64_t rows, int64_t cols, const void *g, int64_t g_stride,
                                               const void *y, int64_t y_stride, xent_dtype dtype, void *dx,
                                               int64_t dx_stride, const xent_exec *exec,
                                               xent_error *error) XENT_NOEXCEPT;

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
                                       xent_diagnosis *diagnosis, const xent_exec *exec,
                                       xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ cross-entropy ------------------- */

/* Bytes of the opaque record that forward saves per row for backward; the same for ever. Records need 8-byte
 * alignment. A record belongs to its row's logits, target, weights and options. */
#define XENT_RECORD_BYTES 64

typedef enum xent_upstream {
  XENT_UPSTREAM_ONE = 0,     /* u = 1; `upstream` is not read and must be NULL */
  XENT_UPSTREAM_SCALAR = 1,  /* u = upstream[0] */
  XENT_UPSTREAM_ROWS = 2,    /* u = upstream[row] */
  XENT_UPSTREAM_ELEMENTS = 3 /* u = upstream[row, column]; binary cross-entropy only */
} xent_upstream;

/* Layout of every matrix below. With `inner` 0 or 1 row i starts at data + i*stride and its columns are adjacent. With
 * inner = d > 1 the matrix is [rows/d, cols, d], the class dimension in the middle ([N, C, H, W] with d = H W): the
 * element of row i = b d + s and column c is data[b*stride + c*d + s]; stride 0 then means cols*d, and rows must be a
 * multiple of d. Lanes run over positions there; nothing is transposed. The promise on bits is the same, the bits are
 * not those of the row-major layout. Everything [N] is indexed by i. */

/* The tensors of a cross-entropy call. Initialise with XENT_CROSS_ENTROPY_INIT, then set what is used. An output
 * that is NULL is not computed. "float" below stands for the arithmetic type. */
typedef struct xent_cross_entropy {
  size_t struct_size;
  int64_t rows, cols;    /* N >= 0, V >= 1 */
  const void *logits;    /* [N, V] */
  int64_t logits_stride; /* elements; 0 means V */
  const void *targets;   /* [N]; NULL where target_probs is set */
  int32_t dtype;         /* xent_dtype of logits and grad */
  int32_t targets_type;  /* xent_index_type */

  void *losses;       /* out, float [N]: the loss of each row; 0 where ignored */
  void *lse;          /* out, float [N]; 0 where ignored */
  void *loss;         /* out, float [1]: the reduced loss; must be NULL with reduction none */
  double *perplexity; /* out [1]: exp(sum of nll / live rows); NaN without live rows and with target_probs */
  int64_t *live_rows; /* out [1]: rows that are not ignored */
  void *records;      /* N * XENT_RECORD_BYTES; out of forward, in of backward */

  void *grad;            /* out of the backward functions, [N, V], dtype of the logits */
  int64_t grad_stride;   /* elements; 0 means V */
  const void *upstream;  /* float [1] or [N]: gradient of whatever follows the reduced (or row) loss */
  int32_t upstream_kind; /* xent_upstream */
  int32_t in_place;      /* 1 allows grad == logits (same stride); otherwise that is refused */

  /* Since 0.2. */
  int64_t inner;             /* layout, see above */
  const void *class_weights; /* float [V], finite; NULL: 1 */
  const void *row_weights;   /* float [N], finite; NULL: 1 */

  const void *target_probs;    /* [N, V] in the logits' layout: probability targets, in place of `targets` */
  int64_t target_probs_stride; /* elements; 0 means V */
  void *target_grad;           /* out of the backward functions, [N, V], dtype of target_probs */
  int64_t target_grad_stride;  /* elements; 0 means V */
  int32_t target_probs_dtype;  /* xent_dtype of target_probs and target_grad */

  /* Statistics of the transformed logits z', out of the forward functions. */
  int32_t top_k;              /* k in [0, 64], at most valid_cols */
  void *logprobs;             /* out, float [N]: z'_t - lse, index targets only */
  int64_t *argmax;            /* out [N]: column of the largest logit, the lowest among equals */
  uint8_t *hits;              /* out [N]: 1 where argmax is the target, index targets only */
  void *entropy;              /* out, float [N]: lse - sum p z' */
  int64_t *rank;              /* out [N]: of the target, 0 the best: columns greater, and equal ones of smaller index */
  void *topk_logprobs;        /* out, float [N, k]: descending, the lower index first among equals */
  int64_t *topk_indices;      /* out [N, k] */
  const int64_t *gather_cols; /* [N, K], each in [0, valid_cols), else XENT_INVALID_ARGUMENT with row and value */
  void *gathered;             /* out, float [N, K]: z'_c - lse at the columns of gather_cols */
  int64_t gather_count;       /* K >= 0 */

  void *workspace;        /* speed alone, see xent_workspace_bytes; NULL: none */
  size_t workspace_bytes; /* of it */
} xent_cross_entropy;
#define XENT_CROSS_ENTROPY_INIT \
  {sizeof(xent_cross_entropy),  \
   0,                           \
   0,                           \
   NULL,                        \
   0,                           \
   NULL,                        \
   XENT_F32,                    \
   XENT_I64,                    \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   0,                           \
   NULL,                        \
   XENT_UPSTREAM_ONE,           \
   0,                           \
   0,                           \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   0,                           \
   NULL,                        \
   0,                           \
   XENT_F32,                    \
   0,                           \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   NULL,                        \
   0,                           \
   NULL,                        \
   0}

/* Loss of a row with target t, or with probability targets q. With V = valid_cols, e = label_smoothing, class weights
 * w, row weight r, l = z_loss and
 *   z' = logit_scale z, or cap tanh(logit_scale z / cap) with softcap = cap > 0 (-inf stays -inf), lse and p of z':
 *   q'          uniform:   (1-e) q_c + e/V, index targets with q the one-hot of t
 *               exclusive: 1-e at t, e/(V-1) elsewhere                     (V = 1 with e > 0 is refused)
 *   loss = r ( sum_c w_c q'_c (lse - z'_c) + l lse^2 ).
 * Nothing is normalised and q need not sum to one. A coefficient that is exactly 0 beats infinity. A target equal to
 * ignore_index gives loss 0 and lse 0, does not count, and its logits are never read; otherwise a NaN or +inf in the
 * row, or a row of -inf, gives NaN for that row alone; a target whose logit is -inf gives +inf.
 * Reduced: sum = sum of losses; mean = sum / (sum over live rows of r w_t), with target_probs sum / N; with a divisor D
 * both are sum / D. Summed in double over the losses as stored (float64: with the rounding error carried along), in an
 * order that depends on N alone, and rounded once. Mean over a denominator of 0: NaN, or 0 under empty_mean zero, or 0
 * with a divisor.
 * Statistics: a row that gives NaN has NaN for every number and -1 for every index; ignored rows have 0 and -1 and are
 * not read, except under stats_of_ignored (lse, argmax, entropy, top k, gathered). Indices compare the logits as
 * stored, which the transformation keeps in order. They change no bit of the rest.
 *   Error: loss 4 ULP of the exact loss however small it is (negative weights: of the sum of the terms' magnitudes);
 *   lse 4 ULP of the larger of |max z'| and log V; reduced 4 ULP of sum |loss| over the denominator; logprobs,
 *   topk_logprobs and gathered 4 ULP of the exact value; entropy 8 of the exact value. softcap: z' itself is within 2
 * of its ULP and everything else as above for that z'. z_loss: lambda lse^2 for an lse within its own bound. grad,
 * grad_stride, upstream, upstream_kind, in_place, target_grad and its stride are not used and must be unset. Cost:
 * logits are read once from memory. softcap, logit_scale, class weights under smoothing, target_probs and inner > 1
 *   compute in double lanes (float64: with the rounding errors carried along); statistics add a pass over the row in
 * cache. Returns XENT_OK, XENT_INVALID_ARGUMENT, XENT_TARGET_OUT_OF_RANGE (error->row, error->value), XENT_INCOMPLETE.
 *   options, exec and error may be NULL.
 *   Source: Milakov & Gimelshein 2018 (one-sweep normaliser); exact exponents: docs/numerics.md; z-loss: Chowdhery et
 *   al. 2022 (PaLM); softcap: Gemma Team 2024. */
XENT_API xent_status xent_cross_entropy_forward(const xent_cross_entropy *args, const xent_options *options,
                                                const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* The same and the gradient of the reduced loss (reduction none: of each row's loss) in one call: with
 * y_c = w_c q'_c, Q = sum y_c, u the upstream gradient over the denominator, and dz_j = logit_scale, times
 * sech^2(logit_scale z_j / cap) when capped,
 *   grad[i,j] = u r ( (Q + 2 l lse) p_j - y_j ) dz_j,        target_grad[i,c] = u r w_c (1-e) (lse - z'_c).
 * u is args->upstream, 1 by default. Ignored rows, and every row when the mean's denominator is 0, are stored as
 * zeros whatever u is. A row of NaN loss has a gradient row of NaN; -inf logits have p = 0. Columns past valid_cols get
 * 0. Error: 6 ULP of the largest of its terms; with an index target, no smoothing and no z-loss of the exact value, at
 * the target too (-sum_{j!=t} p_j, never p_t - 1). float16 and bfloat16: then one rounding. p below 2^-198 (float64:
 *   2^-1532; where the lanes are double, 2^-1022) counts as 0, which shows only where |u| is above 2^72 (2^510). An
 *   infinite u gives infinities of the formula's signs, and 0 where the formula's other factor is 0; a NaN makes the
 *   gradients of its live rows NaN. target_grad is 0 below the smallest normal number of its own arithmetic type.
 *   float32 and float64 take one exp per logit (the exponentials are stored in grad, then scaled), half precision
 * without a workspace and the options that compute in double lanes two. A gradient apart from the logits is written
 * twice without a workspace and once with one (xent_workspace_bytes). grad may be logits where in_place is 1 and the
 * strides are equal. */
XENT_API xent_status xent_cross_entropy_forward_backward(const xent_cross_entropy *args, const xent_options *options,
                                                         const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* The gradient alone, from the records that a forward call with the same logits, targets, weights and options saved;
 * the bits are those of xent_cross_entropy_forward_backward. Reads logits, targets (or target_probs), weights, records,
 * upstream and the options, writes grad and target_grad; the loss outputs and statistics must be NULL. A record that no
 * forward call of this dtype wrote is XENT_INVALID_ARGUMENT. */
XENT_API xent_status xent_cross_entropy_backward(const xent_cross_entropy *args, const xent_options *options,
                                                 const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* Reduces row losses stored earlier, with the bits that one call gives. losses: dtype XENT_F32 or XENT_F64 [rows].
 * targets [rows] says which rows are ignored (NULL: none); they are not range-checked. loss: out, dtype [1].
 * Only reduction (not none), ignore_index, divisor and empty_mean of the options are used; losses of ignored rows are
 * not looked at. Error: 4 ULP of sum |loss| over the denominator. Serial. */
XENT_API xent_status xent_reduce(int64_t rows, const void *losses, xent_dtype dtype, const void *targets,
                                 xent_index_type targets_type, const xent_options *options, void *loss,
                                 xent_error *error) XENT_NOEXCEPT;

/* The same where the mean's denominator has weights: sum over live rows of row_weights[i] class_weights[target]. Both
 * of `dtype`, row_weights [rows], class_weights [cols], finite, either may be NULL; with class_weights targets are
 * required and range-checked against cols (XENT_TARGET_OUT_OF_RANGE). The losses have their weights already. */
XENT_API xent_status xent_reduce_weighted(int64_t rows, const void *losses, xent_dtype dtype, const void *targets,
                                          xent_index_type targets_type, const void *row_weights,
                                          const void *class_weights, int64_t cols, const xent_options *options,
                                          void *loss, xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ vocabulary shards --------------- */

/* Several processes (or machines) each hold a slice of the columns. Each calls xent_shard_forward on its slice, which
 * gives a list of chunk records per row; the lists, brought together by whatever transport there is, go through
 * xent_shard_combine (everywhere, or in one place), which gives losses and one record per row; each slice's gradient
 * then comes from xent_shard_backward. Cut at multiples of xent_chunk_cols(total) the results have the bits of the
 * unsharded call; cut elsewhere losses, lse and logprobs are within 2 ULP of them, gradients within 2 of their larger
 * term (4 where logits lie beyond 2^20 or hundreds apart). */

/* Bytes of one chunk record; the same for ever. 8-byte alignment. Plain bytes: they may be sent to a machine of the
 * same byte order that runs the same version of the library. */
#define XENT_CHUNK_RECORD_BYTES 128

/* Chunk records per row of a slice of `cols` columns from `first_col` on, of `total_cols`, which is valid_cols where
 * that option is set: columns from there on have no records. 0 where nothing of the slice lies inside. */
XENT_API int64_t xent_shard_chunks(int64_t total_cols, int64_t first_col, int64_t cols) XENT_NOEXCEPT;

typedef struct xent_shard {
  size_t struct_size;
  int64_t total_cols; /* V of the whole vocabulary */
  int64_t first_col;  /* of this slice, which has args->cols columns */
} xent_shard;
#define XENT_SHARD_INIT {sizeof(xent_shard), 0, 0}

/* chunk_records: out, [rows, xent_shard_chunks(...)] records. Of args: rows, cols (of the slice), logits (the slice),
 * dtype, targets (columns of the whole vocabulary, checked against it) or target_probs (the slice), class_weights (of
 * the whole vocabulary). Every output of args must be NULL, inner 0 or 1, stats_of_ignored 0. options->valid_cols
 * counts columns of the whole vocabulary. Otherwise as xent_cross_entropy_forward. */
XENT_API xent_status xent_shard_forward(const xent_cross_entropy *args, const xent_options *options,
                                        const xent_shard *shard, void *chunk_records, const xent_exec *exec,
                                        xent_error *error) XENT_NOEXCEPT;

/* lists[s]: the records of slice s, [rows, list_chunks[s]], slices in the order of their columns; together they must
 * cover the vocabulary without gap or overlap (XENT_INVALID_ARGUMENT with the row otherwise). Of args: rows, cols (of
 * the whole vocabulary), dtype, targets, weights, and the outputs losses, lse, loss, perplexity, live_rows, records and
 * logprobs; logits, grad and the other statistics must be NULL. targets NULL says that the targets are probabilities;
 * target_probs is NULL too, since the records hold what is needed of them. Serial. */
XENT_API xent_status xent_shard_combine(const xent_cross_entropy *args, const xent_options *options,
                                        const void *const *lists, const int64_t *list_chunks, int64_t shards,
                                        xent_error *error) XENT_NOEXCEPT;

/* The slice's gradient from the records of xent_shard_combine. args: the slice as in xent_shard_forward, row_weights,
 * records, upstream, grad [rows, cols of the slice], target_grad. The mean's denominator is that of the whole batch.
 * Otherwise as xent_cross_entropy_backward. */
XENT_API xent_status xent_shard_backward(const xent_cross_entropy *args, const xent_options *options,
                                         const xent_shard *shard, const xent_exec *exec,
                                         xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ divergences --------------------- */

typedef enum xent_divergence_kind {
  XENT_DIVERGENCE_FORWARD_KL = 0,     /* sum p (log p - log q) */
  XENT_DIVERGENCE_REVERSE_KL = 1,     /* sum q (log q - log p) */
  XENT_DIVERGENCE_JENSEN_SHANNON = 2, /* b sum p log(p/m) + (1-b) sum q log(q/m), m = b p + (1-b) q, b = beta */
  XENT_DIVERGENCE_CROSS_ENTROPY = 3   /* -sum p log q */
} xent_divergence_kind;

/* Student logits s, teacher logits u: q = softmax(s/T), p = softmax(u/T). "float": float64 where the student's logits
 * are float64, else float32. */
typedef struct xent_divergence {
  size_t struct_size;
  int64_t rows, cols, inner; /* layout as above, of all matrices */
  const void *student;       /* [N, V] */
  int64_t student_stride;    /* elements; 0 means V */
  const void *teacher;       /* [N, V] */
  int64_t teacher_stride;    /* elements; 0 means V */
  int32_t student_dtype;     /* xent_dtype of student and grad */
  int32_t teacher_dtype;     /* xent_dtype */
  int32_t kind;              /* xent_divergence_kind */
  int32_t in_place;          /* 1 allows grad == student (same stride) */
  double temperature;        /* T, finite, > 0; default 1 */
  double beta;               /* in (0, 1), default 0.5; another value only with Jensen-Shannon */
  const void *row_weights;   /* float [N], finite; NULL: 1 */
  void *losses;              /* out, float [N] */
  void *loss;                /* out, float [1]; must be NULL with reduction none */
  void *grad;                /* out of forward_backward, [N, V]: for the student's logits */
  int64_t grad_stride;       /* elements; 0 means V */
  const void *upstream;      /* float [1] or [N] */
  int32_t upstream_kind;     /* xent_upstream */
  int32_t reserved;          /* 0 */
} xent_divergence;
#define XENT_DIVERGENCE_INIT                                                            \
  {sizeof(xent_divergence),    0, 0,   0,   NULL, 0,    NULL, 0,    XENT_F32, XENT_F32, \
   XENT_DIVERGENCE_FORWARD_KL, 0, 1.0, 0.5, NULL, NULL, NULL, NULL, 0,        NULL,     \
   XENT_UPSTREAM_ONE,          0}

/* Loss of a row as the kinds say, times its row weight; no factor T^2 (the weight or upstream gradient carries it).
 * Neither softmax is stored. Terms with p = 0 (q = 0 in the reverse form) are 0. +inf where the student's logit is -inf
 * and p > 0, reverse where the teacher's is -inf and q > 0, never by underflow. NaN or +inf in either row, or a row of
 * -inf, makes that row NaN. mean divides by N.
 * Options: reduction, divisor, empty_mean and valid_cols; every other must have its default.
 *   Error: 8 ULP of the sum of the terms' magnitudes, a term being p (|log p| + |log q|); reduced as
 *   xent_cross_entropy_forward. Computed in double lanes. Aliasing: none. Threads: exec. Allocates: nothing.
 *   Returns XENT_OK, XENT_INVALID_ARGUMENT, XENT_INCOMPLETE.
 *   Source: Hinton, Vinyals & Dean 2015; generalised Jensen-Shannon: Agarwal et al. 2024. */
XENT_API xent_status xent_divergence_forward(const xent_divergence *args, const xent_options *options,
                                             const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* The same (losses and loss may both be NULL) and the gradient for the student's logits, u the upstream gradient over
 * the denominator, r the row weight: forward KL, cross-entropy  u r (q - p)/T            reverse KL  u r q (log q - log
 * p - loss)/T Jensen-Shannon             u r (1-b) q (log(q/m) - sum q log(q/m))/T Where a reverse KL is +inf its
 * gradient row is NaN. Error: 6 ULP of the larger of the terms, logarithms counted one by one (log q and log p, log m).
 * grad may be student where in_place is 1 and the strides are equal. */
XENT_API xent_status xent_divergence_forward_backward(const xent_divergence *args, const xent_options *options,
                                                      const xent_exec *exec, xent_error *error) XENT_NOEXCEPT;

/* ------------------------------------------------------------------ binary cross-entropy ------------ */

typedef enum xent_bce_input { XENT_BCE_LOGITS = 0, XENT_BCE_PROBABILITIES = 1 } xent_bce_input;

/* Elements x[i,c] (logits z or probabilities p) and targets y[i,c]. "float": float64 where the input is float64, else
 * float32. V = 0 is refused, N = 0 is an empty batch. */
typedef struct xent_binary_cross_entropy {
  size_t struct_size;
  int64_t rows, cols, inner;      /* layout as above, of all matrices */
  const void *input;              /* [N, V] */
  int64_t input_stride;           /* elements; 0 means V */
  const void *targets;            /* [N, V]; not checked, outside [0,1] the formula decides */
  int64_t targets_stride;         /* elements; 0 means V */
  int32_t dtype;                  /* xent_dtype of input and grad */
  int32_t targets_dtype;          /* xent_dtype of targets and target_grad */
  int32_t input_kind;             /* xent_bce_input */
  int32_t in_place;               /* 1 allows grad == input (same stride) */
  const void *pos_weight;         /* float [V], finite; NULL: 1; logits only */
  const void *class_weights;      /* float [V], finite; NULL: 1 */
  const void *row_weights;        /* float [N], finite; NULL: 1 */
  const void *element_weights;    /* float [N, V] in the same layout, finite; NULL: 1 */
  int64_t element_weights_stride; /* elements; 0 means V */
  double focal_gamma;             /* finite, >= 0; default 0; logits only */
  double focal_alpha;             /* in [0, 1], read when has_focal_alpha is 1; must be 0 otherwise; logits only */
  int32_t has_focal_alpha;        /* 0 or 1 */
  int32_t upstream_kind;          /* xent_upstream */
  void *losses;                   /* out, float [N, V] in the same layout */
  int64_t losses_stride;          /* elements; 0 means V */
  void *loss;                     /* out, float [1]; must be NULL with reduction none */
  void *grad;                     /* out of the backward functions, [N, V] */
  int64_t grad_stride;            /* elements; 0 means V */
  void *target_grad;              /* out of the backward functions, [N, V] */
  int64_t target_grad_stride;     /* elements; 0 means V */
  const void *upstream;           /* float [1], [N] or [N, V] */
  int64_t upstream_stride;        /* of XENT_UPSTREAM_ELEMENTS; elements; 0 means V */
} xent_binary_cross_entropy;
#define XENT_BINARY_CROSS_ENTROPY_INIT \
  {sizeof(xent_binary_cross_entropy),  \
   0,                                  \
   0,                                  \
   0,                                  \
   NULL,                               \
   0,                                  \
   NULL,                               \
   0,                                  \
   XENT_F32,                           \
   XENT_F32,                           \
   XENT_BCE_LOGITS,                    \
   0,                                  \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   0,                                  \
   0.0,                                \
   0.0,                                \
   0,                                  \
   XENT_UPSTREAM_ONE,                  \
   NULL,                               \
   0,                                  \
   NULL,                               \
   NULL,                               \
   0,                                  \
   NULL,                               \
   0,                                  \
   NULL,                               \
   0}

/* With w the product of element, row and class weight, softplus(x) = max(x,0) + log1p(exp(-|x|)), s = sigmoid(z):
 *   logits         bce = (1-y) softplus(z) + pos_weight y softplus(-z),   loss = w bce
 *   focal          loss = w a_y (1-p_y)^gamma bce, p_y = y s + (1-y)(1-s), a_y = alpha y + (1-alpha)(1-y), 1 without
 * alpha probabilities  loss = -w ( y log p + (1-y) log(1-p) ), each log at least -100, as PyTorch. 0 * inf = 0: z =
 * +-inf with a hard target gives 0 or +inf. p outside [0,1] or NaN is XENT_DOMAIN_ERROR with its row and column, found
 * before anything is written. A NaN makes its element NaN. Reduced: sum over all elements; mean divides by N V; with a
 * divisor D both are sum / D; summed in double over the losses as stored, in an order that depends on the shape alone.
 * Options: reduction, divisor and empty_mean; every other must have its default. Error: loss 4 ULP of the sum of the
 * terms' magnitudes, focal 16. Computed in double lanes; focal of float64 in scalar double-double, about 0.4 us an
 * element. Aliasing: none. Threads: exec. Allocates: nothing. Returns XENT_OK, XENT_INVALID_ARGUMENT,
 * XENT_DOMAIN_ERROR, XENT_INCOMPLETE. Source: PyTorch's binary_cross_entropy(_with_logits); focal: Lin et al. 2017. */
XENT_API xent_status xent_binary_cross_entropy_forward(const xent_binary_cross_entropy *args,
                                                       const xent_options *options, const xent_exec *exec,
                                                       xent_error *error) XENT_NOEXCEPT;

/* The same and the gradients of the reduced loss (reduction none: of each element's), u the upstream gradient over the
 * denominator: for the input
 *   logits         u w ( (1-y) s - pos_weight y (1-s) ), focal: the derivative of its formula, finite for gamma < 1 too
 *   probabilities  u w (p - y) / max(p (1-p), 1e-12)
 * and, where target_grad is set, for the targets
 *   logits         u w ( pos_weight softplus(-z) - softplus(z) ), focal: the derivative of its formula
 *   probabilities  u w ( log(1-p) - log p ), each log at least -100.
 * One of grad and target_grad may be NULL. An infinite u gives infinities of the formula's signs, and 0 where its other
 * factor is 0 or cancels to 0. In float64 without focal, sigmoid and softplus below 2^-1532 count as 0, which shows
 * only where |u w| is above 2^510. Error: 4 ULP of the larger term, focal 16. grad may be input where in_place is 1 and
 * the strides are equal. */
XENT_API xent_status xent_binary_cross_entropy_forward_backward(const xent_binary_cross_entropy *args,
                                                                const xent_options *options, const xent_exec *exec,
                                                                xent_error *error) XENT_NOEXCEPT;

/* The gradients alone; losses and loss must be NULL. Nothing is saved between forward and backward: the inputs are read
 * again. The bits are those of forward_backward. */
XENT_API xent_status xent_binary_cross_entropy_backward(const xent_binary_cross_entropy *args,
                                                        const xent_options *options, const xent_exec *exec,
                                                        xent_error *error) XENT_NOEXCEPT;

#if defined(__cplusplus)
}
#endif
#endif /* XENT_XENT_H_ */
