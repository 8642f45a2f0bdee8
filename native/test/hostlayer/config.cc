// The configuration of the environment, and the control interface.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include "hostlayer.h"
#include "world.h"

namespace hostlayer {
namespace {

[[noreturn]] void refuse(const char* name, const char* value, const char* expected) {
  std::fprintf(stderr, "hostlayer: %s: expected %s, got '%s'\n", name, expected, value);
  std::abort();
}

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr || *value == '\0' ? nullptr : value;
}

template <class T>
void read_number(const char* name, T unit, T* target) {
  const char* value = variable(name);
  if (value == nullptr) return;
  char* end = nullptr;
  const unsigned long long number = std::strtoull(value, &end, 0);
  if (*end != '\0' || *value == '-') refuse(name, value, "a number");
  *target = static_cast<T>(number) * unit;
}

void read_switch(const char* name, bool* target) {
  const char* value = variable(name);
  if (value == nullptr) return;
  const bool on = std::strcmp(value, "on") == 0 || std::strcmp(value, "1") == 0;
  if (!on && std::strcmp(value, "off") != 0 && std::strcmp(value, "0") != 0) refuse(name, value, "on or off");
  *target = on;
}

void read_order(Order* target) {
  const char* value = variable("HOSTLAYER_ORDER");
  if (value == nullptr) return;
  if (std::strcmp(value, "random") == 0) {
    *target = Order::kRandom;
  } else if (std::strcmp(value, "forward") == 0) {
    *target = Order::kForward;
  } else if (std::strcmp(value, "backward") == 0) {
    *target = Order::kBackward;
  } else {
    refuse("HOSTLAYER_ORDER", value, "random, forward or backward");
  }
}

void read_driver(Driver* target) {
  const char* value = variable("HOSTLAYER_DRIVER");
  if (value == nullptr) return;
  if (std::strcmp(value, "none") == 0) {
    *target = Driver::kNone;
  } else if (std::strcmp(value, "old") == 0) {
    *target = Driver::kOld;
  } else if (std::strcmp(value, "current") == 0) {
    *target = Driver::kCurrent;
  } else {
    refuse("HOSTLAYER_DRIVER", value, "none, old or current");
  }
}

void read_checks(Config* config) {
  const char* value = variable("HOSTLAYER_CHECK");
  if (value == nullptr) return;
  struct {
    const char* name;
    bool* on;
  } const kChecks[] = {{"divergence", &config->check_divergence},
                       {"races", &config->check_races},
                       {"bounds", &config->check_bounds},
                       {"initialised", &config->check_initialised}};
  for (const auto& check : kChecks) *check.on = false;
  std::istringstream list(value);
  for (std::string word; std::getline(list, word, ',');) {
    bool known = word == "none";
    for (const auto& check : kChecks) {
      if (word != check.name && word != "all") continue;
      *check.on = true;
      known = true;
    }
    if (!known) refuse("HOSTLAYER_CHECK", value, "divergence, races, bounds, initialised, all or none");
  }
}

}  // namespace

Config environment_config() {
  Config config;
  read_number<uint64_t>("HOSTLAYER_SEED", 1, &config.seed);
  read_order(&config.order);
  read_number<int>("HOSTLAYER_DEVICES", 1, &config.devices);
  read_driver(&config.driver);
  read_number<size_t>("HOSTLAYER_MEMORY_MB", size_t{1} << 20, &config.memory_bytes);
  read_number<size_t>("HOSTLAYER_SHARED_KB", 1024, &config.shared_bytes);
  read_number<int>("HOSTLAYER_SMS", 1, &config.multiprocessors);
  read_number<int>("HOSTLAYER_CC", 1, &config.compute_capability);
  read_number<size_t>("HOSTLAYER_STACK_KB", 1024, &config.stack_bytes);
  read_switch("HOSTLAYER_LATENCY", &config.latency);
  if (const char* fail = variable("HOSTLAYER_FAIL")) config.fail = fail;
  read_checks(&config);
  read_switch("HOSTLAYER_SHUFFLES_ORDER", &config.shuffles_order_memory);
  read_switch("HOSTLAYER_PRINT", &config.print);
  if (const char* ptx = variable("HOSTLAYER_PTX")) config.ptx = ptx;
  if (const char* report = variable("HOSTLAYER_PTX_REPORT")) config.ptx_report = report;
  return config;
}

Config config() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return world.config;
}

void configure(const Config& config) {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  world.configure(config);
}

void reset() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  world.reset();
}

std::string ptx_report() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return world.ptx == nullptr ? "" : world.ptx->report();
}

Counters counters() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return execution.counters;
}

std::string last_report() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return last_report_text();
}

int64_t findings() { return counters().findings; }

void clear_findings() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  forget_reports();
  execution.counters.findings = 0;
}

int64_t live_allocations() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return world.memory.count();
}

int64_t live_bytes() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  int64_t bytes = 0;
  for (int d = 0; d < kMaxDevices; ++d) bytes += static_cast<int64_t>(world.memory.used(d));
  return bytes;
}

int64_t live_host_allocations() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return static_cast<int64_t>(world.pinned.size());
}

int64_t live_objects() {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  return static_cast<int64_t>(world.streams.size() + world.events.size() + world.graphs.size() + world.execs.size());
}

int64_t calls(const char* api) {
  const std::lock_guard<std::recursive_mutex> hold(world.mutex);
  const auto found = world.calls.find(api);
  return found == world.calls.end() ? 0 : found->second;
}

}  // namespace hostlayer

using namespace hostlayer;

const char* hostlayer_last_report() {
  static std::string& text = *new std::string;
  text = last_report();
  return text.c_str();
}

long long hostlayer_count(const char* what) {
  const Counters c = counters();
  const struct {
    const char* name;
    int64_t count;
  } kCounts[] = {{"launches", c.launches},
                 {"blocks", c.blocks},
                 {"threads", c.threads},
                 {"barriers", c.barriers},
                 {"collectives", c.collectives},
                 {"checked_accesses", c.checked_accesses},
                 {"graph_launches", c.graph_launches},
                 {"copied_bytes", c.copied_bytes},
                 {"findings", c.findings},
                 {"live_allocations", live_allocations()},
                 {"live_host_allocations", live_host_allocations()},
                 {"live_objects", live_objects()}};
  for (const auto& counted : kCounts) {
    if (std::strcmp(counted.name, what) == 0) return counted.count;
  }
  return -1;
}

void hostlayer_read_environment() { configure(environment_config()); }
