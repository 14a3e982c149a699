// A plan in words, for tests and benchmarks.
#ifndef XENT_TESTS_TESTING_PLAN_WORDS_H_
#define XENT_TESTS_TESTING_PLAN_WORDS_H_

#include <string>

#include "rows/plan.h"

namespace xent::test {

// Returns every choice of a plan that the caller of the library can feel.
inline std::string Words(const internal::Plan &plan) {
  using internal::Subnormals;
  static constexpr const char *kPaths[] = {"index", "general", "positions", "across", "elements"};
  static constexpr const char *kSplits[] = {"none", "rows", "chunks"};
  static constexpr const char *kKeeps[] = {"nowhere", "output", "workspace"};
  std::string text = std::string("path=") + kPaths[static_cast<int>(plan.path)];
  text += std::string(" split=") + kSplits[static_cast<int>(plan.split)];
  text += " threads=" + std::to_string(plan.threads);
  text += std::string(" keep=") + kKeeps[static_cast<int>(plan.keep)];
  text += plan.subnormals == Subnormals::kKeep ? " subnormals=keep" : " subnormals=flush";
  if (plan.short_rows) text += " short_rows";
  if (plan.overlap) text += " overlap";
  if (plan.stream) text += " stream";
  if (plan.statistics) text += " statistics";
  return text;
}

}  // namespace xent::test

#endif  // XENT_TESTS_TESTING_PLAN_WORDS_H_
