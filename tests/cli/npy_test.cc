// Input files: every form of the .npy format that is read, and one clear line for everything else.
#include <sys/stat.h>

#include <string>
#include <vector>

#include "program.h"

namespace xent_cli_test {
namespace {

const std::string kLogitsData = Bytes<float>({1, 2, 3, 4, 5, 6});
const std::string kTargetsData = Bytes<int32_t>({0, 2});

class NpyTest : public DirectoryTest {
 protected:
  void SetUp() override {
    DirectoryTest::SetUp();
    targets_ = Write("targets.npy", Npy("<i4", {2}, kTargetsData));
    good_ = LossOf(Npy("<f4", {2, 3}, kLogitsData));
    ExpectSuccess(good_);
  }

  Result LossOf(const std::string &logits) { return Xent({"loss", Write("logits.npy", logits), targets_, "--json"}); }

  // The logits are read, and are the same numbers.
  void ExpectGood(const std::string &logits) {
    const Result result = LossOf(logits);
    ExpectSuccess(result);
    EXPECT_EQ(result.out, good_.out);
  }

  Result good_;
};

TEST_F(NpyTest, FormatVersions) {
  for (const int version : {1, 2, 3}) {
    SCOPED_TRACE(version);
    ExpectGood(NpyOfHeader("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", kLogitsData, version));
  }
}

TEST_F(NpyTest, HeadersThatPythonWouldReadToo) {
  for (const char *header : {
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
           "{\"shape\":(2,3,),\"fortran_order\":False,\"descr\":\"<f4\"}",
           "  {\t'fortran_order' : False ,\n 'shape' : ( 2 , 3 ) , 'descr' : '<f4' } \t ",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }",
       }) {
    SCOPED_TRACE(header);
    ExpectGood(NpyOfHeader(header, kLogitsData));
  }
}

TEST_F(NpyTest, BytesAfterTheDataAreNotRead) { ExpectGood(Npy("<f4", {2, 3}, kLogitsData + "more")); }

// NumPy before 1.14 aligned the data to 16 bytes, and other programs align them to nothing.
TEST_F(NpyTest, DataAtAnyByte) {
  const std::string dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
  for (const int version : {1, 2, 3}) {
    for (size_t length = dictionary.size() + 1; length < dictionary.size() + 18; ++length) {
      std::string file("\x93NUMPY", 6);
      file += {static_cast<char>(version), '\0', static_cast<char>(length), '\0'};
      if (version > 1) file += {'\0', '\0'};
      file += dictionary + std::string(length - dictionary.size() - 1, ' ') + "\n" + kLogitsData;
      SCOPED_TRACE("version " + std::to_string(version) + ", length " + std::to_string(length));
      ExpectGood(file);
    }
  }
}

TEST_F(NpyTest, Bfloat16WithEitherByteOrderMark) {
  const std::string data = Bytes<uint16_t>({0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0});  // 1 to 6
  ExpectGood(Npy("<V2", {2, 3}, data));
  ExpectGood(Npy("|V2", {2, 3}, data));
}

TEST_F(NpyTest, WrongDtypes) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {">f4", "the dtype is '>f4' (big-endian), expected logits of '<f4'"},
      {">f8", "the dtype is '>f8' (big-endian)"},
      {">f2", "the dtype is '>f2' (big-endian)"},
      {">V2", "the dtype is '>V2' (big-endian)"},
      {"<i4", "the dtype is '<i4', expected logits of"},
      {"<i8", "the dtype is '<i8'"},
      {"|b1", "the dtype is '|b1'"},
      {"|u1", "the dtype is '|u1'"},
      {"<c8", "the dtype is '<c8'"},
      {"|V4", "the dtype is '|V4'"},
      {"<U3", "the dtype is '<U3'"},
      {"|S4", "the dtype is '|S4'"},
      {"|O", "the dtype is '|O'"},
      {"<f16", "the dtype is '<f16'"},
      {"f4", "the dtype is 'f4'"},
      {"<M8[ns]", "the dtype is '<M8[ns]'"},
  };
  for (const auto &[descr, part] : cases) {
    SCOPED_TRACE(descr);
    ExpectFailure(LossOf(Npy(descr, {2, 3}, std::string(96, '\0'))), 1, Path("logits.npy") + ": " + part);
  }
  const std::vector<std::pair<std::string, std::string>> target_cases = {
      {">i4", "the dtype is '>i4' (big-endian), expected targets of an integer dtype or '|b1'"},
      {">i8", "the dtype is '>i8' (big-endian)"},
      {">u2", "the dtype is '>u2' (big-endian)"},
      {"<f4", "the dtype is '<f4', expected targets of an integer dtype or '|b1'"},
      {"<i16", "the dtype is '<i16'"},
      {"<m8", "the dtype is '<m8'"},
  };
  const std::string logits = Write("logits.npy", Npy("<f4", {2, 3}, kLogitsData));
  for (const auto &[descr, part] : target_cases) {
    SCOPED_TRACE(descr);
    const std::string targets = Write("other.npy", Npy(descr, {2}, std::string(16, '\0')));
    ExpectFailure(Xent({"loss", logits, targets}), 1, targets + ": " + part);
  }
}

