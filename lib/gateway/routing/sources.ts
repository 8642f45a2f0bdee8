/** Which source DP rank an engine is in the statistics: its rank over the whole deployment. */
import type { ServerConfig } from '../config.js';
import type { FleetEngine } from '../types.js';

/** The sources of each server, by its URL. */
export type Sources = ReadonlyMap<string, { first: number; ranks: number }>;

/** As the configuration says, else behind those of the server before. */
export function sourcesOf(servers: readonly ServerConfig[]): Sources {
  const sources = new Map<string, { first: number; ranks: number }>();
  let next = 0;
  for (const { url, ranks, firstGlobalRank: first = next } of servers) {
    sources.set(url, { first, ranks });
    next = first + ranks;
  }
  return sources;
}

/** As many as the last of them needs. */
export function sourceCount(sources: Sources): number {
  return Math.max(...[...sources.values()].map(({ first, ranks }) => first + ranks));
}

/** Undefined where the server chooses the rank itself, or has left. */
export function sourceOf(sources: Sources, { server, rank }: FleetEngine): number | undefined {
  const own = sources.get(server.url);
  return own === undefined || (own.ranks > 1 && !server.pins) ? undefined : own.first + rank;
}
