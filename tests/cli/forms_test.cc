// Files in other forms: Fortran order, data at any byte, other dtypes, dimensions of 1. The oracle is the program on
// the same numbers in C order, aligned, in the dtypes that the library takes as they are; its numbers are held by the
// tests of the commands.
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"

namespace xent_cli_test {
namespace {

using Shape = std::vector<int64_t>;

// An array whose values stand in C order.
struct Array {
  std::string descr;
  Shape shape;
  std::vector<double> values;
};

int64_t Product(const Shape &shape) {
  int64_t product = 1;
  for (const int64_t extent : shape) product *= extent;
  return product;
}

// Returns the place in Fortran order of the element that stands at place `i` in C order.
size_t FortranPlace(size_t i, const Shape &shape) {
  size_t place = 0, stride = static_cast<size_t>(Product(shape));
  for (size_t k = shape.size(); k-- > 0;) {
    stride /= static_cast<size_t>(shape[k]);
    place += i % static_cast<size_t>(shape[k]) * stride;
    i /= static_cast<size_t>(shape[k]);
  }
  return place;
}

std::string InCOrder(const Array &array) { return NpyOf(array.descr, array.shape, array.values); }

std::string InFortranOrder(const Array &array) {
  std::vector<double> values(array.values.size());
  for (size_t i = 0; i < values.size(); ++i) values[FortranPlace(i, array.shape)] = array.values[i];
  return Npy(array.descr, array.shape, Encode(array.descr, values), true);
}

// Returns the file with one more blank in its header, of version 1.0, so that the data begin at an odd byte.
std::string Shifted(std::string npy) {
  const size_t length = static_cast<unsigned char>(npy[8]) + 256u * static_cast<unsigned char>(npy[9]);
  npy[8] = static_cast<char>((length + 1) & 0xff);
  npy[9] = static_cast<char>((length + 1) >> 8);
  return npy.insert(10 + length - 1, " ");
}

std::string ShiftedInCOrder(const Array &array) { return Shifted(InCOrder(array)); }
std::string ShiftedInFortranOrder(const Array &array) { return Shifted(InFortranOrder(array)); }
using Form = std::string (*)(const Array &);

// A command over files, by their options, "" for the two of the command line.
struct Command {
  Words words;                                         // before the files
  std::vector<std::pair<std::string, Array>> files;    // the option, and what it is given
  std::vector<std::pair<std::string, Shape>> outputs;  // the option, and the shape of what it writes
};

class FormsTest : public DirectoryTest {
 protected:
  // Runs the command with file k in form forms(k).
  Result Run(const Command &command, const std::function<Form(size_t)> &forms) {
    Words words = command.words;
    for (size_t k = 0; k < command.files.size(); ++k) {
      const auto &[option, array] = command.files[k];
      if (!option.empty()) words.push_back(option);
      words.push_back(Write("in" + std::to_string(k) + ".npy", forms(k)(array)));
    }
    for (size_t k = 0; k < command.outputs.size(); ++k) {
      words = Joined(words, {command.outputs[k].first, OutputPath(k)});
    }
    return Xent(words);
  }

  std::string OutputPath(size_t k) const { return Path("out" + std::to_string(k) + ".npy"); }

  // Returns the numbers of output k, in C order whatever the file's is.
  std::vector<double> Output(const Command &command, size_t k) {
    const Shape &shape = command.outputs[k].second;
    const ReadNpy npy = SplitNpy(ReadFile(OutputPath(k)));
    EXPECT_EQ(npy.shape, Tuple(shape));
    const std::vector<double> values = Decode(npy.descr, npy.data);
    EXPECT_EQ(static_cast<int64_t>(values.size()), Product(shape));
    if (!npy.fortran_order || static_cast<int64_t>(values.size()) != Product(shape)) return values;
    std::vector<double> in_c_order;
    for (size_t i = 0; i < values.size(); ++i) in_c_order.push_back(values[FortranPlace(i, shape)]);
    return in_c_order;
  }

