// The ABI: sizes, offsets and enumerators are those of abi_layout.inc, which scripts/abi_layout.py derives from the
// header's text; the members tile their structs; the initialisers hold the documented defaults; and structs of other
// sizes are taken or refused as docs/abi.md says, in every function that takes one.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "testing/assertions.h"
#include "testing/binary.h"
#include "testing/divergence_call.h"
#include "testing/loss_call.h"
#include "xent/xent.h"

namespace xent::test {
namespace {

// ------------------------------------------------------------------ layout

struct Extent {
  size_t offset, size;
};

struct MemberLayout {
  const char *name;
  Extent pinned, compiled;
};

struct StructLayout {
  const char *name;
  size_t pinned_size, compiled_size;
  std::vector<MemberLayout> members;
};

std::vector<StructLayout> Layout() {
  std::vector<StructLayout> structs;
#define XENT_ABI_CONSTANT(name, value)
#define XENT_ABI_STRUCT(type, size) structs.push_back({#type, size, sizeof(type), {}});
#define XENT_ABI_MEMBER(type, member, offset, size) \
  structs.back().members.push_back({#member, {offset, size}, {offsetof(type, member), sizeof(type::member)}});
#include "api/abi_layout.inc"
#undef XENT_ABI_CONSTANT
#undef XENT_ABI_STRUCT
#undef XENT_ABI_MEMBER
  return structs;
}

TEST(AbiLayout, IsAsPinned) {
  if (sizeof(void *) != 8) GTEST_SKIP() << "the table is for pointers of eight bytes";
  for (const StructLayout &layout : Layout()) {
    EXPECT_EQ(layout.compiled_size, layout.pinned_size) << layout.name;
    for (const MemberLayout &member : layout.members) {
      EXPECT_EQ(member.compiled.offset, member.pinned.offset) << layout.name << "." << member.name;
      EXPECT_EQ(member.compiled.size, member.pinned.size) << layout.name << "." << member.name;
    }
  }
}

TEST(AbiLayout, MembersTileTheirStructs) {
  // No padding, whose bytes nobody sets, and no member that the table lacks.
  for (const StructLayout &layout : Layout()) {
    size_t end = 0;
    for (const MemberLayout &member : layout.members) {
      EXPECT_EQ(member.compiled.offset, end) << layout.name << ", before " << member.name;
      end = member.compiled.offset + member.compiled.size;
    }
    EXPECT_EQ(layout.compiled_size, end) << layout.name << ", at its end";
  }
}

TEST(AbiLayout, EnumeratorsAndSizesAreAsPinned) {
#define XENT_ABI_CONSTANT(name, value) EXPECT_EQ(static_cast<int64_t>(name), value) << #name;
#define XENT_ABI_STRUCT(type, size)
#define XENT_ABI_MEMBER(type, member, offset, size)
#include "api/abi_layout.inc"
#undef XENT_ABI_CONSTANT
#undef XENT_ABI_STRUCT
#undef XENT_ABI_MEMBER
  // Those that are passed by value.
  EXPECT_EQ(sizeof(xent_status), sizeof(int32_t));
  EXPECT_EQ(sizeof(xent_dtype), sizeof(int32_t));
  EXPECT_EQ(sizeof(xent_diagnosis), sizeof(int32_t));
}

// ------------------------------------------------------------------ initialisers

// Whether the initialiser sets struct_size and what `defaults` sets, and leaves the rest 0.
template <class S>
::testing::AssertionResult Initialises(const S &initialised, const std::function<void(S &)> &defaults = {}) {
  S want;
  std::memset(static_cast<void *>(&want), 0, sizeof(want));
  want.struct_size = sizeof(S);
  if (defaults) defaults(want);
  const unsigned char *const a = reinterpret_cast<const unsigned char *>(&initialised);
  const unsigned char *const b = reinterpret_cast<const unsigned char *>(&want);
  for (size_t k = 0; k < sizeof(S); ++k) {
    if (a[k] != b[k]) return ::testing::AssertionFailure() << "byte " << k << " is " << int{a[k]};
  }
  return ::testing::AssertionSuccess();
}

TEST(AbiInitialisers, HoldTheDefaults) {
  const xent_error error = XENT_ERROR_INIT;
  EXPECT_TRUE(Initialises<xent_error>(error, [](xent_error &e) { e.row = e.column = -1; }));
  const xent_exec exec = XENT_EXEC_INIT;
  EXPECT_TRUE(Initialises<xent_exec>(exec));
  const xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
  EXPECT_TRUE(Initialises<xent_cross_entropy_options>(options, [](xent_cross_entropy_options &o) {
    o.ignore_index = -100;
    o.logit_scale = 1;
  }));
  const xent_statistics statistics = XENT_STATISTICS_INIT;
  EXPECT_TRUE(Initialises<xent_statistics>(statistics));
  const xent_cross_entropy cross_entropy = XENT_CROSS_ENTROPY_INIT;
  EXPECT_TRUE(Initialises<xent_cross_entropy>(cross_entropy));
  const xent_stored_losses stored = XENT_STORED_LOSSES_INIT;
  EXPECT_TRUE(Initialises<xent_stored_losses>(stored));
  const xent_shard shard = XENT_SHARD_INIT;
  EXPECT_TRUE(Initialises<xent_shard>(shard));
  const xent_divergence_options divergence_options = XENT_DIVERGENCE_OPTIONS_INIT;
  EXPECT_TRUE(Initialises<xent_divergence_options>(divergence_options, [](xent_divergence_options &o) {
    o.temperature = 1;
    o.beta = 0.5;
  }));
  const xent_divergence divergence = XENT_DIVERGENCE_INIT;
  EXPECT_TRUE(Initialises<xent_divergence>(divergence));
  const xent_binary_cross_entropy_options binary_options = XENT_BINARY_CROSS_ENTROPY_OPTIONS_INIT;
  EXPECT_TRUE(Initialises<xent_binary_cross_entropy_options>(
      binary_options, [](xent_binary_cross_entropy_options &o) { o.focal_alpha = -1; }));
  const xent_binary_cross_entropy binary = XENT_BINARY_CROSS_ENTROPY_INIT;
  EXPECT_TRUE(Initialises<xent_binary_cross_entropy>(binary));
}

// ------------------------------------------------------------------ structs of other sizes

constexpr size_t kLimit = size_t{1} << 16;  // a struct_size beyond it is no size of a struct

// A copy of a struct in memory of more bytes than any size that is tried, all zero behind it.
template <class S>
class Roomy {
 public:
  explicit Roomy(const S &source) : memory_(kLimit + 64, 0) { std::memcpy(memory_.data(), &source, sizeof(S)); }
  S *Get(size_t size) {
    std::memcpy(memory_.data(), &size, sizeof(size));
    return reinterpret_cast<S *>(memory_.data());
  }
  unsigned char &operator[](size_t byte) { return memory_[byte]; }

 private:
  std::vector<unsigned char> memory_;  // operator new aligns it for every struct
};

class AbiGrowth : public ::testing::Test {
 protected:
  // `call` runs a function with the struct in place of `valid`, which it accepts. `untouched` says whether its outputs
  // are, as long as no call was accepted.
  template <class S>
  void Expect(const std::string &function, const char *type, const char *name, const S &valid,
              const std::function<xent_status(const S *, xent_error *)> &call,
              const std::function<bool()> &untouched = {}) {
    SCOPED_TRACE(function + ", " + name);
    tried_.insert(type);
    Roomy<S> roomy(valid);
    const auto refused = [&](size_t size) {
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(call(roomy.Get(size), &error), XENT_INVALID_ARGUMENT) << "size " << size;
      return Tells(error, XENT_INVALID_ARGUMENT, {}, {name});
    };
    for (const size_t size : {size_t{0}, size_t{1}, sizeof(size_t), sizeof(S) - 8, sizeof(S) - 1, kLimit + 8,
                              size_t{1} << 32, std::numeric_limits<size_t>::max()}) {
      EXPECT_TRUE(refused(size));
      xent_error error = XENT_ERROR_INIT;
      call(roomy.Get(size), &error);
      EXPECT_TRUE(Tells(error, XENT_INVALID_ARGUMENT, {}, {"struct_size", std::to_string(size)}));
    }
    for (const size_t larger : {sizeof(S) + 1, sizeof(S) + 24, kLimit}) {
      for (const size_t at : {sizeof(S), larger - 1}) {
        roomy[at] = 1;
        EXPECT_TRUE(refused(larger)) << "byte " << at << " of " << larger << " is set";
        roomy[at] = 0;
      }
    }
    if (untouched) {
      EXPECT_TRUE(untouched()) << "a refused call wrote";
    }
    for (const size_t size : {sizeof(S), sizeof(S) + 1, sizeof(S) + 24, kLimit}) {
      roomy[size] = 1;  // behind the struct
      xent_error error = XENT_ERROR_INIT;
      EXPECT_EQ(call(roomy.Get(size), &error), XENT_OK) << "size " << size << ": " << error.message;
      roomy[size] = 0;
    }
  }

  // The error of a function: `good` runs it so that it succeeds, `bad` so that it is refused.
  void ExpectErrorStruct(const std::string &function, const std::function<xent_status(xent_error *)> &good,
                         const std::function<xent_status(xent_error *)> &bad) {
    SCOPED_TRACE(function + ", error");
    tried_.insert("xent_error");
    const xent_error initial = XENT_ERROR_INIT;
    const auto unchanged = [&](Roomy<xent_error> &roomy) {
      return std::memcmp(&roomy[sizeof(size_t)], &initial.status, sizeof(xent_error) - sizeof(size_t)) == 0;
    };
    const auto refused = [&](Roomy<xent_error> &roomy, size_t size) {
      EXPECT_EQ(good(roomy.Get(size)), XENT_INVALID_ARGUMENT) << "size " << size;
      EXPECT_EQ(bad(roomy.Get(size)), XENT_INVALID_ARGUMENT) << "size " << size;
      EXPECT_TRUE(unchanged(roomy)) << "an error of " << size << " bytes was written";
    };
    Roomy<xent_error> roomy(initial);
    for (const size_t size :
         {size_t{0}, size_t{1}, sizeof(size_t), offsetof(xent_error, message), sizeof(xent_error) - 8,
          sizeof(xent_error) - 1, kLimit + 8, std::numeric_limits<size_t>::max()}) {
      refused(roomy, size);
    }
    for (const size_t larger : {sizeof(xent_error) + 1, sizeof(xent_error) + 24, kLimit}) {
      for (const size_t at : {sizeof(xent_error), larger - 1}) {
        roomy[at] = 1;
        refused(roomy, larger);
        roomy[at] = 0;
      }
    }
    for (const size_t size : {sizeof(xent_error), sizeof(xent_error) + 1, sizeof(xent_error) + 24, kLimit}) {
      Roomy<xent_error> fresh(initial);
      fresh[size] = 1;  // behind it
      EXPECT_EQ(good(fresh.Get(size)), XENT_OK) << "size " << size;
      EXPECT_TRUE(unchanged(fresh)) << "a call that succeeded wrote the error";
      EXPECT_EQ(bad(fresh.Get(size)), XENT_INVALID_ARGUMENT) << "size " << size;
      EXPECT_TRUE(Tells(*fresh.Get(size), XENT_INVALID_ARGUMENT, {}, {}));
      // The tail is the caller's.
      for (size_t k = sizeof(xent_error); k < kLimit + 64; ++k) ASSERT_EQ(fresh[k], k == size ? 1 : 0) << k;
    }
  }

  // The names of the structs that have been tried.
  std::set<std::string> tried_;
};

constexpr xent_exec kExec = XENT_EXEC_INIT;

LossCall SmallLossCall() {
  LossCall call(XENT_F32, {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 1, 1, 0}}, {0, 1, 2});
  call.MustRun(Function::kForward);  // for the records
  return call;
}

TEST_F(AbiGrowth, OfEveryStructInEveryFunction) {
  for (const Function function : kFunctions) {
    LossCall call = SmallLossCall();
    const LossFunction run = EntryPoint(function);
    const xent_cross_entropy args = call.Args(function);
    const auto untouched = [&] { return static_cast<bool>(call.OutputsUntouched()); };
    const std::string name = NameOf(function);
    Expect<xent_cross_entropy>(
        name, "xent_cross_entropy", "args", args,
        [&](const xent_cross_entropy *a, xent_error *error) { return run(a, nullptr, nullptr, error); }, untouched);
    call.Args(function);
    Expect<xent_cross_entropy_options>(name, "xent_cross_entropy_options", "options", call.options,
                                       [&](const xent_cross_entropy_options *o, xent_error *error) {
                                         const xent_cross_entropy fresh = args;
                                         return run(&fresh, o, nullptr, error);
                                       });
    Expect<xent_exec>(name, "xent_exec", "exec", kExec,
                      [&](const xent_exec *exec, xent_error *error) { return run(&args, nullptr, exec, error); });
    if (function != Function::kBackward) {
      Expect<xent_statistics>(name, "xent_statistics", "statistics", call.statistics,
                              [&](const xent_statistics *s, xent_error *error) {
                                xent_cross_entropy with = args;
                                with.statistics = s;
                                return run(&with, nullptr, nullptr, error);
                              });
    }
    xent_cross_entropy bad = args;
    bad.cols = -1;
    ExpectErrorStruct(
        name, [&](xent_error *error) { return run(&args, nullptr, nullptr, error); },
        [&](xent_error *error) { return run(&bad, nullptr, nullptr, error); });
  }

  {
    const float losses[] = {1, 2, 3};
    float loss = 0;
    xent_stored_losses args = XENT_STORED_LOSSES_INIT;
    args.rows = 3;
    args.row_losses = losses;
    args.reduced_loss = &loss;
    Expect<xent_stored_losses>(
        "reduce", "xent_stored_losses", "args", args,
        [](const xent_stored_losses *a, xent_error *error) { return xent_reduce(a, nullptr, error); },
        [&] { return loss == 0; });
    const xent_cross_entropy_options options = XENT_CROSS_ENTROPY_OPTIONS_INIT;
    Expect<xent_cross_entropy_options>(
        "reduce", "xent_cross_entropy_options", "options", options,
        [&](const xent_cross_entropy_options *o, xent_error *error) { return xent_reduce(&args, o, error); });
    xent_stored_losses bad = args;
    bad.rows = -1;
    ExpectErrorStruct(
        "reduce", [&](xent_error *error) { return xent_reduce(&args, nullptr, error); },
        [&](xent_error *error) { return xent_reduce(&bad, nullptr, error); });
  }

  {
    LossCall call(XENT_F32, {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 1, 1, 0}}, {0, 1, 2});
    xent_cross_entropy slice = XENT_CROSS_ENTROPY_INIT;
    slice.rows = 3;
    slice.cols = 4;
    slice.logits = View(call.logits);
    slice.targets.data = call.targets.data();
    xent_shard shard = XENT_SHARD_INIT;
    shard.total_cols = 4;
    const int64_t chunks = xent_shard_chunks(4, 0, 4);
    std::vector<uint64_t> list(static_cast<size_t>(3 * chunks) * XENT_CHUNK_RECORD_BYTES / sizeof(uint64_t));
    const auto forward = [&](const xent_cross_entropy *a, const xent_cross_entropy_options *o, const xent_shard *s,
                             const xent_exec *e,
                             xent_error *error) { return xent_shard_forward(a, o, s, list.data(), e, error); };
    ASSERT_EQ(forward(&slice, nullptr, &shard, nullptr, nullptr), XENT_OK);

    xent_cross_entropy whole = call.Args(Function::kForward);
    whole.logits = {nullptr, 0, XENT_F32, 0};
    const void *lists[] = {list.data()};
    const auto combine = [&](const xent_cross_entropy *a, const xent_cross_entropy_options *o, xent_error *error) {
      return xent_shard_combine(a, o, lists, &chunks, 1, error);
    };
    Expect<xent_cross_entropy>(
        "shard_combine", "xent_cross_entropy", "args", whole,
        [&](const xent_cross_entropy *a, xent_error *error) { return combine(a, nullptr, error); },
        [&] { return static_cast<bool>(call.OutputsUntouched()); });
    Expect<xent_cross_entropy_options>(
        "shard_combine", "xent_cross_entropy_options", "options", call.options,
        [&](const xent_cross_entropy_options *o, xent_error *error) { return combine(&whole, o, error); });
    Expect<xent_statistics>("shard_combine", "xent_statistics", "statistics", call.statistics,
                            [&](const xent_statistics *s, xent_error *error) {
                              xent_cross_entropy with = whole;
                              with.statistics = s;
                              return combine(&with, nullptr, error);
                            });
    xent_cross_entropy bad_whole = whole;
    bad_whole.rows = -1;
    ExpectErrorStruct(
        "shard_combine", [&](xent_error *error) { return combine(&whole, nullptr, error); },
        [&](xent_error *error) { return combine(&bad_whole, nullptr, error); });

    Tensor grad(XENT_F32, 3, 4);
    xent_cross_entropy back = slice;
    back.records = call.records.data();
    back.grad = View(grad);
    const auto backward = [](const xent_cross_entropy *a, const xent_cross_entropy_options *o, const xent_shard *s,
                             const xent_exec *e, xent_error *error) { return xent_shard_backward(a, o, s, e, error); };
    using Run = std::function<xent_status(const xent_cross_entropy *, const xent_cross_entropy_options *,
                                          const xent_shard *, const xent_exec *, xent_error *)>;
    const std::tuple<const char *, xent_cross_entropy *, Run> steps[] = {{"shard_forward", &slice, forward},
                                                                         {"shard_backward", &back, backward}};
    for (const auto &[name, args, run] : steps) {
      Expect<xent_cross_entropy>(name, "xent_cross_entropy", "args", *args,
                                 [&run = run, &shard](const xent_cross_entropy *a, xent_error *error) {
                                   return run(a, nullptr, &shard, nullptr, error);
                                 });
      Expect<xent_cross_entropy_options>(
          name, "xent_cross_entropy_options", "options", call.options,
          [&run = run, &args = args, &shard](const xent_cross_entropy_options *o, xent_error *error) {
            return run(args, o, &shard, nullptr, error);
          });
      Expect<xent_shard>(name, "xent_shard", "shard", shard,
                         [&run = run, &args = args](const xent_shard *s, xent_error *error) {
                           return run(args, nullptr, s, nullptr, error);
                         });
      Expect<xent_exec>(name, "xent_exec", "exec", kExec,
                        [&run = run, &args = args, &shard](const xent_exec *e, xent_error *error) {
                          return run(args, nullptr, &shard, e, error);
                        });
      xent_cross_entropy bad = *args;
      bad.rows = -1;
      ExpectErrorStruct(
          name, [&run = run, &args = args, &shard](xent_error *e) { return run(args, nullptr, &shard, nullptr, e); },
          [&run = run, &bad, &shard](xent_error *e) { return run(&bad, nullptr, &shard, nullptr, e); });
    }
  }

  for (const bool backward : {false, true}) {
    DivergenceCall call(XENT_F32, DivergenceCall::Rows{{0, 1, 2}}, DivergenceCall::Rows{{2, 1, 0}});
    const auto run = backward ? xent_divergence_forward_backward : xent_divergence_forward;
    const char *const name = backward ? "divergence_forward_backward" : "divergence_forward";
    const xent_divergence args = call.Args(backward);
    Expect<xent_divergence>(name, "xent_divergence", "args", args, [&](const xent_divergence *a, xent_error *error) {
      return run(a, nullptr, nullptr, error);
    });
    Expect<xent_divergence_options>(
        name, "xent_divergence_options", "options", call.options,
        [&](const xent_divergence_options *o, xent_error *error) { return run(&args, o, nullptr, error); });
    Expect<xent_exec>(name, "xent_exec", "exec", kExec,
                      [&](const xent_exec *exec, xent_error *error) { return run(&args, nullptr, exec, error); });
    xent_divergence bad = args;
    bad.cols = 0;
    ExpectErrorStruct(
        name, [&](xent_error *error) { return run(&args, nullptr, nullptr, error); },
        [&](xent_error *error) { return run(&bad, nullptr, nullptr, error); });
  }

  for (const Pass pass : kPasses) {
    Binary call(XENT_F32, XENT_F32, 2, 3);
    call.FillNormal(1, 1);
    const auto run = pass == Pass::kForward           ? xent_binary_cross_entropy_forward
                     : pass == Pass::kForwardBackward ? xent_binary_cross_entropy_forward_backward
                                                      : xent_binary_cross_entropy_backward;
    const std::string name = "binary, pass " + std::to_string(static_cast<int>(pass));
    const xent_binary_cross_entropy args = call.Args(pass);
    Expect<xent_binary_cross_entropy>(
        name, "xent_binary_cross_entropy", "args", args,
        [&](const xent_binary_cross_entropy *a, xent_error *error) { return run(a, nullptr, nullptr, error); },
        [&] { return static_cast<bool>(call.OutputsUntouched()); });
    Expect<xent_binary_cross_entropy_options>(
        name, "xent_binary_cross_entropy_options", "options", call.options,
        [&](const xent_binary_cross_entropy_options *o, xent_error *error) { return run(&args, o, nullptr, error); });
    Expect<xent_exec>(name, "xent_exec", "exec", kExec,
                      [&](const xent_exec *exec, xent_error *error) { return run(&args, nullptr, exec, error); });
    xent_binary_cross_entropy bad = args;
    bad.cols = 0;
    ExpectErrorStruct(
        name, [&](xent_error *error) { return run(&args, nullptr, nullptr, error); },
        [&](xent_error *error) { return run(&bad, nullptr, nullptr, error); });
  }

  Matrix in = MatrixOf(XENT_F32, {{0, 1, 2}});
  Matrix also_in = MatrixOf(XENT_F32, {{0, 1, 2}});
  Matrix out(XENT_F32, 1, 3);
  xent_diagnosis diagnosis;
  using RowFunction = std::function<xent_status(int64_t, const xent_exec *, xent_error *)>;  // of so many columns
  const std::pair<const char *, RowFunction> functions[] = {
      {"logsumexp",
       [&](int64_t cols, auto *exec, auto *e) { return xent_logsumexp(1, cols, 0, View(in), out.data(), exec, e); }},
      {"softmax",
       [&](int64_t cols, auto *exec, auto *e) { return xent_softmax(1, cols, 0, View(in), View(out), exec, e); }},
      {"log_softmax",
       [&](int64_t cols, auto *exec, auto *e) { return xent_log_softmax(1, cols, 0, View(in), View(out), exec, e); }},
      {"softmax_backward",
       [&](int64_t cols, auto *exec, auto *e) {
         return xent_softmax_backward(1, cols, 0, View(in), View(also_in), View(out), exec, e);
       }},
      {"log_softmax_backward",
       [&](int64_t cols, auto *exec, auto *e) {
         return xent_log_softmax_backward(1, cols, 0, View(in), View(also_in), View(out), exec, e);
       }},
      {"check_logits", [&](int64_t cols, auto *exec, auto *e) {
         return xent_check_logits(1, cols, 0, View(in), &diagnosis, exec, e);
       }}};
  for (const auto &[name, run] : functions) {
    Expect<xent_exec>(name, "xent_exec", "exec", kExec,
                      [&run = run](const xent_exec *exec, xent_error *error) { return run(3, exec, error); });
    ExpectErrorStruct(
        name, [&run = run](xent_error *error) { return run(3, nullptr, error); },
        [&run = run](xent_error *error) { return run(-1, nullptr, error); });
  }

  std::set<std::string> sized;
  for (const StructLayout &layout : Layout()) {
    if (std::string(layout.members.at(0).name) == "struct_size") sized.insert(layout.name);
  }
  EXPECT_EQ(tried_, sized) << "every struct that can grow must be among those tried";
}

}  // namespace
}  // namespace xent::test
