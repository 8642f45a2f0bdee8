/**
 * gimbal-moe: where the experts of a Mixture-of-Experts model should live, given what was routed where.
 */
export { adviseRedundancy } from './advice/redundancy.js';
export type {
  AdvisedRouting,
  DemandRange,
  RedundancyAdvice,
  RedundancyCandidate,
  RedundancyOptions,
  ServedTraffic,
} from './advice/types.js';
export { backends } from './backends.js';
export { Controller } from './controller/controller.js';
export {
  DECISION_DEFAULTS,
  type Decision,
  type DecisionHistory,
  type DecisionReason,
  type DecisionRules,
  decide,
  type Occasion,
  type Prospect,
  reasonToWait,
} from './controller/decide.js';
export {
  ExpertFingerprints,
  type ExpertFingerprintsOptions,
  type FingerprintObservation,
  type PlacedEngines,
} from './controller/fingerprints.js';
export { type CommandHookOptions, commandHook } from './controller/hooks/command.js';
export { type FileHookOptions, fileHook } from './controller/hooks/file.js';
export { type HttpHookOptions, httpHook } from './controller/hooks/http.js';
export { type FileLeaseOptions, fileLease } from './controller/lease/file.js';
export type { LeaseTimes } from './controller/lease/keeper.js';
export { type RedisLeaseOptions, redisLease } from './controller/lease/redis.js';
export type { OfferedPlacement } from './controller/placement-proposal.js';
export type { PlacementAnswer, PredictedChange } from './controller/placement-protocol.js';
export { PlacementService, type PlacementServiceOptions } from './controller/placement-service.js';
export {
  type ExpertPressure,
  expertPressure,
  type FingerprintCost,
  type PlacedTraffic,
} from './controller/pressure.js';
export { weighSources } from './controller/shares.js';
export type {
  ApplyHook,
  ControllerClock,
  ControllerLogger,
  ControllerOptions,
  ControllerStatus,
  DecisionRecord,
  Lease,
  MigrationCosts,
  PlacedModel,
  PlacementChange,
} from './controller/types.js';
export {
  type EnginePriorityOptions,
  enginePriority,
  type RankedRequest,
  RequestQueue,
} from './dispatch/request-queue.js';
export { Scheduler } from './dispatch/scheduler.js';
export type {
  Candidate,
  Dispatched,
  DispatchPolicy,
  DispatchReason,
  DispatchRequest,
  DispatchStages,
  EngineExpertPressure,
  EngineOptions,
  EnginePressure,
  EngineRole,
  EngineSample,
  EngineState,
  PressureWeights,
  QueuedRequest,
  QueuePolicy,
  RequestQueueOptions,
  SchedulerOptions,
  ScoreOptions,
  Scores,
} from './dispatch/types.js';
export { GimbalError, type GimbalErrorCode, type GimbalErrorDetail } from './errors.js';
export { type Candidates, evaluatePlacements } from './evaluate.js';
export {
  encodePlacement,
  type PlacementFormat,
  type PlacementFormatInfo,
  type PlacementToExport,
  placementFormats,
  writePlacement,
} from './export/placement.js';
export { HeldProblem, holdProblem } from './held-problem.js';
export {
  type CountsFormat,
  countsFormats,
  type ReadCountsOptions,
  type RoutingCounts,
  readCounts,
} from './import/counts.js';
export {
  type PlacementFile,
  type ReadPlacementOptions,
  readPlacement,
  selectLayers,
} from './import/placement.js';
export {
  type LocalCopies,
  type MigrationProblem,
  type MigrationSchedule,
  type StorageLoads,
  scheduleMigration,
  type Transfers,
} from './migration.js';
export { Planner, planPlacement } from './planner.js';
export {
  findHardware,
  findModel,
  type Hardware,
  type HardwareName,
  hardware,
  type ModelName,
  type ModelShape,
  models,
  type Precision,
} from './presets.js';
export {
  findServedModel,
  findServingHardware,
  type Gemm,
  type Link,
  type ServedModel,
  type ServingHardware,
  servedModels,
  servingHardware,
} from './simulator/hardware.js';
export { findPolicy, type PolicyName, simulatedPolicies } from './simulator/policies.js';
export { type LengthShape, lengthShapes, type SyntheticOptions, syntheticTrace } from './simulator/shapes.js';
export { simulate } from './simulator/simulate.js';
export { type ProfileTables, type ReadTablesOptions, readProfileTables } from './simulator/tables.js';
export {
  atRate,
  type ReadTraceOptions,
  type RecordedTrace,
  readTrace,
  scaleArrivals,
  type TraceFormat,
  traceFormats,
} from './simulator/traces.js';
export type {
  Distribution,
  EngineSettings,
  GpuFailure,
  PacingSettings,
  PlacementPlanner,
  Rearrangement,
  RequestOutcome,
  SimulatedAllToAll,
  SimulatedController,
  SimulatedDecision,
  SimulatedPlacement,
  SimulatedPolicy,
  SimulatedRequest,
  SimulatedRouting,
  SimulationCounters,
  SimulationOptions,
  SimulationResult,
  SimulationSeries,
  SimulationSummary,
} from './simulator/types.js';
export { decodePushedCounts, encodePushedCounts, type PushedCounts } from './statistics/pushed-counts.js';
export {
  type ReadRoutedExpertsOptions,
  type RoutedExperts,
  readRoutedExperts,
} from './statistics/routed-experts.js';
export { RoutingStatistics } from './statistics/routing-statistics.js';
export type {
  Drift,
  DriftOptions,
  LayerDrift,
  RoutingConfidence,
  RoutingObservation,
  RoutingStatisticsOptions,
  SummedCounts,
} from './statistics/types.js';
export { decodeKvEvents } from './telemetry/kv-events.js';
export { KvEventFeed } from './telemetry/kv-feed.js';
export { KvBlockIndex } from './telemetry/kv-index.js';
export type {
  CachedTokensOptions,
  KvBlockHash,
  KvBlockIndexOptions,
  KvBlocksCleared,
  KvBlocksRemoved,
  KvBlocksStored,
  KvEngineBlocks,
  KvEvent,
  KvEventBatch,
  KvEventFeedOptions,
  KvEventSource,
  KvSourceStatus,
} from './telemetry/kv-types.js';
export { EnginePoller } from './telemetry/poller.js';
export { readSglangLoads, readSglangMetrics } from './telemetry/sglang.js';
export type {
  EnginePollerOptions,
  EngineReading,
  ReadLoadsOptions,
  ReadMetricsOptions,
  ServerEndpoint,
  ServerKind,
  ServerState,
  ServerStatus,
  SglangEngineReading,
  TelemetryServer,
  VllmEngineReading,
} from './telemetry/types.js';
export { readVllmMetrics } from './telemetry/vllm.js';
export {
  type AllToAll,
  type ParseTopologyOptions,
  parseTopology,
  type Topology,
  type TopologyOptions,
  topology,
} from './topology.js';
export type {
  BackendInfo,
  BackendName,
  DeviceInfo,
  Effort,
  Evaluation,
  LayerPlan,
  PlacementProblem,
  Plan,
  PlanOptions,
  PlanProgress,
  ReplicaChoice,
  Weights,
} from './types.js';
export type { EvaluateOptions } from './validate.js';
