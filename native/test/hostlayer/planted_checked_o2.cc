// The planted kernels compiled with -fsanitize=thread -O2.
#define PLANTED_NAMESPACE checked_o2
#include "planted.inc"

namespace hostlayer {
namespace test {

PlantedKernels planted_checked_o2() { return checked_o2::all("checked_o2"); }

}  // namespace test
}  // namespace hostlayer
