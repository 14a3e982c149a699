// Every refusal that semantics.md and xent.h list: the status, a message that names the argument and its value, the
// position where one is known, and that nothing was written. Each case spoils one thing of a call that would succeed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "testing/assertions.h"
#include "testing/loss_call.h"

namespace xent::test {
namespace {

struct Spoiled {
  xent_cross_entropy &args;
  xent_cross_entropy_options &options;
  xent_exec &exec;
  xent_statistics &statistics;  // args.statistics points here, of the forward functions
};

const std::vector<Function> kAll(std::begin(kFunctions), std::end(kFunctions));
const std::vector<Function> kForward(std::begin(kForwards), std::end(kForwards));
const std::vector<Function> kGradient(std::begin(kBackwards), std::end(kBackwards));

class Errors : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  // A valid call; for backward its records are those of forward.
  LossCall Make(Function function) {
    LossCall call(dtype(), {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 1, 1, 0}}, {0, 1, 2});
    if (function == Function::kBackward) {
      LossCall forward = call;
      forward.MustRun(Function::kForward);
      call.records = forward.records;
    }
    return call;
  }

  // Spoils the call for each of the functions and checks that it is refused as an invalid argument, in these words.
  void ExpectInvalid(const std::function<void(Spoiled)> &spoil, const std::vector<std::string> &words,
                     const std::vector<Function> &functions = kAll) {
    for (const Function function : functions) {
      LossCall call = Make(function);
      ASSERT_EQ(LossCall(call).Run(function), XENT_OK) << "the call is not valid to begin with";
      const Tensor before = call.logits;
      xent_cross_entropy args = call.Args(function);
      xent_cross_entropy_options options = call.options;
      xent_exec exec = call.exec;
      spoil({args, options, exec, call.statistics});
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(EntryPoint(function)(&args, &options, &exec, &error), XENT_INVALID_ARGUMENT) << NameOf(function);
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, words)) << NameOf(function);
      // A message is optional.
      EXPECT_EQ(EntryPoint(function)(&args, &options, &exec, nullptr), XENT_INVALID_ARGUMENT) << NameOf(function);
      EXPECT_EQ(FirstDifference(before, call.logits), "");
      EXPECT_TRUE(call.OutputsUntouched()) << NameOf(function);
    }
  }
};

// ------------------------------------------------------------------ shapes and pointers

TEST_P(Errors, NegativeRows) {
  ExpectInvalid([](Spoiled s) { s.args.rows = -1; }, {"rows", "-1"});
  ExpectInvalid([](Spoiled s) { s.args.rows = std::numeric_limits<int64_t>::min(); }, {"rows"});
}

TEST_P(Errors, NoOrNegativeColumns) {
  ExpectInvalid([](Spoiled s) { s.args.cols = 0; }, {"cols", "0"});
  ExpectInvalid([](Spoiled s) { s.args.cols = -4; }, {"cols", "-4"});
  ExpectInvalid([](Spoiled s) { s.args.cols = std::numeric_limits<int64_t>::min(); }, {"cols"});
}

TEST_P(Errors, StrideSmallerThanARow) {
  ExpectInvalid([](Spoiled s) { s.args.logits.stride = 3; }, {"logits.stride", "3"});
  ExpectInvalid([](Spoiled s) { s.args.logits.stride = -4; }, {"logits.stride", "-4"});
  ExpectInvalid([](Spoiled s) { s.args.grad.stride = 3; }, {"grad.stride", "3"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.grad.stride = -4; }, {"grad.stride", "-4"}, kGradient);
}

TEST_P(Errors, RowsTimesStrideBeyondInt64) {
  // In elements, and in bytes only.
  const std::vector<std::string> logits = {"logits|logits.stride"};
  const std::vector<std::string> grad = {"grad|grad.stride"};
  ExpectInvalid([](Spoiled s) { s.args.logits.stride = std::numeric_limits<int64_t>::max(); }, logits);
  ExpectInvalid([](Spoiled s) { s.args.logits.stride = int64_t{1} << 61; }, logits);
  ExpectInvalid([](Spoiled s) { s.args.grad.stride = std::numeric_limits<int64_t>::max(); }, grad, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.grad.stride = int64_t{1} << 61; }, grad, kGradient);
  ExpectInvalid(
      [](Spoiled s) {
        s.args.rows = int64_t{1} << 40;
        s.args.logits.stride = int64_t{1} << 40;
      },
      logits);
  ExpectInvalid(
      [](Spoiled s) {
        s.args.cols = std::numeric_limits<int64_t>::max();
        s.args.logits.stride = 0;
      },
      {"logits|logits.stride|cols"}, {Function::kForward});
}

