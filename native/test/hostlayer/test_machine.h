// A machine of its own for each test.
#pragma once

#include <cstdint>

#include "hostlayer.h"

namespace hostlayer {
namespace test {

// As new, with this seed and order; findings are not printed. The machine of the environment comes back at the end.
class Machine {
 public:
  explicit Machine(uint64_t seed = 1, Order order = Order::kRandom) {
    Config c = environment_config();
    c.seed = seed;
    c.order = order;
    c.print = false;
    configure(c);
    reset();
  }
  ~Machine() {
    configure(environment_config());
    reset();
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
};

}  // namespace test
}  // namespace hostlayer
