/**
 * gimbal-moe: where the experts of a Mixture-of-Experts model should live, given what was routed where.
 */
export { backends } from './backends.js';
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