  // Expects the numbers of the plain forms.
  void ExpectSame(const Command &command, const std::function<Form(size_t)> &forms) {
    SCOPED_TRACE(::testing::PrintToString(command.words));
    const Result want = Run(command, [](size_t) { return &InCOrder; });
    ExpectSuccess(want);
    std::vector<std::vector<double>> want_outputs;
    for (size_t k = 0; k < command.outputs.size(); ++k) want_outputs.push_back(Output(command, k));
    const Result got = Run(command, forms);
    ExpectSuccess(got);
    for (const char *key : {"loss", "perplexity", "accuracy", "mean_entropy", "mean_rank"}) {
      if (JsonText(want.out, key).empty() || JsonText(want.out, key) == "null") continue;
      SCOPED_TRACE(key);
      ExpectClose(JsonNumber(got.out, key), JsonNumber(want.out, key));
    }
    for (const char *key : {"rows", "ignored", "diagnosis"}) EXPECT_EQ(JsonText(got.out, key), JsonText(want.out, key));
    for (size_t k = 0; k < command.outputs.size(); ++k) {
      SCOPED_TRACE(command.outputs[k].first);
      const std::vector<double> numbers = Output(command, k);
      ExpectClose(numbers, std::vector<long double>(want_outputs[k].begin(), want_outputs[k].end()));
      // In place front to back the bytes are the same.
      const std::string file = ReadFile(OutputPath(k));
      Command streamed = command;
      streamed.words = Joined(streamed.words, {command.outputs[k].first, "/dev/stdout"});
      streamed.outputs.clear();
      EXPECT_TRUE(Run(streamed, forms).out == file);
    }
  }
};

// Returns every command over arrays of this shape, with every file that it takes.
std::vector<Command> CommandsOver(const Shape &shape, size_t axis) {
  const auto count = static_cast<size_t>(Product(shape));
  Shape rows = shape;
  rows.erase(rows.begin() + static_cast<ptrdiff_t>(axis));
  const auto row_count = static_cast<size_t>(Product(rows));
  const int64_t cols = shape[axis];
  Random random(31);
  const auto numbers = [&random](size_t n, double low, double high) {
    std::vector<double> values(n);
    for (double &value : values) value = std::round(random.Uniform(low, high) * 16) / 16;
    return values;
  };
  std::vector<double> classes(row_count);
  for (double &value : classes) value = static_cast<double>(random.Next() % static_cast<uint64_t>(cols));
  if (row_count > 1) classes[0] = -100;
  const Array logits = {"<f8", shape, numbers(count, -6, 6)}, more = {"<f8", shape, numbers(count, -6, 6)};
  const Array shares = {"<f8", shape, numbers(count, 0, 1)}, elements = {"<f8", shape, numbers(count, 0, 2)};
  const Array targets = {"<i8", rows, classes}, row_weights = {"<f8", rows, numbers(row_count, 0.5, 2)};
  const Array class_weights = {"<f8", {cols}, numbers(static_cast<size_t>(cols), 0.5, 2)};
  const std::string word = std::to_string(axis);
  std::vector<Command> commands = {
      {{"loss", "--json", "--class-axis", word},
       {{"", logits}, {"", targets}, {"--row-weights", row_weights}, {"--class-weights", class_weights}},
       {{"--per-row", rows}, {"--lse", rows}, {"--grad", shape}}},
      {{"loss", "--json", "--class-axis", word, "--label-smoothing", "0.25"},
       {{"", logits}, {"", shares}, {"--row-weights", row_weights}},
       {{"--per-row", rows}, {"--grad", shape}}},
      {{"score", "--json", "--class-axis", word, "--top-k", "1"}, {{"", logits}, {"", targets}}, {}},
      {{"divergence", "--json", "--class-axis", word, "--kind", "js"},
       {{"", logits}, {"", more}, {"--row-weights", row_weights}},
       {{"--per-row", rows}, {"--grad", shape}}},
      {{"check", "--json", "--class-axis", word}, {{"", logits}}, {}},
  };
  if (axis == 1) {
    commands.push_back({{"bce", "--json"},
                        {{"", logits},
                         {"", shares},
                         {"--row-weights", row_weights},
                         {"--class-weights", class_weights},
                         {"--pos-weight", class_weights},
                         {"--element-weights", elements}},
                        {{"--per-element", shape}, {"--grad", shape}}});
  }
  return commands;
}

TEST_F(FormsTest, FortranOrder) {
  for (const auto &[shape, axis] : std::vector<std::pair<Shape, size_t>>{{{6, 5}, 1},
                                                                         {{6, 5}, 0},
                                                                         {{6, 1}, 1},
                                                                         {{1, 5}, 1},
                                                                         {{2, 3, 4}, 1},
                                                                         {{2, 3, 4}, 0},
                                                                         {{2, 3, 4}, 2},
                                                                         {{3, 2, 2, 5}, 1}}) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    for (const Command &command : CommandsOver(shape, axis)) {
      ExpectSame(command, [](size_t) { return &InFortranOrder; });
    }
  }
}

// Where an array has one order, its header's word for it does not matter.
TEST_F(FormsTest, EitherOrderOfOneDimension) {
  for (const Shape &shape : {Shape{6, 1}, {1, 5}, {1, 5, 1}}) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    for (const Command &command : CommandsOver(shape, 1)) {
      for (size_t odd = 0; odd < command.files.size(); ++odd) {
        ExpectSame(command, [odd](size_t k) { return k == odd ? &InFortranOrder : &InCOrder; });
      }
    }
  }
}

