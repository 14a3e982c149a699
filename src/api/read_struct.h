// Reading the caller's structs, of this version or of another: docs/abi.md.
#pragma once

#include <cstddef>
#include <cstring>
#include <iterator>

#include "api/check.h"
#include "xent/xent.h"

namespace xent::internal {

// Of each struct: the sizes that it has had in releases, oldest first, the last one today's, and the defaults of its
// members. A released size never leaves its list.
template <class S>
struct Border;
#define XENT_BORDER(type, defaults, ...)              \
  template <>                                         \
  struct Border<type> {                               \
    static constexpr size_t kSizes[] = {__VA_ARGS__}; \
    static constexpr type kDefaults = defaults;       \
  }
XENT_BORDER(xent_error, XENT_ERROR_INIT, 256);
XENT_BORDER(xent_exec, XENT_EXEC_INIT, 32);
XENT_BORDER(xent_statistics, XENT_STATISTICS_INIT, 128);
XENT_BORDER(xent_cross_entropy, XENT_CROSS_ENTROPY_INIT, 232);
XENT_BORDER(xent_cross_entropy_options, XENT_CROSS_ENTROPY_OPTIONS_INIT, 80);
XENT_BORDER(xent_stored_losses, XENT_STORED_LOSSES_INIT, 80);
XENT_BORDER(xent_shard, XENT_SHARD_INIT, 24);
XENT_BORDER(xent_divergence, XENT_DIVERGENCE_INIT, 152);
XENT_BORDER(xent_divergence_options, XENT_DIVERGENCE_OPTIONS_INIT, 56);
XENT_BORDER(xent_binary_cross_entropy, XENT_BINARY_CROSS_ENTROPY_INIT, 232);
XENT_BORDER(xent_binary_cross_entropy_options, XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT, 48);
#undef XENT_BORDER

// Refuses a struct_size that no release had, unless it is larger than today's and all bytes past today's are zero.
xent_status CheckStructSize(const void *given, const size_t *sizes, size_t count, const char *name, xent_error *error);

// Copies a caller's struct; what an older one lacks gets its default. Nothing is cleared that is then overwritten: in a
// call of one small row that shows.
template <class S, class Of = Border<S>>
xent_status ReadStruct(const S *given, const char *name, S *copy, xent_error *error) {
  constexpr size_t kCount = std::size(Of::kSizes);
  static_assert(Of::kSizes[kCount - 1] == sizeof(S), "add today's size to the list; keep the older ones");
  if (given == nullptr) return Invalid(error, "%s is NULL", name);
  const size_t size = given->struct_size;
  if (size != sizeof(S)) XENT_TRY(CheckStructSize(given, Of::kSizes, kCount, name, error));
  if (size < sizeof(S)) {
    *copy = Of::kDefaults;
    std::memcpy(static_cast<void *>(copy), given, size);
  } else {
    std::memcpy(static_cast<void *>(copy), given, sizeof(S));
  }
  copy->struct_size = sizeof(S);
  if constexpr (requires { copy->reserved; }) return CheckReserved(name, copy->reserved, error);
  return XENT_OK;
}
// The same of a struct that may be NULL: its defaults.
template <class S>
xent_status ReadStructOrDefaults(const S *given, const char *name, S *copy, xent_error *error) {
  if (given != nullptr) return ReadStruct(given, name, copy, error);
  *copy = Border<S>::kDefaults;
  return XENT_OK;
}

// Reads the arguments of a call and its shape, after a look at the caller's error. Inline, for the same reason.
template <class Args>
[[gnu::always_inline]] inline xent_status ReadArgs(const Args *given, Args *args, Shape *shape, xent_error *error) {
  XENT_TRY(CheckError(error));
  XENT_TRY(ReadStruct(given, "args", args, error));
  XENT_TRY(CheckShape(args->rows, args->cols, args->inner, shape, error));
  args->inner = shape->inner;
  return XENT_OK;
}

}  // namespace xent::internal
