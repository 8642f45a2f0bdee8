/** `gimbal advise`: how many redundant experts are worth their memory, as a table or JSON. */
import { adviseRedundancy } from '../advice/redundancy.js';
import type {
  AdvisedRouting,
  RedundancyAdvice,
  RedundancyCandidate,
  RedundancyOptions,
} from '../advice/types.js';
import { type CountsFormat, readCounts } from '../import/counts.js';
import { present } from '../present.js';
import { formatCount, formatNumber, formatRatio, formatShare, plural } from '../report/format.js';
import { findServedModel, findServingHardware, type ServedModel } from '../simulator/hardware.js';
import { readProfileTables } from '../simulator/tables.js';
import type { SimulatedAllToAll } from '../simulator/types.js';
import type { BackendName, Effort, ReplicaChoice } from '../types.js';
import type { Context } from './context.js';
import { InputError, UsageError } from './exit.js';
import { toJson } from './json.js';
import { write } from './output.js';
import { Progress } from './progress.js';
import { mapSources } from './sources.js';
import { table } from './table.js';

export interface AdviseOptions {
  counts?: string[];
  countsFormat?: CountsFormat;
  sigma?: number;
  topology: { nodes: number; gpusPerNode: number };
  sources?: number;
  model: string;
  hardware: string;
  allToAll?: SimulatedAllToAll;
  replicaChoice: ReplicaChoice;
  inputTokens: number;
  outputTokens: number;
  concurrency?: number;
  rate?: number;
  kvUse?: number;
  redundantExperts?: number;
  kvTokensPerRequest?: number;
  candidates?: number[];
  maxNumSeqs?: number;
  maxNumBatchedTokens?: number;
  memoryShare?: number;
  activationGb?: number;
  profiles?: string;
  splits?: number;
  leastGain?: number;
  simulate?: true | number;
  effort: Effort;
  backend: 'auto' | BackendName;
  threads?: number;
  seed: number;
  json?: boolean;
  progress?: boolean;
}

const SIMULATED = 2;
const BYTES_PER_GB = 1e9;

export async function adviseCommand(options: AdviseOptions, context: Context): Promise<void> {
  const { output, signal } = context;
  const { given, notes } = await adviceOptions(options, signal);
  const progress = new Progress(output.stderr, 'weighing', options.progress);
  let advice: RedundancyAdvice;
  try {
    advice = await adviseRedundancy({ ...given, signal, onProgress: progress.update });
  } finally {
    progress.finish();
  }
  advice.notes.push(...notes);
  await write(output.stdout, options.json ? toJson(adviceJson(context, advice)) : text(advice, options));
}

async function adviceOptions(
  options: AdviseOptions,
  signal: AbortSignal,
): Promise<{ given: RedundancyOptions; notes: string[] }> {
  const model = findServedModel(options.model);
  const { topology, hardware, sources, simulate, activationGb, leastGain, profiles } = options;
  const { routing, notes } = await routingOf(options, model, signal);
  const given: RedundancyOptions = {
    model: model.name,
    hardware: findServingHardware(hardware).name,
    ...topology,
    routing,
    traffic: trafficOf(options),
    replicaChoice: options.replicaChoice,
    engine: present({
      allToAll: options.allToAll,
      maxNumSeqs: options.maxNumSeqs,
      maxNumBatchedTokens: options.maxNumBatchedTokens,
    }),
    plan: { effort: options.effort, backend: options.backend, ...present({ threads: options.threads }) },
    simulate: simulate === true ? SIMULATED : (simulate ?? 0),
    seed: options.seed,
    ...present({
      sources,
      candidates: options.candidates,
      memoryShare: options.memoryShare,
      activationBytes: activationGb === undefined ? undefined : activationGb * BYTES_PER_GB,
      splits: options.splits,
      leastGainShare: leastGain,
      tables: profiles === undefined ? undefined : await readProfileTables(profiles, { model }),
    }),
  };
  return { given, notes };
}

function trafficOf(options: AdviseOptions): RedundancyOptions['traffic'] {
  const { inputTokens, outputTokens, concurrency, rate, kvUse, redundantExperts, kvTokensPerRequest } =
    options;
  const loads = { '--concurrency': concurrency, '--rate': rate, '--kv-use': kvUse };
  const given = Object.entries(loads).filter(([, value]) => value !== undefined);
  if (given.length !== 1) {
    throw new UsageError(
      `one of ${Object.keys(loads).join(', ')} says how much is under way`,
      'e.g. --concurrency 512 requests that decode at once, --rate 20 requests/s, or a measured --kv-use 65%',
    );
  }
  if (redundantExperts !== undefined && kvUse === undefined) {
    throw new UsageError(
      '--redundant-experts needs --kv-use: it says beside how many the use was measured',
      '--candidates says which numbers to weigh',
    );
  }
  return {
    inputTokens,
    outputTokens,
    ...present({ concurrency, requestsPerSecond: rate, kvUse, redundantExperts, kvTokensPerRequest }),
  };
}