TEST_P(Errors, AbsentRequiredArrays) {
  const xent_matrix none = XENT_NO_MATRIX;
  ExpectInvalid([=](Spoiled s) { s.args.logits = none; }, {"logits|logits.data"});
  ExpectInvalid([](Spoiled s) { s.args.targets.data = nullptr; }, {"targets|targets.data"});
  ExpectInvalid([=](Spoiled s) { s.args.grad = none; }, {"grad|grad.data"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.records = nullptr; }, {"records"}, {Function::kBackward});
  // A kind of upstream gradient without its numbers.
  ExpectInvalid([](Spoiled s) { s.args.upstream.kind = XENT_UPSTREAM_ROWS; }, {"upstream|upstream.data|upstream.kind"},
                kGradient);
}

TEST_P(Errors, StrideOfAnAbsentMatrix) {
  const xent_matrix stride_alone = {nullptr, 8, dtype(), 0};
  ExpectInvalid([=](Spoiled s) { s.args.target_probs = stride_alone; }, {"target_probs.stride"});
  ExpectInvalid([=](Spoiled s) { s.args.target_grad = stride_alone; }, {"target_grad.stride"});
  ExpectInvalid([=](Spoiled s) { s.args.grad = stride_alone; }, {"grad.stride"}, {Function::kForward});
  ExpectInvalid([](Spoiled s) { s.args.upstream.stride = 8; }, {"upstream|upstream.stride"});
}

TEST_P(Errors, ReservedMembers) {
  ExpectInvalid([](Spoiled s) { s.args.logits.reserved = 1; }, {"logits.reserved", "1"});
  ExpectInvalid([](Spoiled s) { s.args.targets.reserved = 1; }, {"targets.reserved", "1"});
  ExpectInvalid([](Spoiled s) { s.args.grad.reserved = -1; }, {"grad.reserved", "-1"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.upstream.reserved = 7; }, {"upstream.reserved", "7"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.options.reserved = 1; }, {"options.reserved", "1"});
  ExpectInvalid([](Spoiled s) { s.exec.reserved = 1; }, {"exec.reserved", "1"});
}

TEST_P(Errors, NullArgs) {
  for (const Function function : kFunctions) {
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(EntryPoint(function)(nullptr, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"args"}));
    EXPECT_EQ(EntryPoint(function)(nullptr, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
  }
}

TEST_P(Errors, PointersThatAreNotAlignedToTheirElements) {
  const auto bend = [](auto &pointer) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(reinterpret_cast<uintptr_t>(pointer) + 1);
  };
  ExpectInvalid([=](Spoiled s) { bend(s.args.logits.data); }, {"logits|logits.data", "aligned"});
  ExpectInvalid([=](Spoiled s) { bend(s.args.targets.data); }, {"targets|targets.data", "aligned"});
  ExpectInvalid([=](Spoiled s) { bend(s.args.row_losses); }, {"row_losses", "aligned"}, kForward);
  ExpectInvalid([=](Spoiled s) { bend(s.statistics.lse); }, {"statistics.lse", "aligned"}, kForward);
  ExpectInvalid([=](Spoiled s) { bend(s.args.reduced_loss); }, {"reduced_loss", "aligned"}, kForward);
  ExpectInvalid([=](Spoiled s) { bend(s.args.grad.data); }, {"grad|grad.data", "aligned"}, kGradient);
  alignas(8) static double numbers[4] = {1, 1, 1, 1};
  const void *bent = reinterpret_cast<const char *>(numbers) + 1;
  ExpectInvalid([=](Spoiled s) { s.args.class_weights = bent; }, {"class_weights", "aligned"});
  ExpectInvalid([=](Spoiled s) { s.args.row_weights = bent; }, {"row_weights", "aligned"});
  ExpectInvalid([=](Spoiled s) { s.args.upstream.data = bent; }, {"upstream|upstream.data", "aligned"}, kGradient);
}

TEST_P(Errors, WrongWithoutRowsToo) {
  // Empty arrays excuse null pointers and nothing else.
  const auto empty = [](Spoiled s) {
    s.args.rows = 0;
    s.args.logits.data = s.args.grad.data = nullptr;
    s.args.targets.data = nullptr;
    s.args.row_losses = s.args.records = nullptr;
    s.statistics.lse = nullptr;
  };
  const auto also = [&](const std::function<void(Spoiled)> &spoil) {
    return [=](Spoiled s) {
      empty(s);
      spoil(s);
    };
  };
  ExpectInvalid(also([](Spoiled s) { s.args.cols = 0; }), {"cols", "0"});
  ExpectInvalid(also([](Spoiled s) { s.args.logits.stride = 3; }), {"logits.stride", "3"});
  ExpectInvalid(also([](Spoiled s) { s.args.logits.dtype = 9; }), {"logits.dtype", "9"});
  ExpectInvalid(also([](Spoiled s) { s.options.label_smoothing = 2; }), {"label_smoothing", "2"});
}

