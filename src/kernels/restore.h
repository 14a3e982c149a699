// Logits from the exponentials that took their place.
#pragma once

#include "kernels/row.h"

namespace xent::internal {

// values[i] = e^z 2^(kBias - reference) -> z. Needed when a chunk that is worked on in place turns out to have its
// maximum beyond Format::kLimit. Only logits within some hundreds of that limit still matter then, and those come back
// exactly: there neighbouring numbers of the type lie 2^-4 (float64: 2^-14) and more apart, the exponential tells them
// apart to 2^-22 (2^-51). Others come back near enough to give 0, as they did; an exponential of 0 gives -infinity.
template <class T>
void RestoreLogits(T *values, int64_t cols, double reference) {
  const Wide offset = MultiplyLn2<Wide>(reference - Format<T>::kBias);
  for (int64_t i = 0; i < cols; ++i) {
    if (values[i] > 0) {
      const Wide z = Add(Log(Wide{static_cast<double>(values[i])}), offset);
      values[i] = static_cast<T>(z.hi + z.lo);
    } else {
      values[i] = -std::numeric_limits<T>::infinity();
    }
  }
}

}  // namespace xent::internal
