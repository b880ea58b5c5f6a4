// Environment variables of tests.
#pragma once

#include <cstdlib>
#include <string>

namespace penstock::tests {

/// An environment variable for the length of a scope.
class Setting {
 public:
  Setting(const char* name, const std::string& value) : name_(name) {
    const char* before = std::getenv(name);
    given_ = before != nullptr;
    if (given_) before_ = before;
    setenv(name, value.c_str(), 1);
  }
  ~Setting() {
    if (given_) {
      setenv(name_, before_.c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;

 private:
  const char* name_;
  std::string before_;
  bool given_ = false;
};

}  // namespace penstock::tests