// ------------------------------------------------------------------ enumerations

TEST_P(Errors, UnknownEnumerations) {
  for (const int32_t value : {-1, 4, 5, 99}) {
    ExpectInvalid([=](Spoiled s) { s.args.logits.dtype = value; }, {"logits.dtype", std::to_string(value)});
    ExpectInvalid([=](Spoiled s) { s.args.grad.dtype = value; }, {"grad.dtype", std::to_string(value)}, kGradient);
  }
  for (const int32_t value : {-1, 2, 3}) {
    ExpectInvalid([=](Spoiled s) { s.args.targets.type = value; }, {"targets.type", std::to_string(value)});
  }
  static double one = 1;
  for (const int32_t value : {-1, 3, 4}) {
    ExpectInvalid([=](Spoiled s) { s.args.upstream.data = &one, s.args.upstream.kind = value; },
                  {"upstream.kind", std::to_string(value)}, kGradient);
    ExpectInvalid([=](Spoiled s) { s.options.reduction.kind = value; }, {"reduction.kind", std::to_string(value)});
  }
  for (const int32_t value : {-1, 2}) {
    ExpectInvalid([=](Spoiled s) { s.options.smoothing = value; }, {"smoothing", std::to_string(value)});
    ExpectInvalid([=](Spoiled s) { s.options.reduction.empty_mean = value; },
                  {"reduction.empty_mean", std::to_string(value)});
  }
}

TEST_P(Errors, GradientOfAnotherDtype) {
  static constexpr const char *kNames[] = {"XENT_F32", "XENT_F64", "XENT_BF16", "XENT_F16"};
  for (const xent_dtype other : kDtypes) {
    if (other == dtype()) continue;
    ExpectInvalid([=](Spoiled s) { s.args.grad.dtype = other; }, {"grad.dtype", std::to_string(other), kNames[dtype()]},
                  kGradient);
  }
}

// ------------------------------------------------------------------ options

TEST_P(Errors, LabelSmoothingOutsideZeroToOne) {
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = -0.25; }, {"label_smoothing", "-0.25"});
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = 1.5; }, {"label_smoothing", "1.5"});
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = std::nextafter(1.0, 2.0); }, {"label_smoothing"});
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = -4.9e-324; }, {"label_smoothing"});
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = kInf; }, {"label_smoothing", "inf"});
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = -kInf; }, {"label_smoothing", "-inf"});
}

TEST_P(Errors, NanOptions) {
  ExpectInvalid([](Spoiled s) { s.options.label_smoothing = kNan; }, {"label_smoothing", "nan|-nan"});
  ExpectInvalid([](Spoiled s) { s.options.reduction.divisor = kNan; }, {"reduction.divisor", "nan|-nan"});
}

TEST_P(Errors, DivisorOutOfRange) {
  for (const auto &[divisor, text] : {std::pair{-1.0, "-1"}, {-0.25, "-0.25"}, {kInf, "inf"}, {-kInf, "-inf"}}) {
    ExpectInvalid([divisor = divisor](Spoiled s) { s.options.reduction.divisor = divisor; },
                  {"reduction.divisor", text});
  }
}

TEST_P(Errors, DivisorWithReductionNone) {
  ExpectInvalid(
      [](Spoiled s) {
        s.options.reduction.kind = XENT_REDUCTION_NONE;
        s.options.reduction.divisor = 2;
        s.args.reduced_loss = nullptr;
      },
      {"reduction.divisor", "XENT_REDUCTION_NONE"});
}

TEST_P(Errors, ReducedLossWithReductionNone) {
  ExpectInvalid([](Spoiled s) { s.options.reduction.kind = XENT_REDUCTION_NONE; },
                {"reduced_loss", "reduction.kind", "XENT_REDUCTION_NONE"}, kForward);
}

TEST_P(Errors, ExclusiveSmoothingOfOneColumn) {
  ExpectInvalid(
      [](Spoiled s) {
        s.args.cols = 1;
        s.args.targets.data = nullptr;
        s.args.rows = 0;
        s.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
        s.options.label_smoothing = 0.5;
      },
      {"exclusive", "cols", "1"});
}

// ------------------------------------------------------------------ what does not go together

TEST_P(Errors, GradientArgumentsOfForward) {
  alignas(8) static char somewhere[64];
  const std::vector<Function> forward = {Function::kForward};
  const int32_t type = dtype();
  ExpectInvalid([=](Spoiled s) { s.args.grad = {somewhere, 0, type, 0}; }, {"grad|grad.data"}, forward);
  ExpectInvalid([](Spoiled s) { s.args.upstream.data = somewhere; }, {"upstream|upstream.data"}, forward);
  ExpectInvalid([](Spoiled s) { s.args.upstream.kind = XENT_UPSTREAM_ROWS; }, {"upstream|upstream.kind"}, forward);
}