TEST_F(NpyTest, Bfloat16UnderAnotherName) {
  for (const char *descr : {"<u2", "<i2", "bfloat16"}) {
    SCOPED_TRACE(descr);
    ExpectFailure(LossOf(Npy(descr, {2, 3}, std::string(12, '\0'))), 1,
                  std::string("the dtype is '") + descr +
                      "', expected logits of '<f4', '<f8', '<f2', or bfloat16 as '<V2' or '|V2' (where it holds the "
                      "bits of bfloat16, save its .view('V2'))");
  }
}

TEST_F(NpyTest, StructuredDtypes) {
  for (const char *descr :
       {"[('a', '<f4'), ('b', '<i4', (2, 3))]", "[]", "('<f4', (2,))", "[('a}', '<f4'), (\"]\", '<f4')]"}) {
    SCOPED_TRACE(descr);
    const std::string header = std::string("{'descr': ") + descr + ", 'fortran_order': False, 'shape': (2, 3), }";
    ExpectFailure(LossOf(NpyOfHeader(header, std::string(96, '\0'))), 1, "the dtype is structured, expected logits");
  }
}

TEST_F(NpyTest, FortranOrder) {
  // Rows (1, 3, 5) and (2, 4, 6).
  const Result fortran = LossOf(Npy("<f4", {2, 3}, kLogitsData, true));
  ExpectSuccess(fortran);
  EXPECT_EQ(JsonText(fortran.out, "loss"),
            JsonText(LossOf(Npy("<f4", {2, 3}, Bytes<float>({1, 3, 5, 2, 4, 6}))).out, "loss"));
}

TEST_F(NpyTest, WrongShapes) {
  const auto failure = [&](const std::vector<int64_t> &shape) { return LossOf(Npy("<f4", shape, kLogitsData)); };
  ExpectFailure(failure({}), 1, "the shape is (), expected logits [rows, columns]");
  // These are logits, but not of two rows.
  ExpectFailure(failure({6}), 1, "the shape is (2,), expected ()");
  ExpectFailure(failure({1, 2, 3}), 1, "the shape is (2,), expected (1, 3)");
  ExpectFailure(failure({2, 0}), 1, "the shape is (2, 0), expected at least one column");
  ExpectFailure(failure({0, 0}), 1, "the shape is (0, 0), expected at least one column");
  const std::string logits = Write("logits.npy", Npy("<f4", {2, 3}, kLogitsData));
  ExpectFailure(Xent({"loss", logits, Write("other.npy", Npy("<i4", {}, kTargetsData))}), 1,
                "the shape is (), expected targets [rows]");
  ExpectFailure(Xent({"loss", logits, Write("other.npy", Npy("<i4", {2, 2}, kTargetsData + kTargetsData))}), 1,
                "the shape is (2, 2), expected targets [rows]");
}

TEST_F(NpyTest, BrokenHeaders) {
  for (const char *header : {
           "",
           "{",
           "}",
           "{}",
           "[]",
           "{'descr': '<f4', 'fortran_order': False}",
           "{'descr': '<f4', 'shape': (2, 3)}",
           "{'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)} x",
           "{'descr': '<f4' 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '<f4',, 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2,, 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (, 2, 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (6)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': [2, 3]}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2.0, 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 9223372036854775808)}",
           "{'descr': '<f4', 'fortran_order': 0, 'shape': (2, 3)}",
           "{'descr': None, 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '', 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '<f4, 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': [('a', '<f4'), 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': ], 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
           "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}",
           "{descr: '<f4', 'fortran_order': False, 'shape': (2, 3)}",
       }) {
    SCOPED_TRACE(header);
    ExpectFailure(LossOf(NpyOfHeader(header, kLogitsData)), 1, Path("logits.npy") + ": the .npy header ");
  }
  std::string dimensions;
  for (int i = 0; i < 65; ++i) dimensions += "1, ";
  ExpectFailure(
      LossOf(NpyOfHeader("{'descr': '<f4', 'fortran_order': False, 'shape': (" + dimensions + ")}", kLogitsData)), 1,
      "more than 64 dimensions");
}

