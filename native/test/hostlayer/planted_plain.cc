// The planted kernels as they are.
#define PLANTED_NAMESPACE plain
#include "planted.inc"

namespace hostlayer {
namespace test {

PlantedKernels planted_plain() { return plain::all("plain"); }

}  // namespace test
}  // namespace hostlayer
