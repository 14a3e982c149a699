// Every refusal that semantics.md and xent.h list: the status, a message that names the argument and its value, the
// position where one is known, and that nothing was written. Each case spoils one thing of a call that would succeed.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "api/call.h"

namespace xent::test {
namespace {

using reference::ArithmeticType;

// Whether `word` stands in the text with nothing of a longer name or number around it.
bool HasWord(const std::string &text, const std::string &word) {
  const std::string inner = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_";
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool starts = at == 0 || (inner + ".-").find(text[at - 1]) == std::string::npos;
    const bool ends = end == text.size() || inner.find(text[end]) == std::string::npos;
    if (starts && ends) return true;
  }
  return false;
}

// Whether each of the words stands in the message; "a|b" is one or the other.
::testing::AssertionResult Names(const xent_error &error, const std::vector<std::string> &words) {
  const std::string message(error.message, strnlen(error.message, sizeof(error.message)));
  if (message.size() == sizeof(error.message)) return ::testing::AssertionFailure() << "the message has no end";
  if (message.empty()) return ::testing::AssertionFailure() << "the message is empty";
  for (const std::string &alternatives : words) {
    std::istringstream in(alternatives);
    bool found = false;
    for (std::string word; std::getline(in, word, '|');) found = found || HasWord(message, word);
    if (!found) return ::testing::AssertionFailure() << "no '" << alternatives << "' in: " << message;
  }
  return ::testing::AssertionSuccess();
}

using CrossEntropyFunction = xent_status (*)(const xent_cross_entropy *, const xent_options *, const xent_exec *,
                                             xent_error *);
CrossEntropyFunction Of(Function function) {
  return function == Function::kForward           ? &xent_cross_entropy_forward
         : function == Function::kForwardBackward ? &xent_cross_entropy_forward_backward
                                                  : &xent_cross_entropy_backward;
}

struct Spoiled {
  xent_cross_entropy &args;
  xent_options &options;
  xent_exec &exec;
};

class Errors : public ::testing::TestWithParam<xent_dtype> {
 protected:
  xent_dtype dtype() const { return GetParam(); }

  // A valid call; for backward its records are those of forward.
  Call Make(Function function) {
    Call call(dtype(), {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 1, 1, 0}}, {0, 1, 2});
    if (function == Function::kBackward) {
      Call forward = call;
      forward.MustRun(Function::kForward);
      call.records = forward.records;
    }
    return call;
  }

  // Spoils the call for each of the functions and checks that it is refused as an invalid argument, in these words.
  void ExpectInvalid(const std::function<void(Spoiled)> &spoil, const std::vector<std::string> &words,
                     const std::vector<Function> &functions = {Function::kForward, Function::kForwardBackward,
                                                               Function::kBackward}) {
    for (const Function function : functions) {
      Call call = Make(function);
      ASSERT_EQ(Call(call).Run(function), XENT_OK) << "the call is not valid to begin with";
      Call before = call;
      xent_cross_entropy args = call.Args(function);
      xent_options options = call.options;
      xent_exec exec = call.exec;
      spoil({args, options, exec});
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(Of(function)(&args, &options, &exec, &error), XENT_INVALID_ARGUMENT) << NameOf(function);
      EXPECT_EQ(error.status, XENT_INVALID_ARGUMENT);
      EXPECT_EQ(error.row, -1) << "no position is known";
      EXPECT_TRUE(Names(error, words)) << NameOf(function);
      // A message is optional.
      EXPECT_EQ(Of(function)(&args, &options, &exec, nullptr), XENT_INVALID_ARGUMENT) << NameOf(function);
      EXPECT_EQ(FirstDifference(before.logits, call.logits), "");
      EXPECT_TRUE(before.records == call.records) << "records were written";
      call.records.assign(call.records.size(), Call(dtype(), 1, 1).records[0]);
      EXPECT_TRUE(call.OutputsUntouched()) << NameOf(function);
    }
  }
};

constexpr Function kWithGradient[] = {Function::kForwardBackward, Function::kBackward};
const std::vector<Function> kGradient(std::begin(kWithGradient), std::end(kWithGradient));

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
  ExpectInvalid([](Spoiled s) { s.args.logits_stride = 3; }, {"logits_stride", "3"});
  ExpectInvalid([](Spoiled s) { s.args.logits_stride = -4; }, {"logits_stride", "-4"});
  ExpectInvalid([](Spoiled s) { s.args.grad_stride = 3; }, {"grad_stride", "3"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.grad_stride = -4; }, {"grad_stride", "-4"}, kGradient);
}

