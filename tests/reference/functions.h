// exp, log and log1p of one number, from MPFR at 256 bits: the oracle of the vector functions.
#ifndef XENT_TESTS_REFERENCE_FUNCTIONS_H_
#define XENT_TESTS_REFERENCE_FUNCTIONS_H_

#include <cstdint>
#include <string>

#include "xent/xent.h"

namespace xent::reference {

enum class Function { kExp, kLog, kLog1p };

const char *NameOf(Function function);

// Error of `got` (the bits of a `type`, which is XENT_F32 or XENT_F64) as function(x), in ULP at the exact value. Where
// the exact value is a number of the type, infinite or NaN (special cases included), anything but its very bits is
// infinitely wrong; NaN means the canonical one. Subnormal results have the ULP of subnormal numbers: nothing is
// flushed.
double ErrorInUlp(Function function, xent_dtype type, double x, uint64_t got);

// function(x) with 25 digits, for messages.
std::string ExactDigits(Function function, double x);

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_FUNCTIONS_H_
