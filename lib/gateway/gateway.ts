/**
 * The gateway as a whole: listens, sends each request its way, takes a new configuration while it runs, and goes down without
 * losing what is in flight.
 */
import { randomInt } from 'node:crypto';
import http, { type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import https from 'node:https';
import net, { type AddressInfo, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { Agent } from 'undici';
import type { ControllerStatus } from '../controller/types.js';
import { timeOfDay } from '../dispatch/validate.js';
import { ioError } from '../files.js';
import { RoutingStatistics } from '../statistics/routing-statistics.js';
import { type AdminPages, type AdminParts, adminPaths, serveAdmin } from './admin.js';
import { type AffinityKey, affinityKeyOf, type ExpertAffinity } from './affinity.js';
import { comesBy, sendError } from './answers.js';
import { type GatewayConfig, mergeReload, readApiKeys } from './config.js';
import type { ExtProcServer } from './ext-proc/server.js';
import { Fleet } from './fleet.js';
import { INFERENCE_PATHS, type InferencePath } from './inspect.js';
import { ApiKeys } from './keys.js';
import { createLog, type Logger } from './log.js';
import { GatewayMetrics } from './metrics.js';
import { serveExtProc } from './picker.js';
import { InferenceProxy } from './proxy.js';
import { type RoutingConfig, statisticsOptions } from './routing/config.js';
import { RoutingSampler } from './routing/sampler.js';
import { StatisticsApi } from './routing/statistics-api.js';
import type { SharedLedger } from './shared-ledger.js';
import { readTls } from './tls.js';
import { TokenEstimator } from './tokens.js';
import type { GatewaySnapshot } from './types.js';

/** Longer than balancers keep theirs, so that they close first. */
const KEEP_ALIVE_MS = 75_000;
const CHECK_MS = 1000;
/** Connections that may wait to be accepted, as far as the system lets them; Node's 511 are few for a storm of streams. */
const BACKLOG = 4096;
const MODELS_PATH = '/v1/models';
const DRAIN_STEP_MS = 20;

export interface GatewayOptionsBeside {
  version: string;
  log?: Logger;
  /** Where routing is counted, if the configuration has `routing`; default: statistics of its own. */
  statistics?: RoutingStatistics | undefined;
  /** Is told what sampled requests choose, and asked where others had best go. */
  affinity?: ExpertAffinity | undefined;
}

export interface Attached {
  pages?: readonly AdminPages[];
  controller?: () => ControllerStatus;
}

/** Where it listens: the API, the pages for operators, which may be at the same place, and the endpoint picker. */
export interface GatewayUrls {
  url: string;
  adminUrl: string;
  extProcUrl?: string;
}

export class Gateway {
  #config: GatewayConfig;
  readonly #version: string;
  readonly #log: Logger;
  readonly #metrics = new GatewayMetrics();
  readonly #tokens = new TokenEstimator();
  readonly #keys: ApiKeys;
  readonly #fleet: Fleet;
  readonly #agent: Agent;
  readonly #affinityKey: AffinityKey | undefined;
  readonly #proxy: InferenceProxy;
  readonly #admin: AdminParts;
  readonly #routing: { statistics: RoutingStatistics; sampler: RoutingSampler } | undefined;
  readonly #servers: (http.Server | https.Server)[] = [];
  readonly #startedMs = timeOfDay();
  #ledger: SharedLedger | undefined;
  #extProc: ExtProcServer | undefined;
  #loadedMs = timeOfDay();
  #configError: string | undefined;
  #adminPaths: readonly string[] = [];
  #controller: (() => ControllerStatus) | undefined;
  #draining = false;
  #closing: Promise<void> | undefined;
  /** To requests that have not been answered to the end. */
  readonly #open = new Set<ServerResponse>();

  /** @throws GimbalError GIMBAL_IO (a file of keys) */
  static async create(config: GatewayConfig, beside: GatewayOptionsBeside): Promise<Gateway> {
    return new Gateway(config, await readApiKeys(config), beside);
  }

  private constructor(
    config: GatewayConfig,
    keys: readonly string[],
    { version, log, statistics, affinity }: GatewayOptionsBeside,
  ) {
    this.#config = config;
    this.#version = version;
    this.#log = log ?? createLog(config.log.level);
    this.#keys = new ApiKeys(keys);
    const metrics = this.#metrics;
    this.#fleet = new Fleet(config, {
      log: this.#log,
      affinity,
      events: {
        dispatched: (target, { reason }, waitedMs) => metrics.dispatched(target, reason, waitedMs),
        steered: (result) => metrics.steered(result),
        gone: (target) => metrics.gone(target),
      },
    });
    metrics.watch(this.#fleet);
    if (affinity !== undefined) {
      metrics.watchAffinity(affinity);
      this.#affinityKey = (headers, session) =>
        affinityKeyOf(headers, session, this.#keys, affinity.tenantHeader);
    }
    this.#agent = new Agent({ connect: { timeout: config.limits.connectMs }, pipelining: 1 });
    const pages: AdminPages[] = [];
    this.#routing =
      config.routing === undefined
        ? undefined
        : this.#observe(config.routing, pages, { statistics, affinity });
    this.#proxy = new InferenceProxy(config, {
      fleet: this.#fleet,
      routing: this.#routing?.sampler,
      dispatcher: this.#agent,
      metrics,
      tokens: this.#tokens,
      log: this.#log,
      affinityKey: this.#affinityKey,
      checksKeys: () => !this.#keys.isOpen,
      draw: Math.random,
    });
    this.#admin = {
      fleet: this.#fleet,
      metrics,
      keys: this.#keys,
      snapshot: () => this.snapshot(),
      isDraining: () => this.#draining,
      pages,
    };
  }

  /** Counts of routing, where the configuration has `routing`. */
  get statistics(): RoutingStatistics | undefined {
    return this.#routing?.statistics;
  }

  get fleet(): Fleet {
    return this.#fleet;
  }

  get log(): Logger {
    return this.#log;
  }

  get metrics(): GatewayMetrics {
    return this.#metrics;
  }

  /** What stands beside the gateway in its process: pages for operators, and a part of its snapshot. To be called before `listen`. */
  attach({ pages = [], controller }: Attached): void {
    this.#admin.pages.push(...pages);
    this.#controller = controller;
  }

  #observe(
    routing: RoutingConfig,
    pages: AdminPages[],
    { statistics: given, affinity }: Omit<GatewayOptionsBeside, 'version'>,
  ): { statistics: RoutingStatistics; sampler: RoutingSampler } {
    const { servers, seed = randomInt(2 ** 32) } = this.#config;
    const options = statisticsOptions(routing, servers);
    const statistics = given ?? new RoutingStatistics(options);
    const metrics = this.#metrics;
    const sampler = new RoutingSampler(routing, servers, {
      statistics,
      affinity,
      log: this.#log,
      seed,
      onResult: (result, tokens) => metrics.sampled(result, tokens),
    });
    metrics.watchRouting(statistics, sampler);
    const onPush = (result: string) => metrics.pushed(result);
    pages.push(new StatisticsApi({ shape: options, statistics, onPush }));
    return { statistics, sampler };
  }

  /**
   * Begins to poll and to listen.
   *
   * @throws GimbalError GIMBAL_IO (an address that is in use, a certificate that cannot be read)
   */
  async listen(): Promise<GatewayUrls> {
    const { listen, admin, limits } = this.#config;
    this.#adminPaths = adminPaths(this.#admin);
    const api: RequestListener = (request, response) => this.#route(request, response, admin === undefined);
    const server =
      listen.tls === undefined
        ? http.createServer(this.#httpOptions(), api)
        : https.createServer(
            { ...this.#httpOptions(), handshakeTimeout: limits.headersMs, ...readTls(listen.tls) },
            api,
          );
    const url = await this.#bind(
      server,
      listen.host,
      listen.port,
      listen.tls === undefined ? 'http' : 'https',
    );
    let adminUrl = url;
    if (admin !== undefined) {
      const pages: RequestListener = (request, response) => this.#routeAdmin(request, response);
      adminUrl = await this.#bind(
        http.createServer(this.#httpOptions(), pages),
        admin.host,
        admin.port,
        'http',
      );
    }
    await this.#shareLedger();
    const extProcUrl = await this.#pickEndpoints();
    this.#fleet.start();
    const urls = { url, adminUrl, ...(extProcUrl === undefined ? {} : { extProcUrl }) };
    this.#log.info(urls, 'gateway listens');
    return urls;
  }

  /**
   * Takes what can be taken while running, all of it or nothing.
   *
   * @returns the changed keys that need a restart
   * @throws GimbalError GIMBAL_IO, GIMBAL_FORMAT (a file of keys or a certificate), or what KV events cannot be followed for; what
   *   was in force stays so
   */
  async reload(next: GatewayConfig): Promise<string[]> {
    const { config, later } = mergeReload(this.#config, next);
    const keys = await readApiKeys(config);
    const tls = config.listen.tls === undefined ? undefined : readTls(config.listen.tls);
    // The last that may fail: what follows cannot.
    this.#fleet.reload(config);
    this.#config = config;
    this.#keys.renew(keys);
    this.#proxy.config = config;
    this.#routing?.sampler.renew(config.servers);
    this.#log.level = config.log.level;
    const { headersMs, requestMs } = config.limits;
    for (const server of this.#servers) {
      Object.assign(server, { headersTimeout: headersMs, requestTimeout: Math.max(headersMs, requestMs) });
      if (server instanceof https.Server && tls !== undefined) server.setSecureContext(tls);
    }
    this.#loadedMs = timeOfDay();
    this.#configError = undefined;
    this.#metrics.reloaded('ok');
    this.#log.info({ needRestart: later }, 'configuration taken');
    return later;
  }

  /** A new configuration could not be read: what is in force stays so, and operators are told. */
  reloadFailed(error: Error): void {
    this.#configError = error.message;
    this.#metrics.reloaded('failed');
    this.#log.error({ reason: error.message }, 'configuration refused; the one in force stays');
  }

  async snapshot(): Promise<GatewaySnapshot> {
    return {
      version: this.#version,
      timeMs: timeOfDay(),
      upMs: timeOfDay() - this.#startedMs,
      policy: this.#config.policy,
      draining: this.#draining,
      engines: this.#fleet.engineSnapshots(),
      servers: this.#fleet.serverSnapshots(),
      queue: this.#fleet.queueSnapshot(),
      config: {
        loadedMs: this.#loadedMs,
        ...(this.#configError === undefined ? {} : { error: this.#configError }),
      },
      ...(await this.#metrics.snapshot()),
      ...(this.#controller === undefined ? {} : { controller: this.#controller() }),
    };
  }

  /**
   * Goes down: is not ready from now on, takes requests for `drain.noticeMs` more, then none; what is in flight has
   * `drain.timeoutMs` to end. Resolves when nothing is left.
   */
  close(): Promise<void> {
    this.#closing ??= this.#drain();
    return this.#closing;
  }

  async #drain(): Promise<void> {
    const { noticeMs, timeoutMs } = this.#config.drain;
    this.#draining = true;
    this.#log.info({ open: this.#open.size, noticeMs, timeoutMs }, 'gateway drains');
    await sleep(noticeMs);
    const closed = this.#servers.map((server) => stopListening(server));
    for (const response of this.#open) response.shouldKeepAlive = false;
    const untilMs = performance.now() + timeoutMs;
    const picked = this.#extProc?.drain(timeoutMs);
    while (this.#open.size > 0 && performance.now() < untilMs) await sleep(DRAIN_STEP_MS);
    if (this.#open.size > 0) this.#log.warn({ open: this.#open.size }, 'requests are broken off');
    await this.#fleet.stop();
    await this.#routing?.sampler.stop();
    await picked;
    await this.#ledger?.stop();
    for (const server of this.#servers) server.closeAllConnections();
    await Promise.all(closed);
    for (const server of this.#servers) server.close();
    await this.#agent.destroy();
    this.#log.info('gateway is down');
  }

  async #pickEndpoints(): Promise<string | undefined> {
    const { extProc } = this.#config;
    if (extProc === undefined) return undefined;
    const parts = {
      fleet: this.#fleet,
      tokens: this.#tokens,
      affinityKey: this.#affinityKey,
      metrics: this.#metrics,
      log: this.#log,
      config: () => this.#config,
      isReady: () => !this.#draining && this.#fleet.isServing,
    };
    const { server, url } = await serveExtProc(parts, extProc);
    this.#extProc = server;
    return url;
  }

  async #shareLedger(): Promise<void> {
    const { redis } = this.#config;
    if (redis === undefined) return;
    // Who has one gateway shall not wait for Redis's client to load.
    const { RedisChannel } = await import('./ledger/redis-channel.js');
    const { SharedLedger } = await import('./shared-ledger.js');
    const log = this.#log.child({ redis: redis.prefix });
    const onState = (state: string, reason: string) =>
      log[state === 'failing' ? 'warn' : 'info']({ state, reason }, 'shared ledger');
    this.#ledger = new SharedLedger({
      channel: new RedisChannel(redis),
      mirror: this.#fleet.mirror,
      onState,
    });
    this.#fleet.ledger = this.#ledger;
    this.#metrics.watchLedger(this.#ledger);
    this.#ledger.start();
  }

  #httpOptions(): http.ServerOptions {
    const { headersMs, requestMs } = this.#config.limits;
    return {
      headersTimeout: headersMs,
      requestTimeout: Math.max(headersMs, requestMs),
      keepAliveTimeout: KEEP_ALIVE_MS,
      connectionsCheckingInterval: CHECK_MS,
    };
  }

  async #bind(
    server: http.Server | https.Server,
    host: string,
    port: number,
    scheme: string,
  ): Promise<string> {
    await new Promise<void>((resolve, reject) => {
      server.once('error', (error) => reject(ioError(`${host}:${port}`, error)));
      server.listen({ port, host, backlog: BACKLOG }, resolve);
    });
    // What a listening server fails at is one connection, for want of files for instance.
    server.on('error', (error) => this.#log.error({ err: error }, 'a connection was not accepted'));
    this.#servers.push(server);
    const { address, family, port: bound } = server.address() as AddressInfo;
    return `${scheme}://${family === 'IPv6' ? `[${address}]` : address}:${bound}`;
  }

  #route(request: IncomingMessage, response: ServerResponse, servesAdmin: boolean): void {
    const path = pathOf(request);
    this.#count(request, response);
    if (servesAdmin && this.#adminPaths.includes(path)) {
      this.#guard(serveAdmin(this.#admin, request, response, path), response);
    } else if (!this.#keys.admits(request.headers)) {
      sendError(response, {
        status: 401,
        message: 'expected a valid API key as a bearer token',
        type: 'authentication_error',
        code: 'invalid_api_key',
        headers: { 'www-authenticate': 'Bearer' },
      });
    } else if (path === MODELS_PATH) {
      if (!comesBy(['GET'], request, response, path)) return;
      this.#guard(this.#proxy.serveModels(request, response), response);
    } else if (!(INFERENCE_PATHS as readonly string[]).includes(path)) {
      notFound(response, path, [...INFERENCE_PATHS, MODELS_PATH]);
    } else if (comesBy(['POST'], request, response, path)) {
      this.#guard(this.#proxy.serve(request, response, path as InferencePath), response);
    }
  }

  #routeAdmin(request: IncomingMessage, response: ServerResponse): void {
    const path = pathOf(request);
    if (!this.#adminPaths.includes(path)) notFound(response, path, this.#adminPaths);
    else this.#guard(serveAdmin(this.#admin, request, response, path), response);
  }

  /** What nobody has foreseen ends one connection, and not the process. */
  #guard(answering: Promise<void>, response: ServerResponse): void {
    answering.catch((error) => {
      this.#log.error({ err: error }, 'internal error');
      response.destroy();
    });
  }

  #count({ socket }: IncomingMessage, response: ServerResponse): void {
    this.#open.add(response);
    response.once('close', () => this.#open.delete(response));
    closeWithConnection(socket, response);
    // The client shall come back by a new connection, to another gateway.
    if (this.#draining) response.shouldKeepAlive = false;
  }
}

/** http's own `close` would also cut off the answers that are written and not yet read. */
function stopListening(server: http.Server | https.Server): Promise<void> {
  return new Promise((resolve) => net.Server.prototype.close.call(server, () => resolve()));
}

/** Node tells the end of a connection to the answer whose turn it is, and to none that is still behind it. */
function closeWithConnection(socket: Socket, response: ServerResponse): void {
  const onClose = () => {
    if (response.socket !== null) return;
    response.destroy();
    response.emit('close');
  };
  // As many as there are requests on it at a time.
  socket.setMaxListeners(0);
  socket.once('close', onClose);
  response.once('close', () => socket.off('close', onClose));
}

function pathOf(request: IncomingMessage): string {
  let { url = '/' } = request;
  // As proxies ask: with the whole address.
  if (!url.startsWith('/') && URL.canParse(url)) url = new URL(url).pathname;
  const query = url.indexOf('?');
  return query < 0 ? url : url.slice(0, query);
}

function notFound(response: ServerResponse, path: string, known: readonly string[]): void {
  const message = `no ${path.slice(0, 100)} here; there are ${known.join(', ')}`;
  sendError(response, { status: 404, message, type: 'not_found_error', code: 'not_found' });
}