TEST_F(FormsTest, OrdersThatDiffer) {
  for (const Command &command : CommandsOver({2, 3, 4}, 1)) {
    for (size_t odd = 1; odd < command.files.size(); ++odd) {
      if (command.files[odd].second.shape.size() == 1) continue;
      SCOPED_TRACE(command.words[0] + " " + command.files[odd].first);
      const std::string path = Path("in" + std::to_string(odd) + ".npy");
      ExpectFailure(Run(command, [odd](size_t k) { return k == odd ? &InFortranOrder : &InCOrder; }), 1,
                    path + ": the array is in Fortran order, expected C order, that of " + Path("in0.npy") +
                        " (numpy.ascontiguousarray gives both C order)");
      ExpectFailure(Run(command, [odd](size_t k) { return k == odd ? &InCOrder : &InFortranOrder; }), 1,
                    path + ": the array is in C order, expected Fortran order, that of ");
    }
  }
}

TEST_F(FormsTest, WrongWeightsOfFortranOrder) {
  Command command = CommandsOver({2, 3, 4}, 1)[0];
  const auto fortran = [](size_t) { return &InFortranOrder; };
  command.files[2].second.values[6] = kNan;
  ExpectFailure(Run(command, fortran), 1, Path("in2.npy") + ": row weight (1, 2) is nan, expected a number");
  // A vector says nothing of the order of rows of more than one dimension.
  command.files[2].second.shape = {8};
  ExpectFailure(Run(command, fortran), 1,
                Path("in2.npy") + ": the shape is (8,), expected (2, 4), that of the rows of " + Path("in0.npy"));
}

