// PTX is executed as its definition says, counted as it was executed, and refused where it is not known. The programs here
// are written by hand; what the compiler makes of this project's kernels is tested with the kernels.
#include "ptx.h"

#include <doctest/doctest.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "hostlayer.h"
#include "test_machine.h"

namespace hostlayer {
namespace test {
namespace {

// A kernel k(u64 out) with these statements; %rd1 is out, %r1 the thread, %rd9 the address of its cell of 8 bytes.
std::string kernel_of(const std::string& body) {
  return R"(
.version 9.0
.target sm_90
.address_size 64
.global .align 4 .b8 table[8] = {1, 0, 0, 0, 254, 255, 255, 255};
.extern .shared .align 16 .b8 shared[];
.visible .entry k(
	.param .u64 k_param_0,
	.param .align 8 .b8 k_param_1[16]
)
.maxntid 1024
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<99>;
	.reg .b64 	%rd<99>;

	ld.param.u64 	%rd2, [k_param_0];
	cvta.to.global.u64 	%rd1, %rd2;
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd3, %r1, 8;
	add.s64 	%rd9, %rd1, %rd3;
)" + body + "\n\tret;\n}\n";
}

struct Outcome {
  cudaError_t error = cudaSuccess;
  std::vector<uint64_t> cells;
  std::string report;
};

constexpr uint64_t kFirstParameter = 0x1122334455667788u;

Outcome run(const std::string& body, unsigned threads = 32, size_t shared_bytes = 0, unsigned blocks = 1) {
  const PtxProgram* made = nullptr;
  Outcome outcome;
  PtxProgram program(kernel_of(body));
  made = &program;
  void* out = nullptr;
  REQUIRE(cudaMalloc(&out, threads * 8) == cudaSuccess);
  std::memset(out, 0, threads * 8);
  Launch launch;
  launch.parameters.resize(24);
  const uint64_t parameters[] = {reinterpret_cast<uint64_t>(out), kFirstParameter, static_cast<uint64_t>(-5)};
  std::memcpy(launch.parameters.data(), parameters, sizeof(parameters));
  launch.grid = dim3(blocks);
  launch.block = dim3(threads);
  launch.shared_bytes = shared_bytes;
  outcome.error = program.run("k", launch);
  outcome.cells.resize(threads);
  std::memcpy(outcome.cells.data(), out, threads * 8);
  outcome.report = made->report();
  REQUIRE(cudaFree(out) == cudaSuccess);
  return outcome;
}

// What thread 0 left.
uint64_t value(const std::string& body) {
  const Outcome outcome = run(body + "\n\tst.global.u64 	[%rd9], %rd50;");
  CHECK(outcome.error == cudaSuccess);
  return outcome.cells[0];
}

int64_t number(const std::string& report, const std::string& key) {
  const size_t at = report.find('"' + key + "\": ");
  REQUIRE(at != std::string::npos);
  return std::stoll(report.substr(at + key.size() + 4));
}

TEST_CASE("ptx: instructions give what they are defined to give") {
  const Machine machine;
  struct {
    const char* body;
    uint64_t expected;
  } const kCases[] = {
      {"add.s32 %r2, -3, 1; cvt.s64.s32 %rd50, %r2;", static_cast<uint64_t>(-2)},
      {"add.s32 %r2, -3, 1; cvt.u64.u32 %rd50, %r2;", 0xfffffffeu},
      {"mov.u32 %r2, -1; mov.u32 %r3, 7; mul.lo.s32 %r4, %r2, %r3; cvt.u64.u32 %rd50, %r4;", 0xfffffff9u},
      {"mov.u32 %r2, -1; mul.wide.s32 %rd50, %r2, 7;", static_cast<uint64_t>(-7)},
      {"mov.u32 %r2, -1; mul.wide.u32 %rd50, %r2, 7;", 0x6fffffff9u},
      {"mov.u32 %r2, -1; mul.hi.u32 %r3, %r2, 16; cvt.u64.u32 %rd50, %r3;", 15},
      {"mov.u64 %rd4, -3; mul.lo.s64 %rd50, %rd4, 5;", static_cast<uint64_t>(-15)},
      {"mov.u32 %r2, 6; mad.lo.s32 %r3, %r2, 7, -2; cvt.s64.s32 %rd50, %r3;", 40},
      {"mov.u32 %r2, -2; mov.u64 %rd4, 100; mad.wide.s32 %rd50, %r2, 10, %rd4;", 80},
      {"mov.u32 %r2, -7; div.s32 %r3, %r2, 2; cvt.s64.s32 %rd50, %r3;", static_cast<uint64_t>(-3)},
      {"mov.u32 %r2, -7; rem.s32 %r3, %r2, 2; cvt.s64.s32 %rd50, %r3;", static_cast<uint64_t>(-1)},
      {"mov.u32 %r2, -7; div.u32 %r3, %r2, 2; cvt.u64.u32 %rd50, %r3;", 0x7ffffffcu},
      {"mov.u64 %rd4, -9; div.s64 %rd50, %rd4, 4;", static_cast<uint64_t>(-2)},
      {"mov.u32 %r2, -7; min.s32 %r3, %r2, 2; cvt.s64.s32 %rd50, %r3;", static_cast<uint64_t>(-7)},
      {"mov.u32 %r2, -7; min.u32 %r3, %r2, 2; cvt.u64.u32 %rd50, %r3;", 2},
      {"mov.u64 %rd4, -7; max.s64 %rd50, %rd4, -8;", static_cast<uint64_t>(-7)},
      {"mov.u32 %r2, -8; shr.s32 %r3, %r2, 1; cvt.u64.u32 %rd50, %r3;", 0xfffffffcu},
      {"mov.u32 %r2, -8; shr.u32 %r3, %r2, 1; cvt.u64.u32 %rd50, %r3;", 0x7ffffffcu},
      {"mov.u32 %r2, -8; shr.s32 %r3, %r2, 99; cvt.u64.u32 %rd50, %r3;", 0xffffffffu},
      {"mov.u32 %r2, 1; shl.b32 %r3, %r2, 32; cvt.u64.u32 %rd50, %r3;", 0},
      {"mov.u64 %rd4, 1; shl.b64 %rd50, %rd4, 40;", uint64_t{1} << 40},
      {"mov.u64 %rd4, 0x8000000000000000; shr.u64 %rd50, %rd4, 63;", 1},
      {"neg.s32 %r2, 5; cvt.u64.u32 %rd50, %r2;", 0xfffffffbu},
      {"not.b32 %r2, 5; cvt.u64.u32 %rd50, %r2;", 0xfffffffau},
      {"mov.u32 %r2, 12; and.b32 %r3, %r2, 10; or.b32 %r4, %r3, 1; xor.b32 %r5, %r4, 3; cvt.u64.u32 %rd50, %r5;", 10},
      {"mov.u64 %rd4, 0xf; mov.u64 %rd5, -1; bfi.b64 %rd50, %rd4, %rd5, 8, 8;", 0xffffffffffff0fffu},
      {"mov.u32 %r2, 0x1234; bfe.u32 %r3, %r2, 4, 8; cvt.u64.u32 %rd50, %r3;", 0x23},
      {"mov.u32 %r2, 0xf0; bfe.s32 %r3, %r2, 4, 4; cvt.s64.s32 %rd50, %r3;", static_cast<uint64_t>(-1)},
      {"mov.u32 %r2, 0xff; bfe.u32 %r3, %r2, 40, 4; cvt.u64.u32 %rd50, %r3;", 0},
      {"mov.u32 %r2, 0x44332211; mov.u32 %r3, 0x88776655; prmt.b32 %r4, %r2, %r3, 0x3740U; cvt.u64.u32 %rd50, %r4;", 0x44885511},
      {"mov.u32 %r2, 0x800000; prmt.b32 %r4, %r2, 0, 0x00a2U; cvt.u64.u32 %rd50, %r4;", 0xff80},
      {"{ .reg .b32 tmp; mov.u32 tmp, 9; cvt.u64.u32 %rd50, tmp; }", 9},
      {"mov.u32 %r2, 5; brev.b32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 0xa0000000u},
      {"mov.u32 %r2, 256; clz.b32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 23},
      {"mov.u32 %r2, 0; clz.b32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 32},
      {"mov.u32 %r2, 256; bfind.u32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 8},
      {"mov.u32 %r2, 256; bfind.shiftamt.u32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 23},
      {"mov.u32 %r2, 0; bfind.shiftamt.u32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 0xffffffffu},
      {"mov.u32 %r2, 0xf0f; popc.b32 %r3, %r2; cvt.u64.u32 %rd50, %r3;", 8},
      {"mov.u32 %r2, 1; mov.u32 %r3, 2; mov.b64 %rd50, {%r2, %r3};", 0x200000001u},
      {"mov.u64 %rd4, 0x200000001; mov.b64 {%r2, %r3}, %rd4; cvt.u64.u32 %rd50, %r3;", 2},
      {"mov.u64 %rd4, 0x1ff; cvt.u32.u64 %r2, %rd4; cvt.u16.u32 %rs1, %r2; and.b16 %rs2, %rs1, 255; cvt.u64.u16 %rd50, %rs2;", 255},
      {"mov.u64 %rd4, 0xff; cvt.s64.s8 %rd50, %rd4;", static_cast<uint64_t>(-1)},
      {"mov.u32 %r2, -1; setp.lt.s32 %p1, %r2, 0; selp.b64 %rd50, 3, 4, %p1;", 3},
      {"mov.u32 %r2, -1; setp.lt.u32 %p1, %r2, 0; selp.b64 %rd50, 3, 4, %p1;", 4},
      {"setp.ne.s32 %p1, %r1, 0; not.pred %p2, %p1; or.pred %p3, %p1, %p2; and.pred %p4, %p3, %p1; selp.b64 %rd50, 1, 2, %p4;", 2},
      {"mov.pred %p1, -1; mov.pred %p2, 0; xor.pred %p3, %p1, %p2; selp.b64 %rd50, 1, 2, %p3;", 1},
      {"mov.u64 %rd50, 1; setp.eq.s32 %p1, %r1, 0; @!%p1 mov.u64 %rd50, 2;", 1},
      {"ld.param.u64 %rd50, [k_param_1];", kFirstParameter},
      {"ld.param.u16 %rs1, [k_param_1+2]; cvt.u64.u16 %rd50, %rs1;", 0x5566},
      {"ld.param.s32 %rd50, [k_param_1+8];", static_cast<uint64_t>(-5)},
      {"mov.b64 %rd4, k_param_1; add.s64 %rd4, %rd4, 16; ld.param.s32 %rd50, [%rd4+-8];", static_cast<uint64_t>(-5)},
      {"mov.b64 %rd50, k_param_0; ld.param.u64 %rd50, [%rd50+8];", kFirstParameter},
      {"mov.u64 %rd4, table; ld.global.nc.u32 %r2, [%rd4+4]; cvt.s64.s32 %rd50, %r2;", static_cast<uint64_t>(-2)},
      {"mov.u64 %rd4, 70; st.global.u64 [%rd9], %rd4; ld.global.s8 %rd50, [%rd9];", 70},
      {"mov.u32 %r2, 1; mov.u32 %r3, 2; st.global.v2.u32 [%rd9], {%r2, %r3}; ld.u64 %rd50, [%rd9];", 0x200000001u},
  };
  for (const auto& c : kCases) {
    CAPTURE(std::string(c.body));
    CHECK(value(c.body) == c.expected);
  }
}

TEST_CASE("ptx: threads, blocks and shared memory") {
  const Machine machine;
  // Each thread writes its number to shared memory; behind the barrier it reads that of its mirror image.
  const Outcome mirrored = run(R"(
	mov.u32 %r2, shared;
	shl.b32 %r3, %r1, 2;
	add.s32 %r4, %r2, %r3;
	st.shared.u32 [%r4], %r1;
	bar.sync 0;
	mov.u32 %r5, %ntid.x;
	sub.s32 %r6, %r5, %r1;
	shl.b32 %r7, %r6, 2;
	add.s32 %r8, %r2, %r7;
	ld.shared.u32 %rd50, [%r8+-4];
	cvt.u64.u32 %rd51, %r8;
	cvta.shared.u64 %rd52, %rd51;
	ld.u32 %rd53, [%rd52+-4];
	add.s64 %rd54, %rd50, %rd53;
	st.global.u64 [%rd9], %rd54;)", 96, 96 * 4);
  CHECK(mirrored.error == cudaSuccess);
  for (uint64_t t = 0; t < 96; ++t) CHECK(mirrored.cells[t] == 2 * (95 - t));
  CHECK(number(mirrored.report, "blocks") == 1);
  CHECK(number(mirrored.report, "threads") == 96);

  const Outcome counted = run(R"(
	atom.global.add.u64 %rd50, [%rd1], 1;
	mov.u32 %r2, %ctaid.x;
	mov.u32 %r3, %nctaid.x;)", 1, 0, 5);
  CHECK(counted.cells[0] == 5);
}

TEST_CASE("ptx: lanes part at a branch, meet again, and exchange what they have") {
  const Machine machine;
  const Outcome outcome = run(R"(
	mov.u32 %r10, 5;
	setp.lt.s32 %p1, %r1, 10;
	@%p1 bra $L_low;
	mov.u32 %r10, 7;
	bra.uni $L_join;
$L_low:
	add.s32 %r10, %r10, %r1;
$L_join:
	redux.sync.add.s32 %r11, %r10, -1;
	redux.sync.max.u32 %r12, %r10, -1;
	redux.sync.min.s32 %r13, %r10, -1;
	shfl.sync.bfly.b32 %r14|%p2, %r1, 3, 31, -1;
	vote.sync.ballot.b32 %r15, %p1, -1;
	bar.warp.sync -1;
	cvt.u64.u32 %rd50, %r11;
	setp.eq.s32 %p3, %r1, 1;
	@%p3 cvt.u64.u32 %rd50, %r12;
	setp.eq.s32 %p3, %r1, 2;
	@%p3 cvt.u64.u32 %rd50, %r13;
	setp.eq.s32 %p3, %r1, 3;
	@%p3 cvt.u64.u32 %rd50, %r15;
	setp.gt.s32 %p3, %r1, 3;
	@%p3 cvt.u64.u32 %rd50, %r14;
	st.global.u64 [%rd9], %rd50;)");
  CHECK(outcome.error == cudaSuccess);
  CHECK(outcome.cells[0] == 10 * 5 + 45 + 22 * 7);
  CHECK(outcome.cells[1] == 14);
  CHECK(outcome.cells[2] == 5);
  CHECK(outcome.cells[3] == 0x3ff);
  for (uint64_t t = 4; t < 32; ++t) CHECK(outcome.cells[t] == (t ^ 3));
}

TEST_CASE("ptx: lanes that leave a loop at different turns wait for the last") {
  const Machine machine;
  const Outcome outcome = run(R"(
	mov.u32 %r2, 0;
$L_loop:
	add.s32 %r2, %r2, 1;
	setp.le.s32 %p1, %r2, %r1;
	@%p1 bra $L_loop;
	redux.sync.add.s32 %r3, %r2, -1;
	cvt.u64.u32 %rd50, %r3;
	st.global.u64 [%rd9], %rd50;)");
  for (const uint64_t cell : outcome.cells) CHECK(cell == 32 * 33 / 2);
  // The loop's body was executed 32 times by the warp, each time by one lane fewer.
  const size_t hottest = outcome.report.find("\"hottest\"");
  CHECK(number(outcome.report.substr(hottest), "executions") == 32);
  CHECK(number(outcome.report.substr(hottest), "lanes") == 32 * 33 / 2);
  CHECK(number(outcome.report.substr(hottest), "instructions") == 3);
}

TEST_CASE("ptx: traffic is counted by banks and sectors") {
  const Machine machine;
  struct {
    int stride_bytes;
    int wavefronts;
  } const kCases[] = {{4, 1}, {8, 2}, {128, 32}, {0, 1}, {12, 1}};
  for (const auto& c : kCases) {
    CAPTURE(c.stride_bytes);
    const Outcome outcome = run("mul.lo.s32 %r2, %r1, " + std::to_string(c.stride_bytes) + "; ld.shared.u32 %r3, [%r2];", 32, 4096);
    CHECK(outcome.error == cudaSuccess);
    CHECK(number(outcome.report, "sharedWavefronts") == c.wavefronts);
  }
  CHECK(number(run("ld.global.u64 %rd50, [%rd9];").report, "globalSectors") == 32 * 8 / 32);
  CHECK(number(run("ld.global.u64 %rd50, [%rd1];").report, "globalSectors") == 1);
}

TEST_CASE("ptx: cycles follow the chain of results, not the number of instructions") {
  const Machine machine;
  const auto cycles = [](const std::string& body) { return number(run(body, 32, 4096).report, "cycles"); };
  std::string chain, side_by_side;
  for (int i = 2; i < 20; ++i) {
    chain += "ld.shared.u32 %r" + std::to_string(i + 1) + ", [%r" + std::to_string(i) + "];";
    side_by_side += "ld.shared.u32 %r" + std::to_string(i + 1) + ", [%r2];";
  }
  const std::string start = "mov.u32 %r2, 0; mov.u32 %r3, 0; st.shared.u32 [%r2], %r3;";
  const std::string end = "setp.eq.s32 %p1, %r20, 77; @%p1 bra $L_end; $L_end:";
  CHECK(cycles(start + chain + end) > cycles(start + side_by_side + end) + 17 * 25);
}

TEST_CASE("ptx: a kernel runs with no more threads than it was compiled for") {
  const Machine machine;
  std::string text = kernel_of("");
  text.replace(text.find(".maxntid 1024"), 13, ".maxntid 64");
  PtxProgram program(text);
  CHECK(program.most_threads("k") == 64);
  CHECK(program.most_threads("another") == 1024);
  Launch launch;
  launch.block = dim3(96);
  CHECK(program.run("k", launch) == cudaErrorInvalidValue);
}

TEST_CASE("ptx: what is wrong is found, with its place") {
  const Machine machine;
  struct {
    const char* body;
    cudaError_t error;
    const char* text;
  } const kCases[] = {
      {"ld.global.u64 %rd50, [%rd9+4096];", cudaErrorIllegalAddress, "out of bounds: 8 bytes at PTX line 23"},
      {"st.shared.u32 [%r1+4094], %r1;", cudaErrorMisalignedAddress, "misaligned: 4 bytes at PTX line 23"},
      {"mov.u32 %r2, 4096; st.shared.u32 [%r2], %r1;", cudaErrorIllegalAddress, "out of bounds: 4 bytes"},
      {"mov.u64 %rd4, table; st.global.u32 [%rd4], %r1;", cudaErrorIllegalAddress, "out of bounds: 4 bytes"},
      {"setp.lt.s32 %p1, %r1, 4; @%p1 ret; redux.sync.add.s32 %r2, %r1, 15; bar.sync 0;", cudaSuccess, ""},
      {"setp.lt.s32 %p1, %r1, 4; @%p1 bra $L_a; bar.sync 0; bra.uni $L_b; $L_a: redux.sync.add.s32 %r2, %r1, -1; $L_b:",
       cudaErrorLaunchFailure, "hang"},
  };
  for (const auto& c : kCases) {
    CAPTURE(std::string(c.body));
    clear_findings();
    CHECK(run(c.body, 32, 4096).error == c.error);
    CHECK_MESSAGE(last_report().find(c.text) != std::string::npos, last_report());
    CHECK((findings() > 0) == (c.error != cudaSuccess));
  }
  PtxProgram program(kernel_of(""));
  Launch launch;
  CHECK(program.run("another", launch) == cudaErrorInvalidDeviceFunction);
}

TEST_CASE("ptx: what is not known is refused by line") {
  struct {
    const char* body;
    const char* text;
  } const kCases[] = {
      {"add.f32 %r2, %r1, %r1;", "unknown type f32"},
      {"mov.b128 %r2, %r1;", "unknown type b128"},
      {"sin.approx.b32 %r2, %r1;", "unknown opcode sin"},
      {"ld.local.u32 %r2, [%rd1];", "unknown state space"},
      {"add.s32 %q2, %r1, 1;", "expected a register, got %q2"},
      {"add.s32 %r2, %r1;", "expected 3 operands"},
      {"add.s32 %r2, %r1, nothing;", "unknown operand nothing"},
      {"bra $L_nowhere;", "no label $L_nowhere"},
      {"atom.global.cas.b32 %r2, [%rd1], 1, 2;", "unknown atomic operation"},
      {"bar.sync 1;", "a barrier other than the whole block's"},
      {"mov.u32 %r2, %clock;", "unknown register %clock"},
      {".local .b8 depot[8];", "unknown directive"},
      {"ld.param.u32 %r2, [nothing];", "no parameter nothing"},
  };
  for (const auto& c : kCases) {
    CAPTURE(std::string(c.body));
    try {
      const PtxProgram program(kernel_of(c.body));
      FAIL_CHECK("accepted");
    } catch (const std::runtime_error& error) {
      CHECK(std::string(error.what()).find(c.text) != std::string::npos);
      CHECK(std::string(error.what()).find("PTX line ") == 0);
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace hostlayer
