// Softmax regression on the digits, trained with the library's loss and gradient: once as it should be, once with the
// bug of feeding probabilities to a loss that takes logits.
#ifndef XENT_EXAMPLES_DEMO_TRAINING_H_
#define XENT_EXAMPLES_DEMO_TRAINING_H_

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "common.h"
#include "digits.h"
#include "xent/xent.hpp"

namespace demo {

inline constexpr std::int64_t kBatch = 32;
inline constexpr int kEpochs = 60;
inline constexpr float kLearningRate = 0.5f;

// logits = pixels * weights + bias, starting from zeros.
class SoftmaxRegression {
 public:
  SoftmaxRegression() : weights_(kPixels * kClasses, 0.0f), bias_(kClasses, 0.0f) {}

  std::vector<float> Logits(std::span<const float> pixels) const {
    const std::size_t rows = pixels.size() / kPixels;
    std::vector<float> logits(rows * kClasses);
    for (std::size_t i = 0; i < rows; ++i) {
      float *z = &logits[i * kClasses];
      std::copy(bias_.begin(), bias_.end(), z);
      for (std::size_t k = 0; k < kPixels; ++k) {
        for (std::size_t c = 0; c < kClasses; ++c) z[c] += pixels[i * kPixels + k] * weights_[k * kClasses + c];
      }
    }
    return logits;
  }

  // One step down the gradient of the loss, given that for the logits.
  void Step(std::span<const float> pixels, std::span<const float> grad) {
    const std::size_t rows = pixels.size() / kPixels;
    for (std::size_t i = 0; i < rows; ++i) {
      const float *g = &grad[i * kClasses];
      for (std::size_t c = 0; c < kClasses; ++c) bias_[c] -= kLearningRate * g[c];
      for (std::size_t k = 0; k < kPixels; ++k) {
        const float step = kLearningRate * pixels[i * kPixels + k];
        for (std::size_t c = 0; c < kClasses; ++c) weights_[k * kClasses + c] -= step * g[c];
      }
    }
  }