TEST_P(Errors, LossOutputsOfBackward) {
  static double somewhere[64];
  static int64_t indices[64];
  static uint8_t bytes[64];
  const std::vector<Function> backward = {Function::kBackward};
  ExpectInvalid([](Spoiled s) { s.args.row_losses = somewhere; }, {"row_losses"}, backward);
  ExpectInvalid([](Spoiled s) { s.args.reduced_loss = somewhere; }, {"reduced_loss"}, backward);
  const std::pair<const char *, std::function<void(xent_statistics &)>> statistics[] = {
      {"lse", [](xent_statistics &s) { s.lse = somewhere; }},
      {"logprobs", [](xent_statistics &s) { s.logprobs = somewhere; }},
      {"argmax", [](xent_statistics &s) { s.argmax = indices; }},
      {"hits", [](xent_statistics &s) { s.hits = bytes; }},
      {"rank", [](xent_statistics &s) { s.rank = indices; }},
      {"entropy", [](xent_statistics &s) { s.entropy = somewhere; }},
      {"topk_logprobs", [](xent_statistics &s) { s.top_k = 1, s.topk_logprobs = somewhere; }},
      {"topk_indices", [](xent_statistics &s) { s.top_k = 1, s.topk_indices = indices; }},
      {"gathered", [](xent_statistics &s) { s.gather_count = 1, s.gather_cols = indices, s.gathered = somewhere; }},
      {"perplexity", [](xent_statistics &s) { s.perplexity = somewhere; }},
      {"live_rows", [](xent_statistics &s) { s.live_rows = indices; }}};
  for (const auto &[name, ask] : statistics) {
    static xent_statistics asked;
    asked = XENT_STATISTICS_INIT;
    ask(asked);
    ExpectInvalid([](Spoiled s) { s.args.statistics = &asked; }, {"statistics|statistics." + std::string(name)},
                  backward);
  }
}

TEST_P(Errors, StrideOfAnUpstreamGradientOfRows) {
  static double some[3] = {1, 1, 1};
  for (const int32_t kind : {XENT_UPSTREAM_SCALAR, XENT_UPSTREAM_ROWS}) {
    ExpectInvalid([=](Spoiled s) { s.args.upstream = {some, 4, kind, 0}; }, {"upstream.stride"}, kGradient);
  }
}

// ------------------------------------------------------------------ struct sizes

