// The calls behind each operation.
#include "bench/operations.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <string>

#include "bench/baselines.h"
#include "bench/parallel.h"
#include "bench/peers.h"
#include "bench/yardsticks.h"

namespace xent_bench {
namespace {

const char *BaseName(Op op) {
  switch (op) {
    case Op::kForward:
      return "forward";
    case Op::kForwardBackwardInplace:
      return "forward_backward_inplace";
    case Op::kForwardBackward:
      return "forward_backward";
    case Op::kForwardBackwardWorkspace:
      return "forward_backward_workspace";
    case Op::kBackward:
      return "backward";
    case Op::kSoftmax:
      return "softmax";
    case Op::kLogSoftmax:
      return "log_softmax";
    case Op::kLogSumExp:
      return "logsumexp";
    case Op::kSoftmaxBackward:
      return "softmax_backward";
    case Op::kLogSoftmaxBackward:
      return "log_softmax_backward";
    case Op::kCheckLogits:
      return "check_logits";
    case Op::kReduce:
      return "reduce";
    case Op::kExp:
      return "exp";
    case Op::kLog:
      return "log";
    case Op::kLog1p:
      return "log1p";
    case Op::kExpSum:
      return "exp_sum";
    case Op::kBceForward:
      return "bce_forward";
    case Op::kBceForwardBackward:
      return "bce_forward_backward";
    case Op::kKlForward:
      return "kl_forward";
    case Op::kKlForwardBackward:
      return "kl_forward_backward";
    case Op::kJensenShannonForward:
      return "jensen_shannon_forward";
    case Op::kJensenShannonForwardBackward:
      return "jensen_shannon_forward_backward";
    case Op::kReadSweep:
      return "read_sweep";
    case Op::kCopy:
      return "copy";
    case Op::kInPlaceScale:
      return "in_place_scale";
  }
  return "";
}

const char *SuffixOf(Option option) {
  switch (option) {
    case Option::kNone:
      return "";
    case Option::kSmoothing:
      return "_smoothing";
    case Option::kExclusive:
      return "_exclusive";
    case Option::kWeights:
      return "_weights";
    case Option::kRowWeights:
      return "_row_weights";
    case Option::kProbs:
      return "_probs";
    case Option::kSoftcap:
      return "_softcap";
    case Option::kLogitScale:
      return "_logit_scale";
    case Option::kZLoss:
      return "_z_loss";
    case Option::kSmoothingZLoss:
      return "_smoothing_z_loss";
    case Option::kValidCols:
      return "_valid_cols";
    case Option::kArgmax:
      return "_argmax";
    case Option::kEntropy:
      return "_entropy";
    case Option::kRank:
      return "_rank";
    case Option::kTopK:
      return "_top_k";
    case Option::kPosWeight:
      return "_pos_weight";
    case Option::kFocal:
      return "_focal";
    case Option::kProbabilities:
      return "_probabilities";
  }
  return "";
}

xent_status RunCrossEntropy(Op op, const Problem &problem, const xent_exec &exec, int64_t slot) {
  CrossEntropyCall call;
  FillCall(op, problem, exec.threads, slot, &call);
  const auto function = op == Op::kBackward     ? xent_cross_entropy_backward
                        : IsForwardBackward(op) ? xent_cross_entropy_forward_backward
                                                : xent_cross_entropy_forward;
  return function(&call.args, call.given_options(), &exec, nullptr);
}

xent_status RunBinary(Op op, const Problem &problem, const xent_exec &exec) {
  xent_binary_cross_entropy args = XENT_BINARY_CROSS_ENTROPY_INIT;
  FillBinary(problem, &args);
  args.reduced_loss = problem.loss.data();
  const xent_binary_cross_entropy_options options = BinaryOptionsOf(problem.option);
  if (op == Op::kBceForward) return xent_binary_cross_entropy_forward(&args, &options, &exec, nullptr);
  args.grad = problem.matrix(problem.slot(0));
  return xent_binary_cross_entropy_forward_backward(&args, &options, &exec, nullptr);
}

// The teacher's logits are the upstream gradient's numbers.
xent_status RunDivergence(Op op, const Problem &problem, const xent_exec &exec) {
  xent_divergence args = XENT_DIVERGENCE_INIT;
  args.rows = problem.shape.rows;
  args.cols = problem.shape.cols;
  args.inner = problem.shape.inner;
  args.student = problem.matrix(problem.logits.data());
  args.teacher = problem.matrix(problem.upstream.data());
  args.row_losses = problem.losses.data();
  args.reduced_loss = problem.loss.data();
  const xent_divergence_options options = DivergenceOptionsOf(op);
  if (!IsForwardBackward(op)) return xent_divergence_forward(&args, &options, &exec, nullptr);
  args.grad = problem.matrix(problem.slot(0));
  return xent_divergence_forward_backward(&args, &options, &exec, nullptr);
}

xent_status RunReduce(const Problem &problem) {
  xent_stored_losses args = XENT_STORED_LOSSES_INIT;
  args.rows = problem.shape.rows;
  args.row_losses = problem.losses.data();
  args.reduced_loss = problem.loss.data();
  args.dtype = problem.dtype;
  return xent_reduce(&args, nullptr, nullptr);
}

xent_status RunArray(Op op, const Problem &problem) {
  const int64_t n = problem.elements();
  const void *x = op == Op::kExp ? problem.logits.data() : problem.aux.data();
  void *y = problem.slot(0);
  if (problem.dtype == XENT_F64) {
    const auto f = op == Op::kExp ? xent_exp_f64 : op == Op::kLog ? xent_log_f64 : xent_log1p_f64;
    return f(static_cast<const double *>(x), static_cast<double *>(y), n);
  }
  const auto f = op == Op::kExp ? xent_exp_f32 : op == Op::kLog ? xent_log_f32 : xent_log1p_f32;
  return f(static_cast<const float *>(x), static_cast<float *>(y), n);
}

xent_status RunLibrary(Op op, Problem *problem, int threads, int64_t slot) {
  xent_exec exec = XENT_EXEC_INIT;
  exec.threads = threads;
  const auto [rows, cols, inner] = problem->shape;
  const xent_matrix logits = problem->matrix(problem->logits.data());
  const xent_matrix aux = problem->matrix(problem->aux.data());
  const xent_matrix upstream = problem->matrix(problem->upstream.data());
  const xent_matrix out = problem->matrix(problem->slot(0));
  switch (op) {
    case Op::kForward:
    case Op::kForwardBackwardInplace:
    case Op::kForwardBackward:
    case Op::kForwardBackwardWorkspace:
    case Op::kBackward:
      return RunCrossEntropy(op, *problem, exec, slot);
    case Op::kSoftmax:
      return xent_softmax(rows, cols, inner, logits, out, &exec, nullptr);
    case Op::kLogSoftmax:
      return xent_log_softmax(rows, cols, inner, logits, out, &exec, nullptr);
    case Op::kLogSumExp:
    case Op::kExpSum:
      return xent_logsumexp(rows, cols, inner, logits, problem->lse.data(), &exec, nullptr);
    case Op::kSoftmaxBackward:
      return xent_softmax_backward(rows, cols, inner, upstream, aux, out, &exec, nullptr);
    case Op::kLogSoftmaxBackward:
      return xent_log_softmax_backward(rows, cols, inner, upstream, aux, out, &exec, nullptr);
    case Op::kCheckLogits:
      return xent_check_logits(rows, cols, inner, aux, &problem->diagnosis, &exec, nullptr);
    case Op::kReduce:
      return RunReduce(*problem);
    case Op::kExp:
    case Op::kLog:
    case Op::kLog1p:
      return RunArray(op, *problem);
    case Op::kBceForward:
    case Op::kBceForwardBackward:
      return RunBinary(op, *problem, exec);
    case Op::kKlForward:
    case Op::kKlForwardBackward:
    case Op::kJensenShannonForward:
    case Op::kJensenShannonForwardBackward:
      return RunDivergence(op, *problem, exec);
    case Op::kReadSweep:
    case Op::kCopy:
    case Op::kInPlaceScale:
      break;
  }
  return XENT_INVALID_ARGUMENT;
}

void RunBaseline(const Baseline &baseline, Op op, Problem *problem, int64_t slot) {
  const int64_t rows = problem->shape.rows, cols = problem->shape.cols;
  const auto *z = static_cast<const float *>(problem->logits.data());
  const auto *aux = static_cast<const float *>(problem->aux.data());
  const auto *upstream = static_cast<const float *>(problem->upstream.data());
  auto *out = static_cast<float *>(problem->slot(op == Op::kForwardBackwardInplace ? slot : 0));
  auto *losses = static_cast<float *>(problem->losses.data());
  auto *lse = static_cast<float *>(problem->lse.data());
  auto *loss = static_cast<float *>(problem->loss.data());
  const float scale = 1.0f / static_cast<float>(rows);
  if (op == Op::kForwardBackwardInplace) z = out;
  switch (op) {
    case Op::kReduce:
      *loss = baseline.mean(losses, rows);
      return;
    case Op::kExp:
      baseline.exp(z, out, rows * cols);
      return;
    case Op::kLog:
      baseline.log(aux, out, rows * cols);
      return;
    case Op::kLog1p:
      baseline.log1p(aux, out, rows * cols);
      return;
    case Op::kCheckLogits:
      problem->diagnosis = XENT_DIAGNOSIS_PROBABILITIES;
      break;
    default:
      break;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = i * cols;
    const int64_t target = problem->targets[static_cast<size_t>(i)];
    switch (op) {
      case Op::kForward:
        losses[i] = baseline.loss(z + at, cols, target);
        break;
      case Op::kForwardBackwardInplace:
      case Op::kForwardBackward:
      case Op::kForwardBackwardWorkspace:
        losses[i] = baseline.loss_and_gradient(z + at, cols, target, scale, out + at);
        break;
      case Op::kBackward:
        baseline.gradient(z + at, cols, target, lse[i], scale, out + at);
        break;
      case Op::kSoftmax:
        baseline.softmax(z + at, cols, out + at);
        break;
      case Op::kLogSoftmax:
        baseline.log_softmax(z + at, cols, out + at);
        break;
      case Op::kLogSumExp:
        lse[i] = baseline.log_sum_exp(z + at, cols);
        break;
      case Op::kSoftmaxBackward:
        baseline.softmax_backward(upstream + at, aux + at, cols, out + at);
        break;
      case Op::kLogSoftmaxBackward:
        baseline.log_softmax_backward(upstream + at, aux + at, cols, out + at);
        break;
      case Op::kCheckLogits:
        if (!baseline.is_probabilities(aux + at, cols)) {
          problem->diagnosis = XENT_DIAGNOSIS_LOGITS;
          return;
        }
        break;
      default:
        break;
    }
  }
  if (op == Op::kForward || IsForwardBackward(op)) {
    *loss = baseline.mean(losses, rows);
  }
}

void RunExpSum(Source source, Problem *problem) {
  const ExpSum exp_sum = PeerExpSum(source);
  const int64_t rows = problem->shape.rows, cols = problem->shape.cols;
  const auto *z = static_cast<const float *>(problem->logits.data());
  auto *sums = static_cast<float *>(problem->lse.data());
  for (int64_t i = 0; i < rows; ++i) {
    sums[i] = exp_sum(z + i * cols, cols, problem->row_maxima[static_cast<size_t>(i)]);
  }
}

void RunYardstick(Op op, Problem *problem, int threads, int64_t slot) {
  const int64_t bytes = ElementBytes(problem->dtype);
  const auto *logits = static_cast<const char *>(problem->logits.data());
  if (op == Op::kReadSweep) {
    const SweepSegments segments(problem->shape, threads);
    double *maxima = problem->maxima.data();
    ParallelRanges(threads, segments.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) {
        maxima[s] = Maximum(problem->dtype, logits + segments.Begin(s) * bytes, segments.Length(s));
      }
    });
  } else if (op == Op::kCopy) {
    auto *out = static_cast<char *>(problem->slot(0));
    ParallelRanges(threads, problem->matrix_bytes(), 128,
                   [&](int64_t begin, int64_t end) { StreamCopy(logits + begin, out + begin, end - begin); });
  } else {
    auto *out = static_cast<char *>(problem->slot(slot));
    ParallelRanges(threads, problem->elements(), 64,
                   [&](int64_t begin, int64_t end) { ScaleInPlace(problem->dtype, out + begin * bytes, end - begin); });
  }
}

}  // namespace