TEST_F(FormsTest, ScoresOfFortranOrder) {
  for (const Shape &shape : {Shape{6, 5}, {2, 3, 4}}) {
    Command command = CommandsOver(shape, 1)[2];
    command.words = {"score", "--json"};
    for (const bool with_top : {false, true}) {
      if (with_top) command.words = Joined(command.words, {"--top-k", "2"});
      const auto run = [&](const char *directory, Form form) {
        Command into = command;
        into.words = Joined(into.words, {"--out", Path(directory)});
        return Run(into, [form](size_t) { return form; });
      };
      ExpectSuccess(run("c", &InCOrder));
      const Result result = run("f", &InFortranOrder);
      if (with_top && shape.size() > 2) {
        ExpectFailure(result, 1, "expected C order for the --top-k of rows of more than one dimension");
        continue;
      }
      ExpectSuccess(result);
      const Shape rows = command.files[1].second.shape;
      for (const std::string name : {"lse", "logprob", "argmax", "entropy", "rank"}) {
        SCOPED_TRACE(name);
        const ReadNpy want = SplitNpy(ReadFile(Path("c/" + name + ".npy")));
        const ReadNpy got = SplitNpy(ReadFile(Path("f/" + name + ".npy")));
        EXPECT_EQ(got.shape, want.shape);
        EXPECT_EQ(got.fortran_order, rows.size() > 1);
        const std::vector<double> c = Decode(want.descr, want.data), f = Decode(got.descr, got.data);
        ASSERT_EQ(c.size(), f.size());
        for (size_t i = 0; i < c.size(); ++i) ExpectClose(f[FortranPlace(i, rows)], c[i]);
      }
      if (!with_top) continue;
      EXPECT_TRUE(ReadFile(Path("f/topk_indices.npy")) == ReadFile(Path("c/topk_indices.npy")));
    }
  }
}

TEST_F(FormsTest, DataAtAnyByte) {
  for (const auto &[shape, axis] : std::vector<std::pair<Shape, size_t>>{{{6, 5}, 1}, {{2, 3, 4}, 1}, {{6, 5}, 0}}) {
    SCOPED_TRACE(::testing::PrintToString(shape));
    for (const Command &command : CommandsOver(shape, axis)) {
      ExpectSame(command, [](size_t) { return &ShiftedInCOrder; });
      ExpectSame(command, [](size_t) { return &ShiftedInFortranOrder; });
      for (size_t odd = 0; odd < command.files.size(); ++odd) {
        ExpectSame(command, [odd](size_t k) { return k == odd ? &ShiftedInCOrder : &InCOrder; });
      }
    }
  }
}

// Batches of 8 MB and of 64 MB, and results in place: each batch has the numbers that belong there.
TEST_F(FormsTest, ManyRowsAtAnyByte) {
  constexpr int64_t kRows = 700'000, kCols = 30;
  Random random(5);
  std::vector<float> logits(kRows * kCols);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(random.Uniform(0, 1) * (1 + 1e-6 * static_cast<double>(i)));
  }
  std::vector<uint8_t> targets(kRows);
  for (uint8_t &target : targets) target = static_cast<uint8_t>(random.Next() % kCols);
  Write("aligned.npy", Npy("<f4", {kRows, kCols}, Bytes(logits)));
  Write("shifted.npy", Shifted(Npy("<f4", {kRows, kCols}, Bytes(logits))));
  Write("targets.npy", Npy("|u1", {kRows}, Bytes(targets)));
  Write("list", "shifted.npy\ttargets.npy\n");
  const auto out = [&](const std::string &name, const Words &before, const Words &after) {
    const Result result = Xent(Joined(Joined(before, {Path(name)}), after));
    EXPECT_EQ(result.exit_code, 0) << result.err;  // with the report on it, where an output is on standard output
    return result.out;
  };
  for (const auto &[before, after] : std::vector<std::pair<Words, Words>>{
           {{"loss", "--per-row", "/dev/stdout"}, {Path("targets.npy")}},
           {{"score", "--top-k", "3"}, {Path("targets.npy")}},
           {{"check"}, {}},
           {{"divergence", "--kind", "cross-entropy", "--per-row", "/dev/stdout"}, {Path("aligned.npy")}}}) {
    EXPECT_TRUE(out("aligned.npy", before, after) == out("shifted.npy", before, after)) << before[0];
  }
  const auto loss = [](const Words &words) {
    return JsonNumber(Xent(Joined({"loss", "--json", "--class-weights"}, words)).out, "loss");
  };
  const std::string weights = Write("weights.npy", Npy("<f4", {kCols}, Bytes(std::vector<float>(kCols, 0.7f))));
  const double want = loss({weights, Path("aligned.npy"), Path("targets.npy")});
  EXPECT_LE(ErrorInUlp(XENT_F32, loss({weights, Path("shifted.npy"), Path("targets.npy")}), want), 1);
  EXPECT_LE(ErrorInUlp(XENT_F32, loss({weights, "--manifest", Path("list")}), want), 1);
}

