// The error bounds of the documents are those of testing/bounds.h: every number in the "Error" parts of xent.h and in
// the "Accuracy" section of docs/semantics.md, and the sentences of other documents that repeat one. A number counts
// where the expected word stands between it and the number before. Zeros are no bounds.
#include "testing/bounds.h"

#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

namespace xent::test {
namespace {

std::string Read(const std::string &path) {
  std::ifstream in(XENT_SOURCE_DIR "/" + path);
  EXPECT_TRUE(in.good()) << path << " is missing";
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// A number and the words before it. `power`: 2^value.
struct Number {
  double value;
  bool power;
  std::string before;
};

// What the documents must say: a number behind a word.
struct Bound {
  std::string word;
  double value;
  bool power = false;
};
Bound Power(std::string word, int exponent) { return {std::move(word), static_cast<double>(exponent), true}; }

std::string ReplaceAll(std::string text, const std::string &from, const std::string &to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// The numbers of a text in their order. Digits inside of words (float32, log1p) are none.
std::vector<Number> NumbersOf(const std::string &original) {
  const std::string text = ReplaceAll(original, "\xe2\x88\x92", "-");  // the minus sign U+2212
  std::vector<Number> numbers;
  size_t since = 0;
  for (size_t at = 0; at < text.size();) {
    if (std::isalpha(static_cast<unsigned char>(text[at])) != 0 || text[at] == '_') {
      while (at < text.size() && (std::isalnum(static_cast<unsigned char>(text[at])) != 0 || text[at] == '_')) ++at;
      continue;
    }
    if (std::isdigit(static_cast<unsigned char>(text[at])) == 0) {
      ++at;
      continue;
    }
    const size_t begin = at;
    char *end = nullptr;
    Number number = {std::strtod(text.c_str() + at, &end), false, text.substr(since, begin - since)};
    at = static_cast<size_t>(end - text.c_str());
    if (at < text.size() && text[at] == '^') {
      EXPECT_EQ(number.value, 2) << "a power of another base: " << text;
      number = {static_cast<double>(std::strtol(text.c_str() + at + 1, &end, 10)), true, number.before};
      at = static_cast<size_t>(end - text.c_str());
    }
    if (number.value == 0) continue;
    numbers.push_back(number);
    since = at;
  }
  return numbers;
}

void ExpectSays(const std::string &text, const std::vector<Bound> &bounds, const std::string &where) {
  const std::vector<Number> numbers = NumbersOf(text);
  EXPECT_EQ(numbers.size(), bounds.size()) << where << " has another number of bounds: " << text;
  for (size_t k = 0; k < std::min(numbers.size(), bounds.size()); ++k) {
    EXPECT_EQ(numbers[k].value, bounds[k].value) << where << ", number " << k + 1 << ": " << text;
    EXPECT_EQ(numbers[k].power, bounds[k].power) << where << ", number " << k + 1 << ": " << text;
    EXPECT_NE(numbers[k].before.find(bounds[k].word), std::string::npos)
        << where << ": \"" << bounds[k].word << "\" is expected before number " << k + 1 << ": " << text;
  }
}

// Words of a document in one line.
std::string Unwrapped(const std::string &text) {
  return std::regex_replace(ReplaceAll(text, "\n * ", "\n "), std::regex("\\s+"), " ");
}

// The part of an unwrapped document from `begin` to `end`, which must be there once.
std::string Between(const std::string &document, const std::string &begin, const std::string &end,
                    const std::string &where) {
  const size_t first = document.find(begin);
  EXPECT_NE(first, std::string::npos) << where << " does not say: " << begin;
  if (first == std::string::npos) return "";
  EXPECT_EQ(document.find(begin, first + 1), std::string::npos) << where << " says twice: " << begin;
  const size_t last = document.find(end, first);
  EXPECT_NE(last, std::string::npos) << where << " does not say: " << end;
  return document.substr(first, last - first);
}

// The smallest p that are kept, and the factors that bring them to the smallest normal number of their type.
const std::vector<Bound> kKept = {Power("p below", kKeptExponentFloat32), Power("double lanes", kKeptExponentFloat64)};
const std::vector<Bound> kWhereItShows = {Power("above", -126 - kKeptExponentFloat32),
                                          Power("", -1022 - kKeptExponentFloat64)};
const std::vector<Bound> kSlope = {Power("slope below", kKeptSlopeExponent)};
const std::vector<Bound> kShards = {
    {"losses", kShardUlp}, {"gradients", kShardGradientUlp}, {"term", kShardFarGradientUlp}, Power("beyond", 20)};

std::vector<Bound> Joined(std::vector<Bound> all, const std::vector<Bound> &more) {
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(Bounds, OfTheHeaderAreThoseOfTheTests) {
  const std::map<std::string, std::vector<Bound>> kExpected = {
      {"xent_exp_f32", {{"", kArrayUlp}}},
      {"xent_logsumexp", {{"", kLseUlp}}},
      {"xent_softmax", {{"", kSoftmaxUlp}}},
      {"xent_log_softmax", {{"", kLogSoftmaxUlp}}},
      {"xent_softmax_backward", {{"", kBackwardUlp}}},
      {"xent_log_softmax_backward", {{"", kBackwardUlp}}},
      {"xent_cross_entropy_forward",
       {{"Row loss", kLossUlp},
        {"reduced loss", kReducedLossUlp},
        {"lse", kLseUlp},
        {"log-probabilities", kLogProbabilityUlp},
        {"entropy", kEntropyUlp},
        {"softcap", kSoftcapUlp}}},
      {"xent_cross_entropy_forward_backward",
       Joined(Joined(Joined({{"grad", kGradientUlp}}, kKept), kWhereItShows), kSlope)},
      {"xent_reduce", {{"", kReducedLossUlp}}},
      {"xent_divergence_forward", {{"", kDivergenceUlp}}},
      {"xent_divergence_forward_backward", {{"", kDivergenceGradientUlp}}},
      {"xent_binary_cross_entropy_forward", {{"", kBinaryUlp}, {"focal", kFocalUlp}}},
      {"xent_binary_cross_entropy_forward_backward", {{"", kBinaryGradientUlp}, {"focal", kFocalUlp}}},
  };
  const std::string header = Read("include/xent/xent.h");
  const std::regex part("\n \\* Error +([^]*?)\n( \\* [A-Z][a-z]+ {2,}|[^\n]*\\*/)");
  const std::regex function("XENT_API [a-z_ ]+\\*?(xent_\\w+)\\(");
  std::map<std::string, std::string> found;
  for (std::sregex_iterator it(header.begin(), header.end(), part); it != std::sregex_iterator(); ++it) {
    std::smatch name;
    const auto end = header.begin() + it->position() + it->length();
    ASSERT_TRUE(std::regex_search(end, header.end(), name, function)) << "no function behind: " << it->str();
    found[name[1]] = Unwrapped((*it)[1]);
  }
  EXPECT_GE(found.size(), kExpected.size());
  for (const auto &[name, text] : found) {
    const auto expected = kExpected.find(name);
    ExpectSays(text, expected == kExpected.end() ? std::vector<Bound>{} : expected->second, "xent.h, " + name);
  }
  for (const auto &[name, bounds] : kExpected) EXPECT_EQ(found.count(name), 1u) << name << " states no bounds";
  ExpectSays(Between(Unwrapped(header), "cut elsewhere losses", "hundreds apart", "xent.h"), kShards,
             "xent.h, vocabulary shards");
}

TEST(Bounds, OfTheContractAreThoseOfTheTests) {
  const std::map<std::string, std::vector<Bound>> kExpected = {
      {"loss of a row, weights ≥ 0", {{"", kLossUlp}}},
      {"loss of a row, with a negative weight", {{"", kLossUlp}}},
      {"reduced loss", {{"", kReducedLossUlp}}},
      {"lse", {{"", kLseUlp}}},
      {"softmax", {{"", kSoftmaxUlp}}},
      {"log_softmax, log-probabilities", {{"", kLogSoftmaxUlp}}},
      {"gradient", {{"", kGradientUlp}}},
      {"gradient of an index target, no smoothing, no z-loss", {{"", kGradientUlp}}},
      {"entropy", {{"", kEntropyUlp}}},
      {"divergence, loss", {{"", kDivergenceUlp}}},
      {"divergence, gradient", {{"", kDivergenceGradientUlp}}},
      {"binary cross-entropy, loss", {{"", kBinaryUlp}, {"focal", kFocalUlp}}},
      {"binary cross-entropy, gradient", {{"", kBinaryGradientUlp}, {"focal", kFocalUlp}}},
      {"softmax_backward", {{"", kBackwardUlp}}},
      {"log_softmax_backward", {{"", kBackwardUlp}}},
      {"exp, log, log1p over arrays", {{"", kArrayUlp}}},
      {"half-precision outputs", {}},
  };
  static_assert(kLogSoftmaxUlp == kLogProbabilityUlp, "one line of the table states both");
  const std::string document = Read("docs/semantics.md");
  const size_t begin = document.find("\n## Accuracy");
  ASSERT_NE(begin, std::string::npos);
  const std::string section = document.substr(begin, document.find("\n## ", begin + 1) - begin);
  const std::regex line("\n\\| ([^|]*[^| -][^|]*) \\| ([^\n]*) \\|");
  size_t lines = 0;
  for (std::sregex_iterator it(section.begin(), section.end(), line); it != std::sregex_iterator(); ++it) {
    const std::string output = (*it)[1];
    if (output == "output") continue;
    ++lines;
    const auto expected = kExpected.find(output);
    ASSERT_NE(expected, kExpected.end()) << "docs/semantics.md has a bound that no test knows: " << it->str();
    ExpectSays((*it)[2], expected->second, "docs/semantics.md, " + output);
  }
  EXPECT_EQ(lines, kExpected.size()) << "docs/semantics.md lacks a line";
  const std::string unwrapped = Unwrapped(section);
  ExpectSays(Between(unwrapped, "With `softcap`", "and never negative", "docs/semantics.md"),
             {{"softcap", kSoftcapUlp}, {"derivative", kSoftcapSlopeUlp}, {"+", kSoftcapSlopeUlpPerArgument}},
             "docs/semantics.md, softcap");
  ExpectSays(Between(unwrapped, "p below 2^", ").", "docs/semantics.md"), kKept, "docs/semantics.md, vanishing p");
  ExpectSays(Between(unwrapped, "This shows only where", ").", "docs/semantics.md"), kWhereItShows,
             "docs/semantics.md, vanishing p");
  ExpectSays(Between(unwrapped, "A cap's slope", "does, too", "docs/semantics.md"), kSlope,
             "docs/semantics.md, slopes");
}

TEST(Bounds, OfOtherDocumentsAreThoseOfTheTests) {
  const std::string numerics = Unwrapped(Read("docs/numerics.md"));
  ExpectSays(Between(numerics, "The promised bounds are", " and gradients", "docs/numerics.md"),
             {{"", kLossUlp}, {"losses", kSoftmaxUlp}}, "docs/numerics.md");
  static_assert(kSoftmaxUlp == kGradientUlp, "one number stands for both");
  ExpectSays(Between(Unwrapped(Read("docs/options.md")), "Cut elsewhere, losses", "hundreds apart", "docs/options.md"),
             kShards, "docs/options.md");
}

}  // namespace
}  // namespace xent::test