xent_cross_entropy_options OptionsOf(const Problem &problem) {
  xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  switch (problem.option) {
    case Option::kExclusive:
      options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
      [[fallthrough]];
    case Option::kSmoothing:
    case Option::kWeights:
      options.label_smoothing = 0.1;
      break;
    case Option::kSmoothingZLoss:
      options.label_smoothing = 0.1;
      [[fallthrough]];
    case Option::kZLoss:
      options.z_loss = 1e-4;
      break;
    case Option::kSoftcap:
      options.softcap = 30;
      break;
    case Option::kLogitScale:
      options.logit_scale = 0.5;
      break;
    case Option::kValidCols:
      options.valid_cols = *std::max_element(problem.targets.begin(), problem.targets.end()) + 1;
      break;
    default:
      break;
  }
  return options;
}

bool IsDivergence(Op op) { return op >= Op::kKlForward && op <= Op::kJensenShannonForwardBackward; }

xent_divergence_options DivergenceOptionsOf(Op op) {
  xent_divergence_options options = XENT_DIVERGENCE_OPTIONS_INIT;
  if (op >= Op::kJensenShannonForward) {
    options.kind = XENT_DIVERGENCE_JENSEN_SHANNON;
  } else {
    options.temperature = 2;
  }
  return options;
}

