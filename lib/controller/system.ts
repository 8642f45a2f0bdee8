/**
 * The closed loop as one process: the gateway serves and counts where tokens are routed, the controller places experts by that, and
 * each tells the other what it does. Here they meet, and nowhere else.
 */
import { Gateway, type GatewayOptionsBeside, type GatewayUrls } from '../gateway/gateway.js';
import { statisticsOptions } from '../gateway/routing/config.js';
import { present } from '../present.js';
import { Affinity } from './affinity.js';
import { Controller } from './controller.js';
import { DECISION_DEFAULTS } from './decide.js';
import { DispatchedStatistics, DispatchShares } from './dispatched.js';
import { Feedback } from './feedback.js';
import { ControllerPages } from './pages.js';
import { type Hook, hookOf, leaseOf } from './parts.js';
import { affinityOf, initialPlacement, migrationOf, modelOf, type RunConfig } from './run-config.js';
import type { Lease, PlacedModel } from './types.js';

interface Made {
  model: PlacedModel;
  gateway: Gateway;
  statistics: DispatchedStatistics;
  shares: DispatchShares;
  affinity: Affinity | undefined;
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
  static async create(
    config: RunConfig,
    beside: Omit<GatewayOptionsBeside, 'statistics' | 'affinity'>,
  ): Promise<System> {
    const model = modelOf(config);
    const initial = await initialPlacement(config, model);
    const { controller, routing, servers } = config;
    // Shares follow the dispatcher as fast as plans are taken to serve.
    const { horizonMs = DECISION_DEFAULTS.horizonMs } = controller.rules;
    const shares = new DispatchShares(model.sources, horizonMs / 2);
    const statistics = new DispatchedStatistics(statisticsOptions(routing!, servers), shares);
    const learned = affinityOf(config);
    const affinity = learned === undefined ? undefined : new Affinity(learned);
    const gateway = await Gateway.create(config, { ...beside, statistics, affinity });
    const lease = await leaseOf(controller);
    return new System(config, { model, gateway, statistics, shares, affinity, initial, lease });
  }

  private constructor(config: RunConfig, made: Made) {
    const { model, gateway, statistics, shares, affinity, initial, lease } = made;
    this.#config = config;
    this.gateway = gateway;
    const { log, metrics, fleet } = gateway;
    this.#hook = hookOf(config.controller, { log, registry: metrics.registry });
    this.controller = new Controller({
      ...controllerOptions(config),
      problem: model,
      statistics,
      initial,
      apply: this.#hook.apply,
      tokensPerSecond: () => metrics.tokensPerSecond,
      logger: log,
      registry: metrics.registry,
      ...present({ lease }),
    });
    const servers = () => this.#config.servers;
    this.#feedback = new Feedback(
      { fleet, statistics, controller: this.controller, shares, affinity, model, servers, log },
      config.controller.feedbackMs,
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
    // Engines may be other sources now.
    if (this.#isStarted) this.#feedback.refresh();
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

/** Those that are words of the configuration. */
function controllerOptions({ controller, routing }: RunConfig) {
  const { stateFile, shadow, intervalMs, applyTimeoutMs, verifyTimeoutMs } = controller;
  const { overdispersion, resamples, statisticsFile } = controller;
  return {
    stateFile,
    shadow,
    intervalMs,
    applyTimeoutMs,
    verifyTimeoutMs,
    migration: migrationOf(controller),
    rules: present(controller.rules),
    plan: present(controller.plan),
    // Nothing is drawn where all is pushed.
    sampledShare: routing!.share || 1,
    ...present({ overdispersion, resamples, statisticsFile }),
    ...present({ exportFile: controller.export?.file, exportFormat: controller.export?.format }),
  };
}