 private:
  std::vector<float> weights_;  // [64, 10]
  std::vector<float> bias_;     // [10]
};

inline xent::MatrixView<float> View(std::vector<float> &values) {
  return {values.data(), static_cast<std::int64_t>(values.size()) / kClasses, kClasses};
}

// The gradient over the logits, in place: what a training loop does with this library.
inline void LossGradient(std::vector<float> &logits, std::span<const std::int64_t> labels) {
  Check(xent::CrossEntropyForwardBackward(
      xent::CrossEntropy<float>{.logits = View(logits), .targets = labels, .grad = View(logits)}));
}

// The same with the bug: the loss is given softmax(logits), and its gradient goes back through that softmax.
inline void LossGradientSoftmaxedTwice(std::vector<float> &logits, std::span<const std::int64_t> labels) {
  std::vector<float> probabilities(logits.size());
  Check(xent::Softmax(View(logits), View(probabilities)));
  std::vector<float> upstream = probabilities;
  LossGradient(upstream, labels);
  Check(xent::SoftmaxBackward(View(upstream), View(probabilities), View(logits)));
}

struct Score {
  double loss;      // mean over the images
  double accuracy;  // fraction
};

inline Score Evaluate(const SoftmaxRegression &model, const Digits &digits) {
  std::vector<float> logits = model.Logits(digits.pixels);
  float loss = 0.0f;
  Check(xent::CrossEntropyForward(
      xent::CrossEntropy<float>{.logits = View(logits), .targets = digits.labels, .reduced_loss = &loss}));
  std::int64_t hits = 0;
  for (std::int64_t i = 0; i < digits.size(); ++i) {
    const auto row = logits.begin() + i * kClasses;
    if (std::max_element(row, row + kClasses) - row == digits.labels[static_cast<std::size_t>(i)]) ++hits;
  }
  return {static_cast<double>(loss), static_cast<double>(hits) / static_cast<double>(digits.size())};
}

struct Training {
  SoftmaxRegression model;
  std::vector<Score> train;  // after 0, 1, ... epochs
  std::vector<Score> test;
};

template <class Gradient>
Training Train(const Split &split, Gradient gradient, Progress &progress) {
  Training training;
  const auto score = [&] {
    training.train.push_back(Evaluate(training.model, split.train));
    training.test.push_back(Evaluate(training.model, split.test));
  };
  score();
  const std::span<const float> pixels = split.train.pixels;
  const std::span<const std::int64_t> labels = split.train.labels;
  for (int epoch = 0; epoch < kEpochs; ++epoch) {
    for (std::size_t begin = 0; begin < labels.size(); begin += kBatch) {
      const std::size_t rows = std::min<std::size_t>(kBatch, labels.size() - begin);
      const auto batch = pixels.subspan(begin * kPixels, rows * kPixels);
      std::vector<float> logits = training.model.Logits(batch);
      gradient(logits, labels.subspan(begin, rows));
      training.model.Step(batch, logits);
    }
    score();
    progress.Step();
  }
  return training;
}

inline const char *Diagnose(std::vector<float> &values) {
  xent::Diagnosis diagnosis = xent::Diagnosis::kLogits;
  Check(xent::CheckLogits(View(values), &diagnosis));
  switch (diagnosis) {
    case xent::Diagnosis::kProbabilities:
      return "probabilities: softmax has run already";
    case xent::Diagnosis::kLogProbabilities:
      return "log-probabilities, which are harmless";
    default:
      return "logits";
  }
}

// One test image in characters beside the probabilities and p - y.
inline void ShowImage(const SoftmaxRegression &model, const Digits &digits, std::size_t image) {
  const std::span<const float> pixels = std::span(digits.pixels).subspan(image * kPixels, kPixels);
  std::vector<float> logits = model.Logits(pixels);
  std::vector<float> p(logits.size());
  Check(xent::Softmax(View(logits), View(p)));
  LossGradient(logits, std::span(digits.labels).subspan(image, 1));
  std::printf("  A test image, a %d:      digit        p     p - y\n", static_cast<int>(digits.labels[image]));
  for (std::size_t y = 0; y < kClasses; ++y) {
    std::string ink(16, ' ');
    for (std::size_t x = 0; x < 8 && y < 8; ++x) {
      ink[2 * x] = ink[2 * x + 1] = " .:-=+*#@"[static_cast<std::size_t>(pixels[8 * y + x] * 8.0f)];
    }
    std::printf("    %s       %zu   %8.4f  %8.4f\n", ink.c_str(), y, static_cast<double>(p[y]),
                static_cast<double>(logits[y]));
  }
}

// Prints the loss curve of both runs, and what the diagnosis says; leaves with exit code 1 when a run comes out wrong.
inline void TrainDigits(const std::string &directory) {
  const Split split = ShuffledSplit(ReadDigits(directory));
  std::printf("2. Training on %d real handwritten digits (%d to train on, %d to test on)\n", static_cast<int>(kImages),
              static_cast<int>(split.train.size()), static_cast<int>(split.test.size()));
  std::printf("  softmax regression 64 -> 10, batches of %d, learning rate %.1f, no momentum\n",
              static_cast<int>(kBatch), static_cast<double>(kLearningRate));
  Training right;
  Training twice;
  {
    Progress progress("  training", 2 * kEpochs);
    right = Train(split, LossGradient, progress);
    twice = Train(split, LossGradientSoftmaxedTwice, progress);
  }

  std::printf("  loss: mean over the training images, by one softmax of the logits in both runs\n");
  std::printf("                right: logits to the loss             bug: softmaxed twice\n");
  std::printf("  epoch   loss  test accuracy  loss curve       loss  test accuracy  loss curve\n");
  const auto bar = [&](double loss) {
    return std::string(static_cast<std::size_t>(std::clamp(14.0 * loss / right.train[0].loss + 0.5, 0.0, 14.0)), '#');
  };
  for (const std::size_t epoch : {0u, 1u, 2u, 3u, 5u, 10u, 20u, 30u, 40u, 50u, 60u}) {
    const Score &a = right.train[epoch];
    const Score &b = twice.train[epoch];
    std::printf("  %5zu %.4f        %5.2f %%  %-14s %.4f        %5.2f %%  %s\n", epoch, a.loss,
                100.0 * right.test[epoch].accuracy, bar(a.loss).c_str(), b.loss, 100.0 * twice.test[epoch].accuracy,
                bar(b.loss).c_str());
  }
  const double accuracy = right.test.back().accuracy;
  std::printf(
      "  Test accuracy %.2f %%, test loss %.4f. With the bug it still learns, but slower: after %d epochs\n"
      "  its loss %.4f is where the right run stood after epoch %d.\n",
      100.0 * accuracy, right.test.back().loss, kEpochs, twice.train.back().loss,
      static_cast<int>(std::find_if(right.train.begin(), right.train.end(),
                                    [&](const Score &s) { return s.loss <= twice.train.back().loss; }) -
                       right.train.begin()));

  std::vector<float> logits = right.model.Logits(split.train.pixels);
  std::vector<float> probabilities = twice.model.Logits(split.train.pixels);
  Check(xent::Softmax(View(probabilities), View(probabilities)));
  const std::string on_logits = Diagnose(logits);
  const std::string on_probabilities = Diagnose(probabilities);
  std::printf("  xent_check_logits on what the right run feeds the loss: %s\n", on_logits.c_str());
  std::printf("  xent_check_logits on what the bug feeds it:             %s\n\n", on_probabilities.c_str());
  ShowImage(right.model, split.test, 0);
  std::printf("\n");

  if (!(accuracy >= 0.95)) Fail("the test accuracy is below 95 %");
  if (!(right.train.back().loss < twice.train.back().loss)) Fail("the bug did not slow the training down");
  if (on_logits != "logits") Fail("xent_check_logits took logits for " + on_logits);
  if (!on_probabilities.starts_with("probabilities")) Fail("xent_check_logits took probabilities for logits");
}

}  // namespace demo

#endif  // XENT_EXAMPLES_DEMO_TRAINING_H_