TEST_F(FormsTest, ManyIntegerTargetsOfBce) {
  constexpr int64_t kRows = 500'000, kCols = 9;
  Random random(6);
  std::vector<float> input(kRows * kCols), numbers(input.size());
  std::vector<int32_t> integers(input.size());
  for (size_t i = 0; i < input.size(); ++i) {
    input[i] = static_cast<float>(random.Uniform(-4, 4));
    integers[i] = static_cast<int32_t>(random.Next() % 2);
    numbers[i] = static_cast<float>(integers[i]);
  }
  Write("input.npy", Npy("<f4", {kRows, kCols}, Bytes(input)));
  Write("numbers.npy", Npy("<f4", {kRows, kCols}, Bytes(numbers)));
  Write("integers.npy", Npy("<i4", {kRows, kCols}, Bytes(integers)));
  for (const char *output : {"--per-element", "--grad"}) {
    for (const char *targets : {"numbers", "integers"}) {
      ExpectSuccess(Xent({"bce", Path("input.npy"), Path(targets + std::string(".npy")), output, Path(targets)}));
    }
    EXPECT_TRUE(ReadFile(Path("numbers")) == ReadFile(Path("integers"))) << output;
  }
}

// What is copied is copied batch by batch, without a temporary file.
TEST_F(FormsTest, MemoryIsBounded) {
  if (kAddressSanitizer) GTEST_SKIP() << "the sanitizer's own memory is beyond the limit";
  constexpr int64_t kRows = 2048, kCols = 16384;  // 128 MB
  const std::string header = Shifted(Npy("<f4", {kRows, kCols}, ""));
  const std::string logits = Write("logits.npy", header);
  std::filesystem::resize_file(logits, header.size() + kRows * kCols * sizeof(float));
  const std::string targets = Write("targets.npy", Npy("|u1", {kRows}, std::string(kRows, '\0')));
  const RunOptions limited = {{"TMPDIR=/none"}, [] {
                                const rlimit stack = {8 << 20, 8 << 20};
                                const rlimit data = {28 << 20, 28 << 20};
                                if (setrlimit(RLIMIT_STACK, &stack) != 0 || setrlimit(RLIMIT_DATA, &data) != 0)
                                  _exit(125);
                              }};
  for (const auto &[words, key] : std::vector<std::pair<Words, const char *>>{
           {{"loss", logits, targets, "--per-row", Path("losses.npy"), "--grad", Path("grad.npy")}, "loss"},
           {{"score", logits, targets}, "mean_entropy"},
           {{"divergence", logits, logits, "--kind", "cross-entropy", "--grad", Path("grad.npy")}, "loss"}}) {
    SCOPED_TRACE(words[0]);
    const Result result = Xent(Joined(words, {"--json", "--threads", "2"}), limited);
    ExpectSuccess(result);
    // log V is 14 log 2; the mean of equal losses is that loss, within the 8 ULP of one.
    EXPECT_NEAR(JsonNumber(result.out, key), 9.7040605278392342, 8 * 0x1p-20);
  }
}

