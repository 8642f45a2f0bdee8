/**
 * A time in which this controller may act, from the lease's win to its loss: what one look does, from what was left open over the decision
 * to the change.
 */
import { mismatch } from '../errors.js';
import { Changes } from './change.js';
import type { Considering, Finding, Situation } from './consider.js';
import { isBackingOff } from './decide.js';
import { Keeper, LeaseLost } from './keeper.js';
import type { CheckedController } from './options.js';
import { gainShare, previewOf, type Told, toldOf } from './record.js';
import { type KeptState, readState } from './state.js';
import type { ControllerStatus, DecisionRecord } from './types.js';

/** What the look goes by. The rate is the caller's to tell, and may fail as anything else. */
export type Sighting = Pick<Situation, 'deadGpus' | 'statisticsAgeMs'> & { tokensPerSecond: () => number };

type Result = Told & Pick<DecisionRecord, 'decision'>;

export class Tenure {
  readonly token: number;
  readonly keeper: Keeper;
  readonly #options: CheckedController;
  readonly #considering: Considering;
  readonly #changes: Changes;
  readonly #lost = new AbortController();
  /** Aborts at the stop as well: a plan can be left, a change not. */
  readonly #planning = new AbortController();
  #isPlanning = false;
  #isOver = false;
  #preview: ControllerStatus['preview'];
  /** In the shadow: when something would have been committed, and with which GPUs dead. */
  #wouldHave: { atMs: number; deadGpus: number[] } | undefined;

  private constructor(options: CheckedController, considering: Considering, state: KeptState, token: number) {
    const { stateFile, clock, lease, shadow } = options;
    const held = () => {
      if (this.#lost.signal.aborted || (token > 0 && lease?.token !== token)) {
        throw new LeaseLost('none: it is over');
      }
      return token;
    };
    this.token = token;
    this.keeper = new Keeper(stateFile, state, clock, held, shadow);
    this.#options = options;
    this.#considering = considering;
    this.#changes = new Changes(options, this.keeper, this.#lost.signal);
  }

  /**
   * Takes over what is kept, and first of all writes it under its own token, so that who had the lease before cannot any more.
   *
   * @param token of the lease, 0 without one
   * @param fresh where nothing is kept
   */
  static async begin(
    options: CheckedController,
    considering: Considering,
    token: number,
    fresh: KeptState,
  ): Promise<Tenure> {
    const { stateFile, problem, shadow, logger } = options;
    const state = (await readState(stateFile, problem)) ?? fresh;
    if (token < state.fencingToken && !shadow) {
      const remedy = 'the state was written under a later lease: the lease was reset, or is another one';
      const received = `${token} (${remedy})`;
      throw mismatch('GIMBAL_IO', 'lease', `a token of at least ${state.fencingToken}`, received);
    }
    const tenure = new Tenure(options, considering, state, token);
    await tenure.keeper.announce({});
    const outcome = shadow ? 'none' : await tenure.#changes.resolve();
    if (outcome !== 'none') {
      logger?.warn({ outcome, planId: state.change?.planId }, 'controller: a change had been left open');
    }
    return tenure;
  }

  get preview(): ControllerStatus['preview'] {
    return this.#preview;
  }

  get phase(): ControllerStatus['state'] {
    const { change } = this.keeper.state;
    if (change !== undefined) return change.step === 'rolling-back' ? 'rolling-back' : 'applying';
    return this.#isPlanning ? 'planning' : 'watching';
  }

  /** Somebody else acts now. */
  get isOver(): boolean {
    return this.#isOver;
  }

  leavePlan(): void {
    this.#planning.abort();
  }

  end(): void {
    this.#lost.abort();
    this.#planning.abort();
  }

