// A PTX program, decoded: kernels as arrays of instructions whose operands are numbers of registers. Constants, symbols and
// special registers are registers too, filled before a warp starts, so that executing an instruction never asks what kind of
// operand it has.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace hostlayer {

enum class PtxOp : uint8_t {
  kMov, kAdd, kSub, kMul, kMulHigh, kMulWide, kMad, kMadWide, kDiv, kRem, kMin, kMax, kNeg, kNot, kAnd, kOr, kXor, kShl, kShr,
  kBfi, kBfe, kPermute, kReverse, kLeadingZeros, kFindTop, kPopulation, kSelp, kSetp, kCvt, kPack, kUnpack, kToShared, kFromShared,
  kMovPred, kNotPred, kAndPred, kOrPred, kXorPred,
  kLoad, kStore, kLoadParam, kAtomicAdd, kAtomicExchange,
  kShuffleXor, kBallot, kReduceMin, kReduceMax, kReduceAdd, kReduceAnd, kReduceOr,
  kSyncWarp, kBarrier, kBranch, kReturn,
};

enum class PtxCompare : uint8_t { kEqual, kUnequal, kLess, kLessEqual, kGreater, kGreaterEqual };
enum class PtxSpace : uint8_t { kGeneric, kGlobal, kShared };

struct PtxType {
  uint8_t bits = 32;
  bool is_signed = false;
};

struct PtxInstruction {
  PtxOp op{};
  PtxType type;       // of the operation, or of the cells that a load or store moves
  PtxType from;       // what kCvt reads
  PtxCompare compare{};
  PtxSpace space{};
  uint8_t count = 1;  // cells of a vector access, or parts of a pack
  uint8_t bits = 0;   // of the register that is written
  bool find = false;  // of nothing, the answer is all ones (bfind), not the width (clz)
  bool guard_negated = false;
  int16_t guard = -1;  // a predicate; -1: none
  int16_t predicate = -1;  // written by setp and the logic of predicates, read by selp and votes
  int16_t other_predicates[2] = {-1, -1};
  int32_t out[4] = {-1, -1, -1, -1};
  int32_t in[5] = {-1, -1, -1, -1, -1};
  int32_t target = -1;  // of a branch
  int64_t offset = 0;   // of an address
  int line = 0;         // in the text
};

struct PtxConstant {
  int32_t reg = 0;
  uint64_t value = 0;
};

enum class PtxSpecial : uint8_t { kThread, kThreads, kBlock, kBlocks, kLane };
struct PtxSpecialRegister {
  int32_t reg = 0;
  PtxSpecial what{};
  int dimension = 0;
};

struct PtxKernel {
  unsigned most_threads = 1024;  // of a block: .maxntid
  std::string name;  // demangled, without parameters
  int line = 0;
  std::vector<PtxInstruction> code;
  std::vector<bool> starts_block;  // [code]: a branch ends before it or leads to it
  int32_t registers = 0;
  int32_t predicates = 0;
  std::vector<PtxConstant> constants;
  std::vector<PtxSpecialRegister> specials;
};

struct PtxCode {
  std::vector<PtxKernel> kernels;
  std::vector<std::unique_ptr<std::vector<unsigned char>>> globals;  // the initialised variables
};

// Throws std::runtime_error that names the line.
PtxCode parse_ptx(const std::string& text);

}  // namespace hostlayer