xent_binary_cross_entropy_options BinaryOptionsOf(Option option) {
  xent_binary_cross_entropy_options options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  if (option == Option::kFocal) {
    options.focal_gamma = 2;
    options.focal_alpha = 0.25;
  } else if (option == Option::kProbabilities) {
    options.input = XENT_BINARY_PROBABILITIES;
  }
  return options;
}

void FillBinary(const Problem &problem, xent_binary_cross_entropy *args) {
  args->rows = problem.shape.rows;
  args->cols = problem.shape.cols;
  args->inner = problem.shape.inner;
  args->input = problem.matrix(problem.option == Option::kProbabilities ? problem.aux.data() : problem.logits.data());
  args->targets = problem.matrix(problem.aux.data());
  if (problem.option == Option::kPosWeight) args->pos_weight = problem.class_weights.data();
}

void FillCall(Op op, const Problem &problem, int threads, int64_t slot, CrossEntropyCall *call) {
  const Option option = problem.option;
  call->options = OptionsOf(problem);
  call->has_options = option != Option::kNone;
  xent_cross_entropy &args = call->args;
  args.rows = problem.shape.rows;
  args.cols = problem.shape.cols;
  args.inner = problem.shape.inner;
  args.logits = problem.matrix(problem.logits.data());
  if (option == Option::kProbs) {
    args.target_probs = problem.matrix(problem.aux.data());
  } else {
    args.targets.data = problem.targets.data();
  }
  if (option == Option::kWeights) args.class_weights = problem.class_weights.data();
  if (option == Option::kRowWeights) args.row_weights = problem.row_weights.data();
  if (op == Op::kBackward) {
    args.records = problem.records.data();
  } else {
    args.row_losses = problem.losses.data();
    args.reduced_loss = problem.loss.data();
    args.statistics = &call->statistics;
    call->statistics.lse = problem.lse.data();
    if (option == Option::kArgmax || option == Option::kEntropy) {
      call->statistics.argmax = static_cast<int64_t *>(problem.argmax.data());
    }
    if (option == Option::kEntropy) {
      call->statistics.entropy = problem.entropy.data();
      call->statistics.logprobs = problem.logprobs.data();
    } else if (option == Option::kRank) {
      call->statistics.rank = static_cast<int64_t *>(problem.rank.data());
    } else if (option == Option::kTopK) {
      call->statistics.top_k = std::min(kTop, problem.shape.cols);
      call->statistics.topk_indices = static_cast<int64_t *>(problem.top.data());
    }
  }
  if (op == Op::kForwardBackwardInplace) {
    args.logits.data = problem.slot(slot);
    args.grad = args.logits;
  } else if (IsForwardBackward(op) || op == Op::kBackward) {
    args.grad = problem.matrix(problem.slot(0));
  }
  if (op == Op::kForwardBackwardWorkspace) {
    args.workspace = problem.workspace.data();
    args.workspace_bytes = xent_workspace_bytes(args.cols, problem.dtype, threads);
  }
}

