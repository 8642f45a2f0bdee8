// The spec's headers stand alone, as C++17 as well: CUDA compiles them that way. All that they have is templates, so the
// kernels are compiled here too.
#include "../spec/units.h"
#include "../spec/order.h"
#include "../spec/random.h"
#include "../spec/potential.h"
#include "../spec/layer.h"
#include "../spec/types.h"
#include "../spec/cost.h"
#include "../spec/tables.h"
#include "../spec/bound.h"
#include "../spec/construct.h"
#include "../spec/search.h"
#include "../spec/walk.h"
#include "../spec/pressure.h"
#include "../spec/queue_key.h"
#include "../spec/score_columns.h"
#include "../spec/score.h"
#include "../spec/statistics.h"

#include <atomic>
#include <cstddef>

#include "../solver/cpu/kernels.h"

#define GIMBAL_ISA isa_cxx17
#define GIMBAL_ISA_NAME "C++17"
#include "../solver/cpu/kernels.inc"

namespace gimbal {
const CpuKernels& kernels_cxx17();
const CpuKernels& kernels_cxx17() { return isa_cxx17::kKernels; }
}  // namespace gimbal