TEST_P(Errors, ZeroedStructs) {
  // The whole struct, as memset or `= {}` leaves it. Every other size: abi_test.cc.
  for (const Function function : kFunctions) {
    LossCall call = Make(function);
    xent_cross_entropy args = call.Args(function);
    xent_cross_entropy no_args;
    xent_cross_entropy_options no_options;
    xent_exec no_exec;
    xent_statistics no_statistics;
    std::memset(&no_args, 0, sizeof(no_args));
    std::memset(&no_options, 0, sizeof(no_options));
    std::memset(&no_exec, 0, sizeof(no_exec));
    std::memset(&no_statistics, 0, sizeof(no_statistics));
    EXPECT_EQ(EntryPoint(function)(&no_args, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
    EXPECT_EQ(EntryPoint(function)(&args, &no_options, nullptr, nullptr), XENT_INVALID_ARGUMENT);
    EXPECT_EQ(EntryPoint(function)(&args, nullptr, &no_exec, nullptr), XENT_INVALID_ARGUMENT);
    args.statistics = &no_statistics;
    EXPECT_EQ(EntryPoint(function)(&args, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(call.OutputsUntouched());
  }
}

TEST_P(Errors, ErrorIsNotFilledOnSuccess) {
  for (const Function function : kFunctions) {
    LossCall call = Make(function);
    const xent_cross_entropy args = call.Args(function);
    xent_error error;
    std::memset(&error, 0x5a, sizeof(error));
    error.struct_size = sizeof(error);
    const xent_error before = error;
    ASSERT_EQ(EntryPoint(function)(&args, nullptr, nullptr, &error), XENT_OK);
    EXPECT_EQ(std::memcmp(&before, &error, sizeof(error)), 0);
  }
}

TEST_P(Errors, PositionIsClearedWhereNoneIsKnown) {
  const std::function<void(xent_cross_entropy &)> spoilers[] = {
      [](xent_cross_entropy &args) { args.logits = XENT_NO_MATRIX; }, [](xent_cross_entropy &args) { args.rows = -5; },
      [](xent_cross_entropy &args) { args.logits.stride = 3; }, [](xent_cross_entropy &args) { args.logits.dtype = 9; },
      [](xent_cross_entropy &args) { args.struct_size = 1; }};
  for (const auto &spoil : spoilers) {
    LossCall call = Make(Function::kForward);
    xent_cross_entropy args = call.Args(Function::kForward);
    spoil(args);
    xent_error error = XENT_ERROR_INIT;
    error.row = 5;
    error.column = 7;
    error.value = 6;
    EXPECT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {.row = -1, .column = -1, .value = 0}, {}));
  }
}

// ------------------------------------------------------------------ targets

TEST_P(Errors, TargetOutOfRange) {
  struct Bad {
    int64_t target;
    bool fits_int32;
  };
  for (const Bad bad :
       {Bad{-1, true}, Bad{-99, true}, Bad{-101, true}, Bad{4, true}, Bad{2147483647, true}, Bad{-2147483648, true},
        Bad{(int64_t{1} << 32) + 1, false}, Bad{std::numeric_limits<int64_t>::max(), false},
        Bad{std::numeric_limits<int64_t>::min(), false}}) {
    for (const xent_index_type type : {XENT_I64, XENT_I32}) {
      if (type == XENT_I32 && !bad.fits_int32) continue;
      for (const Function function : kFunctions) {
        for (const int64_t row : {0, 1, 2}) {
          LossCall call = Make(function);
          call.targets[static_cast<size_t>(row)] = bad.target;
          call.targets_type = type;
          EXPECT_EQ(call.Run(function), XENT_TARGET_OUT_OF_RANGE) << NameOf(function) << " " << bad.target;
          const Position position = {.row = row, .column = -1, .value = static_cast<double>(bad.target)};
          EXPECT_TRUE(Tells(
              call.error, XENT_TARGET_OUT_OF_RANGE, position,
              {"targets", "row " + std::to_string(row), std::to_string(bad.target), "0", "4", "ignore_index", "-100"}));
          EXPECT_TRUE(call.OutputsUntouched());
        }
      }
    }
  }
}

TEST_P(Errors, TargetOutOfRangeInPlaceLeavesTheLogits) {
  LossCall call = Make(Function::kForwardBackward);
  call.in_place = true;
  call.targets[2] = 4;
  EXPECT_EQ(call.Run(Function::kForwardBackward), XENT_TARGET_OUT_OF_RANGE);
  EXPECT_TRUE(call.OutputsUntouched());
}

TEST_P(Errors, TargetOutOfRangeInALargeBatch) {
  // Big enough for several threads: what is reported and that nothing is written must not depend on them.
  LossCall call(dtype(), 5000, 200);
  call.FillNormal(1, 1);
  call.targets[4997] = 200;
  for (const int32_t threads : {0, 1, 3}) {
    call.exec = TeamOf(threads);
    EXPECT_EQ(call.Run(Function::kForwardBackward), XENT_TARGET_OUT_OF_RANGE);
    EXPECT_TRUE(Tells(call.error, XENT_TARGET_OUT_OF_RANGE, {.row = 4997, .column = -1, .value = 200},
                      {"targets", "row 4997", "200"}));
    EXPECT_TRUE(call.OutputsUntouched());
  }
}

TEST_P(Errors, TheSameBadTargetIsReportedWhateverTheThreads) {
  LossCall call(dtype(), 5000, 200);
  call.FillNormal(1, 1);
  for (const size_t row : {4990, 17, 2500}) call.targets[row] = -static_cast<int64_t>(row);
  call.exec = kSerial;
  EXPECT_EQ(call.Run(Function::kForward), XENT_TARGET_OUT_OF_RANGE);
  const int64_t row = call.error.row;
  EXPECT_EQ(call.error.value, -static_cast<double>(row));
  for (const int32_t threads : {0, 2, 3, 8}) {
    call.exec = TeamOf(threads);
    EXPECT_EQ(call.Run(Function::kForward), XENT_TARGET_OUT_OF_RANGE);
    EXPECT_EQ(call.error.row, row);
    EXPECT_EQ(call.error.value, -static_cast<double>(row));
  }
}

TEST_P(Errors, InvalidArgumentComesBeforeTargetsAreRead) {
  // With a shape that is refused the targets may lie anywhere.
  ExpectInvalid(
      [](Spoiled s) {
        s.args.rows = int64_t{1} << 62;
        s.args.targets.data = s.args.logits.data;
      },
      {"logits|logits.stride|rows"}, {Function::kForward});
}

// ------------------------------------------------------------------ execution policy

TEST_P(Errors, ExecutionPolicies) {
  for (const int32_t threads : {-1, std::numeric_limits<int32_t>::min()}) {
    ExpectInvalid([=](Spoiled s) { s.exec.threads = threads; }, {"threads|exec.threads", std::to_string(threads)});
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Errors, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

// ------------------------------------------------------------------ row functions

struct RowArguments {
  int64_t rows = 2;
  int64_t cols = 3;
  int64_t inner = 0;
  xent_matrix matrix[3];  // the inputs, then the output where it is a matrix
  void *out;              // where it is not
  xent_exec exec = XENT_EXEC_INIT;
};

struct RowFunction {
  const char *name;
  std::vector<const char *> matrices;  // their names, the last one's is the output's where that is a matrix
  const char *out;                     // the name of an output that is no matrix, or null
  std::function<xent_status(const RowArguments &, xent_error *)> call;

  size_t inputs() const { return matrices.size() - (out == nullptr ? 1 : 0); }
};

const std::vector<RowFunction> &RowFunctionsOfTheApi() {
  const auto map = [](auto function) {
    return [=](const RowArguments &a, xent_error *error) {
      return function(a.rows, a.cols, a.inner, a.matrix[0], a.matrix[1], &a.exec, error);
    };
  };
  const auto backward = [](auto function) {
    return [=](const RowArguments &a, xent_error *error) {
      return function(a.rows, a.cols, a.inner, a.matrix[0], a.matrix[1], a.matrix[2], &a.exec, error);
    };
  };
  static const std::vector<RowFunction> functions = {
      {"logsumexp",
       {"x"},
       "lse",
       [](const RowArguments &a, xent_error *error) {
         return xent_logsumexp(a.rows, a.cols, a.inner, a.matrix[0], a.out, &a.exec, error);
       }},
      {"softmax", {"x", "y"}, nullptr, map(xent_softmax)},
      {"log_softmax", {"x", "y"}, nullptr, map(xent_log_softmax)},
      {"softmax_backward", {"g", "y", "dx"}, nullptr, backward(xent_softmax_backward)},
      {"log_softmax_backward", {"g", "y", "dx"}, nullptr, backward(xent_log_softmax_backward)},
      {"check_logits",
       {"x"},
       "diagnosis",
       [](const RowArguments &a, xent_error *error) {
         return xent_check_logits(a.rows, a.cols, a.inner, a.matrix[0], static_cast<xent_diagnosis *>(a.out), &a.exec,
                                  error);
       }},
  };
  return functions;
}

class RowFunctionErrors : public ::testing::TestWithParam<size_t> {
 protected:
  const RowFunction &function() const { return RowFunctionsOfTheApi()[GetParam()]; }

  // Arguments that are in order but for what `spoil` does: two rows of three, float64.
  void ExpectInvalid(const std::function<void(RowArguments &)> &spoil, const std::vector<std::string> &words) {
    alignas(8) double in[2][8] = {{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}};
    alignas(8) unsigned char out[8 * sizeof(double)];
    std::memset(out, 0xa5, sizeof(out));
    RowArguments arguments;
    for (size_t k = 0; k < 3; ++k) {
      void *data = k < function().inputs() ? static_cast<void *>(in[k]) : out;
      arguments.matrix[k] = {data, 3, XENT_F64, 0};
    }
    arguments.out = out;
    spoil(arguments);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(function().call(arguments, &error), XENT_INVALID_ARGUMENT) << words[0];
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, words));
    EXPECT_EQ(function().call(arguments, nullptr), XENT_INVALID_ARGUMENT) << words[0];
    for (const unsigned char byte : out) ASSERT_EQ(byte, 0xa5) << words[0];
    for (const auto &matrix : in) {
      for (int j = 0; j < 6; ++j) ASSERT_EQ(matrix[j], j) << words[0];
    }
  }

  // The name of a matrix, or of its member.
  std::string Name(size_t k) const { return function().matrices[k]; }
  std::string Either(size_t k, const char *member) const { return Name(k) + "|" + Name(k) + "." + member; }
};

TEST_P(RowFunctionErrors, Shapes) {
  ExpectInvalid([](RowArguments &a) { a.rows = -1; }, {"rows", "-1"});
  ExpectInvalid([](RowArguments &a) { a.cols = 0; }, {"cols", "0"});
  ExpectInvalid([](RowArguments &a) { a.cols = -3; }, {"cols", "-3"});
  ExpectInvalid([](RowArguments &a) { a.rows = 0, a.cols = 0; }, {"cols", "0"});
  ExpectInvalid([](RowArguments &a) { a.inner = -1; }, {"inner", "-1"});
  ExpectInvalid([](RowArguments &a) { a.inner = 3; }, {"rows", "2", "inner", "3"});
  for (size_t k = 0; k < function().matrices.size(); ++k) {
    ExpectInvalid([=](RowArguments &a) { a.matrix[k].stride = 2; }, {Name(k) + ".stride", "2", "3"});
    ExpectInvalid([=](RowArguments &a) { a.matrix[k].stride = -3; }, {Name(k) + ".stride", "-3"});
    // With inner > 1 it counts whole groups.
    ExpectInvalid([=](RowArguments &a) { a.inner = 2, a.matrix[k].stride = 5; },
                  {Name(k) + ".stride|x.stride|g.stride"});
    ExpectInvalid([=](RowArguments &a) { a.matrix[k].stride = std::numeric_limits<int64_t>::max(); },
                  {Either(k, "stride")});
    ExpectInvalid([=](RowArguments &a) { a.matrix[k].stride = int64_t{1} << 60; }, {Either(k, "stride")});
    ExpectInvalid([=](RowArguments &a) { a.matrix[k].reserved = 1; }, {Name(k) + ".reserved", "1"});
  }
}

TEST_P(RowFunctionErrors, NullPointers) {
  for (size_t k = 0; k < function().matrices.size(); ++k) {
    ExpectInvalid([=](RowArguments &a) { a.matrix[k] = XENT_NO_MATRIX; }, {Either(k, "data")});
  }
  if (function().out != nullptr) ExpectInvalid([](RowArguments &a) { a.out = nullptr; }, {function().out});
}

TEST_P(RowFunctionErrors, MisalignedPointers) {
  const auto bend = [](void *&pointer) { pointer = static_cast<char *>(pointer) + 1; };
  for (size_t k = 0; k < function().matrices.size(); ++k) {
    ExpectInvalid([=](RowArguments &a) { bend(a.matrix[k].data); }, {Either(k, "data"), "aligned"});
  }
  if (function().out != nullptr) ExpectInvalid([=](RowArguments &a) { bend(a.out); }, {function().out, "aligned"});
}

TEST_P(RowFunctionErrors, Dtypes) {
  for (const int32_t value : {-1, 4, 5, 7, std::numeric_limits<int32_t>::max()}) {
    ExpectInvalid(
        [=](RowArguments &a) {
          for (xent_matrix &matrix : a.matrix) matrix.dtype = value;
        },
        {Name(0) + ".dtype", std::to_string(value)});
  }
  // One dtype for all.
  for (size_t k = 1; k < function().matrices.size(); ++k) {
    for (const xent_dtype other : {XENT_F32, XENT_BF16, XENT_F16}) {
      ExpectInvalid([=](RowArguments &a) { a.matrix[k].dtype = other; }, {Name(k) + ".dtype"});
    }
  }
}

TEST_P(RowFunctionErrors, ExecutionPolicies) {
  ExpectInvalid([](RowArguments &a) { a.exec.struct_size = 0; }, {"exec|exec.struct_size", "0"});
  ExpectInvalid([](RowArguments &a) { a.exec.threads = -2; }, {"threads|exec.threads", "-2"});
  ExpectInvalid([](RowArguments &a) { a.exec.reserved = 1; }, {"exec.reserved", "1"});
}

INSTANTIATE_TEST_SUITE_P(Functions, RowFunctionErrors, ::testing::Range(size_t{0}, RowFunctionsOfTheApi().size()),
                         [](const auto &info) { return RowFunctionsOfTheApi()[info.param].name; });

TEST(RowFunctionsInPlace, NeedEqualStrides) {
  for (const RowFunction &function : RowFunctionsOfTheApi()) {
    if (function.out != nullptr) continue;
    for (size_t k = 0; k < function.inputs(); ++k) {
      alignas(8) double in[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}};
      RowArguments arguments;
      for (size_t m = 0; m < function.inputs(); ++m) arguments.matrix[m] = {in[m], 3, XENT_F64, 0};
      arguments.matrix[k].stride = 4;
      arguments.matrix[function.inputs()] = {in[k], 3, XENT_F64, 0};
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(function.call(arguments, &error), XENT_INVALID_ARGUMENT) << function.name;
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {},
                        {function.matrices[k], function.matrices.back(), "strides", "3", "4"}))
          << function.name;
      for (int j = 0; j < 8; ++j) EXPECT_EQ(in[k][j], j);
    }
  }
}

