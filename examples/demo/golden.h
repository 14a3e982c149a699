// The numbers that a textbook prints for softmax cross-entropy, each computed by the library and held against the book.
#ifndef XENT_EXAMPLES_DEMO_GOLDEN_H_
#define XENT_EXAMPLES_DEMO_GOLDEN_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "common.h"
#include "xent/xent.hpp"

namespace demo {

// A row of logits with target 0 (or another) through the library.
struct GoldenRow {
  std::vector<float> p;
  std::vector<float> grad;
  float loss = 0.0f;
};

inline GoldenRow Evaluate(std::vector<float> logits, std::int64_t target = 0,
                          const xent::CrossEntropyOptions &options = {}) {
  const auto classes = static_cast<std::int64_t>(logits.size());
  const xent::MatrixView<float> z{logits.data(), 1, classes};
  GoldenRow row{std::vector<float>(logits.size()), std::vector<float>(logits.size())};
  Check(xent::Softmax(z, xent::MatrixView<float>{row.p.data(), 1, classes}));
  Check(xent::CrossEntropyForwardBackward(
      xent::CrossEntropy<float>{
          .logits = z, .targets = {&target, 1}, .reduced_loss = &row.loss, .grad = {row.grad.data(), 1, classes}},
      options));
  return row;
}

inline double Norm(std::span<const float> v) {
  double sum = 0.0;
  for (const float x : v) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

// The table, printed as it is filled; the exit code depends on `deviations`.
class GoldenTable {
 public:
  GoldenTable() { std::printf("  %-58s %12s %12s\n", "", "computed", "expected"); }

  // `want` is the number as it is printed in the book: the computed one must round to it.
  void Number(const std::string &what, double got, const char *want) { Row(what, got, want, "", 4); }
  void Percent(const std::string &what, double got, const char *want) { Row(what, 100.0 * got, want, " %", 2); }

  int rows() const { return rows_; }
  int deviations() const { return deviations_; }

 private:
  void Row(const std::string &what, double got, const std::string &want, const char *unit, int least_decimals) {
    const std::size_t point = want.find('.');
    const int decimals = static_cast<int>(want.size() - point - 1);
    const double tolerance = 0.5 * std::pow(10.0, -decimals);
    const bool holds = std::abs(got - std::strtod(want.c_str(), nullptr)) <= tolerance;
    char computed[32];
    std::snprintf(computed, sizeof(computed), "%.*f%s", std::max(decimals, least_decimals), got, unit);
    std::printf("  %-58s %12s %12s%s\n", what.c_str(), computed, (want + unit).c_str(), holds ? "" : "  DEVIATES");
    ++rows_;
    if (!holds) ++deviations_;
  }

  int rows_ = 0;
  int deviations_ = 0;
};

// Prints the table; leaves with exit code 1 when a number deviates.
inline void GoldenNumbers() {
  std::printf("1. Golden numbers (y = 1 at target 0)\n");
  GoldenTable table;
  const auto item = [](const char *what, std::size_t i) { return std::string(what) + "[" + std::to_string(i) + "]"; };

  const std::vector<float> first = {2.0f, 1.2f, 0.3f, -0.8f, -2.0f};
  const GoldenRow a = Evaluate(first);
  const std::array<const char *, 5> p_a = {"0.5844", "0.2626", "0.1068", "0.0355", "0.0107"};
  std::printf("  logits 2.0 1.2 0.3 -0.8 -2.0\n");
  for (std::size_t i = 0; i < 5; ++i) table.Number(item("  softmax p", i), a.p[i], p_a[i]);
  table.Number("  loss -log p[0]", a.loss, "0.5372");
  table.Number("  loss, label smoothing 0.1, uniform",
               Evaluate(first, 0, {.label_smoothing = 0.1, .smoothing = xent::Smoothing::kUniform}).loss, "0.72316");
  table.Number("  loss, label smoothing 0.1, exclusive (0.9 and 0.1/4)",
               Evaluate(first, 0, {.label_smoothing = 0.1, .smoothing = xent::Smoothing::kExclusive}).loss, "0.76966");

  const GoldenRow b = Evaluate({1.8f, 0.9f, 0.2f, -0.5f, -1.2f});
  const std::array<const char *, 5> p_b = {"56.9", "23.1", "11.5", "5.7", "2.8"};
  const std::array<const char *, 5> g_b = {"-0.431", "0.231", "0.115", "0.057", "0.028"};
  std::printf("  logits 1.8 0.9 0.2 -0.5 -1.2\n");
  for (std::size_t i = 0; i < 5; ++i) table.Percent(item("  softmax p", i), b.p[i], p_b[i]);
  for (std::size_t i = 0; i < 5; ++i) table.Number(item("  gradient p - y", i), b.grad[i], g_b[i]);
  table.Number("  loss", b.loss, "0.564");
  table.Number("  norm of the gradient", Norm(b.grad), "0.507");

  std::printf("  five equal logits\n");
  for (std::int64_t t = 0; t < 5; ++t) {
    table.Number("  loss log 5, target " + std::to_string(t), Evaluate(std::vector<float>(5, 0.7f), t).loss, "1.6094");
  }

  // The bug: softmax, then a loss that takes logits. Its gradient reaches the logits through the inner softmax.
  const GoldenRow right = Evaluate({2.0f, 1.0f, 0.1f});
  const GoldenRow twice = Evaluate(right.p);
  std::vector<float> end_to_end(3);
  std::vector<float> upstream = twice.grad;
  std::vector<float> inner = right.p;
  Check(xent::SoftmaxBackward({upstream.data(), 1, 3}, {inner.data(), 1, 3},
                              xent::MatrixView<float>{end_to_end.data(), 1, 3}));
  std::printf("  logits 2.0 1.0 0.1\n");
  table.Number("  loss", right.loss, "0.41703");
  table.Number("  norm of the gradient", Norm(right.grad), "0.42985");
  table.Number("  softmaxed twice by mistake: loss", twice.loss, "0.80212");
  table.Number("  softmaxed twice: norm of the gradient, end to end", Norm(end_to_end), "0.23771");
  table.Percent("  softmaxed twice: gradient, of the right one", Norm(end_to_end) / Norm(right.grad), "55.30");

  // Two classes with logits (log(p/(1-p)), 0) have the probabilities p and 1 - p.
  std::printf("  two classes, y = 1 for the first: cross-entropy -log p beside squared error (1 - p)^2\n");
  const auto binary = [](double p) { return Evaluate({static_cast<float>(std::log(p / (1.0 - p))), 0.0f}); };
  const auto squared = [](const GoldenRow &row) { return std::pow(1.0 - static_cast<double>(row.p[0]), 2); };
  const GoldenRow p70 = binary(0.70);
  const GoldenRow p99 = binary(0.99);
  const GoldenRow p01 = binary(0.01);
  table.Number("  p = 0.70: cross-entropy", p70.loss, "0.3567");
  table.Number("  p = 0.99: squared error", squared(p99), "0.0001");
  table.Number("  p = 0.99: cross-entropy", p99.loss, "0.01005");
  table.Number("  p = 0.01: squared error", squared(p01), "0.9801");
  table.Number("  p = 0.01: cross-entropy", p01.loss, "4.6052");

  if (table.deviations() != 0) {
    Fail(std::to_string(table.deviations()) + " of " + std::to_string(table.rows()) +
         " golden numbers deviate (marked in the table)");
  }
  std::printf("  All %d agree with the expected digits.\n\n", table.rows());
}

}  // namespace demo

#endif  // XENT_EXAMPLES_DEMO_GOLDEN_H_