TEST_P(Errors, RowsTimesStrideBeyondInt64) {
  // In elements, and in bytes only.
  ExpectInvalid([](Spoiled s) { s.args.logits_stride = std::numeric_limits<int64_t>::max(); }, {"logits"});
  ExpectInvalid([](Spoiled s) { s.args.logits_stride = int64_t{1} << 61; }, {"logits"});
  ExpectInvalid([](Spoiled s) { s.args.grad_stride = std::numeric_limits<int64_t>::max(); }, {"grad"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.grad_stride = int64_t{1} << 61; }, {"grad"}, kGradient);
  ExpectInvalid(
      [](Spoiled s) {
        s.args.rows = int64_t{1} << 40;
        s.args.logits_stride = int64_t{1} << 40;
      },
      {"logits"});
  ExpectInvalid(
      [](Spoiled s) {
        s.args.cols = std::numeric_limits<int64_t>::max();
        s.args.logits_stride = 0;
      },
      {"logits"}, {Function::kForward});
}

TEST_P(Errors, NullRequiredPointers) {
  ExpectInvalid([](Spoiled s) { s.args.logits = nullptr; }, {"logits"});
  ExpectInvalid([](Spoiled s) { s.args.targets = nullptr; }, {"targets"});
  ExpectInvalid([](Spoiled s) { s.args.grad = nullptr; }, {"grad"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.records = nullptr; }, {"records"}, {Function::kBackward});
  ExpectInvalid([](Spoiled s) { s.args.upstream_kind = XENT_UPSTREAM_SCALAR; }, {"upstream"}, kGradient);
  ExpectInvalid([](Spoiled s) { s.args.upstream_kind = XENT_UPSTREAM_ROWS; }, {"upstream"}, kGradient);
}