// ------------------------------------------------------------------ xent_reduce

class ReduceErrors : public ::testing::Test {
 protected:
  void ExpectInvalid(const std::function<void(xent_stored_losses &, xent_cross_entropy_options &)> &spoil,
                     const std::vector<std::string> &words, const Position &position = {}) {
    const float losses[] = {1, 2, 3};
    const int64_t targets[] = {0, 1, 2};
    float loss = -77;
    xent_stored_losses args = XENT_STORED_LOSSES_INIT;
    args.rows = 3;
    args.cols = 4;
    args.row_losses = losses;
    args.targets.data = targets;
    args.reduced_loss = &loss;
    xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    spoil(args, options);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(xent_reduce(&args, &options, &error), XENT_INVALID_ARGUMENT) << words[0];
    EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, position, words));
    EXPECT_EQ(xent_reduce(&args, &options, nullptr), XENT_INVALID_ARGUMENT) << words[0];
    EXPECT_EQ(loss, -77);
  }
  using A = xent_stored_losses &;
  using O = xent_cross_entropy_options &;
};

TEST_F(ReduceErrors, RowsAndPointers) {
  ExpectInvalid([](A a, O) { a.rows = -1; }, {"rows", "-1"});
  ExpectInvalid([](A a, O) { a.row_losses = nullptr; }, {"row_losses"});
  ExpectInvalid([](A a, O) { a.reduced_loss = nullptr; }, {"reduced_loss"});
  ExpectInvalid([](A a, O) { a.rows = 0, a.reduced_loss = nullptr; }, {"reduced_loss"});
  xent_error error = XENT_ERROR_INIT;
  EXPECT_EQ(xent_reduce(nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
  EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"args"}));
}

