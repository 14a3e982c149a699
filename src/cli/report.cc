// Formatting of numbers, JSON and text.
#include "report.h"

#include <unistd.h>

#include <charconv>
#include <cmath>

#include "error.h"
#include "output.h"
#include "xent/xent.h"

namespace xent_cli {
namespace {

template <typename T>
std::string Digits(T value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
}

std::string JsonString(std::string_view text) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string json = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      json += {'\\', c};
    } else if (byte < 0x20 || byte == 0x7f) {
      json += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15]};
    } else if (byte > 0x7f) {
      json += "\\ufffd";  // only an environment variable that is not understood has bytes beyond ASCII
    } else {
      json += c;
    }
  }
  return json + '"';
}

}  // namespace

std::string NumberText(double value) { return Digits(value); }
std::string NumberText(float value) { return Digits(value); }

void JsonObject::AddRaw(std::string_view key, std::string_view json) {
  if (!members_.empty()) members_ += ", ";
  members_ += JsonString(key) + ": ";
  members_ += json;
}

void JsonObject::Add(std::string_view key, double value) {
  AddRaw(key, std::isfinite(value) ? Digits(value) : JsonString(Digits(value)));
}

void JsonObject::Add(std::string_view key, int64_t value) { AddRaw(key, std::to_string(value)); }

void JsonObject::Add(std::string_view key, std::string_view value) { AddRaw(key, JsonString(value)); }

void JsonObject::Add(std::string_view key, const std::vector<std::string> &values) {
  std::string json = "[";
  for (const std::string &value : values) json += (json.size() > 1 ? ", " : "") + JsonString(value);
  AddRaw(key, json + "]");
}

std::string TextLine(std::string_view label, std::string_view value) {
  constexpr size_t kColumn = 12;
  std::string line(label);
  line.append(label.size() < kColumn ? kColumn - label.size() : 1, ' ');
  return line + Printable(value) + "\n";
}

void Report::AddNumber(std::string_view key, const std::optional<double> &value, bool is_float32,
                       std::string_view label) {
  object_.Add(key, value);
  if (!value) return;
  text_ +=
      TextLine(label.empty() ? key : label, is_float32 ? NumberText(static_cast<float>(*value)) : NumberText(*value));
}

void Report::Add(std::string_view key, int64_t value, std::string_view label) {
  object_.Add(key, value);
  text_ += TextLine(label.empty() ? key : label, std::to_string(value));
}

void Report::Add(std::string_view key, std::string_view value, std::string_view label) {
  object_.Add(key, value);
  text_ += TextLine(label.empty() ? key : label, value);
}

void AddExecution(Report &report, int threads) {
  report.Add("target", xent_active_target());
  report.Add("threads", int64_t{threads});
}

void Print(int fd, std::string_view text) {
  WriteAll(fd, text, fd == STDOUT_FILENO ? "standard output" : "standard error");
}

}  // namespace xent_cli
