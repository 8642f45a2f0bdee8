/**
 * Puts a placement in force, step by step, so that a controller that dies at any point finds out at its next start what to do:
 *
 *   intent → (file exported) → applying → (hook, verify) → committed
 *                                           └→ rolling-back → (hook, verify) → rolled back
 *
 * The name of a step stands in the state file before the step is done. `intent`: nothing has been asked of the engines, so the change
 * is dropped. `applying`: the engines are asked which plan is in force; the change's is committed, all else is rolled back. A
 * rollback is a change as well, with a name of its own that is newer than the one that it undoes, so that a hook that comes late with
 * the older one can be told to be late.
 */
import { writePlacement } from '../export/placement.js';
import { type Keeper, LeaseLost } from './keeper.js';
import type { CheckedController } from './options.js';
import type { Change } from './state.js';
import type { PlacementChange } from './types.js';

export type Wanted = Pick<Change, 'placement' | 'deadGpus' | 'score' | 'forced' | 'migrations' | 'gainShare'>;

/** What became of a change. `error` is what kept it from being committed. */
export type Outcome =
  | { end: 'committed' }
  /** The engines have nothing of it. */
  | { end: 'dropped'; error: Error }
  | { end: 'rolled-back'; error: Error }
  /** It may be in force in part; undone at a later look, or by a later plan. */
  | { end: 'owed'; error: Error };

/** What the hook's calls end with: the change's plan is in force, the one before it is for sure, or who knows. */
type Attempt = { end: 'in-force' } | { end: 'untouched' | 'unknown'; error: Error };

class TimedOut extends Error {}

export class Changes {
  readonly #options: CheckedController;
  readonly #keeper: Keeper;
  readonly #lost: AbortSignal;

  /** @param lost aborts once the lease is lost */
  constructor(options: CheckedController, keeper: Keeper, lost: AbortSignal) {
    this.#options = options;
    this.#keeper = keeper;
    this.#lost = lost;
  }

  async make(wanted: Wanted): Promise<Outcome> {
    const { gpus, slotsPerGpu } = this.#options.problem;
    const planId = this.#keeper.nextPlanId();
    const change: Change = { ...wanted, planId, gpus, slotsPerGpu, step: 'intent', tries: 0 };
    await this.#keeper.announce({ lastPlan: this.#keeper.state.lastPlan + 1, change });
    try {
      await this.#export(change);
      await this.#keeper.announce({ change: { ...change, step: 'applying' } });
    } catch (error) {
      if (error instanceof LeaseLost) throw error;
      await this.#drop();
      return { end: 'dropped', error: error as Error };
    }
    const attempt = await this.#attempt(change, false);
    if (attempt.end === 'in-force') {
      await this.#keeper.committed(change);
      return { end: 'committed' };
    }
    const { error } = attempt;
    if (attempt.end === 'untouched') {
      await this.#drop();
      return { end: 'dropped', error };
    }
    await this.#owe(change);
    // Back to experts on GPUs that are gone is no way: the next plan comes instead.
    if (change.forced || (await this.rollBack()) !== undefined) return { end: 'owed', error };
    return { end: 'rolled-back', error };
  }

  /** What a controller before this one left open. Resolves with what became of it. */
  async resolve(): Promise<'none' | 'dropped' | 'committed' | 'to-roll-back'> {
    const { change } = this.#keeper.state;
    if (change === undefined) return 'none';
    if (change.step === 'rolling-back') return 'to-roll-back';
    if (change.step === 'intent') {
      await this.#drop();
      return 'dropped';
    }
    if ((await this.inForce()) === change.planId) {
      await this.#keeper.committed(change);
      return 'committed';
    }
    await this.#owe(change);
    return 'to-roll-back';
  }

  /** Has the engines take the committed placement again, under a new name. Resolves with what kept them from it. */
  async rollBack(): Promise<Error | undefined> {
    const { state } = this.#keeper;
    const change = state.change!;
    let error: Error | undefined;
    try {
      await this.#export(change);
      const attempt = await this.#attempt(change, true);
      if (attempt.end === 'in-force') {
        const committed = { ...state.committed, planId: change.planId };
        await this.#keeper.record({ committed, change: undefined });
        return undefined;
      }
      // What it goes back to was in force all the time.
      if (attempt.end === 'untouched') {
        await this.#keeper.record({ change: undefined });
        return undefined;
      }
      error = attempt.error;
    } catch (thrown) {
      if (thrown instanceof LeaseLost) throw thrown;
      error = thrown as Error;
    }
    await this.#keeper.failed({ change: { ...change, tries: change.tries + 1 } });
    return error;
  }

