// Numbers of every dtype, and what the program should say about them: the formulas written down in long double.
#ifndef XENT_TESTS_CLI_NUMBERS_H_
#define XENT_TESTS_CLI_NUMBERS_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "program.h"

namespace xent_cli_test {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

// A dtype as bytes and as numbers.
struct Dtype {
  const char *descr;
  const char *arithmetic;  // dtype of losses and lse
  int digits;              // of the significand, of logits and gradient
  int arithmetic_digits;
  int minimum_exponent;  // 2^this is the smallest normal number
};

inline constexpr Dtype kDtypes[] = {{"<f4", "<f4", 24, 24, -126},
                                    {"<f8", "<f8", 53, 53, -1022},
                                    {"<f2", "<f4", 11, 24, -14},
                                    {"<V2", "<f4", 8, 24, -126}};

// For bfloat16 and float16 the values have to be representable (float16: multiples of 1/64 below 16).
std::string Encode(const std::string &descr, const std::vector<double> &values);
std::vector<double> Decode(const std::string &descr, const std::string &data);

// A whole .npy file, and the numbers in one that the program wrote, which must have this dtype and shape.
std::string NpyOf(const std::string &descr, const std::vector<int64_t> &shape, const std::vector<double> &values);
std::vector<double> NumbersIn(const std::string &path, const std::string &descr, const std::string &shape);

// Distance in ULP of a type with `digits` digits; NaN counts as infinitely far.
double ErrorInUlp(double got, long double want, int digits, int minimum_exponent);
// `got` is `want` to 40 of float64's 53 digits, or of the larger 1: bounds are other tests' matter, here an option
// counts or does not.
void ExpectClose(double got, long double want);
void ExpectClose(const std::vector<double> &got, const std::vector<long double> &want);

// Random multiples of 1/16 in (-8, 8), which every dtype holds.
std::vector<double> RandomNumbers(uint64_t seed, size_t count);

// A row of logits beside its target.
struct RowOptions {
  long double scale = 1, cap = 0, z_loss = 0, smoothing = 0, weight = 1;
  bool exclusive = false;
  size_t valid_cols = 0;                   // 0: all
  std::vector<double> class_weights = {};  // empty: 1
};
struct Row {
  long double loss = 0, lse = 0, nll = 0, entropy = 0;
  int64_t rank = 0;
  std::vector<int64_t> order;         // columns, the best first
  std::vector<long double> log_p;     // of the valid columns
  std::vector<long double> gradient;  // of the loss
};
Row RowOf(const std::vector<double> &logits, int64_t target, const RowOptions &options = {});
Row RowOf(const std::vector<double> &logits, const std::vector<double> &target, const RowOptions &options = {});

std::vector<double> RowIn(const std::vector<double> &matrix, size_t cols, size_t row);

}  // namespace xent_cli_test

#endif  // XENT_TESTS_CLI_NUMBERS_H_
