/** What operators ask the gateway: is it alive, is it ready, what does it count, and the live page. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { comesBy, READING, sendError, sendJson } from './answers.js';
import { dashboardHtml, dashboardPolicy } from './dashboard/html.js';
import type { Fleet } from './fleet.js';
import type { ApiKeys } from './keys.js';
import type { GatewayMetrics } from './metrics.js';
import type { GatewaySnapshot } from './types.js';

/** Those that orchestrators and balancers ask, who bring no key. */
const OPEN_PATHS = ['/healthz', '/readyz'];
const OWN_PATHS = [...OPEN_PATHS, '/metrics', '/dashboard', '/dashboard/state'];

/** Further pages, of parts that not every gateway has. They need a key. */
export interface AdminPages {
  readonly paths: readonly string[];
  serve(request: IncomingMessage, response: ServerResponse, path: string): Promise<void>;
}

export interface AdminParts {
  fleet: Fleet;
  metrics: GatewayMetrics;
  keys: ApiKeys;
  pages: AdminPages[];
  /** Shared with nobody: answers are of now. */
  snapshot(): Promise<GatewaySnapshot>;
  isDraining(): boolean;
}

export function adminPaths({ pages }: AdminParts): string[] {
  return [...OWN_PATHS, ...pages.flatMap(({ paths }) => paths)];
}

/** `path` is one of `adminPaths`. */
export async function serveAdmin(
  parts: AdminParts,
  request: IncomingMessage,
  response: ServerResponse,
  path: string,
): Promise<void> {
  const further = parts.pages.find(({ paths }) => paths.includes(path));
  if (further === undefined && !comesBy(READING, request, response, path)) return;
  if (!OPEN_PATHS.includes(path) && !parts.keys.admits(request.headers)) {
    sendError(response, {
      status: 401,
      message: `${path} needs an API key, as a bearer token or as the password`,
      type: 'authentication_error',
      code: 'invalid_api_key',
      headers: { 'www-authenticate': 'Basic realm="gimbal"' },
    });
    return;
  }
  response.setHeader('cache-control', 'no-store');
  if (further !== undefined) {
    await further.serve(request, response, path);
    return;
  }
  switch (path) {
    case '/healthz':
      sendJson(response, 200, { status: 'alive' });
      break;
    case '/readyz':
      serveReadiness(parts, response);
      break;
    case '/metrics':
      response.setHeader('content-type', parts.metrics.registry.contentType);
      response.end(await parts.metrics.registry.metrics());
      break;
    case '/dashboard/state':
      sendJson(response, 200, await parts.snapshot());
      break;
    default:
      response.setHeader('content-type', 'text/html; charset=utf-8');
      response.setHeader('content-security-policy', dashboardPolicy());
      response.setHeader('x-content-type-options', 'nosniff');
      response.end(dashboardHtml());
  }
}

function serveReadiness({ fleet, isDraining }: AdminParts, response: ServerResponse): void {
  if (isDraining()) sendJson(response, 503, { status: 'draining' });
  else if (!fleet.isServing) sendJson(response, 503, { status: 'no engine takes requests' });
  else sendJson(response, 200, { status: 'ready' });
}