  /** The engines hold something else than was committed, or may: from now on a rollback is due. */
  async oweRollBack(): Promise<void> {
    const { committed } = this.#keeper.state;
    await this.#keeper.announce(this.#rollback({ ...committed, migrations: 0, gainShare: 0, forced: false }));
  }

  /** Undefined where it cannot be told. */
  async inForce(): Promise<string | undefined> {
    const { apply, verifyTimeoutMs } = this.#options;
    if (apply.verify === undefined) return undefined;
    return await within(verifyTimeoutMs, this.#lost, (signal) => apply.verify!(signal)).catch(() => {
      this.#checkLease();
      return undefined;
    });
  }

  async #owe(change: Change): Promise<void> {
    await this.#keeper.failed(this.#rollback(change));
  }

  #rollback(of: Pick<Change, 'forced' | 'migrations' | 'gainShare'>): { lastPlan: number; change: Change } {
    const { committed, lastPlan } = this.#keeper.state;
    const { placement, gpus, slotsPerGpu, deadGpus } = committed;
    const { forced, migrations, gainShare } = of;
    const planId = this.#keeper.nextPlanId();
    const step = 'rolling-back' as const;
    const place = { planId, placement, gpus, slotsPerGpu, deadGpus };
    return { lastPlan: lastPlan + 1, change: { ...place, step, forced, migrations, gainShare, tries: 0 } };
  }

  /** Of a change that the engines have nothing of: only the file may be of it. */
  async #drop(): Promise<void> {
    await this.#keeper.failed({ change: undefined });
    // Where even that fails the next change writes the file anew before anything is asked of the engines.
    await this.#export(this.#keeper.state.committed).catch(() => {});
  }

  async #export({
    placement,
    gpus,
    slotsPerGpu,
    planId,
  }: Pick<Change, 'placement' | 'gpus' | 'slotsPerGpu' | 'planId'>) {
    const { exportFile, exportFormat, problem } = this.#options;
    if (exportFile === undefined) return;
    const { layers, experts, layerIds } = problem;
    const shape = { layers, experts, gpus, slotsPerGpu, ...(layerIds && { layerIds }) };
    await writePlacement(
      exportFile,
      { ...shape, physicalToLogical: placement, metadata: { planId } },
      exportFormat,
    );
  }

  async #attempt(change: Change, isRollback: boolean): Promise<Attempt> {
    const { apply, applyTimeoutMs } = this.#options;
    const before = this.#keeper.state.committed.planId;
    let error: Error | undefined;
    const request = this.#request(change, isRollback);
    try {
      await within(applyTimeoutMs, this.#lost, (signal) => apply.apply(request, signal));
    } catch (thrown) {
      error = thrown instanceof Error ? thrown : new Error(String(thrown));
    }
    this.#checkLease();
    const inForce = await this.inForce();
    // Without an answer the hook's word counts.
    if (inForce === change.planId || (error === undefined && inForce === undefined))
      return { end: 'in-force' };
    // One that has timed out may yet come about.
    const end = inForce === before && !(error instanceof TimedOut) ? 'untouched' : 'unknown';
    error ??= new Error(`the engines report plan ${inForce} in force, not ${change.planId}`);
    return { end, error };
  }

  #request(change: Change, isRollback: boolean): PlacementChange {
    const { committed, fencingToken } = this.#keeper.state;
    const { exportFile, problem } = this.#options;
    return {
      planId: change.planId,
      placement: change.placement.slice(),
      previous: committed.placement.slice(),
      previousPlanId: committed.planId,
      previousGpus: committed.gpus,
      previousSlotsPerGpu: committed.slotsPerGpu,
      layers: problem.layers,
      gpus: change.gpus,
      slotsPerGpu: change.slotsPerGpu,
      ...(exportFile !== undefined && { file: exportFile }),
      isRollback,
      fencingToken,
    };
  }

  #checkLease(): void {
    if (this.#lost.aborted) throw new LeaseLost('none: it ran out while a change was under way');
  }
}

/** Waits for a call for so long and no longer, whether it heeds its signal or not. */
async function within<T>(
  timeoutMs: number,
  outer: AbortSignal,
  call: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const own = new AbortController();
  const leave = () => own.abort(outer.reason);
  const timer = setTimeout(() => own.abort(new TimedOut(`no answer within ${timeoutMs} ms`)), timeoutMs);
  outer.addEventListener('abort', leave, { once: true });
  if (outer.aborted) leave();
  try {
    const aborted = new Promise<never>((_, reject) => {
      own.signal.addEventListener('abort', () => reject(own.signal.reason), { once: true });
      if (own.signal.aborted) reject(own.signal.reason);
    });
    return await Promise.race([aborted, Promise.resolve().then(() => call(own.signal))]);
  } finally {
    clearTimeout(timer);
    outer.removeEventListener('abort', leave);
  }
}
