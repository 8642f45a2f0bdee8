// The planted kernels compiled with -fsanitize=thread -O1.
#define PLANTED_NAMESPACE checked_o1
#include "planted.inc"

namespace hostlayer {
namespace test {

PlantedKernels planted_checked_o1() { return checked_o1::all("checked_o1"); }

}  // namespace test
}  // namespace hostlayer
