// Checks of arguments and their messages. Each returns XENT_OK or has filled the caller's error.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "numbers/compiler.h"
#include "numbers/elements.h"
#include "numbers/wide.h"
#include "xent/xent.h"

// Returns from the calling function when a check fails.
#define XENT_TRY(expression)                          \
  do {                                                \
    const xent_status xent_status_ = (expression);    \
    if (xent_status_ != XENT_OK) return xent_status_; \
  } while (false)

namespace xent::internal {

// Where an error is; -1 where none is known, and the number that is wrong there.
struct Place {
  int64_t row = -1, column = -1;
  double value = 0.0;
};

// Fill *error (may be null) and return the status, XENT_INVALID_ARGUMENT for Invalid, which knows of no place.
[[gnu::format(printf, 4, 5)]] xent_status FailAt(xent_error *error, xent_status status, const Place &place,
                                                 const char *format, ...);
[[gnu::format(printf, 2, 3)]] xent_status Invalid(xent_error *error, const char *format, ...);
// For messages: int64_t is long here and long long there.
inline long long Long(int64_t x) { return static_cast<long long>(x); }

// Refuses an error struct of a size that no release had.
xent_status CheckError(const xent_error *error);

// An argument that a function has no use for must be unset: nothing is silently left undone.
inline xent_status CheckUnset(const char *name, bool is_set, const char *why, xent_error *error) {
  return is_set ? Invalid(error, "%s is set, but %s", name, why) : XENT_OK;
}
inline xent_status CheckNoMatrix(const char *name, const xent_matrix &matrix, const char *why, xent_error *error) {
  if (matrix.data == nullptr && matrix.stride == 0) return XENT_OK;
  return Invalid(error, "%s%s is set, but %s", name, matrix.data != nullptr ? "" : ".stride", why);
}
// Checks that what forward has no use for is unset.
inline xent_status CheckNoGradient(const xent_matrix &grad, const xent_matrix &target_grad, const xent_upstream &u,
                                   xent_error *error) {
  constexpr const char *kWhy = "forward writes no gradient";
  XENT_TRY(CheckNoMatrix("grad", grad, kWhy, error));
  XENT_TRY(CheckNoMatrix("target_grad", target_grad, kWhy, error));
  return CheckUnset("upstream", u.data != nullptr || u.kind != 0 || u.stride != 0, kWhy, error);
}
// Two arguments of which a call takes one.
xent_status NotTogether(const char *a, const char *b, xent_error *error);

// An enumerator in [0, last]; `expected` names them.
xent_status CheckEnum(const char *name, int32_t value, int32_t last, const char *expected, xent_error *error);

// Rows, columns and layout of a call. Their product in bytes stays below 2^63 for every element type.
struct Shape {
  int64_t rows, cols, inner;  // inner: at least 1
};
// The largest number of columns: that of the largest elements whose bytes an int64_t counts.
inline constexpr int64_t kMaxCols = INT64_MAX / 8;
xent_status CheckShape(int64_t rows, int64_t cols, int64_t inner, Shape *shape, xent_error *error);

// A matrix of the shape; its stride is resolved. An absent one must have no stride.
enum class Need { kRequired, kOptional };
inline constexpr int32_t kAnyDtype = -1;
xent_status CheckMatrix(const char *name, const Shape &shape, int32_t dtype, Need need, xent_matrix *matrix,
                        xent_error *error);
// An output in the place of an input needs its stride.
xent_status CheckSameStride(const char *out_name, const xent_matrix &out, const char *in_name, const xent_matrix &in,
                            int64_t rows, xent_error *error);
// Null or misaligned. `count` elements of `size` bytes; null is fine for none.
xent_status CheckArray(const char *name, const void *data, int64_t count, size_t size, xent_error *error);

xent_status CheckExec(const xent_exec *given, xent_exec *exec, xent_error *error);
// Also that a reduced loss is wanted only where there is a reduction.
xent_status CheckReduction(const xent_reduction &reduction, const void *reduced_loss, xent_error *error);
// Resolves 0, which means all columns.
xent_status CheckValidCols(int64_t cols, int64_t *valid_cols, xent_error *error);
// `wide`: of float64.
xent_status CheckUpstream(const Shape &shape, bool wide, bool elements, xent_upstream *upstream, xent_error *error);
xent_status CheckTargets(const xent_targets &targets, int64_t rows, xent_error *error);
xent_status CheckTargetRange(const xent_targets &targets, int64_t rows, int64_t cols, int64_t ignore_index,
                             xent_error *error);
// Returns look of the bits of `count` numbers, united. Not inline: where it is inlined the compiler makes no vectors.
template <class In, class Look>
XENT_NOINLINE uint64_t Seen(const In *numbers, int64_t count, const Look &look) {
  using Bits = std::conditional_t<sizeof(In) == sizeof(double), uint64_t, uint32_t>;
  Bits seen = 0;
  for (int64_t i = 0; i < count; ++i) seen |= look(std::bit_cast<Bits>(Widen(numbers[i])));
  return uint64_t{seen} << (64 - 8 * sizeof(Bits));
}
// Returns the first of `count` numbers that is not good, or `count`. A number may be bad only where the highest bit of
// look(its bits) is set.
template <class In, class Look, class Good>
int64_t FirstBad(const In *numbers, int64_t count, const Look &look, const Good &good) {
  constexpr int64_t kSpan = 1024;
  for (int64_t begin = 0, end = 0; begin < count; begin = end) {
    end = begin + kSpan < count ? begin + kSpan : count;
    if (Seen(numbers + begin, end - begin, look) >> 63 == 0) continue;
    for (int64_t i = begin; i < end; ++i) {
      if (!good(static_cast<double>(Widen(numbers[i])))) return i;
    }
  }
  return count;
}
// The same for numbers that are not finite: their exponent's bits are all set, and adding its lowest carries.
template <class In>
int64_t FirstNotFinite(const In *numbers, int64_t count) {
  const auto look = [](auto bits) {
    constexpr int kSign = 8 * sizeof(bits) - 1, kMantissa = sizeof(bits) == 8 ? 52 : 23;
    return (bits & ~(decltype(bits){1} << kSign)) + (decltype(bits){1} << kMantissa);
  };
  return FirstBad(numbers, count, look, IsFinite);
}

// Weights are finite numbers; one of a row or of a column each.
enum class WeightOf { kRow, kColumn };
xent_status CheckWeights(const char *name, const void *weights, int64_t count, bool wide, WeightOf of,
                         xent_error *error);
xent_status CheckNumber(const char *name, double value, bool good, const char *expected, xent_error *error);
inline xent_status CheckReserved(const char *name, int32_t reserved, xent_error *error) {
  return reserved == 0 ? XENT_OK : Invalid(error, "%s.reserved is %d, expected 0", name, reserved);
}
xent_status FailIncomplete(xent_error *error);
// The status of a call that has run, complete or not.
inline xent_status Ended(bool complete, xent_error *error) { return complete ? XENT_OK : FailIncomplete(error); }

}  // namespace xent::internal
