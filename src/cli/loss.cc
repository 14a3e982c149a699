// `xent loss`: the loss of a file of logits, and what belongs to it, in one call over the mapped files.
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "commands.h"
#include "error.h"
#include "npy.h"
#include "output.h"
#include "pool.h"
#include "progress.h"
#include "report.h"

namespace xent_cli {
namespace {

enum Result { kPerRow, kLse, kGrad, kResults };
constexpr const char* kOptionNames[kResults] = {"--per-row", "--lse", "--grad"};

// One of the three array results: where it goes and what its file looks like.
struct ArrayOutput {
  std::optional<Destination> destination;  // empty: not wanted
  xent_dtype dtype = XENT_F32;
  std::string header;
  size_t row_bytes = 0;
  std::optional<TemporaryFile> file;  // unless written in place
};

class LossCommand {
 public:
  explicit LossCommand(const LossArguments& arguments)
      : arguments_(arguments),
        logits_(arguments.logits),
        targets_(arguments.targets),
        pool_(arguments.threads, progress_) {}

  int Run() {
    if (targets_.rows() != logits_.rows()) {
      throw Error(arguments_.targets + ": the shape is (" + std::to_string(targets_.rows()) + ",), expected (" +
                  std::to_string(logits_.rows()) + ",): " + arguments_.logits + " has that many rows");
    }
    PrepareOutputs();
    Compute();
    for (ArrayOutput& output : outputs_) {
      if (output.file) output.file->Finish();
    }
    for (int result = 0; result < kResults; ++result) {
      const ArrayOutput& output = outputs_[result];
      if (output.destination && output.destination->in_place) Stream(static_cast<Result>(result));
    }
    progress_.Wipe();
    Print(report_fd_, Report());
    // Last, so that whatever fails before leaves the older files in place.
    for (ArrayOutput& output : outputs_) {
      if (output.file) output.file->MoveTo(*output.destination);
    }
    return kExitOk;
  }

 private:
  void PrepareOutputs() {
    const std::pair<bool, const std::string&> paths[kResults] = {{arguments_.has_per_row, arguments_.per_row},
                                                                 {arguments_.has_lse, arguments_.lse},
                                                                 {arguments_.has_grad, arguments_.grad}};
    for (int result = 0; result < kResults; ++result) {
      if (paths[result].first) outputs_[result].destination = ResolveDestination(paths[result].second);
    }
    RefuseSharedDestinations();
    const xent_dtype arithmetic = ArithmeticType(logits_.dtype());
    for (int result = 0; result < kResults; ++result) {
      ArrayOutput& output = outputs_[result];
      if (!output.destination) continue;
      output.dtype = result == kGrad ? logits_.dtype() : arithmetic;
      output.row_bytes = SizeOf(output.dtype) * static_cast<size_t>(result == kGrad ? logits_.cols() : 1);
      output.header = result == kGrad ? FormatNpyHeader(output.dtype, {logits_.rows(), logits_.cols()})
                                      : FormatNpyHeader(output.dtype, {logits_.rows()});
    }
    for (ArrayOutput& output : outputs_) {
      if (!output.destination || output.destination->in_place) continue;
      output.file.emplace(output.destination->directory,
                          output.header.size() + output.row_bytes * static_cast<size_t>(logits_.rows()),
                          output.destination->given);
      output.header.copy(output.file->data(), output.header.size());
    }
  }

  // No file may be two of: an output, an input, standard output with the report on it.
  void RefuseSharedDestinations() {
    struct stat standard_output;
    const bool has_standard_output = fstat(STDOUT_FILENO, &standard_output) == 0;
    for (int i = 0; i < kResults; ++i) {
      if (!outputs_[i].destination) continue;
      const Destination& destination = *outputs_[i].destination;
      const std::string subject = std::string(kOptionNames[i]) + " " + destination.given;
      for (int j = 0; j < i; ++j) {
        if (outputs_[j].destination && IsSameFile(destination, *outputs_[j].destination)) {
          throw Error(subject + " is the same file as " + kOptionNames[j] + " " + outputs_[j].destination->given);
        }
      }
      for (const MappedFile* input : {&logits_.file(), &targets_.file()}) {
        if (IsSameFile(destination, input->device(), input->inode())) {
          throw Error(subject + " is the same file as the input " + input->path());
        }
      }
      if (!has_standard_output || !IsSameFile(destination, standard_output.st_dev, standard_output.st_ino)) continue;
      const bool is_null = S_ISCHR(standard_output.st_mode) && standard_output.st_rdev == makedev(1, 3);
      if (destination.descriptor >= 0) {
        report_fd_ = STDERR_FILENO;
      } else if (!is_null) {
        throw Error(subject +
                    " is the same file as standard output, where the report goes (/dev/stdout moves the report)");
      }
    }
  }

  // A call's arguments for `rows` rows from row `first`.
  xent_cross_entropy CallArguments(int64_t first, int64_t rows) const {
    const auto offset = static_cast<size_t>(first);
    xent_cross_entropy call = XENT_CROSS_ENTROPY_INIT;
    call.rows = rows;
    call.cols = logits_.cols();
    call.logits = static_cast<const char*>(logits_.data()) +
                  offset * static_cast<size_t>(logits_.cols()) * SizeOf(logits_.dtype());
    call.targets = static_cast<const char*>(targets_.data()) + offset * (targets_.type() == XENT_I32 ? 4 : 8);
    call.dtype = logits_.dtype();
    call.targets_type = targets_.type();
    return call;
  }