async function routingOf(
  { counts: files, countsFormat, sigma, sources, topology }: AdviseOptions,
  model: ServedModel,
  signal: AbortSignal,
): Promise<{ routing: AdvisedRouting; notes: string[] }> {
  if (files === undefined) {
    const sigmas = sigma === undefined ? {} : { sigmaTopics: sigma, sigmaExperts: sigma };
    return { routing: { kind: 'generative', ...sigmas }, notes: [] };
  }
  if (sigma !== undefined) throw new UsageError('--sigma: not beside --counts, which bring their own');
  const counts = await readCounts(files, {
    signal,
    ...(countsFormat === undefined ? {} : { format: countsFormat }),
  });
  if (counts.experts !== model.experts) {
    throw new InputError(
      `counts: expected the ${model.experts} experts of ${model.name} but received ${counts.experts}`,
      { field: 'counts', remedy: 'name the --model that the counts are of' },
    );
  }
  const ranks = sources ?? topology.nodes * topology.gpusPerNode;
  const { tokens, note } = mapSources(counts, ranks, counts.sources > 1);
  const { layers, experts } = counts;
  const some =
    layers === model.moeLayers || layers === model.layers
      ? []
      : [
          `The counts have ${plural(layers, 'layer')}, which stand for the ${model.moeLayers} of ${model.name}.`,
        ];
  return {
    routing: { kind: 'counts', tokens, layers, sources: ranks, experts },
    notes: [...counts.notes, ...(note === undefined ? [] : [note]), ...some],
  };
}

function text(advice: RedundancyAdvice, options: AdviseOptions): string {
  const notes = advice.notes.map((note) => `note: ${note}\n`).join('');
  return `${candidatesText(advice)}\n${adviceText(advice, options)}${demandText(advice)}\n${notes}`;
}

function candidatesText({ candidates, redundantExperts }: RedundancyAdvice): string {
  const hasSimulated = candidates.some(({ simulated }) => simulated !== undefined);
  const head = [
    'redundant',
    'slots/GPU',
    'HBM/GPU',
    'KV tokens/engine',
    'batch',
    'step ms',
    'MoE ms',
    'imbalance',
    'experts read',
    'tokens/s',
    'change',
    ...(hasSimulated ? ['simulated', 'change'] : []),
  ];
  const base = candidates[0]!.simulated;
  const rows = candidates.map((one) => [
    `${one.redundantExperts === redundantExperts ? '→ ' : ''}${one.redundantExperts}`,
    String(one.slotsPerGpu),
    `+${formatNumber(one.extraBytes / BYTES_PER_GB)} GB`,
    formatCount(one.kvTokens),
    formatNumber(one.batch),
    formatNumber(one.stepMs),
    formatNumber(one.moeMs),
    formatRatio(one.imbalance),
    formatNumber(one.activeExperts),
    formatCount(one.outputTokensPerSecond),
    changeInWords(one),
    ...(hasSimulated ? simulatedCells(one, base) : []),
  ]);
  return table([head, ...rows], { left: [] });
}

function changeInWords({ gainShare, gainSpread }: RedundancyCandidate): string {
  return `${gainShare > 0 ? '+' : ''}${formatShare(gainShare)} ± ${formatShare(gainSpread)}`;
}

function simulatedCells(
  { simulated }: RedundancyCandidate,
  base: RedundancyCandidate['simulated'],
): string[] {
  if (simulated === undefined) return ['', ''];
  const change = simulated.outputTokensPerSecond / base!.outputTokensPerSecond - 1;
  return [formatCount(simulated.outputTokensPerSecond), `${change > 0 ? '+' : ''}${formatShare(change)}`];
}

function adviceText(advice: RedundancyAdvice, { topology }: AdviseOptions): string {
  const { redundantExperts, slotsPerGpu, candidates, runnersUp, concurrency, kvTokensWanted } = advice;
  const own = candidates.find((one) => one.redundantExperts === redundantExperts)!;
  const slots = slotsPerGpu * topology.nodes * topology.gpusPerNode;
  const won =
    own === candidates[0]
      ? 'more win nothing that is sure'
      : `${changeInWords(own)} over ${candidates[0]!.redundantExperts}`;
  const next = runnersUp.length === 0 ? '' : ` Next by prediction: ${runnersUp.slice(0, 3).join(', ')}.`;
  return (
    `Advised: ${plural(redundantExperts, 'redundant expert')} a layer (--slots ${slots} of \`gimbal plan\`): ${won}.${next}\n` +
    `With ${plural(Math.round(concurrency), 'request')} under way an engine's KV cache is asked for ${formatCount(kvTokensWanted)} tokens.\n`
  );
}

function demandText({ demand }: RedundancyAdvice): string {
  const lines = demand.map(
    ({ fromKvTokens, redundantExperts }, n) =>
      `  from ${formatCount(fromKvTokens)} KV tokens an engine${n === 0 ? ' (the least looked at)' : ''}: ${redundantExperts}\n`,
  );
  return `The same requests with other demands for memory:\n${lines.join('')}`;
}

function adviceJson({ version, command }: Context, { candidates, ...advice }: RedundancyAdvice): unknown {
  return {
    version,
    command,
    ...advice,
    candidates: candidates.map(({ plan: { objective, lowerBound, gap, backend }, ...one }) => ({
      ...one,
      plan: { objective, lowerBound, gap, backend },
    })),
  };
}
