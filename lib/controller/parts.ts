/** What the configuration's words stand for: the hook that puts placements in force, and the lease. */
import type { Registry } from 'prom-client';
import type { AdminPages } from '../gateway/admin.js';
import type { Logger } from '../gateway/log.js';
import { present } from '../present.js';
import { commandHook } from './hooks/command.js';
import { fileHook } from './hooks/file.js';
import { httpHook } from './hooks/http.js';
import { fileLease } from './lease/file.js';
import { PLACEMENT_PATHS, PlacementService } from './placement-service.js';
import type { ControllerConfig } from './run-config.js';
import type { ApplyHook, Lease } from './types.js';

export interface Hook {
  apply: ApplyHook;
  /** By which engines fetch what is put in force. */
  pages: readonly AdminPages[];
}

export interface HookParts {
  log: Logger;
  registry: Registry;
}

/** In the shadow nothing is put in force: there need not be a hook, and one that is called is a bug. */
const NO_HOOK: ApplyHook = {
  apply: async () => {
    throw new Error('a placement was to be put in force in the shadow');
  },
};

export function hookOf({ hook, shadow }: ControllerConfig, { log, registry }: HookParts): Hook {
  if (hook === undefined) return { apply: NO_HOOK, pages: [] };
  if (!('service' in hook)) return { apply: applyHookOf(hook), pages: [] };
  // Keys are asked for where its pages are mounted.
  const service = new PlacementService({ ownPlans: false, shadow, log, registry });
  const serve: AdminPages['serve'] = (request, response, path) => service.serve(request, response, path);
  return { apply: service, pages: [{ paths: PLACEMENT_PATHS, serve }] };
}

function applyHookOf(hook: Exclude<NonNullable<ControllerConfig['hook']>, { service: true }>): ApplyHook {
  if ('command' in hook) return commandHook({ command: hook.command, ...present({ verify: hook.verify }) });
  if ('url' in hook) {
    const { url, headers, verifyUrl } = hook;
    return httpHook({ url, headers, ...present({ verifyUrl }) });
  }
  return fileHook({ folder: hook.folder, ...present({ pollMs: hook.pollMs }) });
}

export async function leaseOf({ lease }: ControllerConfig): Promise<Lease | undefined> {
  if (lease === undefined) return undefined;
  const times = present({ ttlMs: lease.ttlMs });
  if ('folder' in lease) return fileLease({ folder: lease.folder, ...times });
  // Who has no Redis shall not wait for its client to load.
  const { redisLease } = await import('./lease/redis.js');
  return redisLease({ url: lease.redis, ...present({ key: lease.key }), ...times });
}