  /** Undefined where it was left, be it for the lease or for the stop. */
  async look(sighting: Sighting): Promise<DecisionRecord | undefined> {
    const { clock } = this.#options;
    try {
      const result = await this.#lookOrFail(sighting);
      const record = { atMs: clock.wallMs(), ...result };
      await this.keeper.note(record);
      return record;
    } catch (error) {
      this.#isOver ||= error instanceof LeaseLost;
      if (this.#isOver || this.#planning.signal.aborted) return undefined;
      throw error;
    } finally {
      this.#isPlanning = false;
    }
  }

  async #lookOrFail(sighting: Sighting): Promise<Result> {
    try {
      const { deadGpus } = sighting;
      if (!same(this.keeper.state.deadGpus, deadGpus)) await this.keeper.sawGpus(deadGpus);
      await this.keeper.flush();
      return (await this.#settle(sighting)) ?? (await this.#decide(sighting));
    } catch (error) {
      if (error instanceof LeaseLost || this.#planning.signal.aborted) throw error;
      await this.keeper.failed();
      return { decision: 'failed', reason: 'error', detail: messageOf(error) };
    }
  }

  /** Sees to it that what is committed is in force. Undefined where it is, as far as can be told. */
  async #settle({ deadGpus }: Sighting): Promise<Result | undefined> {
    // What comes next is a plan that replaces all that may be in force.
    if (this.#options.shadow || this.#haveGpusChanged(deadGpus)) return undefined;
    const { change, committed } = this.keeper.state;
    if (change !== undefined) {
      const isEarly = change.tries > 0 && this.#isBackingOff();
      return isEarly
        ? { decision: 'kept', reason: 'backing-off' }
        : await this.#rollBack('a change was left open');
    }
    const inForce = await this.#changes.inForce();
    if (inForce === undefined || inForce === committed.planId) return undefined;
    await this.#changes.oweRollBack();
    return await this.#rollBack(`the engines reported plan ${inForce}`);
  }

  async #rollBack(detail: string): Promise<Result> {
    const error = await this.#changes.rollBack();
    const { planId } = this.keeper.state.committed;
    return error === undefined
      ? { decision: 'rolled-back', reason: 'not-in-force', detail, planId }
      : { decision: 'failed', reason: 'error', detail: `rollback: ${messageOf(error)}` };
  }

  async #decide(sighting: Sighting): Promise<Result> {
    // Before anything is counted, since that may be what fails.
    if (this.#isBackingOff()) return { decision: 'kept', reason: 'backing-off' };
    const situation = this.#situationOf(sighting);
    this.#isPlanning = true;
    const finding = await this.#considering.consider(situation, this.#planning.signal);
    this.#isPlanning = false;
    const told = toldOf(finding);
    this.#preview = previewOf(finding);
    if (!finding.decision.rearrange) return { ...told, decision: 'kept' };
    if (this.#options.shadow) {
      this.#wouldHave = { atMs: situation.nowMs, deadGpus: sighting.deadGpus };
      return { ...told, decision: 'would-commit' };
    }
    // From here on a stop waits.
    this.#planning.signal.throwIfAborted();
    return await this.#commit(situation, finding, told);
  }

  async #commit(
    { deadGpus, gpusChanged }: Situation,
    { plan, prospect }: Finding,
    told: Told,
  ): Promise<Result> {
    const outcome = await this.#changes.make({
      placement: plan!.physicalToLogical,
      deadGpus,
      score: prospect!.candidateScore,
      forced: gpusChanged,
      migrations: plan!.migrations,
      gainShare: gainShare(prospect!),
    });
    if (outcome.end === 'committed') {
      this.#preview = undefined;
      return { ...told, decision: 'committed', planId: this.keeper.state.committed.planId };
    }
    const detail = messageOf(outcome.error);
    const decision = outcome.end === 'rolled-back' ? 'rolled-back' : 'failed';
    return { ...told, decision, reason: 'error', detail };
  }

  #situationOf(sighting: Sighting): Situation {
    const { committed } = this.keeper.state;
    const would = this.#wouldHave;
    const history = this.keeper.history;
    return {
      ...sighting,
      tokensPerSecond: sighting.tokensPerSecond(),
      nowMs: this.#options.clock.monotonicMs(),
      committed,
      history: would === undefined ? history : { ...history, committedAtMs: would.atMs },
      gpusChanged:
        would === undefined
          ? this.#haveGpusChanged(sighting.deadGpus)
          : !same(would.deadGpus, sighting.deadGpus),
    };
  }

  /** Since the plan in force was made; another number of them, too. */
  #haveGpusChanged(deadGpus: number[]): boolean {
    const { committed } = this.keeper.state;
    const { gpus, slotsPerGpu } = this.#options.problem;
    const isOfShape = committed.gpus === gpus && committed.slotsPerGpu === slotsPerGpu;
    return !isOfShape || !same(committed.deadGpus, deadGpus);
  }

  #isBackingOff(): boolean {
    const { rules, clock } = this.#options;
    return isBackingOff(rules, clock.monotonicMs(), this.keeper.history);
  }
}

/** Both ascending. */
function same(a: number[], b: number[]): boolean {
  return a.length === b.length && a.every((value, at) => value === b[at]);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
