// What the commands print: one JSON object on one line, or aligned lines of text.
#ifndef XENT_SRC_CLI_REPORT_H_
#define XENT_SRC_CLI_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace xent_cli {

// The shortest digits from which the number comes back; "nan", "inf" and "-inf" otherwise.
std::string NumberText(double value);
// The same for a number that was computed as float32, which takes fewer digits.
std::string NumberText(float value);

// A flat JSON object. A floating-point number keeps the digits that give the double back exactly, and so a float32
// stored in it too; what JSON has no number for becomes a string.
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
  // The object, with a line feed.
  std::string Line() const { return "{" + members_ + "}\n"; }

 private:
  void AddRaw(std::string_view key, std::string_view json);
  std::string members_;
};

// A line of the human form: the label, and the value in the column where all values stand.
std::string TextLine(std::string_view label, std::string_view value);

// What a command prints, in the form that the user chose. A label for the text form is the key unless given.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}
  // Left out of the text form where it has no value. `is_float32`: it was computed as float32.
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

// The members with which every computation ends: "target" and "threads".
void AddExecution(Report &report, int threads);

// Writes to standard output (1) or standard error (2); throws Error when that fails.
void Print(int fd, std::string_view text);

}  // namespace xent_cli

#endif  // XENT_SRC_CLI_REPORT_H_
