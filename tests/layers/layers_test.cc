// The layers of src/, read from its #include lines: each directory includes itself and what stands below it, and
// nothing else. Highway is known to kernels, numbers and dispatch alone, OpenMP to one file, errors to the border
// alone; the public headers include no header of the library's inside, and the command line sees nothing but the public
// headers. Each violation is a failure with file, line and the include.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace xent::test {
namespace {

namespace fs = std::filesystem;
using Names = std::set<std::string>;

const fs::path kSource = XENT_SOURCE_DIR;

struct Include {
  std::string file;  // from the project's root
  int line;
  std::string name;  // between the quotes or brackets
  bool is_system;    // in brackets
  std::string Text() const {
    return file + ":" + std::to_string(line) + ": #include " + (is_system ? "<" + name + ">" : "\"" + name + "\"");
  }
};

// The sources below a directory of the project, from its root, in a fixed order.
std::vector<std::string> FilesIn(const std::string &directory) {
  std::vector<std::string> files;
  for (const fs::directory_entry &entry : fs::recursive_directory_iterator(kSource / directory)) {
    const std::string extension = entry.path().extension();
    if (extension == ".h" || extension == ".cc" || extension == ".hpp") {
      files.push_back(fs::relative(entry.path(), kSource).generic_string());
    }
  }
  std::sort(files.begin(), files.end());
  EXPECT_FALSE(files.empty()) << directory;
  return files;
}

// Calls f(line's number, line) for each line of a file.
template <typename F>
void ForEachLine(const std::string &file, F &&f) {
  std::ifstream in(kSource / file);
  EXPECT_TRUE(in.good()) << file;
  int number = 0;
  for (std::string line; std::getline(in, line);) f(++number, line);
}

std::vector<Include> IncludesOf(const std::string &file) {
  static const std::regex kPattern("^\\s*#\\s*include\\s*([<\"])([^>\"]+)[>\"]");
  std::vector<Include> includes;
  ForEachLine(file, [&](int number, const std::string &line) {
    std::smatch match;
    if (std::regex_search(line, match, kPattern)) includes.push_back({file, number, match[2], match[1] == "<"});
  });
  return includes;
}

// The first directory of a path; "" where it has none.
std::string FirstPart(const std::string &path) {
  const size_t slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

// What the sources of each layer may include with quotes: directories of src/, "hwy", "xent" for the public headers.
const std::map<std::string, Names> kLayers = {
    {"numbers", {"numbers", "hwy"}},
    {"kernels", {"kernels", "numbers", "hwy"}},
    {"dispatch", {"dispatch", "kernels", "numbers", "hwy"}},
    {"parallel", {"parallel", "xent"}},
    {"rows", {"rows", "dispatch", "kernels", "numbers", "parallel", "xent"}},
    {"api", {"api", "rows", "dispatch", "parallel", "numbers", "xent"}},
    {"cli", {"cli", "xent"}},
};

// The layer or library that an include names. A header of the command line's own has no directory.
std::string PartOf(const Include &include) {
  const std::string part = FirstPart(include.name);
  if (part.empty() && fs::exists(kSource / fs::path(include.file).parent_path() / include.name)) {
    return FirstPart(include.file.substr(std::string("src/").size()));
  }
  return part.empty() ? include.name : part;
}

TEST(Layers, IncludeWhatStandsBelowThem) {
  for (const std::string &file : FilesIn("src")) {
    const std::string layer = FirstPart(file.substr(std::string("src/").size()));
    const auto allowed = kLayers.find(layer);
    ASSERT_NE(allowed, kLayers.end()) << file << " is in a layer that no rule knows";
    for (const Include &include : IncludesOf(file)) {
      if (include.is_system) continue;
      const std::string part = PartOf(include);
      EXPECT_EQ(allowed->second.count(part), 1u) << include.Text() << ": " << layer << " may not include " << part;
      if (part == "xent" && layer != "cli") {
        EXPECT_EQ(include.name, "xent/xent.h") << include.Text();
      }
    }
  }
}

TEST(Layers, NameHeadersThatExist) {
  // So that a header that has moved is not found by chance somewhere else.
  for (const std::string &file : FilesIn("src")) {
    for (const Include &include : IncludesOf(file)) {
      const std::string part = PartOf(include);
      if (include.is_system || part == "hwy") continue;
      const fs::path place = part == "xent"                    ? kSource / "include" / include.name
                             : FirstPart(include.name).empty() ? (kSource / file).parent_path() / include.name
                                                               : kSource / "src" / include.name;
      EXPECT_TRUE(fs::exists(place)) << include.Text();
    }
  }
}

// Highway compiles the file that it is told once for each SIMD target.
TEST(Layers, TellHighwayTheFileItself) {
  const std::regex pattern("^#define HWY_TARGET_INCLUDE \"(.*)\"");
  for (const std::string &file : FilesIn("src")) {
    ForEachLine(file, [&](int number, const std::string &line) {
      std::smatch match;
      if (std::regex_search(line, match, pattern)) {
        EXPECT_EQ("src/" + match[1].str(), file) << file << ":" << number;
      }
    });
  }
}

// Headers in brackets that are for some files only.
TEST(Layers, KeepSystemHeadersInTheirPlaces) {
  for (const std::string &file : FilesIn("src")) {
    const std::string layer = FirstPart(file.substr(std::string("src/").size()));
    for (const Include &include : IncludesOf(file)) {
      if (!include.is_system) continue;
      if (include.name == "omp.h") {
        EXPECT_EQ(file, "src/parallel/openmp.cc") << include.Text();
      }
      const bool is_simd = include.name.ends_with("intrin.h") || include.name.starts_with("arm_");
      if (is_simd) {
        EXPECT_EQ(layer, "numbers") << include.Text() << ": intrinsics are Highway's, or numbers'";
      }
      EXPECT_EQ(kLayers.count(FirstPart(include.name)), 0u) << include.Text() << ": a layer's header takes quotes";
      EXPECT_NE(FirstPart(include.name), "hwy") << include.Text() << ": Highway's headers take quotes";
      EXPECT_NE(FirstPart(include.name), "xent") << include.Text() << ": the public headers take quotes";
    }
  }
}

TEST(Layers, OfRowsKnowNoErrors) {
  for (const std::string &file : FilesIn("src/rows")) {
    ForEachLine(file, [&](int number, const std::string &line) {
      EXPECT_EQ(line.find("xent_error"), std::string::npos) << file << ":" << number << ": " << line;
    });
  }
}

// The directives of OpenMP, and its functions.
TEST(Layers, KnowOpenMpInOneFile) {
  const std::regex pattern("#\\s*pragma\\s+omp|\\bomp_\\w+\\(");
  for (const std::string &file : FilesIn("src")) {
    if (file == "src/parallel/openmp.cc") continue;
    ForEachLine(file, [&](int number, const std::string &line) {
      EXPECT_FALSE(std::regex_search(line, pattern)) << file << ":" << number << ": " << line;
    });
  }
}

TEST(Layers, PublicHeadersIncludeNothingOfTheInside) {
  for (const std::string &file : FilesIn("include")) {
    for (const Include &include : IncludesOf(file)) {
      if (include.name == "xent/xent.h") continue;
      EXPECT_TRUE(include.is_system && FirstPart(include.name).empty()) << include.Text() << ": not a standard header";
    }
  }
}

TEST(Layers, ExamplesSeeThePublicHeadersOnly) {
  for (const std::string &file : FilesIn("examples")) {
    for (const Include &include : IncludesOf(file)) {
      const std::string part = FirstPart(include.name);
      EXPECT_EQ(kLayers.count(part), 0u) << include.Text();
      EXPECT_NE(part, "hwy") << include.Text();
    }
  }
}

}  // namespace
}  // namespace xent::test
