// exp, log and log1p of one number, from MPFR; see functions.h.
#include "reference/functions.h"

#include <mpfr.h>

#include <cmath>
#include <limits>

#include "reference/number.h"

namespace xent::reference {
namespace {

class Real {
 public:
  Real() { mpfr_init2(value_, 256); }
  ~Real() { mpfr_clear(value_); }
  Real(const Real &) = delete;
  Real &operator=(const Real &) = delete;
  mpfr_ptr get() { return value_; }

 private:
  mpfr_t value_;
};

// MPFR's special cases are IEEE 754's: log(-0) = -inf, log1p(-0) = -0.
void Evaluate(Function function, double x, Real &result) {
  mpfr_set_d(result.get(), x, MPFR_RNDN);
  switch (function) {
    case Function::kExp:
      mpfr_exp(result.get(), result.get(), MPFR_RNDN);
      break;
    case Function::kLog:
      mpfr_log(result.get(), result.get(), MPFR_RNDN);
      break;
    case Function::kLog1p:
      mpfr_log1p(result.get(), result.get(), MPFR_RNDN);
      break;
  }
}

// Whether the exact value, not its 256-bit rounding, is a number of the type: only at the functions' trivial points
// (x = 0, and log(1)), all other values are transcendental.
bool IsTrivial(Function function, double x) { return x == (function == Function::kLog ? 1 : 0); }

}  // namespace

const char *NameOf(Function function) {
  switch (function) {
    case Function::kExp:
      return "exp";
    case Function::kLog:
      return "log";
    case Function::kLog1p:
      return "log1p";
  }
  return "?";
}

double ErrorInUlp(Function function, xent_dtype type, double x, uint64_t got) {
  constexpr double kWrong = std::numeric_limits<double>::infinity();
  Real exact;
  Evaluate(function, x, exact);
  const bool is_infinite_argument = std::isinf(x);
  if (mpfr_nan_p(exact.get()) != 0) return got == CanonicalNanBits(type) ? 0 : kWrong;
  if (IsTrivial(function, x) || is_infinite_argument || mpfr_inf_p(exact.get()) != 0) {
    return got == Encode(type, mpfr_get_d(exact.get(), MPFR_RNDN)) ? 0 : kWrong;
  }
  const double value = Decode(type, got);
  if (std::isnan(value)) return kWrong;
  const Format f = FormatOf(type);
  Real distance;
  if (std::isinf(value)) {
    // Infinity stands for everything from half a step past the largest number on.
    if ((value < 0) != (mpfr_sgn(exact.get()) < 0)) return kWrong;
    Real least;
    mpfr_set_ui_2exp(least.get(), (uint64_t{1} << (f.precision + 1)) - 1, f.max_exponent - f.precision, MPFR_RNDN);
    mpfr_abs(exact.get(), exact.get(), MPFR_RNDN);
    mpfr_sub(distance.get(), least.get(), exact.get(), MPFR_RNDN);
    if (mpfr_sgn(distance.get()) <= 0) return 0;
  } else {
    mpfr_sub_d(distance.get(), exact.get(), value, MPFR_RNDN);
    mpfr_abs(distance.get(), distance.get(), MPFR_RNDN);
  }
  // MPFR's significands lie in [1/2, 1), so its exponent is one above IEEE's.
  const mpfr_exp_t exponent = std::max<mpfr_exp_t>(mpfr_get_exp(exact.get()) - 1, f.min_exponent);
  mpfr_mul_2si(distance.get(), distance.get(), f.precision - 1 - exponent, MPFR_RNDN);
  return mpfr_get_d(distance.get(), MPFR_RNDU);
}

std::string ExactDigits(Function function, double x) {
  Real exact;
  Evaluate(function, x, exact);
  char text[80];
  mpfr_snprintf(text, sizeof(text), "%.25Rg", exact.get());
  return text;
}

}  // namespace xent::reference