TEST_F(NpyTest, OtherFormats) {
  std::string unknown = Npy("<f4", {2, 3}, kLogitsData);
  unknown[6] = 4;
  ExpectFailure(LossOf(unknown), 1, ".npy format version 4.0, expected 1.0, 2.0 or 3.0");
  unknown[6] = 1;
  unknown[7] = 1;
  ExpectFailure(LossOf(unknown), 1, ".npy format version 1.1, expected");
  for (const char *archive : {"PK\x03\x04 and so on", "PK\x05\x06, an empty one"}) {
    ExpectFailure(LossOf(archive), 1,
                  "an .npz archive, expected one of the .npy files in it (an .npz is a zip file: unzip it)");
  }
  ExpectFailure(LossOf("1.0 2.0 3.0\n"), 1, "not a .npy file");
  ExpectFailure(LossOf(""), 1, "not a .npy file (it is empty)");
}

TEST_F(NpyTest, TruncatedAnywhere) {
  const std::string logits = Npy("<f4", {2, 3}, kLogitsData);
  for (size_t size = 1; size < logits.size(); ++size) {
    SCOPED_TRACE(size);
    ExpectFailure(LossOf(logits.substr(0, size)), 1, "truncated");
  }
  ExpectFailure(LossOf(logits.substr(0, logits.size() - 1)), 1,
                "truncated: shape (2, 3) of '<f4' needs 24 bytes of data, found 23");
  const std::string path = Write("logits.npy", logits);
  const std::string targets = Write("other.npy", Npy("<i4", {2}, kTargetsData.substr(1)));
  ExpectFailure(Xent({"loss", path, targets}), 1,
                targets + ": truncated: shape (2,) of '<i4' needs 8 bytes of data, found 7");
}

TEST_F(NpyTest, ShapesBeyondEveryFile) {
  ExpectFailure(LossOf(Npy("<f4", {1 << 20, 1 << 20}, kLogitsData)), 1, "needs 4398046511104 bytes of data, found 24");
  ExpectFailure(LossOf(Npy("<f4", {int64_t{1} << 62, 2}, kLogitsData)), 1,
                "needs more than 2^63 bytes of data, found 24");
  ExpectFailure(LossOf(Npy("<f4", {INT64_MAX, INT64_MAX}, kLogitsData)), 1, "needs more than 2^63 bytes of data");
}

TEST_F(NpyTest, PathsThatAreNoFiles) {
  ExpectFailure(Xent({"loss", Path("missing.npy"), targets_}), 1,
                "cannot read " + Path("missing.npy") + ": No such file or directory");
  ExpectFailure(Xent({"loss", Path("logits.npy"), Path("missing.npy")}), 1, "cannot read " + Path("missing.npy"));
  ExpectFailure(Xent({"loss", directory_, targets_}), 1, "cannot read " + directory_ + ": Is a directory");
  ExpectFailure(Xent({"loss", targets_ + "/x", targets_}), 1, "Not a directory");
  ExpectFailure(Xent({"loss", "", targets_}), 1, "cannot read : No such file");
  ExpectFailure(Xent({"loss", "/dev/null", targets_}), 1, "cannot read /dev/null: not a regular file");
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  ExpectFailure(Xent({"loss", Path("fifo"), targets_}), 1, "not a regular file, which a memory map needs");
  ExpectFailure(Xent({"loss", Path("new\nline"), targets_}), 1, "new\\x0aline");
}

TEST_F(NpyTest, CheckReadsTheSameWay) {
  ExpectFailure(Xent({"check", Path("missing.npy")}), 1, "cannot read " + Path("missing.npy"));
  const std::string integers = Write("other.npy", Npy("<i4", {2, 3}, std::string(24, '\0')));
  ExpectFailure(Xent({"check", integers, "--json"}), 1, "the dtype is '<i4', expected logits of");
  const std::string scalar = Write("other.npy", Npy("<f4", {}, kLogitsData));
  ExpectFailure(Xent({"check", scalar}), 1, "the shape is (), expected logits [rows, columns]");
}

}  // namespace
}  // namespace xent_cli_test
