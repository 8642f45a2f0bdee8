// Findings as text: what happened, which threads, and where in the source.
#include "fault.h"

#include <dlfcn.h>
#include <unistd.h>
#if defined(__ELF__)
#include <link.h>
#endif

#include <cstdio>
#include <map>
#include <sstream>
#include <vector>

#include "execution.h"
#include "world.h"

namespace hostlayer {
namespace {

std::string& last_text = *new std::string;

constexpr int kInlinedShown = 4;  // frames of inlined functions that a place names

std::string hex(uintptr_t value) {
  char text[32];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

struct Located {
  std::string file;  // that holds the code
  uintptr_t offset = 0;
  std::string lines;  // function and place of each frame that was inlined there, innermost first
};

std::map<uintptr_t, Located>& located = *new std::map<uintptr_t, Located>;  // by address of code

#if defined(__ELF__)
// Has addr2line, where it is installed, name the places at these offsets into a file. It takes its time over large programs,
// so it is asked once for all of a report, and never twice.
void ask_addr2line(const std::string& file, const std::vector<Located*>& places, uintptr_t base) {
  std::string command = "addr2line -a -f -C -i -e '";
  for (const char c : file) command += c == '\'' ? std::string("'\\''") : std::string(1, c);
  command += "'";
  for (const Located* place : places) command.append(" ").append(hex(place->offset + base));
  command.append(" 2>/dev/null");
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return;
  std::string all;
  char buffer[512];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) all += buffer;
  pclose(pipe);
  std::istringstream lines(all);
  size_t next = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.compare(0, 2, "0x") == 0) {
      ++next;
    } else if (next > 0 && next <= places.size()) {
      places[next - 1]->lines += line + "\n";
    }
  }
}
#endif

// The file of a piece of the program. What the loader knows the program itself by may be relative to another folder.
std::string readable(const char* file) {
#if defined(__linux__)
  char program[4096];
  const ssize_t length = access(file, R_OK) == 0 ? -1 : readlink("/proc/self/exe", program, sizeof(program));
  if (length > 0) return std::string(program, static_cast<size_t>(length));
#endif
  return file;
}

// Finds out where these addresses are.
void locate(const std::vector<uintptr_t>& addresses) {
  std::map<std::string, std::vector<Located*>> by_file;
  std::map<std::string, uintptr_t> base;
  for (const uintptr_t address : addresses) {
    const auto [entry, is_new] = located.try_emplace(address);
    Dl_info info;
    if (!is_new || dladdr(reinterpret_cast<void*>(address), &info) == 0 || info.dli_fname == nullptr) continue;
    const std::string file = readable(info.dli_fname);
    entry->second.file = file;
    entry->second.offset = address - reinterpret_cast<uintptr_t>(info.dli_fbase);
    by_file[file].push_back(&entry->second);
#if defined(__ELF__)
    // The addresses in a program that is not relocated are those it has when it runs.
    const bool is_fixed = static_cast<const ElfW(Ehdr)*>(info.dli_fbase)->e_type == ET_EXEC;
    base[file] = is_fixed ? reinterpret_cast<uintptr_t>(info.dli_fbase) : 0;
#endif
  }
#if defined(__ELF__)
  for (const auto& [file, places] : by_file) ask_addr2line(file, places, base[file]);
#endif
}

const Located& locate(uintptr_t address) {
  locate(std::vector<uintptr_t>{address});
  return located[address];
}

// A return address lies behind the call it belongs to.
uintptr_t call_before(const void* pc) { return reinterpret_cast<uintptr_t>(pc) - 1; }

const char* word_of(Access access) {
  switch (access) {
    case Access::kRead:
      return "read";
    case Access::kWrite:
      return "write";
    case Access::kAtomic:
      return "atomic operation";
  }
  return "";
}

}  // namespace

std::string without_parameters(const std::string& function) {
  int depth = 0;  // of template arguments, where "(Kind)0" may stand
  for (size_t i = 0; i < function.size(); ++i) {
    depth += function[i] == '<' ? 1 : function[i] == '>' ? -1 : 0;
    if (function[i] == '(' && depth == 0) return function.substr(0, i);
  }
  return function;
}

std::string place(const void* pc) {
  if (pc == nullptr) return "an unknown place";
  const Located& found = locate(call_before(pc));
  std::istringstream lines(found.lines);
  std::string text;
  std::string function;
  std::string at;
  for (int shown = 0; shown < kInlinedShown && std::getline(lines, function) && std::getline(lines, at);) {
    if (at.compare(0, 2, "??") == 0) continue;
    at = at.substr(0, at.find(" (discriminator"));
    text += (shown == 0 ? "" : ", in ") + at + " (" + without_parameters(function) + ")";
    ++shown;
  }
  if (!text.empty()) return text;
  return found.file.empty() ? hex(reinterpret_cast<uintptr_t>(pc)) : found.file + "+" + hex(found.offset);
}

std::string place(device::Site site) {
  return site.file == nullptr ? "an unknown place" : std::string(site.file) + ":" + std::to_string(site.line);
}

std::string name_of_function(const void* address) {
  std::istringstream lines(locate(reinterpret_cast<uintptr_t>(address)).lines);
  std::string function;
  std::getline(lines, function);
  return function.empty() || function == "??" ? hex(reinterpret_cast<uintptr_t>(address)) : without_parameters(function);
}

cudaError_t error_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::kOutOfBounds:
    case FaultKind::kHostMemory:
    case FaultKind::kOtherThreadsLocal:
    case FaultKind::kDeviceMemoryOnHost:
      return cudaErrorIllegalAddress;
    case FaultKind::kMisaligned:
      return cudaErrorMisalignedAddress;
    default:
      return cudaErrorLaunchFailure;
  }
}