std::string Name(Op op, Source source, Option option) {
  constexpr std::array kPrefixes = {"", "naive_", "scalar_", "contrib_", "sleef_", "onednn_"};
  return std::string(kPrefixes[static_cast<size_t>(source)]) + BaseName(op) + SuffixOf(option);
}

int64_t BytesMoved(Op op, const Problem &problem) {
  const int64_t matrix = problem.matrix_bytes();
  const bool probs = problem.option == Option::kProbs;
  switch (op) {
    case Op::kForward:
      return probs ? 2 * matrix : matrix;
    case Op::kForwardBackwardInplace:
    case Op::kForwardBackward:
    case Op::kForwardBackwardWorkspace:
      return probs ? 3 * matrix : 2 * matrix;
    case Op::kLogSumExp:
    case Op::kCheckLogits:
    case Op::kReduce:
    case Op::kExpSum:
    case Op::kReadSweep:
      return matrix;
    case Op::kBackward:
    case Op::kSoftmax:
    case Op::kLogSoftmax:
    case Op::kExp:
    case Op::kLog:
    case Op::kLog1p:
    case Op::kCopy:
    case Op::kInPlaceScale:
    case Op::kBceForward:
    case Op::kKlForward:
    case Op::kJensenShannonForward:
      return 2 * matrix;
    case Op::kSoftmaxBackward:
    case Op::kLogSoftmaxBackward:
    case Op::kBceForwardBackward:
    case Op::kKlForwardBackward:
    case Op::kJensenShannonForwardBackward:
      return 3 * matrix;
  }
  return 0;
}

