// The dtypes: those of files, and those that the library computes with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "xent/xent.h"

namespace xent_cli {

// A dtype of a file. Its elements may lie at any address.
struct FileDtype {
  const char *descr;       // "<f4"
  size_t size;             // bytes of an element
  bool is_floating;        // false: an integer, or bool
  xent_dtype number_type;  // in which the library gets the numbers: the same one, or one that holds the integers
  double (*number)(const char *element);
  int64_t (*index)(const char *element);  // null for floating dtypes; one of '<u8' past 2^63 - 1 is negative
};

// Returns the dtype that NumPy writes as `descr`, null where it is none that the program reads.
const FileDtype *FileDtypeOf(std::string_view descr);

// Returns number `i` of an array.
double NumberAt(const void *data, xent_dtype dtype, int64_t i);

// Returns the bytes of one element.
size_t SizeOf(xent_dtype dtype);
// Returns the type of losses and lse for logits of `dtype`.
xent_dtype ArithmeticType(xent_dtype dtype);
// Returns the dtype as NumPy writes it, "<f4".
const char *DescrOf(xent_dtype dtype);

}  // namespace xent_cli