std::string Execution::describe_waiting() const {
  std::string text;
  const auto describe = [&](int thread) -> std::string {
    const Warp& warp = warp_of(thread);
    const uint32_t lane = static_cast<uint32_t>(thread % kLanes);
    if ((warp.returned >> lane & 1) != 0) return "have returned";
    if (((warp.waiting | warp.waiting_all) >> lane & 1) != 0) {
      const bool for_all = (warp.waiting_all >> lane & 1) != 0;
      char mask[16];
      std::snprintf(mask, sizeof(mask), "0x%08x", for_all ? warp.mask : lanes_[thread].mask);
      return "wait for the lanes " + std::string(mask) + " at " + place(for_all ? warp.site : lanes_[thread].site);
    }
    if (arrived_ != 0 && arrived_at_[thread] == epoch_) return "wait for the block at " + place(barrier_site_);
    return "can run";
  };
  // Neighbours in the same state share a line.
  for (int from = 0; from < count_;) {
    int to = from;
    const std::string state = describe(from);
    while (to < count_ && describe(to) == state) ++to;
    text += "\n  threads " + std::to_string(from) + " to " + std::to_string(to - 1) + " " + state;
    from = to;
  }
  return text;
}

std::string Execution::text_of(const Fault& fault) const {
  std::vector<uintptr_t> code{reinterpret_cast<uintptr_t>(launch_->kernel)};
  for (const AccessSide* side : {&fault.mine, &fault.other}) {
    if (side->pc != nullptr) code.push_back(call_before(side->pc));
  }
  locate(code);
  const std::string thread = describe_thread(fault.mine.thread);
  const auto other_thread = [&] { return describe_thread(fault.other.thread); };
  const auto access = [&] {
    return std::string(word_of(fault.mine.access)) + " of " + std::to_string(fault.bytes) + " bytes by " + thread + " at " +
           place(fault.mine.pc) + "\n  address: " + world.memory.describe(fault.address);
  };
  char masks[64];
  std::snprintf(masks, sizeof(masks), "0x%08x", fault.mask);
  const std::string mask = masks;
  std::snprintf(masks, sizeof(masks), "0x%08x", fault.other_mask);
  const std::string other_mask = masks;
  std::string text;
  switch (fault.kind) {
    case FaultKind::kNone:
      break;
    case FaultKind::kDivergentBarrier:
      text = "divergent barrier: " + thread + " waits for the block at " + place(fault.site) + ", " + other_thread() +
             " at " + place(fault.other_site) + describe_waiting();
      break;
    case FaultKind::kReturnedBeforeBarrier:
      text = fault.other_site.file != nullptr
                 ? thread + " returned while others wait for it at " + place(fault.other_site)
                 : thread + " waits for the block at " + place(fault.site) + ", but threads of it have returned";
      text = "divergent barrier: " + text + describe_waiting();
      break;
    case FaultKind::kForeignMask:
      text = "wrong mask: lane " + std::to_string(fault.mine.thread % kLanes) + " calls with mask " + mask + " at " +
             place(fault.site) +
             ((fault.mask >> fault.mine.thread % kLanes & 1) == 0
                  ? std::string(", which does not name it")
                  : ", which names lanes that have returned (" + other_mask + ")");
      break;
    case FaultKind::kDivergentCollective:
      text = "divergent warp primitive: " + thread + " with mask " + mask + " at " + place(fault.site) + ", " +
             other_thread() + " with mask " + other_mask + " at " + place(fault.other_site);
      break;
    case FaultKind::kHang:
      text = "hang: no thread of the block can go on" + describe_waiting();
      break;
    case FaultKind::kRace:
      text = "race: " + access() + "\n  conflicts with the " + word_of(fault.other.access) + " by " + other_thread() +
             (fault.other.block == fault.mine.block ? "" : " of " + describe_block(fault.other.block)) + " at " +
             place(fault.other.pc) +
             (fault.other.block == fault.mine.block ? ", with no synchronisation between them"
                                                    : ": blocks of one launch are not ordered");
      break;
    case FaultKind::kOutOfBounds:
      text = "out of bounds: " + access();
      break;
    case FaultKind::kUninitialised:
      text = "uninitialised: " + access() + "\n  nothing was written there";
      break;
    case FaultKind::kMisaligned:
      text = "misaligned: " + access();
      break;
    case FaultKind::kOtherThreadsLocal:
      text = "local memory of another thread: " + std::string(word_of(fault.mine.access)) + " of " +
             std::to_string(fault.bytes) + " bytes by " + thread + " at " + place(fault.mine.pc);
      break;
    case FaultKind::kHostMemory:
      text = "host memory: " + std::string(word_of(fault.mine.access)) + " of " + std::to_string(fault.bytes) +
             " bytes by " + thread + " at " + place(fault.mine.pc) + "\n  address " + hex(fault.address) +
             " is of the calling thread, which a device does not see";
      break;
    case FaultKind::kTrap:
      text = "trap: " + thread + " at " + place(fault.site);
      break;
    case FaultKind::kDeviceMemoryOnHost:
      break;  // not of a launch
  }
  return text + "\n  kernel " + name_of_function(launch_->kernel) + ", " + describe_block(fault.mine.block) + ", " +
         std::to_string(count_) + " threads";
}

void report(const std::string& text) {
  const Order order = world.config.order;
  last_text = "hostlayer: " + text + "\n  seed " + std::to_string(world.config.seed) + ", order " +
              (order == Order::kRandom ? "random" : order == Order::kForward ? "forward" : "backward") + "\n";
  ++execution.counters.findings;
  if (world.config.print) std::fputs(last_text.c_str(), stderr);
}

std::string last_report_text() { return last_text; }

void forget_reports() { last_text.clear(); }

}  // namespace hostlayer
