// Compiles the kernels' bodies, which name their Team as TeamCpu, over the shuffled one.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "shuffled_kernels.h"
#include "shuffled_team.h"

#define GIMBAL_ISA isa_shuffled
#define GIMBAL_ISA_NAME "shuffled team"
#include "../solver/cpu/team_cpu.h"  // before the name is taken: kernels.inc then leaves it out

namespace gimbal {
namespace isa_shuffled {
using test::ShuffledTeam;
}
}  // namespace gimbal

#define TeamCpu ShuffledTeam
#include "../solver/cpu/kernels.inc"

namespace gimbal {
const CpuKernels& kernels_shuffled() { return isa_shuffled::kKernels; }
}  // namespace gimbal
