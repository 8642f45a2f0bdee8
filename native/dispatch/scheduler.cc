#include "scheduler.h"

#include <algorithm>

namespace gimbal {
namespace {

// A request may be on its way to the engine so long before a sample can show it.
constexpr int64_t kOnTheWayUs = 100 * 1000;
constexpr int64_t kMeanOver = 16;  // requests
constexpr int64_t kToldOver = 64;  // requests

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options), others_(int64_t{spec::kWholeShare} * (options.gateways - 1) / options.gateways) {}

int32_t Scheduler::add_engine(const EngineOptions& options) {
  Engine e;
  e.per_token = spec::micros_per_token(options.prefill_tokens_per_second);
  e.group = options.group;
  e.role = options.role;
  engines_.push_back(e);
  details_.emplace_back();
  details_.back().kv_tokens = options.kv_tokens;
  details_.back().settled.resize(kSettledKept);
  refresh(engines() - 1);
  prefixes_.add_engine();
  candidates_.reserve(engines_.size());
  uncached_.resize(engines_.size());
  backlog_.resize(engines_.size());
  affinity_us_.resize(engines_.size());
  groups_.resize(std::max(groups_.size(), static_cast<size_t>(options.group) + 1));
  if (++groups_[static_cast<size_t>(options.group)].members == 2) lockstep_.push_back(options.group);
  return engines() - 1;
}

void Scheduler::set_state(int32_t i, EngineState state) { engine(i).state = state; }

// ---- samples

void Scheduler::observe(const EngineSample& sample, int64_t now_us) {
  Engine& e = engine(sample.engine);
  Details& d = details(sample.engine);
  const int64_t time_us = std::min(sample.time_us, now_us);
  if (time_us < e.sampled_us) return;
  if (sample.preemptions >= 0 && d.preemptions > sample.preemptions) forget_before(sample.engine, time_us, now_us);
  // Foreign work that a sample has shown and this one does not has been begun since, and takes its time.
  const int64_t begun_us = std::max<int64_t>(0, d.foreign_us - (time_us - e.sampled_us));
  e.sampled_us = time_us;
  d.moe = sample.moe;
  refresh_experts(sample.engine);
  d.kv = sample.kv;
  d.running = sample.running;
  d.waiting = sample.waiting;
  d.preemptions = sample.preemptions;
  d.bumped = 0;
  d.bumped_tokens = 0;
  settle_silent(sample.engine, sample.waiting, time_us, now_us);

  // What the sample shows and we have seen done since.
  int32_t done = 0;
  int64_t done_us = 0;
  d.unseen_tokens = 0;
  for (const Settled& one : d.settled) {
    if (one.dispatched_us >= time_us) {
      d.unseen_tokens += one.tokens;
    } else if (one.settled_us > time_us) {
      ++done;
      done_us += one.own_us;
    }
  }
  // Of what is outstanding: sent after the sample, before it, and before it but certainly waiting still.
  d.unseen = 0;
  int64_t unseen_us = 0;
  int32_t before = 0;
  int64_t waiting_us = 0;
  for (int32_t t = d.last; t != kNone; t = ticket(t).previous) {
    if (ticket(t).dispatched_us >= time_us) {
      ++d.unseen;
      unseen_us += ticket(t).own_us;
      d.unseen_tokens += ticket(t).uncached_tokens;
    } else if (before++ < sample.waiting) {
      waiting_us += ticket(t).own_us;
    }
  }
  if (sample.waiting_prefill_tokens >= 0) {
    d.waiting_tokens = sample.waiting_prefill_tokens;
    waiting_us = spec::prefill_micros(sample.waiting_prefill_tokens, e.per_token);
    d.foreign_us = std::max(begun_us, waiting_us - (d.own_us - unseen_us) - done_us);
  } else {
    const int64_t foreign_us = spec::prefill_micros(mean_tokens(std::max(0, sample.waiting - before - done)), e.per_token);
    d.foreign_us = std::max(begun_us, foreign_us);
    waiting_us += foreign_us;
    d.waiting_tokens = mean_tokens(sample.waiting);
  }
  const int64_t least_us = time_us + waiting_us + unseen_us;
  e.ready_at_us = std::clamp(e.ready_at_us, least_us, std::max(least_us, now_us + d.own_us + d.foreign_us));
  refresh(sample.engine);
}

// Of requests whose first token nobody tells, those that the sample does not count as waiting have got it: all but the newest
// `waiting`, and of these one is perhaps being worked on until it is due.
void Scheduler::settle_silent(int32_t i, int32_t waiting, int64_t time_us, int64_t now_us) {
  int32_t newer = 0;
  for (int32_t t = details(i).last; t != kNone;) {
    const int32_t previous = ticket(t).previous;
    if (ticket(t).dispatched_us <= time_us - kOnTheWayUs) {
      const bool may_be_next = newer == waiting && ticket(t).due_us > time_us;
      if (newer >= waiting && !may_be_next && !ticket(t).streams) settle(t, now_us);
      ++newer;
    }
    t = previous;
  }
}

void Scheduler::restarted(int32_t i, int64_t now_us) {
  forget_before(i, now_us, now_us);
  details(i).preemptions = EngineSample::kUnknown;
}

void Scheduler::forget_before(int32_t i, int64_t time_us, int64_t now_us) {
  for (int32_t t = details(i).first; t != kNone;) {
    const int32_t next = ticket(t).next;
    if (ticket(t).dispatched_us <= time_us) settle(t, now_us);
    t = next;
  }
  details(i).foreign_us = 0;
  anchor(i, now_us);
  prefixes_.forget(i);
  for (Session& session : sessions_) {
    if (session.engine == i) session = Session();
  }
}

// ---- the placement side

void Scheduler::set_expert_pressure(const ExpertPressure& pressure, int64_t time_us, int64_t now_us) {
  Details& d = details(pressure.engine);
  const int64_t told_us = std::min(time_us, now_us);
  if (told_us < d.told_us) return;
  d.told_us = told_us;
  d.told_until_us = told_us + options_.experts_stale_after_us;
  d.told_moe = pressure.moe;
  d.told_comm = pressure.comm;
  experts_until_us_ = std::min(experts_until_us_, d.told_until_us);
  refresh_experts(pressure.engine);
  forget_stale_experts(now_us);
}

// What samples tell holds until something is told, and again once that is stale.
void Scheduler::refresh_experts(int32_t i) {
  const Details& d = details(i);
  const bool is_told = d.told_until_us != kNever;
  engine(i).excess = spec::expert_excess(options_.weights, is_told ? d.told_moe : d.moe, is_told ? d.told_comm : 0);
}

void Scheduler::forget_experts(int64_t now_us) {
  experts_until_us_ = kFarOff;
  for (int32_t i = 0; i < engines(); ++i) {
    Details& d = details(i);
    if (d.told_until_us == kNever) continue;
    if (d.told_until_us <= now_us) {
      d.told_until_us = kNever;
      refresh_experts(i);
    } else {
      experts_until_us_ = std::min(experts_until_us_, d.told_until_us);
    }
  }
}

// ---- sums

// What so many requests would have to compute, as those do that were sent of late.
int64_t Scheduler::mean_tokens(int32_t requests) const {
  return std::min(requests * (mean_sum_ / kMeanOver), spec::kMostTokens);
}

// The terms that only samples and the ledger change.
void Scheduler::refresh(int32_t i) {
  const Details& d = details(i);
  const spec::PressureWeights& w = options_.weights;
  Engine& e = engine(i);
  const int32_t demand = kv_demand(i);
  e.rest_us = spec::kv_term(w, demand) + spec::queue_term(w, d.waiting + d.unseen, d.running);
  const int64_t room = demand >= w.kv_most ? -1
                       : d.kv_tokens == 0  ? spec::kMostTokens
                                           : (w.kv_most - demand) * d.kv_tokens >> spec::kShareBits;
  e.room_tokens = static_cast<int32_t>(std::min(room, spec::kMostTokens));
}

// What the KV cache holds and will have to hold, of kWholeShare: by the sample alone where its size is not known.
int32_t Scheduler::kv_demand(int32_t i) const {
  const Details& d = details(i);
  if (d.kv_tokens == 0) return d.kv;
  const int64_t coming = (d.waiting_tokens + d.unseen_tokens) << spec::kShareBits;
  return static_cast<int32_t>(std::min<int64_t>(d.kv + coming / d.kv_tokens, spec::kMostRequests));
}

// ---- the ledger

int32_t Scheduler::take_ticket() {
  if (free_.empty()) {
    tickets_.emplace_back();
    free_.reserve(tickets_.capacity());
    return static_cast<int32_t>(tickets_.size() - 1);
  }
  const int32_t ticket = free_.back();
  free_.pop_back();
  tickets_[static_cast<size_t>(ticket)] = Ticket();
  return ticket;
}

void Scheduler::link(int32_t t) {
  Ticket& own = ticket(t);
  Details& d = details(own.engine);
  own.previous = d.last;
  (d.last == kNone ? d.first : ticket(d.last).next) = t;
  d.last = t;
  own.outstanding = true;
  d.own_us += own.own_us;
  d.prefill_tokens += own.uncached_tokens;
}

void Scheduler::settle(int32_t t, int64_t now_us) {
  Ticket& own = ticket(t);
  if (!own.outstanding) return;
  Engine& e = engine(own.engine);
  Details& d = details(own.engine);
  (own.previous == kNone ? d.first : ticket(own.previous).next) = own.next;
  (own.next == kNone ? d.last : ticket(own.next).previous) = own.previous;
  if (own.previous == kNone && own.next != kNone && ticket(own.next).streams) {
    // What comes next begins no earlier, and is not late for that.
    Ticket& next = ticket(own.next);
    next.due_us = std::max(next.due_us, now_us + next.own_us);
  }
  own.previous = own.next = kNone;
  own.outstanding = false;
  d.own_us -= own.own_us;
  d.prefill_tokens -= own.uncached_tokens;
  if (own.dispatched_us >= e.sampled_us) --d.unseen;
  d.decode_tokens += own.prompt_tokens;
  d.settled[d.settled_next] = {own.dispatched_us, now_us, own.own_us, own.uncached_tokens};
  d.settled_next = (d.settled_next + 1) % kSettledKept;
  look_at_next(own.engine);
  refresh(own.engine);
}

// Engines begin with what came first, and a first token ends a prefill. So of what is outstanding all but the first request is
// still to be done however late it is. Where the first is silent, all of it may be done by now.
void Scheduler::look_at_next(int32_t i) {
  Engine& e = engine(i);
  const Details& d = details(i);
  if (d.first == kNone || !ticket(d.first).streams) {
    e.least_us = d.own_us / kLate;
    e.due_us = kFarOff;
    return;
  }
  const Ticket& next = ticket(d.first);
  e.least_us = d.own_us - next.own_us + next.own_us / kLate;
  e.due_us = next.due_us;
}

// What is outstanding now begins now: an event has shown it.
void Scheduler::anchor(int32_t i, int64_t now_us) { engine(i).ready_at_us = now_us + details(i).own_us + details(i).foreign_us; }

// Engines begin with what came first: what is silent and was sent before is done as well, and so is foreign work.
void Scheduler::settle_with_earlier(int32_t t, int64_t now_us) {
  const Ticket own = ticket(t);
  for (int32_t before = own.previous; before != kNone;) {
    const int32_t previous = ticket(before).previous;
    if (!ticket(before).streams) settle(before, now_us);
    before = previous;
  }
  settle(t, now_us);
  if (own.dispatched_us >= engine(own.engine).sampled_us) details(own.engine).foreign_us = 0;
}

void Scheduler::first_token(int32_t t, int64_t now_us) {
  if (!ticket(t).outstanding) return;
  settle_with_earlier(t, now_us);
  anchor(ticket(t).engine, now_us);
}

void Scheduler::progress(int32_t t, int64_t prefilled_tokens, int64_t now_us) {
  Ticket& own = ticket(t);
  if (!own.outstanding) return;
  const int64_t left = std::clamp<int64_t>(own.prompt_tokens - prefilled_tokens, 0, own.uncached_tokens);
  if (left == 0) {
    first_token(t, now_us);
    return;
  }
  Details& d = details(own.engine);
  const int64_t own_us = spec::prefill_micros(left, engine(own.engine).per_token);
  d.own_us += own_us - own.own_us;
  d.prefill_tokens += left - own.uncached_tokens;
  own.own_us = own_us;
  own.uncached_tokens = left;
  own.due_us = now_us + own_us;
  look_at_next(own.engine);
  anchor(own.engine, now_us);
}

void Scheduler::finished(int32_t t, int64_t now_us) {
  const Ticket& own = ticket(t);
  if (own.outstanding) {
    // Its prefill was done some time ago, and the engine has gone on since.
    settle_with_earlier(t, now_us);
    Engine& e = engine(own.engine);
    e.ready_at_us = std::min(e.ready_at_us, now_us + details(own.engine).own_us + details(own.engine).foreign_us);
  }
  release(t);
}

void Scheduler::failed(int32_t t, int64_t now_us) {
  const Ticket& own = ticket(t);
  if (own.outstanding) {
    // It was taken out of the queue: what is behind it comes so much earlier.
    Engine& e = engine(own.engine);
    e.ready_at_us = std::max(now_us, e.ready_at_us - own.own_us);
    settle(t, now_us);
  }
  release(t);
}

void Scheduler::release(int32_t t) {
  Details& d = details(ticket(t).engine);
  d.decode_tokens -= ticket(t).prompt_tokens;
  --d.in_flight;
  free_.push_back(t);
}

// ---- a decision

Decision Scheduler::dispatch(const DispatchRequest& request, int64_t now_us) {
  Decision decision;
  forget_stale_experts(now_us);
  // The rivals look at all engines alike, as they do where they come from.
  const Class best = filter(request, now_us, options_.policy == DispatchPolicy::kGimbal);
  if (candidates_.empty()) return decision;
  estimate(request);
  decision.engine = pick(request, best, now_us, &decision.score);
  decision.reason = best == Class::kGood         ? PickReason::kPressure
                    : best == Class::kShortOfKv ? PickReason::kShortOfKv
                                                : PickReason::kLeastInFlight;
  commit(request, now_us, &decision);
  told_ -= told_ / kToldOver;
  ++decisions_;
  return decision;
}

Decision Scheduler::dispatch_to(int32_t i, const DispatchRequest& request, int64_t now_us) {
  Decision decision;
  forget_stale_experts(now_us);
  candidates_.assign(1, i);
  estimate(request);
  if (now_us < engine(i).sampled_us) claim_foreign(i);
  decision.engine = i;
  decision.score = pressure_us(i, now_us);
  commit(request, now_us, &decision);
  told_ += (spec::kWholeShare - told_) / kToldOver;
  ++decisions_;
  return decision;
}

// A request that is told late: what a sample has shown of it passed for foreign work until now.
void Scheduler::claim_foreign(int32_t i) {
  Engine& e = engine(i);
  const int64_t shown_us = std::min(details(i).foreign_us, spec::prefill_micros(uncached_on(i), e.per_token));
  details(i).foreign_us -= shown_us;
  e.ready_at_us -= shown_us;
}

int64_t Scheduler::pressure_us(int32_t i, int64_t now_us) const {
  const Engine& e = engine(i);
  const int64_t own_us = spec::prefill_micros(uncached_on(i), e.per_token);
  return spec::pressure_micros(options_.weights, backlog_us(e, now_us), own_us, e.rest_us, e.excess, affinity_on(i));
}

void Scheduler::commit(const DispatchRequest& request, int64_t now_us, Decision* decision) {
  const int32_t i = decision->engine;
  Engine& e = engine(i);
  Details& d = details(i);
  decision->ticket = take_ticket();
  Ticket& own = ticket(decision->ticket);
  own.engine = i;
  own.streams = request.streams;
  own.dispatched_us = now_us;
  own.prompt_tokens = request.prompt_tokens;
  own.uncached_tokens = uncached_on(i);
  own.own_us = spec::prefill_micros(own.uncached_tokens, e.per_token);
  link(decision->ticket);
  e.ready_at_us = std::max(e.ready_at_us, now_us) + own.own_us;
  own.due_us = e.ready_at_us;
  look_at_next(i);
  ++d.in_flight;
  if (now_us >= e.sampled_us) {
    ++d.unseen;
    d.unseen_tokens += own.uncached_tokens;
  }
  ++d.bumped;
  d.bumped_tokens += request.prompt_tokens;
  refresh(i);
  mean_sum_ = mean_sum_ == 0 ? own.uncached_tokens * kMeanOver : mean_sum_ + own.uncached_tokens - mean_sum_ / kMeanOver;
  if (request.prefix_count > 0) prefixes_.insert(request.prefix, request.prefix_count, i);
  if (request.session != 0) {
    if (sessions_.empty()) sessions_.resize(kSessions);
    sessions_[request.session % kSessions] = {request.session, i, request.prompt_tokens};
  }
}

EngineReport Scheduler::report(int32_t i, int64_t now_us) {
  forget_stale_experts(now_us);
  const Engine& e = engine(i);
  const Details& d = details(i);
  EngineReport report;
  report.terms.backlog_us = spec::backlog_term(options_.weights, backlog_us(e, now_us), 0);
  report.terms.kv_us = spec::kv_term(options_.weights, kv_demand(i));
  report.terms.queue_us = spec::queue_term(options_.weights, d.waiting + d.unseen, d.running);
  report.terms.moe_us = spec::moe_term(spec::prefill_micros(mean_tokens(1), e.per_token), e.excess);
  report.terms.total_us = report.terms.backlog_us + report.terms.kv_us + report.terms.queue_us + report.terms.moe_us;
  report.in_flight_us = d.own_us;
  report.in_flight = d.in_flight;
  report.stale = is_stale(e, now_us);
  return report;
}

}  // namespace gimbal
