// Sums, differences and products of long doubles that lose nothing, for the oracles. Shares no code with the library.
#ifndef XENT_TESTS_REFERENCE_SUM_H_
#define XENT_TESTS_REFERENCE_SUM_H_

#include <cmath>
#include <limits>

namespace xent::reference {

// A sum that carries its rounding errors along (Neumaier 1974); infinities and NaN come out as they would naively.
class Sum {
 public:
  void Add(long double term) {
    const long double next = sum_ + term;
    if (std::isfinite(next)) {
      lost_ += std::fabs(sum_) >= std::fabs(term) ? (sum_ - next) + term : (term - next) + sum_;
    }
    sum_ = next;
  }
  long double Total() const { return std::isfinite(sum_) ? sum_ + lost_ : sum_; }

 private:
  long double sum_ = 0;
  long double lost_ = 0;
};

// high + low, a number of twice long double's digits.
struct Wide {
  long double high = 0;
  long double low = 0;
};

// a + b exactly (Knuth's TwoSum), for finite a and b.
inline Wide Add(long double a, long double b) {
  const long double high = a + b;
  const long double b_part = high - a;
  const long double a_part = high - b_part;
  return {high, (a - a_part) + (b - b_part)};
}

// a b exactly: Veltkamp's split into two halves of the significand, and Dekker's product of them.
inline Wide Multiply(long double a, long double b) {
  const long double high = a * b;
  if (!std::isfinite(high)) return {high, 0};
  const auto split = [](long double x) {
    constexpr int kHalf = (std::numeric_limits<long double>::digits + 1) / 2;
    const long double spread = (std::ldexp(1.0L, kHalf) + 1) * x;
    const long double upper = spread - (spread - x);
    return Wide{upper, x - upper};
  };
  const Wide x = split(a);
  const Wide y = split(b);
  return {high, ((x.high * y.high - high) + x.high * y.low + x.low * y.high) + x.low * y.low};
}

inline Wide Subtract(Wide a, Wide b) {
  const Wide d = Add(a.high, -b.high);
  return Add(d.high, d.low + (a.low - b.low));
}

}  // namespace xent::reference

#endif  // XENT_TESTS_REFERENCE_SUM_H_
