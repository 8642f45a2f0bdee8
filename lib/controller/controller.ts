/**
 * The controller: looks at the statistics at an interval, decides whether another placement is worth its moves, and has the engines take
 * it. What one look does is tenure.ts's; here is when to look, who may act, and what to tell.
 */
import { atLeastZero, invalid } from '../checks.js';
import { Planner } from '../planner.js';
import { tell } from '../telemetry/listeners.js';
import { deadGpus as checkDeadGpus } from '../validate.js';
import { Considering } from './consider.js';
import { type Heat, heatOf } from './heat.js';
import { restoreStatistics, saveStatistics } from './kept-statistics.js';
import type { ControllerMetrics } from './metrics.js';
import { type CheckedController, checkController } from './options.js';
import { GrowthRate } from './rate.js';
import { freshState, type KeptState, readState } from './state.js';
import { Tenure } from './tenure.js';
import type { ControllerOptions, ControllerStatus, DecisionRecord } from './types.js';

export class Controller {
  readonly #options: CheckedController;
  readonly #considering: Considering;
  readonly #planner = new Planner();
  #rate: GrowthRate;
  #metrics: ControllerMetrics | undefined;
  #tokensPerSecond: CheckedController['tokensPerSecond'];
  #deadGpus: number[] | undefined;
  #tenure: Tenure | undefined;
  /** As it was last seen, for when there is no tenure. */
  #seen: KeptState;
  #isOver = false;
  #run: 'stopped' | 'running' | 'stopping' = 'stopped';
  #heat: Heat = { imbalance: [], load: [] };
  #timer: NodeJS.Timeout | undefined;
  #looking: Promise<DecisionRecord | undefined> | undefined;

  /** @throws GimbalError GIMBAL_INVALID_INPUT (names the option), GIMBAL_BINDING */
  constructor(options: ControllerOptions) {
    const checked = checkController(options);
    const { problem, initial, clock, statistics } = checked;
    this.#options = checked;
    this.#tokensPerSecond = checked.tokensPerSecond;
    this.#considering = new Considering(checked, this.#planner);
    this.#rate = new GrowthRate(clock.monotonicMs(), statistics.tokensSeen);
    this.#seen = freshState({ ...problem, initial, nowMs: clock.wallMs() });
  }