TEST_P(Errors, NullArgs) {
  for (const Function function : kFunctions) {
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(Of(function)(nullptr, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Names(error, {"args"}));
    EXPECT_EQ(Of(function)(nullptr, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
  }
}

TEST_P(Errors, PointersThatAreNotAlignedToTheirElements) {
  const auto shifted = [](auto *pointer) { return reinterpret_cast<uintptr_t>(pointer) + 1; };
  const auto bend = [=](auto &pointer) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(shifted(pointer));
  };
  const std::vector<Function> forwards = {Function::kForward, Function::kForwardBackward};
  ExpectInvalid([=](Spoiled s) { bend(s.args.logits); }, {"logits"});
  ExpectInvalid([=](Spoiled s) { bend(s.args.targets); }, {"targets"});
  ExpectInvalid([=](Spoiled s) { bend(s.args.losses); }, {"losses"}, forwards);
  ExpectInvalid([=](Spoiled s) { bend(s.args.lse); }, {"lse"}, forwards);
  ExpectInvalid([=](Spoiled s) { bend(s.args.loss); }, {"loss"}, forwards);
  ExpectInvalid([=](Spoiled s) { bend(s.args.grad); }, {"grad"}, kGradient);
}

TEST_P(Errors, WrongWithoutRowsToo) {
  // Empty arrays excuse null pointers and nothing else.
  const auto empty = [](Spoiled s) {
    s.args.rows = 0;
    s.args.logits = s.args.targets = nullptr;
    s.args.losses = s.args.lse = s.args.records = s.args.grad = nullptr;
  };
  const auto also = [&](const std::function<void(Spoiled)> &spoil) {
    return [=](Spoiled s) {
      empty(s);
      spoil(s);
    };
  };
  ExpectInvalid(also([](Spoiled s) { s.args.cols = 0; }), {"cols"});
  ExpectInvalid(also([](Spoiled s) { s.args.logits_stride = 3; }), {"logits_stride"});
  ExpectInvalid(also([](Spoiled s) { s.args.dtype = 9; }), {"dtype"});
  ExpectInvalid(also([](Spoiled s) { s.options.label_smoothing = 2; }), {"label_smoothing"});
}

// ------------------------------------------------------------------ enumerations and flags

TEST_P(Errors, UnknownEnumerations) {
  for (const int32_t value : {-1, 0, 5, 99}) {
    ExpectInvalid([=](Spoiled s) { s.args.dtype = value; }, {"dtype", std::to_string(value)});
  }
  for (const int32_t value : {-1, 0, 3}) {
    ExpectInvalid([=](Spoiled s) { s.args.targets_type = value; }, {"targets_type", std::to_string(value)});
  }
  for (const int32_t value : {-1, 3}) {
    ExpectInvalid([=](Spoiled s) { s.args.upstream_kind = value; }, {"upstream_kind", std::to_string(value)},
                  kGradient);
    ExpectInvalid([=](Spoiled s) { s.options.reduction = value; }, {"reduction", std::to_string(value)});
    ExpectInvalid([=](Spoiled s) { s.exec.mode = value; }, {"mode", std::to_string(value)});
  }
  for (const int32_t value : {-1, 2}) {
    ExpectInvalid([=](Spoiled s) { s.options.smoothing = value; }, {"smoothing", std::to_string(value)});
    ExpectInvalid([=](Spoiled s) { s.options.empty_mean = value; }, {"empty_mean", std::to_string(value)});
    ExpectInvalid(
        [=](Spoiled s) {
          s.options.has_divisor = value;
          s.options.divisor = 1;
        },
        {"has_divisor", std::to_string(value)});
    ExpectInvalid([=](Spoiled s) { s.args.in_place = value; }, {"in_place", std::to_string(value)}, kGradient);
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
  ExpectInvalid(
      [](Spoiled s) {
        s.options.has_divisor = 1;
        s.options.divisor = kNan;
      },
      {"divisor", "nan|-nan"});
  ExpectInvalid([](Spoiled s) { s.options.divisor = kNan; }, {"divisor"});
}

TEST_P(Errors, DivisorOutOfRange) {
  for (const auto &[divisor, text] :
       {std::pair{0.0, "0"}, {-0.0, "0|-0"}, {-1.0, "-1"}, {kInf, "inf"}, {-kInf, "-inf"}}) {
    ExpectInvalid(
        [divisor = divisor](Spoiled s) {
          s.options.has_divisor = 1;
          s.options.divisor = divisor;
        },
        {"divisor", text});
  }
}

TEST_P(Errors, DivisorWithoutItsFlag) {
  ExpectInvalid([](Spoiled s) { s.options.divisor = 2; }, {"divisor", "has_divisor"});
}

TEST_P(Errors, DivisorWithReductionNone) {
  ExpectInvalid(
      [](Spoiled s) {
        s.options.reduction = XENT_REDUCTION_NONE;
        s.options.has_divisor = 1;
        s.options.divisor = 2;
        s.args.loss = nullptr;
      },
      {"divisor", "reduction", "none"});
}

TEST_P(Errors, ReducedLossWithReductionNone) {
  ExpectInvalid([](Spoiled s) { s.options.reduction = XENT_REDUCTION_NONE; }, {"loss", "reduction", "none"},
                {Function::kForward, Function::kForwardBackward});
}

TEST_P(Errors, ExclusiveSmoothingOfOneColumn) {
  ExpectInvalid(
      [](Spoiled s) {
        s.args.cols = 1;
        s.args.targets = nullptr;
        s.args.rows = 0;
        s.options.smoothing = XENT_SMOOTHING_EXCLUSIVE;
        s.options.label_smoothing = 0.5;
      },
      {"exclusive", "cols", "1"});
}

// ------------------------------------------------------------------ what does not go together

TEST_P(Errors, GradientArgumentsOfForward) {
  static char somewhere[64];
  ExpectInvalid([](Spoiled s) { s.args.grad = somewhere; }, {"grad"}, {Function::kForward});
  ExpectInvalid([](Spoiled s) { s.args.upstream = somewhere; }, {"upstream"}, {Function::kForward});
  ExpectInvalid(
      [](Spoiled s) {
        s.args.upstream = somewhere;
        s.args.upstream_kind = XENT_UPSTREAM_SCALAR;
      },
      {"upstream|upstream_kind"}, {Function::kForward});
  ExpectInvalid([](Spoiled s) { s.args.in_place = 1; }, {"in_place"}, {Function::kForward});
}

TEST_P(Errors, LossOutputsOfBackward) {
  static double somewhere[64];
  static int64_t count[1];
  const std::vector<Function> backward = {Function::kBackward};
  ExpectInvalid([](Spoiled s) { s.args.losses = somewhere; }, {"losses"}, backward);
  ExpectInvalid([](Spoiled s) { s.args.lse = somewhere; }, {"lse"}, backward);
  ExpectInvalid([](Spoiled s) { s.args.loss = somewhere; }, {"loss"}, backward);
  ExpectInvalid([](Spoiled s) { s.args.perplexity = somewhere; }, {"perplexity"}, backward);
  ExpectInvalid([](Spoiled s) { s.args.live_rows = count; }, {"live_rows"}, backward);
}

TEST_P(Errors, UpstreamWithoutItsKind) {
  static double one = 1;
  ExpectInvalid([](Spoiled s) { s.args.upstream = &one; }, {"upstream"}, kGradient);
}

// ------------------------------------------------------------------ struct sizes

TEST_P(Errors, StructSizeZeroOrTooSmall) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{8}}) {
    ExpectInvalid([=](Spoiled s) { s.args.struct_size = size; }, {"struct_size", std::to_string(size)});
    ExpectInvalid([=](Spoiled s) { s.options.struct_size = size; }, {"options", "struct_size", std::to_string(size)});
    ExpectInvalid([=](Spoiled s) { s.exec.struct_size = size; }, {"exec", "struct_size", std::to_string(size)});
  }
  ExpectInvalid([](Spoiled s) { s.args.struct_size = sizeof(xent_cross_entropy) - 1; }, {"struct_size"});
  ExpectInvalid([](Spoiled s) { s.options.struct_size = sizeof(xent_options) - 1; }, {"struct_size"});
  ExpectInvalid([](Spoiled s) { s.exec.struct_size = sizeof(xent_exec) - 1; }, {"struct_size"});
}