// Whole numbers of every integer dtype that holds them.
TEST_F(FormsTest, IntegerTargets) {
  const Array logits = {"<f8", {6, 3}, RandomNumbers(3, 18)};
  Array targets = {"<i8", {6}, {0, 1, 2, 2, 1, 0}};
  const auto json = [&](const Words &options) {
    return Xent(Joined({"loss", "--json", Path("logits.npy"), Path("targets.npy")}, options)).out;
  };
  Write("logits.npy", InCOrder(logits));
  for (const bool masked : {false, true}) {
    SCOPED_TRACE(masked);
    const Words options = masked ? Words{"--ignore-index", "100"} : Words{};
    if (masked) targets.values[4] = 100;
    targets.descr = "<i8";
    Write("targets.npy", InCOrder(targets));
    const std::string want = json(options);
    EXPECT_EQ(JsonText(want, "ignored"), masked ? "1" : "0");
    for (const char *descr : {"|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<u8"}) {
      SCOPED_TRACE(descr);
      targets.descr = descr;
      for (const Form form : {&InCOrder, &ShiftedInCOrder}) {
        Write("targets.npy", form(targets));
        EXPECT_EQ(json(options), want);
        const Result score = Xent(Joined({"score", "--json", Path("logits.npy"), Path("targets.npy")}, options));
        ExpectSuccess(score);
        EXPECT_EQ(JsonText(score.out, "perplexity"), JsonText(want, "perplexity"));
      }
    }
  }
  // A mask: 255 is ignored.
  Write("targets.npy", InCOrder({"|u1", {6}, {0, 255, 2, 2, 255, 0}}));
  EXPECT_EQ(JsonText(json({"--ignore-index", "255"}), "ignored"), "2");
  // The negative number that is ignored without the option.
  Write("targets.npy", InCOrder({"|i1", {6}, {0, -100, 2, 2, -100, 0}}));
  EXPECT_EQ(JsonText(json({}), "ignored"), "2");
}

TEST_F(FormsTest, BoolTargets) {
  Write("logits.npy", InCOrder({"<f8", {3, 2}, RandomNumbers(3, 6)}));
  Write("integers.npy", InCOrder({"<i8", {3}, {1, 0, 1}}));
  Write("bools.npy", InCOrder({"|b1", {3}, {1, 0, 1}}));
  EXPECT_EQ(Xent({"loss", Path("logits.npy"), Path("bools.npy")}).out,
            Xent({"loss", Path("logits.npy"), Path("integers.npy")}).out);
}

TEST_F(FormsTest, IntegerTargetsOutOfRange) {
  const std::string logits = Write("logits.npy", InCOrder({"<f8", {3, 2}, RandomNumbers(3, 6)}));
  const auto failure = [&](const std::string &targets, const Words &options, const std::string &part) {
    const std::string path = Write("targets.npy", targets);
    ExpectFailure(Xent(Joined({"loss", logits, path}, options)), 1, path + ": the target of row 2 is " + part);
    ExpectFailure(Xent(Joined({"score", logits, path}, options)), 1, path + ": the target of row 2 is " + part);
  };
  failure(Npy("|i1", {3}, Bytes<int8_t>({0, 1, -1})), {}, "-1, expected 0 to 1 or the ignored -100");
  failure(Npy("|u1", {3}, Bytes<uint8_t>({0, 1, 255})), {}, "255, expected 0 to 1");
  failure(Npy("<u2", {3}, Bytes<uint16_t>({0, 1, 65535})), {}, "65535, expected 0 to 1");
  failure(Npy("<u4", {3}, Bytes<uint32_t>({0, 1, UINT32_MAX})), {"--ignore-index", "-1"}, "4294967295, expected 0");
  failure(Npy("<u8", {3}, Bytes<uint64_t>({0, 1, INT64_MAX})), {}, "9223372036854775807, expected 0 to 1");
  for (const char *ignored : {"-1", "9223372036854775807"}) {
    failure(Npy("<u8", {3}, Bytes<uint64_t>({0, 1, UINT64_MAX})), {"--ignore-index", ignored},
            "18446744073709551615, expected at most 2^63 - 1");
  }
}