TEST_F(ReduceErrors, MisalignedPointers) {
  const auto bent = [](auto pointer) {
    return reinterpret_cast<decltype(pointer)>(reinterpret_cast<uintptr_t>(pointer) + 1);
  };
  ExpectInvalid([=](A a, O) { a.row_losses = bent(a.row_losses); }, {"row_losses", "aligned"});
  ExpectInvalid([=](A a, O) { a.targets.data = bent(a.targets.data); }, {"targets|targets.data", "aligned"});
  ExpectInvalid([=](A a, O) { a.reduced_loss = bent(a.reduced_loss); }, {"reduced_loss", "aligned"});
  ExpectInvalid([=](A a, O) { a.row_weights = bent(a.row_losses); }, {"row_weights", "aligned"});
  ExpectInvalid([=](A a, O) { a.class_weights = bent(a.row_losses); }, {"class_weights", "aligned"});
}

TEST_F(ReduceErrors, Types) {
  for (const int32_t value : {int32_t{XENT_BF16}, int32_t{XENT_F16}, -1, 4, 7}) {
    ExpectInvalid([=](A a, O) { a.dtype = value; }, {"dtype", std::to_string(value)});
  }
  for (const int32_t value : {-1, 2}) {
    ExpectInvalid([=](A a, O) { a.targets.type = value; }, {"targets.type", std::to_string(value)});
  }
  ExpectInvalid([](A a, O) { a.reserved = 1; }, {"args.reserved|reserved", "1"});
  ExpectInvalid([](A a, O) { a.targets.reserved = 1; }, {"targets.reserved", "1"});
}

