/** The configuration's `routing`: which model is served, how much of it is looked at, and how long it counts. */
import { z } from 'zod';
import { mismatch } from '../../errors.js';
import { MAX_EXPERTS, MAX_LAYERS, MAX_SOURCES } from '../../import/limits.js';
import type { RoutingStatisticsOptions } from '../../statistics/types.js';
import { checkStatistics, MOST_CHOICES } from '../../statistics/validate.js';
import type { ServerConfig } from '../config.js';
import { sourceCount, sourcesOf } from './sources.js';

const whole = z.number().int().positive();
const windowTokens = whole.max(2 ** 27).optional();

export const routingSchema = z.strictObject({
  /** MoE layers of the model, */
  layers: whole.max(MAX_LAYERS),
  /** behind so many rows without experts in what engines report: a model's first, dense layers. */
  firstLayer: z.number().int().nonnegative().max(MAX_LAYERS).default(0),
  /** Logical experts of a layer. */
  experts: whole.max(MAX_EXPERTS),
  /** Of a token in a layer. SGLang's answers do not say. */
  topK: whole.max(MOST_CHOICES).optional(),
  /** Source DP ranks; default: those that the servers have. */
  sources: whole.max(MAX_SOURCES).optional(),
  /** Of the requests. */
  share: z.number().min(0).max(1).default(0.01),
  /** As of RoutingStatistics; one of both. */
  halfLifeTokens: windowTokens,
  windowTokens,
  priorTokens: z.number().int().nonnegative().optional(),
  /** Of base64, in one answer, and in all that are kept to be counted. */
  answerBytes: whole.max(2 ** 30).default(16 * 1024 * 1024),
  heldBytes: whole.max(2 ** 32).default(64 * 1024 * 1024),
});

export type RoutingConfig = z.output<typeof routingSchema>;

export function statisticsOptions(
  { layers, experts, sources, halfLifeTokens, windowTokens, priorTokens }: RoutingConfig,
  servers: readonly ServerConfig[],
): RoutingStatisticsOptions {
  return {
    layers,
    experts,
    sources: sources ?? sourceCount(sourcesOf(servers)),
    ...(priorTokens === undefined ? {} : { priorTokens }),
    ...(windowTokens === undefined ? {} : { windowTokens }),
    ...(halfLifeTokens === undefined ? {} : { halfLifeTokens }),
  } as RoutingStatisticsOptions;
}

/** @throws GimbalError GIMBAL_INVALID_INPUT, GIMBAL_OUT_OF_RANGE */
export function checkRouting(routing: RoutingConfig, servers: readonly ServerConfig[], source: string): void {
  const wrong = (key: string, expected: string, received: string) =>
    mismatch('GIMBAL_INVALID_INPUT', `${source}: routing.${key}`, expected, received);
  const { topK, sources, halfLifeTokens, windowTokens } = routing;
  if (topK === undefined && servers.some(({ kind }) => kind === 'sglang')) {
    throw wrong('topK', 'experts of a token in a layer, which SGLang does not say', 'nothing');
  }
  if (halfLifeTokens !== undefined && windowTokens !== undefined) {
    throw wrong('windowTokens', 'nothing beside halfLifeTokens', 'both');
  }
  const needed = sourceCount(sourcesOf(servers));
  if (sources !== undefined && sources < needed) {
    throw wrong('sources', `at least ${needed}, as many as the servers have`, `${sources}`);
  }
  requireOwnSources(servers, source);
  checkStatistics(statisticsOptions(routing, servers));
}

/** What two servers sent would be counted as one's. */
function requireOwnSources(servers: readonly ServerConfig[], source: string): void {
  const owners = new Map<number, string>();
  for (const [url, { first, ranks }] of sourcesOf(servers)) {
    for (let rank = first; rank < first + ranks; rank++) {
      const other = owners.get(rank);
      if (other !== undefined) {
        const field = `${source}: servers[].firstGlobalRank`;
        throw mismatch('GIMBAL_INVALID_INPUT', field, 'ranks that differ', `${rank} of ${other} and ${url}`);
      }
      owners.set(rank, url);
    }
  }
}
