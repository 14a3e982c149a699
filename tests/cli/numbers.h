// Numbers of every dtype in .npy files, to be compared with those of the oracles in tests/reference.
#ifndef XENT_TESTS_CLI_NUMBERS_H_
#define XENT_TESTS_CLI_NUMBERS_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "program.h"
#include "reference/losses.h"
#include "reference/number.h"
#include "xent/xent.h"

namespace xent_cli_test {

namespace reference = xent::reference;

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr double kInf = std::numeric_limits<double>::infinity();

// A dtype as NumPy and as the library name it.
struct Dtype {
  const char *descr;
  xent_dtype type;
  const char *arithmetic;  // dtype of losses and lse
};

inline constexpr Dtype kDtypes[] = {
    {"<f4", XENT_F32, "<f4"}, {"<f8", XENT_F64, "<f8"}, {"<f2", XENT_F16, "<f4"}, {"<V2", XENT_BF16, "<f4"}};

// Return the bytes of numbers in the dtype `descr`, which may be an integer's too, and the numbers in such bytes ("<i8"
// alone of the integers).
std::string Encode(const std::string &descr, const std::vector<double> &values);
std::vector<double> Decode(const std::string &descr, const std::string &data);

// Returns a whole .npy file.
std::string NpyOf(const std::string &descr, const std::vector<int64_t> &shape, const std::vector<double> &values);
// Return the data, and the numbers, of a file that the program wrote in C order, which must have this dtype and shape.
std::string DataIn(const std::string &path, const std::string &descr, const std::string &shape);
std::vector<double> NumbersIn(const std::string &path, const std::string &descr, const std::string &shape);

// Returns the distance in ULP of `type`, which is XENT_F32 or XENT_F64. NaN counts as infinitely far.
double ErrorInUlp(xent_dtype type, double got, long double want);

// Expects `got` to be `want` to 40 of float64's 53 digits, or of the larger 1. That tells whether an option counts; the
// library's own bounds are held by the tests of the library and by LossTest.EveryDtype.
void ExpectClose(double got, long double want);
void ExpectClose(const std::vector<double> &got, const std::vector<long double> &want);
void ExpectClose(const std::vector<double> &got, const std::vector<reference::Value> &want);

// Returns random multiples of 1/16 in (-8, 8), which every dtype holds.
std::vector<double> RandomNumbers(uint64_t seed, size_t count);

// Returns what the oracle takes of float64 logits, row by row, without targets.
reference::LossInputs LossInputsOf(size_t rows, size_t cols, const std::vector<double> &logits);

// Returns one row of a matrix.
std::vector<double> RowIn(const std::vector<double> &matrix, size_t cols, size_t row);

}  // namespace xent_cli_test

#endif  // XENT_TESTS_CLI_NUMBERS_H_