  static void SetResult(xent_cross_entropy& call, Result result, void* data) {
    (result == kPerRow ? call.losses : result == kLse ? call.lse : call.grad) = data;
  }

  void Call(const xent_cross_entropy& call, const xent_options& options) {
    const xent_exec exec = pool_.exec();
    xent_error error = XENT_ERROR_INIT;
    const auto function = call.grad != nullptr ? &xent_cross_entropy_forward_backward : &xent_cross_entropy_forward;
    switch (function(&call, &options, &exec, &error)) {
      case XENT_OK:
        return;
      case XENT_TARGET_OUT_OF_RANGE:
        throw Error(arguments_.targets + ": the target of row " + std::to_string(error.row) + " is " +
                    std::to_string(error.value) + ", expected 0 to " + std::to_string(logits_.cols() - 1) +
                    " or the ignored " + std::to_string(options.ignore_index));
      default:
        throw Error(error.message);
    }
  }

  void Compute() {
    xent_cross_entropy call = CallArguments(0, logits_.rows());
    for (int result = 0; result < kResults; ++result) {
      ArrayOutput& output = outputs_[result];
      if (output.file) SetResult(call, static_cast<Result>(result), output.file->data() + output.header.size());
    }
    if (arguments_.options.reduction != XENT_REDUCTION_NONE) {
      call.loss = ArithmeticType(logits_.dtype()) == XENT_F64 ? static_cast<void*>(&loss64_) : &loss32_;
    }
    call.perplexity = &perplexity_;
    call.live_rows = &live_rows_;
    progress_.Begin("loss");
    Call(call, arguments_.options);
  }

  // A result that is written in place, some rows at a time: a row has the same bits in any batch. This comes after
  // the call over all rows, which has checked the targets and counted the live rows.
  void Stream(Result result) {
    const ArrayOutput& output = outputs_[result];
    xent_options options = arguments_.options;
    if (options.reduction == XENT_REDUCTION_MEAN && !options.has_divisor) {
      // The mean's denominator is the live rows of all batches together. With none the gradient is 0 whatever it is.
      options.has_divisor = 1;
      options.divisor = static_cast<double>(std::max<int64_t>(live_rows_, 1));
    }
    constexpr size_t kBatchBytes = size_t{8} << 20;
    const int64_t batch = std::clamp<int64_t>(static_cast<int64_t>(kBatchBytes / output.row_bytes), 1,
                                              std::max<int64_t>(logits_.rows(), 1));
    const Scratch scratch(static_cast<size_t>(batch) * output.row_bytes);
    progress_.Begin(kOptionNames[result] + 2);
    StreamedFile file(*output.destination);
    file.Write(output.header);
    for (int64_t first = 0; first < logits_.rows(); first += batch) {
      const int64_t rows = std::min(batch, logits_.rows() - first);
      xent_cross_entropy call = CallArguments(first, rows);
      SetResult(call, result, scratch.data());
      const auto total = static_cast<double>(logits_.rows());
      progress_.SetPart(static_cast<double>(first) / total, static_cast<double>(first + rows) / total);
      Call(call, options);
      file.Write({scratch.data(), static_cast<size_t>(rows) * output.row_bytes});
    }
    file.Close();
  }

  std::string Report() const {
    const bool has_loss = arguments_.options.reduction != XENT_REDUCTION_NONE;
    const bool wide = ArithmeticType(logits_.dtype()) == XENT_F64;
    const int64_t ignored = logits_.rows() - live_rows_;
    if (arguments_.json) {
      std::optional<double> loss;
      if (has_loss) loss = wide ? loss64_ : static_cast<double>(loss32_);
      JsonObject report;
      report.Add("loss", loss);
      report.Add("perplexity", perplexity_);
      report.Add("rows", logits_.rows());
      report.Add("ignored", ignored);
      report.Add("target", xent_active_target());
      report.Add("threads", int64_t{pool_.threads()});
      return report.Line();
    }
    std::string text;
    if (has_loss) text += TextLine("loss", wide ? NumberText(loss64_) : NumberText(loss32_));
    return text + TextLine("perplexity", NumberText(perplexity_)) + TextLine("rows", std::to_string(logits_.rows())) +
           TextLine("ignored", std::to_string(ignored)) + TextLine("target", xent_active_target()) +
           TextLine("threads", std::to_string(pool_.threads()));
  }

  const LossArguments& arguments_;
  const NpyLogits logits_;
  const NpyTargets targets_;
  Progress progress_;
  ThreadPool pool_;
  std::array<ArrayOutput, kResults> outputs_;
  int report_fd_ = STDOUT_FILENO;

  float loss32_ = 0;
  double loss64_ = 0;
  double perplexity_ = 0;
  int64_t live_rows_ = 0;
};

}  // namespace

int RunLoss(const LossArguments& arguments) { return LossCommand(arguments).Run(); }

}  // namespace xent_cli