TEST_F(ReduceErrors, Weights) {
  static const float bad[] = {1, std::numeric_limits<float>::infinity(), 1, 1};
  static const float ones[] = {1, 1, 1, 1};
  ExpectInvalid([](A a, O) { a.row_weights = bad; }, {"row_weights", "1", "inf"},
                {.row = 1, .column = -1, .value = kInf});
  ExpectInvalid([](A a, O) { a.class_weights = bad; }, {"class_weights", "1", "inf"},
                {.row = -1, .column = 1, .value = kInf});
  ExpectInvalid([](A a, O) { a.class_weights = ones, a.cols = 0; }, {"cols", "0"});
  ExpectInvalid([](A a, O) { a.class_weights = ones, a.targets = XENT_NO_TARGETS; }, {"targets|targets.data"});
}

TEST_F(ReduceErrors, Options) {
  ExpectInvalid([](A, O o) { o.reduction.kind = XENT_REDUCTION_NONE; }, {"reduction.kind", "XENT_REDUCTION_NONE"});
  ExpectInvalid([](A, O o) { o.reduction.kind = 3; }, {"reduction.kind", "3"});
  ExpectInvalid([](A, O o) { o.reduction.empty_mean = 2; }, {"reduction.empty_mean", "2"});
  ExpectInvalid([](A, O o) { o.reduction.divisor = -1; }, {"reduction.divisor", "-1"});
  ExpectInvalid([](A, O o) { o.reduction.divisor = kNan; }, {"reduction.divisor", "nan|-nan"});
}

// ------------------------------------------------------------------ array functions

template <typename T>
void ExpectArrayErrors(xent_status (*function)(const T *, T *, int64_t)) {
  const T x[2] = {1, 1};
  T y[2] = {-77, -77};
  EXPECT_EQ(function(x, y, -1), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(function(x, y, std::numeric_limits<int64_t>::min()), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(function(nullptr, y, 2), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(function(x, nullptr, 2), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(function(nullptr, nullptr, 1), XENT_INVALID_ARGUMENT);
  EXPECT_EQ(y[0], -77);
  EXPECT_EQ(y[1], -77);
  EXPECT_EQ(function(nullptr, nullptr, 0), XENT_OK);
  EXPECT_EQ(function(x, y, 0), XENT_OK);
  EXPECT_EQ(y[0], -77);
}

TEST(ArrayFunctionErrors, SizesAndPointers) {
  for (const auto function : {xent_exp_f32, xent_log_f32, xent_log1p_f32}) ExpectArrayErrors<float>(function);
  for (const auto function : {xent_exp_f64, xent_log_f64, xent_log1p_f64}) ExpectArrayErrors<double>(function);
}

}  // namespace
}  // namespace xent::test