TEST_P(Errors, ZeroedStructs) {
  // The whole struct, as memset or `= {}` leaves it.
  for (const Function function : kFunctions) {
    Call call = Make(function);
    const xent_cross_entropy args = call.Args(function);
    xent_cross_entropy no_args;
    xent_options no_options;
    xent_exec no_exec;
    std::memset(&no_args, 0, sizeof(no_args));
    std::memset(&no_options, 0, sizeof(no_options));
    std::memset(&no_exec, 0, sizeof(no_exec));
    EXPECT_EQ(Of(function)(&no_args, nullptr, nullptr, nullptr), XENT_INVALID_ARGUMENT);
    EXPECT_EQ(Of(function)(&args, &no_options, nullptr, nullptr), XENT_INVALID_ARGUMENT);
    EXPECT_EQ(Of(function)(&args, nullptr, &no_exec, nullptr), XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Untouched(call.grad));
    EXPECT_TRUE(Untouched(call.losses));
  }
}

template <typename T>
struct Larger {
  T known;
  unsigned char tail[24];
};

TEST_P(Errors, StructOfALaterVersion) {
  // Fields that this library does not know are fine while they are zero, and refused when they are set.
  for (const Function function : kFunctions) {
    Call call = Make(function);
    Larger<xent_cross_entropy> args = {call.Args(function), {}};
    Larger<xent_options> options = {call.options, {}};
    Larger<xent_exec> exec = {call.exec, {}};
    args.known.struct_size = sizeof(args);
    options.known.struct_size = sizeof(options);
    exec.known.struct_size = sizeof(exec);
    xent_error error = XENT_ERROR_INIT;
    for (unsigned char *tail : {args.tail, options.tail, exec.tail}) {
      for (const size_t at : {size_t{0}, sizeof(args.tail) - 1}) {
        tail[at] = 1;
        EXPECT_EQ(Of(function)(&args.known, &options.known, &exec.known, &error), XENT_INVALID_ARGUMENT)
            << NameOf(function) << " byte " << at;
        tail[at] = 0;
      }
    }
    EXPECT_TRUE(Untouched(call.grad));
    EXPECT_TRUE(Untouched(call.losses));
    EXPECT_EQ(Of(function)(&args.known, &options.known, &exec.known, &error), XENT_OK) << error.message;
  }
}

