// Files that are damaged at random: cut short, with other bytes in header or data, with a header of another array. The
// program ends with one of its exit codes, says one line where it fails and nothing else, and leaves no output then.
// XENT_DAMAGED_FILES=N runs N of them.
#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "numbers.h"
#include "program.h"
#include "testing/sanitized.h"

namespace xent_cli_test {
namespace {

class DamageTest : public DirectoryTest {
 protected:
  uint64_t Below(uint64_t n) { return random_.Next() % n; }
  template <typename T>
  T OneOf(const std::vector<T> &choices) {
    return choices[Below(choices.size())];
  }

  std::string RandomBytes(size_t count) {
    std::string bytes(count, '\0');
    for (char &byte : bytes) byte = static_cast<char>(Below(256));
    return bytes;
  }

  // Returns the header of some array. Few of them have the data that follow.
  std::string RandomHeader() {
    std::string shape = OneOf<std::string>({"", "", "6, 3, ", "1048576, ", "3, 1048576, ", "1048576, 3, "});
    for (uint64_t dimensions = shape.empty() ? Below(5) : 0; dimensions > 0; --dimensions) {
      shape += OneOf<std::string>({"0", "1", "2", "3", "6", "-1", "1048576", "4611686018427387904",
                                   "9223372036854775807", "9223372036854775808"}) +
               ", ";
    }
    return "{'descr': '" +
           OneOf<std::string>({"<f4", "<f8", "<f2", "<V2", "|b1", "|u1", "<u2", "<i4", "<i8", "<u8", ">f4", "<c8"}) +
           "', 'fortran_order': " + OneOf<std::string>({"True", "False"}) + ", 'shape': (" + shape + "), }";
  }

  std::string Damaged(std::string file) {
    const size_t header = std::min<size_t>(file.size(), 128);
    switch (Below(6)) {
      case 0:
        file.resize(Below(file.size() + 1));
        break;
      case 1:
        for (uint64_t n = 1 + Below(4); n > 0; --n) file[Below(header)] = static_cast<char>(Below(256));
        break;
      case 2:
        for (uint64_t n = 1 + Below(4); n > 0; --n) file[Below(header)] ^= static_cast<char>(1 << Below(8));
        break;
      case 3:
        for (uint64_t n = 1 + Below(16); n > 0; --n) file[Below(file.size())] = static_cast<char>(Below(256));
        break;
      case 4:
        if (Below(2) == 0) {
          file.erase(Below(file.size()), 1 + Below(9));
        } else {
          file.insert(Below(file.size()), RandomBytes(1 + Below(9)));
        }
        break;
      default:
        file = NpyOfHeader(RandomHeader(), RandomBytes(Below(200)), static_cast<int>(1 + Below(3)));
    }
    return file;
  }

  // Writes a file, or what damage makes of it. One in `n` is damaged.
  std::string File(const char *name, const std::string &file, uint64_t n) {
    return Write(name, Below(n) == 0 ? Damaged(file) : file);
  }

  Random random_{1};
};

TEST_F(DamageTest, EndsInOrder) {
  const char *const wanted = std::getenv("XENT_DAMAGED_FILES");
#if defined(XENT_TEST_SANITIZED)
  constexpr int64_t kUsual = 1000;  // about a minute
#else
  constexpr int64_t kUsual = 700;
#endif
  const int64_t runs = wanted != nullptr ? std::atoll(wanted) : kUsual;
  int64_t failures = 0;
  for (int64_t run = 0; run < runs && !HasFailure(); ++run) {
    random_ = Random(static_cast<uint64_t>(run));
    const std::string descr = OneOf<std::string>({"<f4", "<f8", "<f2", "<V2"});
    const std::vector<int64_t> shape = OneOf<std::vector<int64_t>>({{6, 3}, {2, 3, 3}, {18, 1}, {18}});
    const std::vector<double> numbers(18, 0.25);
    const std::string matrix = Npy(descr, shape, Encode(descr, numbers), Below(4) == 0);
    const std::string targets = NpyOf(OneOf<std::string>({"<i8", "<i4", "|u1", "<u8"}), {6}, {0, 1, 2, 2, 1, 0});
    const std::string first = File("first", matrix, 2);
    // Two that are damaged alike agree in dtype and shape.
    const std::string second =
        Below(4) == 0 ? Write("second", ReadFile(first)) : File("second", Below(3) == 0 ? matrix : targets, 2);
    const std::string rows = File("rows", NpyOf("<f4", {6}, {1, 2, 3, 4, 5, 6}), 4);
    const std::string classes = File("classes", NpyOf("<f2", {3}, {1, 2, 3}), 4);
    const Words words =
        OneOf<Words>({{"loss", first, second},
                      {"loss", first, second, "--row-weights", rows, "--class-weights", classes, "--grad", Path("out")},
                      {"score", first, second, "--top-k", "2"},
                      {"divergence", first, second, "--per-row", Path("out")},
                      {"divergence", first, second, "--row-weights", rows, "--grad", Path("out")},
                      {"bce", first, second, "--per-element", Path("out")},
                      {"bce", first, second, "--row-weights", rows, "--element-weights", second, "--grad", Path("out")},
                      {"check", first},
                      {"check", first, "--class-axis=-1", "--valid-cols", "2"}});
    SCOPED_TRACE("run " + std::to_string(run) + ": " + ::testing::PrintToString(words));
    const Result result = Xent(words);
    if (result.exit_code == 0 || result.exit_code == 3) {
      EXPECT_EQ(result.err, "");
      EXPECT_NE(result.out, "");
      std::remove(Path("out").c_str());
    } else {
      ++failures;
      ExpectFailure(result, 1, "");
      EXPECT_EQ(Names(), "classes first rows second");
    }
  }
  EXPECT_TRUE(failures > runs / 4 && failures < runs - runs / 16) << failures << " failures: a weak test";
}

}  // namespace
}  // namespace xent_cli_test
