/**
 * The closed loop as one process: the gateway serves and counts where tokens are routed, the controller places experts by that, and
 * each tells the other what it does. Here they meet, and nowhere else.
 */

import { present } from '../gateway/config.js';
import { Gateway, type GatewayOptionsBeside, type GatewayUrls } from '../gateway/gateway.js';
import { statisticsOptions } from '../gateway/routing/config.js';
import { Controller } from './controller.js';
import { DispatchedStatistics, DispatchShares } from './dispatched.js';
import { Feedback } from './feedback.js';
import { ControllerPages } from './pages.js';
import { type Hook, hookOf, leaseOf } from './parts.js';
import type { RunConfig } from './run-config.js';
import { initialPlacement, migrationOf, modelOf } from './run-config.js';
import type { Lease } from './types.js';

/** Shares follow the dispatcher as fast as plans are taken to serve. */
const HORIZON_MS = 600_000;

interface Made {
  gateway: Gateway;
  statistics: DispatchedStatistics;
  shares: DispatchShares;
  initial: Int32Array;
  lease: Lease | undefined;
}

export class System {
  #config: RunConfig;
  readonly gateway: Gateway;
  readonly controller: Controller;
  readonly #hook: Hook;
  readonly #feedback: Feedback;
  #isStarted = false;

  /** @throws GimbalError whatever is wrong with files that the configuration names */
  static async create(config: RunConfig, beside: Omit<GatewayOptionsBeside, 'statistics'>): Promise<System> {
    const model = modelOf(config);
    const initial = await initialPlacement(config, model);
    const { controller, routing, servers } = config;
    const shares = new DispatchShares(model.sources, (controller.rules.horizonMs ?? HORIZON_MS) / 2);
    const statistics = new DispatchedStatistics(statisticsOptions(routing!, servers), shares);
    const gateway = await Gateway.create(config, { ...beside, statistics });
    return new System(config, { gateway, statistics, shares, initial, lease: await leaseOf(controller) });
  }

  private constructor(config: RunConfig, { gateway, statistics, shares, initial, lease }: Made) {
    this.#config = config;
    this.gateway = gateway;
    const model = modelOf(config);
    const { log, metrics, fleet } = gateway;
    const { registry } = metrics;
    const { controller: options, routing } = config;
    this.#hook = hookOf(options, { log, registry });
    this.controller = new Controller({
      problem: model,
      statistics,
      initial,
      apply: this.#hook.apply,
      stateFile: options.stateFile,
      migration: migrationOf(options),
      rules: present(options.rules),
      plan: present(options.plan),
      shadow: options.shadow,
      intervalMs: options.intervalMs,
      applyTimeoutMs: options.applyTimeoutMs,
      verifyTimeoutMs: options.verifyTimeoutMs,
      tokensPerSecond: () => metrics.tokensPerSecond,
      // Nothing is drawn where all is pushed.
      sampledShare: routing!.share || 1,
      logger: log,
      registry,
      ...(options.export === undefined
        ? {}
        : { exportFile: options.export.file, exportFormat: options.export.format }),
      ...present({
        overdispersion: options.overdispersion,
        resamples: options.resamples,
        statisticsFile: options.statisticsFile,
        lease,
      }),
    });
    this.#feedback = new Feedback(
      {
        fleet,
        statistics,
        controller: this.controller,
        shares,
        model,
        servers: () => this.#config.servers,
        log,
      },
      options.feedbackMs,
    );
    gateway.attach({
      pages: [new ControllerPages(this.controller), ...this.#hook.pages],
      controller: () => this.controller.status(),
    });
  }

  /** @throws GimbalError GIMBAL_IO (an address in use, the state cannot be read), GIMBAL_FORMAT (a state that is damaged) */
  async listen(): Promise<GatewayUrls> {
    const urls = await this.gateway.listen();
    await this.controller.start();
    this.#isStarted = true;
    this.#feedback.start();
    return urls;
  }

  /** The gateway's part of it; the controller's waits for a restart. */
  async reload(next: RunConfig): Promise<string[]> {
    const later = await this.gateway.reload(next);
    this.#config = { ...next, controller: this.#config.controller };
    return later;
  }

  reloadFailed(error: Error): void {
    this.gateway.reloadFailed(error);
  }

  /** A change that is under way is ended or taken back; meanwhile the gateway drains, unless engines fetch the change from it. */
  async close(): Promise<void> {
    this.#feedback.stop();
    const stopped = this.#isStarted ? this.controller.stop() : Promise.resolve();
    if (this.#hook.pages.length > 0) await stopped;
    await Promise.all([stopped, this.gateway.close()]);
  }
}
