// The output of the commands: one JSON object on one line, or aligned lines of text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace xent_cli {

// Returns the shortest digits from which the number comes back, or "nan", "inf" and "-inf".
std::string NumberText(double value);
// Returns the digits of a number that was computed as float32, which takes fewer.
std::string NumberText(float value);

// A flat JSON object. A floating-point number keeps the digits that give the double back exactly, and with it a float32
// stored in it. NaN and the infinities, which JSON lacks, become strings.
class JsonObject {
 public:
  void Add(std::string_view key, double value);
  void Add(std::string_view key, int64_t value);
  void Add(std::string_view key, std::string_view value);
  void Add(std::string_view key, const char *value) { Add(key, std::string_view(value)); }
  void Add(std::string_view key, const std::vector<std::string> &values);
  template <typename T>
  void Add(std::string_view key, const std::optional<T> &value) {
    if (value) {
      Add(key, *value);
    } else {
      AddRaw(key, "null");
    }
  }
  // Returns the object with a line feed.
  std::string Line() const { return "{" + members_ + "}\n"; }

 private:
  void AddRaw(std::string_view key, std::string_view json);
  std::string members_;
};

// Returns a line of the text form: the label, and the value in the column where all values stand.
std::string TextLine(std::string_view label, std::string_view value);

// The report of a command, in the form that the user chose. In the text form an empty label stands for the key.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}
  // Adds a number; the text form leaves it out where it has no value. `is_float32`: it was computed as float32.
  void AddNumber(std::string_view key, const std::optional<double> &value, bool is_float32,
                 std::string_view label = {});
  void Add(std::string_view key, int64_t value, std::string_view label = {});
  void Add(std::string_view key, std::string_view value, std::string_view label = {});
  std::string Text() const { return json_ ? object_.Line() : text_; }

 private:
  const bool json_;
  JsonObject object_;
  std::string text_;
};

// Adds the members with which the report of every computation ends: "target" and "threads".
void AddExecution(Report &report, int threads);

// Writes to standard output (1) or standard error (2); throws Error when that fails.
void Print(int fd, std::string_view text);

}  // namespace xent_cli
