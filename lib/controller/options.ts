/** The controller's options, checked once and with their defaults, so that nothing behind them asks again. */
import {
  aboveZero,
  atLeastZero,
  boolean,
  checkFunction,
  checkKeys,
  count,
  describe,
  invalid,
  nonEmpty,
  oneOf,
  ordinal,
  shareAboveZero,
} from '../checks.js';
import { type PlacementFormat, placementFormats } from '../export/placement.js';
import { checkPlanOptions, checkProblem, everyExpert, typedArray } from '../validate.js';
import { DECISION_DEFAULTS, type DecisionRules } from './decide.js';
import type { ControllerClock, ControllerOptions, MigrationCosts } from './types.js';

const KEYS = [
  'problem',
  'statistics',
  'initial',
  'apply',
  'stateFile',
  'migration',
  'rules',
  'plan',
  'shadow',
  'intervalMs',
  'applyTimeoutMs',
  'verifyTimeoutMs',
  'tokensPerSecond',
  'sampledShare',
  'overdispersion',
  'resamples',
  'exportFile',
  'exportFormat',
  'statisticsFile',
  'lease',
  'logger',
  'registry',
  'onDecision',
  'clock',
] as const satisfies (keyof ControllerOptions)[];

const MIGRATION_DEFAULTS = {
  linkGBps: 25,
  transfer: 'stall',
  linkShare: 0.25,
  stallMs: 0,
  layerStallMs: 10,
  stagingSlots: 4,
} as const;

const DEFAULTS = {
  shadow: false,
  intervalMs: 10_000,
  applyTimeoutMs: 120_000,
  verifyTimeoutMs: 10_000,
  sampledShare: 1,
  overdispersion: 8,
  resamples: 16,
  exportFormat: 'json' as PlacementFormat,
};

const SYSTEM_CLOCK: ControllerClock = { wallMs: () => Date.now(), monotonicMs: () => performance.now() };

type Defaulted = keyof typeof DEFAULTS | 'clock' | 'plan';
export type CheckedController = Omit<ControllerOptions, Defaulted | 'rules' | 'migration'> &
  Required<Pick<ControllerOptions, Defaulted>> & {
    rules: Required<DecisionRules>;
    migration: Required<MigrationCosts>;
  };

/** @throws GimbalError GIMBAL_INVALID_INPUT (names the option) */
export function checkController(options: ControllerOptions): CheckedController {
  checkKeys('options', options, KEYS);
  const checked: CheckedController = {
    ...DEFAULTS,
    clock: SYSTEM_CLOCK,
    plan: {},
    ...options,
    rules: checkRules(options.rules ?? {}),
    migration: checkMigration(options.migration),
  };
  checkModel(checked);
  checkInterfaces(checked);
  boolean('options.shadow', checked.shadow);
  for (const key of ['intervalMs', 'applyTimeoutMs', 'verifyTimeoutMs'] as const) {
    aboveZero(`options.${key}`, checked[key]);
  }
  shareAboveZero('options.sampledShare', checked.sampledShare);
  if (!(checked.overdispersion >= 1)) {
    throw invalid('options.overdispersion', 'a number of at least 1', describe(checked.overdispersion));
  }
  if (count('options.resamples', checked.resamples) < 2)
    throw invalid('options.resamples', 'at least 2', '1');
  oneOf(
    'options.exportFormat',
    checked.exportFormat,
    Object.keys(placementFormats) as readonly PlacementFormat[],
  );
  if (typeof checked.tokensPerSecond === 'number')
    atLeastZero('options.tokensPerSecond', checked.tokensPerSecond);
  return checked;
}

/** The model with no traffic, and the first placement by the rules that plans keep. */
function checkModel({ problem, initial, plan }: CheckedController): void {
  const { layers, sources, experts, gpus, slotsPerGpu } = problem;
  checkProblem({ ...problem, tokens: new Uint32Array(layers * sources * experts) });
  checkPlanOptions(plan);
  const slots = gpus * slotsPerGpu;
  typedArray('options.initial', initial, 'Int32Array', '[layers][gpus * slotsPerGpu]', layers * slots);
  for (let layer = 0; layer < layers; layer++) {
    const row = initial.subarray(layer * slots, (layer + 1) * slots);
    const field = `options.initial, layer ${layer}`;
    const wrong = row.find((id) => id < -1 || id >= experts);
    if (wrong !== undefined) {
      throw invalid(field, `experts of 0 to ${experts - 1}, or -1`, String(wrong));
    }
    everyExpert(field, row, experts);
  }
}

function checkInterfaces(checked: CheckedController): void {
  const { statistics, apply, lease, logger, onDecision } = checked;
  checkFunction('options.apply.apply', apply?.apply);
  if (apply.verify !== undefined) checkFunction('options.apply.verify', apply.verify);
  checkFunction('options.statistics.counts', statistics?.counts);
  checkFunction('options.clock.wallMs', checked.clock.wallMs);
  checkFunction('options.clock.monotonicMs', checked.clock.monotonicMs);
  if (lease !== undefined) checkFunction('options.lease.open', lease.open);
  if (logger !== undefined) checkFunction('options.logger.info', logger.info);
  if (onDecision !== undefined) checkFunction('options.onDecision', onDecision);
  for (const key of ['stateFile', 'exportFile', 'statisticsFile'] as const) {
    const path = checked[key];
    if (key !== 'stateFile' && path === undefined) continue;
    nonEmpty(`options.${key}`, path, 'a path');
  }
}

function checkRules(rules: DecisionRules): Required<DecisionRules> {
  const names = Object.keys(DECISION_DEFAULTS) as (keyof DecisionRules)[];
  checkKeys('options.rules', rules, names);
  const checked = { ...DECISION_DEFAULTS, ...rules };
  for (const name of names) atLeastZero(`options.rules.${name}`, checked[name]);
  aboveZero('options.rules.horizonMs', checked.horizonMs);
  return checked;
}

function checkMigration(migration: MigrationCosts): Required<MigrationCosts> {
  checkKeys('options.migration', migration, ['expertBytes', ...Object.keys(MIGRATION_DEFAULTS)]);
  const checked = { ...MIGRATION_DEFAULTS, ...migration };
  aboveZero('options.migration.expertBytes', checked.expertBytes);
  aboveZero('options.migration.linkGBps', checked.linkGBps);
  oneOf('options.migration.transfer', checked.transfer, ['stall', 'overlap']);
  shareAboveZero('options.migration.linkShare', checked.linkShare);
  if (checked.transfer === 'overlap' && checked.linkShare === 1) {
    throw invalid('options.migration.linkShare', 'a share below 1, since work goes on', '1');
  }
  atLeastZero('options.migration.stallMs', checked.stallMs);
  atLeastZero('options.migration.layerStallMs', checked.layerStallMs);
  ordinal('options.migration.stagingSlots', checked.stagingSlots);
  return checked;
}