TEST_P(Errors, ErrorStructOfAnotherSize) {
  // A larger one keeps its tail; of a smaller one nothing past its end is touched.
  Call call = Make(Function::kForward);
  xent_cross_entropy args = call.Args(Function::kForward);
  args.cols = -1;
  Larger<xent_error> larger = {XENT_ERROR_INIT, {}};
  larger.known.struct_size = sizeof(larger);
  std::memset(larger.tail, 0x5a, sizeof(larger.tail));
  EXPECT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, &larger.known), XENT_INVALID_ARGUMENT);
  EXPECT_TRUE(Names(larger.known, {"cols"}));
  for (const unsigned char byte : larger.tail) EXPECT_EQ(byte, 0x5a);

  for (const size_t size : {size_t{0}, sizeof(size_t), offsetof(xent_error, message)}) {
    xent_error smaller;
    std::memset(&smaller, 0x5a, sizeof(smaller));
    smaller.struct_size = size;
    EXPECT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, &smaller), XENT_INVALID_ARGUMENT);
    const unsigned char *bytes = reinterpret_cast<const unsigned char *>(&smaller);
    for (size_t k = std::max(size, sizeof(size_t)); k < sizeof(smaller); ++k) EXPECT_EQ(bytes[k], 0x5a);
  }
}

TEST_P(Errors, ErrorIsNotFilledOnSuccess) {
  for (const Function function : kFunctions) {
    Call call = Make(function);
    const xent_cross_entropy args = call.Args(function);
    xent_error error;
    std::memset(&error, 0x5a, sizeof(error));
    error.struct_size = sizeof(error);
    const xent_error before = error;
    ASSERT_EQ(Of(function)(&args, nullptr, nullptr, &error), XENT_OK);
    EXPECT_EQ(std::memcmp(&before, &error, sizeof(error)), 0);
  }
}

TEST_P(Errors, RowAndValueAreMinusOneAndZeroWhereNoPositionIsKnown) {
  const std::function<void(xent_cross_entropy &)> spoilers[] = {
      [](xent_cross_entropy &args) { args.logits = nullptr; }, [](xent_cross_entropy &args) { args.rows = -5; },
      [](xent_cross_entropy &args) { args.logits_stride = 3; }, [](xent_cross_entropy &args) { args.dtype = 9; },
      [](xent_cross_entropy &args) { args.struct_size = 1; }};
  for (const auto &spoil : spoilers) {
    Call call = Make(Function::kForward);
    xent_cross_entropy args = call.Args(Function::kForward);
    spoil(args);
    xent_error error = XENT_ERROR_INIT;
    error.row = 5;
    error.value = 6;
    EXPECT_EQ(xent_cross_entropy_forward(&args, nullptr, nullptr, &error), XENT_INVALID_ARGUMENT);
    EXPECT_EQ(error.row, -1) << error.message;
    EXPECT_EQ(error.value, 0) << error.message;
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
          Call call = Make(function);
          const Call before = call;
          call.targets[static_cast<size_t>(row)] = bad.target;
          call.targets_type = type;
          EXPECT_EQ(call.Run(function), XENT_TARGET_OUT_OF_RANGE) << NameOf(function) << " " << bad.target;
          EXPECT_EQ(call.error.status, XENT_TARGET_OUT_OF_RANGE);
          EXPECT_EQ(call.error.row, row);
          EXPECT_EQ(call.error.value, bad.target);
          EXPECT_TRUE(Names(call.error, {"target", std::to_string(row), std::to_string(bad.target)}));
          EXPECT_TRUE(before.records == call.records);
          call.records.assign(3, Call(dtype(), 1, 1).records[0]);
          EXPECT_TRUE(call.OutputsUntouched());
        }
      }
    }
  }
}

TEST_P(Errors, TargetOutOfRangeInPlaceLeavesTheLogits) {
  Call call = Make(Function::kForwardBackward);
  const Matrix before = call.logits;
  call.in_place = true;
  call.targets[2] = 4;
  EXPECT_EQ(call.Run(Function::kForwardBackward), XENT_TARGET_OUT_OF_RANGE);
  EXPECT_EQ(FirstDifference(before, call.logits), "");
}

TEST_P(Errors, TargetOutOfRangeInALargeBatch) {
  // Big enough for several threads: what is reported and that nothing is written must not depend on them.
  Call call(dtype(), 5000, 200);
  call.FillNormal(1, 1);
  call.targets[4997] = 200;
  for (const int32_t mode : {XENT_EXEC_SERIAL, XENT_EXEC_OPENMP}) {
    for (const int32_t threads : {0, 1, 3}) {
      call.exec.mode = mode;
      call.exec.threads = threads;
      EXPECT_EQ(call.Run(Function::kForwardBackward), XENT_TARGET_OUT_OF_RANGE);
      EXPECT_EQ(call.error.row, 4997);
      EXPECT_EQ(call.error.value, 200);
      EXPECT_TRUE(call.OutputsUntouched());
    }
  }
}