TEST_F(FormsTest, IntegerTargetsOfBce) {
  for (const char *input : {"<f8", "<f4", "<f2"}) {
    Write("input.npy", InCOrder({input, {3, 2}, RandomNumbers(3, 6)}));
    double loss = 0;
    const auto out = [&](const Array &targets, Form form) {
      const Result result = Xent({"bce", "--json", Path("input.npy"), Write("targets.npy", form(targets)), "--grad",
                                  Path("grad.npy"), "--per-element", Path("losses.npy")});
      ExpectSuccess(result);
      loss = JsonNumber(result.out, "loss");
      return ReadFile(Path("grad.npy")) + ReadFile(Path("losses.npy"));
    };
    Array targets = {"<f4", {3, 2}, {1, 0, 0, 1, 1, 1}};
    const std::string want = out(targets, &InCOrder);
    const double want_loss = loss;
    for (const char *descr : {"|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"}) {
      SCOPED_TRACE(std::string(input) + " and " + descr);
      targets.descr = descr;
      for (const Form form : {&InCOrder, &ShiftedInCOrder}) {
        EXPECT_TRUE(out(targets, form) == want);
        EXPECT_LE(ErrorInUlp(std::string(input) == "<f8" ? XENT_F64 : XENT_F32, loss, want_loss), 1);
      }
    }
  }
}

TEST_F(FormsTest, WeightsOfEveryDtype) {
  for (const char *logits : {"<f8", "<f4"}) {
    for (Command command : {CommandsOver({6, 5}, 1)[0], CommandsOver({6, 5}, 1)[5]}) {
      command.files[0].second.descr = logits;
      const auto run = [&](const char *descr) {
        for (auto &[option, array] : command.files) {
          if (option.empty()) continue;
          for (size_t i = 0; i < array.values.size(); ++i) array.values[i] = static_cast<double>(i % 2);
          array.descr = descr;
        }
        const Result result = Run(command, [](size_t) { return &InCOrder; });
        ExpectSuccess(result);
        return result.out + ReadFile(OutputPath(0)) + ReadFile(OutputPath(1));
      };
      const std::string want = run("<f8");
      for (const char *descr : {"<f4", "<f2", "<V2", "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"}) {
        EXPECT_TRUE(run(descr) == want) << command.words[0] << " " << descr;
      }
    }
  }
}

// Returns the command with arrays of rows, and of classes, of other shapes.
Command WithShapes(Command command, const Shape &rows, const Shape &classes) {
  for (auto &[option, array] : command.files) {
    if (option == "--row-weights" || array.descr == "<i8") array.shape = rows;
    if (option == "--class-weights" || option == "--pos-weight") array.shape = classes;
  }
  return command;
}

TEST_F(FormsTest, DimensionsOfOneDoNotCount) {
  for (const size_t which : {0u, 3u, 5u}) {
    const Command command = CommandsOver({6, 5}, 1)[which];
    const std::string want = Run(command, [](size_t) { return &InCOrder; }).out;
    for (const auto &[rows, classes] : std::vector<std::pair<Shape, Shape>>{{{6, 1}, {5, 1}}, {{1, 6}, {1, 5}}}) {
      for (const Form form : {&InCOrder, &InFortranOrder}) {
        SCOPED_TRACE(command.words[0] + ::testing::PrintToString(rows));
        const Result got = Run(WithShapes(command, rows, classes), [&](size_t k) {
          return command.files[k].second.shape == Shape{6, 5} ? &InCOrder : form;
        });
        ExpectSuccess(got);
        EXPECT_EQ(got.out, want);
      }
    }
  }
}

TEST_F(FormsTest, OneRow) {
  for (const size_t which : {0u, 3u}) {
    Command command = CommandsOver({1, 5}, 1)[which];
    const std::string want = Run(command, [](size_t) { return &InCOrder; }).out;
    command.words[3] = "0";  // the class axis of [5]
    for (auto &[option, array] : command.files) {
      if (array.shape.size() == 2) array.shape = {5};
    }
    for (const Shape &rows : {Shape{}, {1}, {1, 1}}) {
      SCOPED_TRACE(command.words[0] + ::testing::PrintToString(rows));
      Command with_rows = WithShapes(command, rows, {5});
      with_rows.outputs = {{"--per-row", {}}, {"--grad", {5}}};
      const Result got = Run(with_rows, [](size_t) { return &InCOrder; });
      ExpectSuccess(got);
      EXPECT_EQ(got.out, want);
      EXPECT_EQ(SplitNpy(ReadFile(OutputPath(0))).shape, "()");
    }
  }
}

}  // namespace
}  // namespace xent_cli_test
