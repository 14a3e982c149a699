// The file of golden hashes; see golden.h.
#include "testing/golden.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <set>

#include "testing/exec.h"
#include "testing/target.h"

namespace xent::test {
namespace {

constexpr const char *kFile = XENT_SOURCE_DIR "/tests/kernels/golden_hashes.txt";

struct Section {
  std::string columns;
  std::vector<std::string> lines;
};
using Sections = std::map<std::string, Section>;

// "[name] columns" begins a section.
Sections ReadSections(const std::string &path) {
  std::ifstream in(path);
  Sections sections;
  Section *section = nullptr;
  for (std::string line; std::getline(in, line);) {
    if (line.empty() || line[0] == '#') continue;
    if (line[0] == '[') {
      const size_t end = line.find(']');
      section = &sections[line.substr(1, end - 1)];
      section->columns = line.substr(std::min(line.size(), end + 2));
    } else if (section != nullptr) {
      section->lines.push_back(line);
    }
  }
  return sections;
}

void WriteSections(const std::string &path, const Sections &sections) {
  std::ofstream out(path);
  out << "# Hashes (FNV-1a, 64 bits) of what fixed inputs give on every target with fused multiply-add, by any number\n"
         "# of threads. Written by the tests called *Hashes; tests/testing/golden.h says how.\n";
  for (const auto &[name, section] : sections) {
    out << "\n[" << name << "] " << section.columns << "\n";
    for (const std::string &line : section.lines) out << line << "\n";
  }
  ASSERT_TRUE(out.good()) << path;
}

// Whether this process is to write the section, once: for the first target that asks.
bool TakesUpdate(const std::string &section) {
  static std::set<std::string> taken;
  return std::getenv("XENT_UPDATE_HASHES") != nullptr && taken.insert(section).second;
}

}  // namespace

void ExpectGolden(const std::string &target, const std::string &section, const std::string &columns,
                  const std::function<std::vector<std::string>(const xent_exec &)> &lines_of) {
  if (!HasFusedMultiplyAdd(target)) GTEST_SKIP() << target << " has no fused multiply-add";
  const char *const update = std::getenv("XENT_UPDATE_HASHES");
  const std::string path = update == nullptr ? kFile : update;
  Sections sections = ReadSections(path);
  for (const int32_t threads : {1, 2, 3, 8}) {
    const std::vector<std::string> lines = lines_of(TeamOf(threads));
    if (threads == 1 && TakesUpdate(section)) {
      sections[section] = {columns, lines};
      WriteSections(path, sections);
    }
    const std::vector<std::string> &want = sections[section].lines;
    ASSERT_EQ(lines.size(), want.size()) << path << " is missing, or its section [" << section << "] is of other lines";
    for (size_t k = 0; k < lines.size(); ++k) EXPECT_EQ(lines[k], want[k]) << target << ", " << threads << " threads";
  }
}

}  // namespace xent::test