TEST_P(Errors, TheSameBadTargetIsReportedWhateverTheThreads) {
  Call call(dtype(), 5000, 200);
  call.FillNormal(1, 1);
  for (const size_t row : {4990, 17, 2500}) call.targets[row] = -static_cast<int64_t>(row);
  call.exec.mode = XENT_EXEC_SERIAL;
  EXPECT_EQ(call.Run(Function::kForward), XENT_TARGET_OUT_OF_RANGE);
  const int64_t row = call.error.row;
  EXPECT_EQ(call.error.value, -row);
  for (const int32_t threads : {0, 2, 3, 8}) {
    call.exec.mode = XENT_EXEC_OPENMP;
    call.exec.threads = threads;
    EXPECT_EQ(call.Run(Function::kForward), XENT_TARGET_OUT_OF_RANGE);
    EXPECT_EQ(call.error.row, row);
  }
}

TEST_P(Errors, InvalidArgumentComesBeforeTargetsAreRead) {
  // With a shape that is refused the targets may lie anywhere.
  ExpectInvalid(
      [](Spoiled s) {
        s.args.rows = int64_t{1} << 62;
        s.args.targets = s.args.logits;
      },
      {"logits"}, {Function::kForward});
}

// ------------------------------------------------------------------ execution policy

void RunNothing(void *, int64_t, xent_task, void *) {}