  /**
   * Reads what is kept, finishes what a controller before this one left open, and looks from now on. With a lease it waits for that
   * first, after this has resolved.
   *
   * @throws GimbalError GIMBAL_FORMAT (a state file that is damaged, or of another model), GIMBAL_IO, GIMBAL_INVALID_INPUT (it has
   *   been stopped)
   */
  async start(): Promise<void> {
    if (this.#run !== 'stopped') return;
    if (this.#isOver) throw invalid('controller', 'one that has not been stopped', 'one that has');
    const { lease, shadow, stateFile, problem, clock, statistics } = this.#options;
    const kept = await readState(stateFile, problem);
    await restoreStatistics(this.#options);
    // From here on: what was restored did not come just now.
    this.#rate = new GrowthRate(clock.monotonicMs(), statistics.tokensSeen);
    await this.#startMetrics();
    this.#seen = kept ?? this.#seen;
    this.#run = 'running';
    try {
      if (lease === undefined || shadow) this.#tenure = await this.#begin(0);
      else lease.open((token) => this.#onLease(token));
    } catch (error) {
      this.#run = 'stopped';
      throw error;
    }
    this.#lookIn(0);
  }

  /** Leaves a plan that is being made; waits for a change that is under way, which the time limits bound. */
  async stop(): Promise<void> {
    if (this.#run !== 'running') return;
    this.#run = 'stopping';
    clearTimeout(this.#timer);
    this.#tenure?.leavePlan();
    await this.#looking;
    await saveStatistics(this.#options);
    await this.#options.lease?.close();
    this.#leave();
    this.#isOver = true;
    this.#planner.close();
  }

  /** One look now, or the one that is under way. Undefined where this controller may not act. Never rejects. */
  look(): Promise<DecisionRecord | undefined> {
    this.#looking ??= this.#look().finally(() => {
      this.#looking = undefined;
    });
    return this.#looking;
  }

  /** The placement in force. `[layers][gpus * slotsPerGpu]` */
  get placement(): Int32Array {
    return this.#state.committed.placement.slice();
  }

  get planId(): string {
    return this.#state.committed.planId;
  }

  /** What the latest look planned and did not commit. */
  get preview(): ControllerStatus['preview'] {
    return this.#tenure?.preview;
  }

  /** What the engines serve, where it is known better than by how the statistics grow. */
  setTokensPerSecond(tokensPerSecond: number): void {
    this.#tokensPerSecond = atLeastZero('tokensPerSecond', tokensPerSecond);
  }

  /**
   * Says which GPUs are gone, and looks at once: experts that have no other replica must come from storage.
   *
   * @throws GimbalError GIMBAL_INVALID_INPUT
   */
  setDeadGpus(gpus: number[]): void {
    const checked = checkDeadGpus(gpus, this.#options.problem.gpus);
    this.#deadGpus = [...checked].sort((a, b) => a - b);
    if (this.#run !== 'running') return;
    if (this.#looking === undefined) this.#lookIn(0);
    else void this.#looking.finally(() => this.#lookIn(0));
  }

  status(): ControllerStatus {
    const { committed, decisions, history, failures } = this.#state;
    const { problem, shadow, clock } = this.#options;
    const { preview } = this;
    const age = this.#tenure?.keeper.planAgeMs ?? Math.max(0, clock.wallMs() - committed.atMs);
    return {
      state: this.#phase,
      shadow,
      planId: committed.planId,
      planAgeMs: age,
      deadGpus: this.#dead(),
      layers: problem.layers,
      gpus: committed.gpus,
      slotsPerGpu: committed.slotsPerGpu,
      failures,
      ...(this.#tenure !== undefined && this.#tenure.token > 0 && { fencingToken: this.#tenure.token }),
      ...this.#heat,
      ...(preview !== undefined && { preview }),
      decisions,
      history,
    };
  }

  get #state(): KeptState {
    return this.#tenure?.keeper.state ?? this.#seen;
  }

  get #phase(): ControllerStatus['state'] {
    if (this.#run === 'stopped') return 'stopped';
    if (this.#tenure === undefined) return 'waiting-for-lease';
    return this.#tenure.phase;
  }

  get #tokenRate(): number {
    const given = this.#tokensPerSecond;
    const told = typeof given === 'function' ? given() : given;
    return told ?? this.#rate.tokensPerSecond / this.#options.sampledShare;
  }

  /** Of a state of more GPUs than there are now only those that are still there. */
  #dead(): number[] {
    return this.#deadGpus ?? this.#state.deadGpus.filter((gpu) => gpu < this.#options.problem.gpus);
  }

  #onLease(token: number | undefined): void {
    const { logger } = this.#options;
    if (token === undefined) logger?.warn({}, 'controller: the lease is lost');
    else logger?.info({ fencingToken: token }, 'controller: the lease is held');
    if (token === undefined) this.#leave();
    else if (this.#run === 'running') this.#lookIn(0);
  }

  /** Loaded where a registry is given alone. */
  async #startMetrics(): Promise<void> {
    const { registry, clock, statistics } = this.#options;
    if (registry === undefined || this.#metrics !== undefined) return;
    const { ControllerMetrics } = await import('./metrics.js');
    this.#metrics = new ControllerMetrics(registry, {
      status: () => this.status(),
      statistics: () => ({
        ageMs: this.#rate.ageMs(clock.monotonicMs()),
        tokens: statistics.tokensSeen,
        tokensPerSecond: this.#tokenRate,
      }),
    });
  }

  #begin(token: number): Promise<Tenure> {
    return Tenure.begin(this.#options, this.#considering, token, this.#seen);
  }

  #leave(): void {
    const tenure = this.#tenure;
    this.#tenure = undefined;
    if (this.#run === 'stopping') this.#run = 'stopped';
    if (tenure === undefined) return;
    this.#seen = tenure.keeper.state;
    tenure.end();
  }

  async #look(): Promise<DecisionRecord | undefined> {
    const { clock, statistics } = this.#options;
    const beganMs = clock.monotonicMs();
    this.#rate.note(beganMs, statistics.tokensSeen);
    const tenure = await this.#mayAct();
    if (tenure === undefined) return undefined;
    const record = await tenure.look({
      deadGpus: this.#dead(),
      statisticsAgeMs: this.#rate.ageMs(beganMs),
      tokensPerSecond: () => atLeastZero('tokensPerSecond', this.#tokenRate),
    });
    this.#metrics?.looked(clock.monotonicMs() - beganMs);
    if (tenure.isOver && tenure === this.#tenure) this.#leave();
    if (record === undefined) return undefined;
    this.#tell(record);
    await this.#warm();
    if (record.decision === 'committed') await saveStatistics(this.#options);
    return record;
  }

  async #mayAct(): Promise<Tenure | undefined> {
    const { lease, shadow, logger } = this.#options;
    const token = lease?.token;
    if (this.#run !== 'running') return undefined;
    if (this.#tenure !== undefined || lease === undefined || shadow || token === undefined)
      return this.#tenure;
    try {
      const tenure = await this.#begin(token);
      if (lease.token === token) this.#tenure = tenure;
    } catch (error) {
      logger?.warn({ error: String(error) }, 'controller: cannot take over');
    }
    return this.#tenure;
  }

  /** The heat map. What it is made of may be wrong as well, and has been told then. */
  async #warm(): Promise<void> {
    const { problem } = this.#options;
    const { committed } = this.#state;
    if (committed.gpus !== problem.gpus || committed.slotsPerGpu !== problem.slotsPerGpu) return;
    try {
      this.#heat = await heatOf(this.#considering.problemOf(committed.deadGpus), committed.placement);
    } catch (error) {
      this.#options.logger?.warn({ error: String(error) }, 'controller: no heat map');
    }
  }

  #tell(record: DecisionRecord): void {
    const { logger, onDecision } = this.#options;
    this.#metrics?.decided(record);
    if (record.decision === 'failed' || record.decision === 'rolled-back') {
      logger?.warn(record, 'controller: a look went wrong');
    } else {
      logger?.info(record, 'controller: a look');
    }
    if (onDecision !== undefined) tell(() => onDecision(record));
  }

  #lookIn(ms: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      void this.look().then(() => {
        if (this.#run === 'running') this.#lookIn(this.#options.intervalMs);
      });
    }, ms);
  }
}
