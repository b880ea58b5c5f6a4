// What a person has set in the environment.
#pragma once

#include <cstdlib>

namespace penstock::cuda {

/// An environment variable's number; `otherwise` where it is not set.
inline int setting(const char* name, int otherwise = 0) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

}  // namespace penstock::cuda