TEST_P(Errors, ExecutionPolicies) {
  ExpectInvalid([](Spoiled s) { s.exec.threads = -1; }, {"threads", "-1"});
  ExpectInvalid([](Spoiled s) { s.exec.mode = XENT_EXEC_CALLER; }, {"parallel_for"});
  for (const int32_t mode : {3, -1}) {
    ExpectInvalid(
        [=](Spoiled s) {
          s.exec.mode = mode;
          s.exec.parallel_for = RunNothing;
        },
        {"mode", std::to_string(mode)});
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Errors, ::testing::ValuesIn(kDtypes),
                         [](const auto &info) { return reference::NameOf(info.param); });

// ------------------------------------------------------------------ row functions

struct RowArguments {
  int64_t rows = 2;
  int64_t cols = 3;
  int64_t stride[3] = {3, 3, 3};
  const void *in[2];
  void *out;
  int32_t dtype;
  xent_exec exec = XENT_EXEC_INIT;
};

struct RowFunction {
  const char *name;
  int inputs;
  bool matrix_out;
  std::vector<const char *> stride_names;
  std::vector<const char *> pointer_names;
  std::function<xent_status(const RowArguments &, xent_error *)> call;
};

const std::vector<RowFunction> &RowFunctionsOfTheApi() {
  static const std::vector<RowFunction> functions = {
      {"logsumexp",
       1,
       false,
       {"stride"},
       {"x", "lse"},
       [](const RowArguments &a, xent_error *error) {
         return xent_logsumexp(a.rows, a.cols, a.in[0], static_cast<xent_dtype>(a.dtype), a.stride[0], a.out, &a.exec,
                               error);
       }},
      {"softmax",
       1,
       true,
       {"x_stride", "y_stride"},
       {"x", "y"},
       [](const RowArguments &a, xent_error *error) {
         return xent_softmax(a.rows, a.cols, a.in[0], static_cast<xent_dtype>(a.dtype), a.stride[0], a.out, a.stride[1],
                             &a.exec, error);
       }},
      {"log_softmax",
       1,
       true,
       {"x_stride", "y_stride"},
       {"x", "y"},
       [](const RowArguments &a, xent_error *error) {
         return xent_log_softmax(a.rows, a.cols, a.in[0], static_cast<xent_dtype>(a.dtype), a.stride[0], a.out,
                                 a.stride[1], &a.exec, error);
       }},
      {"softmax_backward",
       2,
       true,
       {"g_stride", "y_stride", "dx_stride"},
       {"g", "y", "dx"},
       [](const RowArguments &a, xent_error *error) {
         return xent_softmax_backward(a.rows, a.cols, a.in[0], a.stride[0], a.in[1], a.stride[1],
                                      static_cast<xent_dtype>(a.dtype), a.out, a.stride[2], &a.exec, error);
       }},
      {"log_softmax_backward",
       2,
       true,
       {"g_stride", "y_stride", "dx_stride"},
       {"g", "y", "dx"},
       [](const RowArguments &a, xent_error *error) {
         return xent_log_softmax_backward(a.rows, a.cols, a.in[0], a.stride[0], a.in[1], a.stride[1],
                                          static_cast<xent_dtype>(a.dtype), a.out, a.stride[2], &a.exec, error);
       }},
      {"check_logits",
       1,
       false,
       {"stride"},
       {"x", "diagnosis"},
       [](const RowArguments &a, xent_error *error) {
         return xent_check_logits(a.rows, a.cols, a.in[0], static_cast<xent_dtype>(a.dtype), a.stride[0],
                                  static_cast<xent_diagnosis *>(a.out), &a.exec, error);
       }},
  };
  return functions;
}

class RowFunctionErrors : public ::testing::TestWithParam<size_t> {
 protected:
  const RowFunction &function() const { return RowFunctionsOfTheApi()[GetParam()]; }

  void ExpectInvalid(const std::function<void(RowArguments &)> &spoil, const std::vector<std::string> &words) {
    alignas(8) double in[2][6] = {{0, 1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}};
    alignas(8) unsigned char out[6 * sizeof(double)];
    std::memset(out, 0xa5, sizeof(out));
    RowArguments arguments;
    arguments.in[0] = in[0];
    arguments.in[1] = in[1];
    arguments.out = out;
    arguments.dtype = XENT_F64;
    spoil(arguments);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(function().call(arguments, &error), XENT_INVALID_ARGUMENT) << words[0];
    EXPECT_EQ(error.status, XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Names(error, words));
    EXPECT_EQ(function().call(arguments, nullptr), XENT_INVALID_ARGUMENT) << words[0];
    for (const unsigned char byte : out) ASSERT_EQ(byte, 0xa5) << words[0];
  }
};

TEST_P(RowFunctionErrors, Shapes) {
  ExpectInvalid([](RowArguments &a) { a.rows = -1; }, {"rows", "-1"});
  ExpectInvalid([](RowArguments &a) { a.cols = 0; }, {"cols", "0"});
  ExpectInvalid([](RowArguments &a) { a.cols = -3; }, {"cols", "-3"});
  ExpectInvalid([](RowArguments &a) { a.rows = 0, a.cols = 0; }, {"cols", "0"});
  for (size_t k = 0; k < function().stride_names.size(); ++k) {
    const char *name = function().stride_names[k];
    const char *pointer = function().pointer_names[k];
    ExpectInvalid([=](RowArguments &a) { a.stride[k] = 2; }, {name, "2"});
    ExpectInvalid([=](RowArguments &a) { a.stride[k] = -3; }, {name, "-3"});
    ExpectInvalid([=](RowArguments &a) { a.stride[k] = std::numeric_limits<int64_t>::max(); }, {pointer});
    ExpectInvalid([=](RowArguments &a) { a.stride[k] = int64_t{1} << 60; }, {pointer});
  }
}

TEST_P(RowFunctionErrors, NullPointers) {
  for (int k = 0; k < function().inputs; ++k) {
    ExpectInvalid([=](RowArguments &a) { a.in[k] = nullptr; }, {function().pointer_names[static_cast<size_t>(k)]});
  }
  ExpectInvalid([](RowArguments &a) { a.out = nullptr; }, {function().pointer_names.back()});
}

TEST_P(RowFunctionErrors, Dtypes) {
  // Values that the enumeration's type can hold; others cannot be passed without undefined behaviour.
  for (const int32_t value : {0, 5, 7}) {
    ExpectInvalid([=](RowArguments &a) { a.dtype = value; }, {"dtype", std::to_string(value)});
  }
}

TEST_P(RowFunctionErrors, ExecutionPolicies) {
  ExpectInvalid([](RowArguments &a) { a.exec.struct_size = 0; }, {"exec", "struct_size"});
  ExpectInvalid([](RowArguments &a) { a.exec.mode = 7; }, {"mode", "7"});
  ExpectInvalid([](RowArguments &a) { a.exec.threads = -2; }, {"threads", "-2"});
  ExpectInvalid([](RowArguments &a) { a.exec.mode = XENT_EXEC_CALLER; }, {"parallel_for"});
}

INSTANTIATE_TEST_SUITE_P(Functions, RowFunctionErrors, ::testing::Range(size_t{0}, RowFunctionsOfTheApi().size()),
                         [](const auto &info) { return RowFunctionsOfTheApi()[info.param].name; });

TEST(RowFunctionsInPlace, NeedEqualStrides) {
  for (const RowFunction &function : RowFunctionsOfTheApi()) {
    if (!function.matrix_out) continue;
    for (int k = 0; k < function.inputs; ++k) {
      alignas(8) double in[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {0, 1, 2, 3, 4, 5, 6, 7}};
      RowArguments arguments;
      arguments.in[0] = in[0];
      arguments.in[1] = in[1];
      arguments.out = in[k];
      arguments.dtype = XENT_F64;
      arguments.stride[k] = 4;
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(function.call(arguments, &error), XENT_INVALID_ARGUMENT) << function.name;
      EXPECT_TRUE(Names(error, {function.stride_names[static_cast<size_t>(k)], function.stride_names.back()}));
      for (int j = 0; j < 8; ++j) EXPECT_EQ(in[k][j], j);
    }
  }
}

// ------------------------------------------------------------------ xent_reduce

class ReduceErrors : public ::testing::Test {
 protected:
  struct Arguments {
    int64_t rows = 3;
    const void *losses;
    int32_t dtype = XENT_F32;
    const void *targets;
    int32_t targets_type = XENT_I64;
    xent_options options = XENT_OPTIONS_INIT;
    void *loss;
  };

  void ExpectInvalid(const std::function<void(Arguments &)> &spoil, const std::vector<std::string> &words) {
    const float losses[] = {1, 2, 3};
    const int64_t targets[] = {0, 1, 2};
    float loss = -77;
    Arguments a;
    a.losses = losses;
    a.targets = targets;
    a.loss = &loss;
    const auto call = [&](xent_error *error) {
      return xent_reduce(a.rows, a.losses, static_cast<xent_dtype>(a.dtype), a.targets,
                         static_cast<xent_index_type>(a.targets_type), &a.options, a.loss, error);
    };
    spoil(a);
    xent_error error = XENT_ERROR_INIT;
    EXPECT_EQ(call(&error), XENT_INVALID_ARGUMENT) << words[0];
    EXPECT_EQ(error.status, XENT_INVALID_ARGUMENT);
    EXPECT_TRUE(Names(error, words));
    EXPECT_EQ(call(nullptr), XENT_INVALID_ARGUMENT) << words[0];
    EXPECT_EQ(loss, -77);
  }
};

TEST_F(ReduceErrors, RowsAndPointers) {
  ExpectInvalid([](Arguments &a) { a.rows = -1; }, {"rows", "-1"});
  ExpectInvalid([](Arguments &a) { a.losses = nullptr; }, {"losses"});
  ExpectInvalid([](Arguments &a) { a.loss = nullptr; }, {"loss"});
  ExpectInvalid([](Arguments &a) { a.rows = 0, a.loss = nullptr; }, {"loss"});
}

TEST_F(ReduceErrors, Types) {
  for (const int32_t value : {int32_t{XENT_BF16}, int32_t{XENT_F16}, 0, 5, 7}) {
    ExpectInvalid([=](Arguments &a) { a.dtype = value; }, {"dtype", std::to_string(value)});
  }
  for (const int32_t value : {0, 3}) {
    ExpectInvalid([=](Arguments &a) { a.targets_type = value; }, {"targets_type", std::to_string(value)});
  }
}

TEST_F(ReduceErrors, Options) {
  ExpectInvalid([](Arguments &a) { a.options.reduction = XENT_REDUCTION_NONE; }, {"reduction", "none"});
  ExpectInvalid([](Arguments &a) { a.options.reduction = 3; }, {"reduction", "3"});
  ExpectInvalid([](Arguments &a) { a.options.empty_mean = 2; }, {"empty_mean", "2"});
  ExpectInvalid([](Arguments &a) { a.options.has_divisor = 1; }, {"divisor", "0"});
  ExpectInvalid([](Arguments &a) { a.options.has_divisor = 1, a.options.divisor = kNan; }, {"divisor", "nan|-nan"});
  ExpectInvalid([](Arguments &a) { a.options.divisor = 1; }, {"divisor", "has_divisor"});
  ExpectInvalid([](Arguments &a) { a.options.struct_size = 0; }, {"struct_size", "0"});
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