SweepSegments::SweepSegments(Shape shape, int threads) : total(shape.rows * shape.cols), length(shape.cols) {
  constexpr int64_t kShort = 1024;
  if (shape.rows < threads) {
    length = (total + threads - 1) / threads;
  } else if (shape.cols < kShort) {
    const int64_t rows_together = std::min((4 * kShort + shape.cols - 1) / shape.cols, shape.rows / threads);
    length = shape.cols * rows_together;
  }
  count = (total + length - 1) / length;
}

bool Does(Source source, Op op, Shape shape, Option option) {
  // Neither options nor layouts have a baseline or a peer.
  if (source != Source::kLibrary && (option != Option::kNone || shape.inner > 1)) return false;
  switch (source) {
    case Source::kLibrary:
      return true;
    case Source::kNaive:
    case Source::kScalar:
      return op < Op::kExpSum;
    case Source::kContrib:
    case Source::kSleef:
      return op == Op::kExpSum && PeerExpSum(source) != nullptr;
    case Source::kOneDnn:
      return HasOneDnn(op) && std::find(std::begin(kPeerShapes), std::end(kPeerShapes), shape) != std::end(kPeerShapes);
  }
  return false;
}

bool IsInPlace(Op op) { return op == Op::kForwardBackwardInplace; }

bool IsForwardBackward(Op op) {
  switch (op) {
    case Op::kForwardBackwardInplace:
    case Op::kForwardBackward:
    case Op::kForwardBackwardWorkspace:
    case Op::kKlForwardBackward:
    case Op::kJensenShannonForwardBackward:
      return true;
    default:
      return false;
  }
}

void Prepare(Op op, Problem *problem) {
  problem->FillWeights();
  if (problem->option == Option::kProbs) problem->FillAux(Aux::kSoftmax);
  switch (op) {
    case Op::kBackward:
      problem->FillRecords();
      break;
    case Op::kSoftmaxBackward:
      problem->FillUpstream();
      problem->FillAux(Aux::kSoftmax);
      break;
    case Op::kKlForward:
    case Op::kKlForwardBackward:
    case Op::kJensenShannonForward:
    case Op::kJensenShannonForwardBackward:
      problem->FillUpstream();
      break;
    case Op::kLogSoftmaxBackward:
      problem->FillUpstream();
      problem->FillAux(Aux::kLogSoftmax);
      break;
    case Op::kCheckLogits:
      problem->FillAux(Aux::kSoftmax);
      break;
    case Op::kBceForward:
    case Op::kBceForwardBackward:
      problem->FillAux(Aux::kUnit);
      break;
    case Op::kExpSum:
      problem->FillRowMaxima();
      break;
    case Op::kLog:
      problem->FillAux(Aux::kPositive);
      break;
    case Op::kLog1p:
      problem->FillAux(Aux::kAboveMinusOne);
      break;
    default:
      break;
  }
}

xent_status Run(Op op, Source source, Problem *problem, int threads, int64_t slot) {
  if (op == Op::kReadSweep || op == Op::kCopy || op == Op::kInPlaceScale) {
    RunYardstick(op, problem, threads, slot);
    return XENT_OK;
  }
  if (source == Source::kLibrary) return RunLibrary(op, problem, threads, slot);
  if (source == Source::kContrib || source == Source::kSleef) {
    RunExpSum(source, problem);
  } else if (source == Source::kOneDnn) {
    RunOneDnn(op, *problem);
  } else {
    RunBaseline(source == Source::kNaive ? Naive() : Scalar(), op, problem, slot);
  }
  return XENT_OK;
}

}  // namespace xent_bench
