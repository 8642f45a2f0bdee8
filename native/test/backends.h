// Every backend that this machine has, for tests that hold each to the same.
#pragma once

#include <vector>

#include "../solver/registry.h"

namespace gimbal {
namespace test {

inline std::vector<Backend*> backends() {
  std::vector<Backend*> all;
  for (const BackendInfo& info : list_backends()) {
    if (info.available) all.push_back(&select_backend(info.name == "cpu" ? BackendChoice::kCpu : BackendChoice::kCuda, 0).backend);
  }
  return all;
}

}  // namespace test
}  // namespace gimbal
