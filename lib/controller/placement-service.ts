/**
 * The placement service: answers policies inside engines that ask where experts should live (docs/ENGINES.md has the protocol).
 *
 * A question has a key, and a key has one answer: however many ranks ask, at once or late, they get the same plan and the same bytes,
 * and where no answer was found in time they get that. It is also the hook by which a controller applies its placements to engines that
 * pull: what is offered is answered when the engine next asks, and counts as applied once the ranks say that they all took it.
 */
import { createHash } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';
import { atLeastZero, boolean, checkKeys, count } from '../checks.js';
import { GimbalError, mismatch } from '../errors.js';
import { type ApiError, comesBy, READING, sendError, sendJson } from '../gateway/answers.js';
import { BodyTooLongError, readBody } from '../gateway/body.js';
import { ApiKeys } from '../gateway/keys.js';
import { createLog, type Logger } from '../gateway/log.js';
import { DECISION_DEFAULTS, type DecisionRules } from './decide.js';
import {
  type OfferedPlacement,
  type Proposal,
  type ProposalSettings,
  proposeOffered,
  proposeOwn,
} from './placement-proposal.js';
import {
  encodeMap,
  PLACEMENT_PROTOCOL_VERSION,
  type PlacementAgreement,
  type PlacementAnswer,
  type PlacementQuestion,
  readAgreement,
  readQuestion,
} from './placement-protocol.js';
import type { ApplyHook, PlacementChange } from './types.js';

export const PLACEMENT_PATHS = ['/v1/placement', '/v1/placement/agreed', '/v1/placement/current'];

const OPTIONS = [
  'shadow',
  'ownPlans',
  'answerWithinMs',
  'keptAnswers',
  'moveShare',
  'rules',
  'plan',
  'apiKeys',
  'log',
  'registry',
] as const satisfies (keyof PlacementServiceOptions)[];
const BODY_LIMIT_BYTES = 32 * 2 ** 20;
const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

export interface PlacementServiceOptions {
  /** Keep every map as it is, and report what would have been answered. Default false. */
  shadow?: boolean;
  /** Plan from the engine's own counts where nothing of its shape is offered. Default true. */
  ownPlans?: boolean;
  /** For an answer; what takes longer is refused, for that key for good. Default 5,000. */
  answerWithinMs?: number;
  /** Answers that are kept for whoever asks late. Default 32. */
  keptAnswers?: number;
  /** What moving an expert costs, as a share of the mean rank's time in a layer over the engine's window. Default 0.001. */
  moveShare?: number;
  rules?: DecisionRules;
  plan?: ProposalSettings['plan'];
  /** Bearer tokens that policies may bring; without any, everybody may ask. */
  apiKeys?: readonly string[];
  log?: Logger;
  registry?: Registry;
}

/** What a key was answered, for good. */
type Outcome = { answer: PlacementAnswer } | { error: ApiError };

interface KeptAnswer {
  digest: string;
  outcome: Promise<Outcome>;
}

/** As `GET /v1/placement/current` tells it. */
export interface CurrentAnswer extends PlacementAnswer {
  model: string;
  ageMs: number;
  /** What the ranks said of it; absent where they have not. */
  agreed?: boolean;
}

interface Waiting {
  planId: string;
  resolve(): void;
  reject(error: unknown): void;
}

export class PlacementService implements ApplyHook {
  readonly registry: Registry;
  readonly #settings: ProposalSettings;
  readonly #shadow: boolean;
  readonly #ownPlans: boolean;
  readonly #answerWithinMs: number;
  readonly #keptAnswers: number;
  readonly #keys: ApiKeys;
  readonly #log: Logger;
  readonly #metrics: ServiceMetrics;
  /** By key, the oldest first. */
  readonly #answers = new Map<string, KeptAnswer>();
  /** The greatest seen: a controller that has lost its lease must not undo what another has done. */
  #fencingToken = 0;
  #offered: OfferedPlacement | undefined;
  #waiting: Waiting | undefined;
  #inForce: string | undefined;
  #current: (Omit<CurrentAnswer, 'ageMs'> & { atMs: number }) | undefined;

  /** @throws GimbalError GIMBAL_INVALID_INPUT */
  constructor(options: PlacementServiceOptions = {}) {
    checkKeys('options', options, OPTIONS);
    this.registry = options.registry ?? new Registry();
    this.#settings = {
      rules: { ...DECISION_DEFAULTS, ...options.rules },
      plan: options.plan ?? {},
      moveShare: atLeastZero('options.moveShare', options.moveShare ?? 0.001),
    };
    this.#shadow = boolean('options.shadow', options.shadow ?? false);
    this.#ownPlans = boolean('options.ownPlans', options.ownPlans ?? true);
    this.#answerWithinMs = count('options.answerWithinMs', options.answerWithinMs ?? 5000);
    this.#keptAnswers = count('options.keptAnswers', options.keptAnswers ?? 32);
    this.#keys = new ApiKeys(options.apiKeys ?? []);
    this.#log = options.log ?? createLog('silent');
    this.#metrics = new ServiceMetrics(this.registry);
  }

  /** For node:http: answers everything, what is not its own with 404. */
  readonly listener = (request: IncomingMessage, response: ServerResponse): void => {
    const path = (request.url ?? '/').split('?')[0]!;
    this.serve(request, response, path).catch((error) => {
      this.#log.error({ err: error }, 'a placement question failed');
      sendError(response, broken('internal_error', 'the placement service failed; its log says why', 500));
    });
  };

  /** `path` is one of PLACEMENT_PATHS where another server has mounted it. */
  async serve(request: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    if (!PLACEMENT_PATHS.includes(path))
      return this.#refuse(response, refused(404, 'not_found', `nothing is at ${path}`));
    if (!this.#keys.admits(request.headers)) {
      return this.#refuse(
        response,
        refused(401, 'invalid_api_key', `${path} needs an API key, as a bearer token`),
      );
    }
    const isRead = path === '/v1/placement/current';
    if (!comesBy(isRead ? READING : ['POST'], request, response, path)) return;
    if (isRead) return this.#serveCurrent(response);
    const body = await this.#readJson(request, response);
    if (body === undefined) return;
    try {
      if (path === '/v1/placement') await this.#serveAnswer(response, readQuestion(body));
      else await this.#serveAgreement(response, readAgreement(body));
    } catch (error) {
      if (!(error instanceof GimbalError) || error.code !== 'GIMBAL_INVALID_INPUT') throw error;
      this.#refuse(response, refused(400, 'invalid_question', error.message));
    }
  }

  /** What is in force or is to be: answered from now on to every engine of that shape. */
  offer(placement: OfferedPlacement): void {
    this.#offered = { ...placement, placement: placement.placement.slice() };
  }

  /**
   * Resolves when the ranks of the engine have taken the change. Where they do not agree, or `signal` says that it is given up, it
   * rejects and the change is withdrawn: no engine is to come upon it later.
   */
  apply(change: PlacementChange, signal: AbortSignal): Promise<void> {
    if (change.fencingToken < this.#fencingToken) {
      const expected = `a token of at least ${this.#fencingToken}`;
      return Promise.reject(mismatch('GIMBAL_IO', 'fencingToken', expected, `${change.fencingToken}`));
    }
    this.#fencingToken = change.fencingToken;
    this.#waiting?.reject(tookNot(this.#waiting.planId, 'another change came before they asked'));
    if (signal.aborted) return Promise.reject(signal.reason);
    const before = this.#offered;
    this.offer(change);
    if (this.#inForce === change.planId) return Promise.resolve();
    return new Promise<void>((resolve, reject) => {
      const giveUp = () => waiting.reject(signal.reason);
      const settle = () => {
        signal.removeEventListener('abort', giveUp);
        this.#waiting = undefined;
      };
      const waiting: Waiting = {
        planId: change.planId,
        resolve: () => {
          settle();
          resolve();
        },
        reject: (error) => {
          settle();
          this.#offered = before;
          reject(error);
        },
      };
      this.#waiting = waiting;
      signal.addEventListener('abort', giveUp, { once: true });
    });
  }

  /** The plan that the ranks last said they had taken. */
  async verify(): Promise<string | undefined> {
    return this.#inForce;
  }

  async #serveAnswer(response: ServerResponse, question: PlacementQuestion): Promise<void> {
    const { key, digest } = question;
    const known = this.#answers.get(key);
    if (known !== undefined && known.digest !== digest) {
      this.#log.error(
        { key, model: question.model },
        'one key, two questions: the ranks do not agree on what they ask',
      );
      return this.#refuse(
        response,
        refused(409, 'key_conflict', `key ${key} was first asked with other inputs`),
      );
    }
    const outcome = await (known ?? this.#ask(question)).outcome;
    if ('error' in outcome) return this.#refuse(response, outcome.error);
    sendJson(response, 200, outcome.answer);
  }

  #ask(question: PlacementQuestion): KeptAnswer {
    const kept = { digest: question.digest, outcome: this.#answer(question) };
    this.#answers.set(question.key, kept);
    for (const oldest of this.#answers.keys()) {
      if (this.#answers.size <= this.#keptAnswers) break;
      this.#answers.delete(oldest);
    }
    return kept;
  }

  /** Never rejects: that there is no answer is an answer, the same for all who ask. */
  async #answer(question: PlacementQuestion): Promise<Outcome> {
    const begun = performance.now();
    const { key, model } = question;
    try {
      const proposal = await this.#propose(question, AbortSignal.timeout(this.#answerWithinMs));
      const answer = this.#shadow ? shadowed(question, proposal) : answerOf(question, proposal);
      const seconds = (performance.now() - begun) / 1000;
      this.#current = { ...answer, model, atMs: Date.now() };
      this.#metrics.answered(answer, seconds);
      const { physicalToLogical, ...told } = answer;
      this.#log.info({ model, seconds, ...told }, this.#shadow ? 'placement, shadow mode' : 'placement');
      if (!this.#shadow && answer.reason === 'same-placement' && proposal.planId !== undefined) {
        this.#taken(proposal.planId);
      }
      return { answer };
    } catch (error) {
      const isLate = error instanceof DOMException && error.name === 'TimeoutError';
      this.#log.error({ key, model, err: error }, 'no placement could be answered');
      const message = isLate
        ? `no plan within ${this.#answerWithinMs} ms`
        : `no plan: ${(error as Error).message}`;
      return { error: broken(isLate ? 'too_late' : 'no_plan', message, 503) };
    }
  }

  async #propose(question: PlacementQuestion, signal: AbortSignal): Promise<Proposal> {
    const offered = this.#offered;
    const proposal = offered && (await proposeOffered(question, offered, signal));
    if (proposal !== undefined) return proposal;
    if (this.#ownPlans) return proposeOwn(question, this.#settings, signal);
    const { old } = question;
    if (old === undefined) throw mismatch('GIMBAL_INVALID_INPUT', 'old', 'the map in force', 'none');
    return { decision: 'keep', reason: 'controller', placement: old };
  }

  async #serveAgreement(response: ServerResponse, agreement: PlacementAgreement): Promise<void> {
    const { key, planId, agreed, detail } = agreement;
    const outcome = await this.#answers.get(key)?.outcome;
    if (outcome === undefined || 'error' in outcome || outcome.answer.planId !== planId) {
      return this.#refuse(response, refused(404, 'unknown_plan', `${planId} was not answered to key ${key}`));
    }
    this.#metrics.agreed(agreed);
    if (this.#current?.key === key) this.#current.agreed = agreed;
    this.#log[agreed ? 'info' : 'error'](
      { key, planId, detail },
      agreed ? 'the ranks agreed' : 'the ranks did not agree',
    );
    if (outcome.answer.decision === 'rearrange') {
      if (agreed) this.#taken(planId);
      else if (this.#waiting?.planId === planId)
        this.#waiting.reject(tookNot(planId, detail ?? 'they did not say why'));
    }
    response.writeHead(204).end();
  }

  #taken(planId: string): void {
    this.#inForce = planId;
    if (this.#waiting?.planId === planId) this.#waiting.resolve();
  }

  #serveCurrent(response: ServerResponse): void {
    if (this.#current === undefined) {
      this.#refuse(response, refused(404, 'no_answer', 'nobody has asked yet'));
      return;
    }
    const { atMs, ...current } = this.#current;
    const told: CurrentAnswer = { ...current, ageMs: Date.now() - atMs };
    sendJson(response, 200, told);
  }

  async #readJson(request: IncomingMessage, response: ServerResponse): Promise<unknown> {
    try {
      return JSON.parse((await readBody(request, BODY_LIMIT_BYTES)).toString('utf8'));
    } catch (error) {
      if (error instanceof BodyTooLongError) this.#refuse(response, refused(413, 'too_long', error.message));
      else
        this.#refuse(
          response,
          refused(400, 'invalid_json', `the body is no JSON: ${(error as Error).message}`),
        );
      return undefined;
    }
  }

  #refuse(response: ServerResponse, error: ApiError): void {
    this.#metrics.refused(error.status);
    sendError(response, error);
  }
}

function answerOf(question: PlacementQuestion, proposal: Proposal): PlacementAnswer {
  const { key, layers, slots, digest } = question;
  const { decision, reason, placement, predicted } = proposal;
  const map = encodeMap(placement);
  const planId = proposal.planId ?? `${decision}-${named(key, digest, map.sha256)}`;
  return {
    version: PLACEMENT_PROTOCOL_VERSION,
    key,
    planId,
    decision,
    reason,
    shape: [layers, slots],
    ...map,
    ...(predicted && { predicted }),
  };
}

function shadowed(question: PlacementQuestion, proposal: Proposal): PlacementAnswer {
  const { old } = question;
  if (old === undefined)
    throw mismatch('GIMBAL_INVALID_INPUT', 'old', 'the map in force, in shadow mode', 'none');
  const { decision, reason, planId, predicted } = answerOf(question, proposal);
  const kept = answerOf(question, { decision: 'keep', reason, placement: old });
  return { ...kept, ...(predicted && { predicted }), shadow: { decision, reason, planId } };
}

function named(...parts: string[]): string {
  return createHash('sha256').update(parts.join('\n')).digest('hex').slice(0, 16);
}

function tookNot(planId: string, why: string): GimbalError {
  return mismatch('GIMBAL_IO', 'apply', `ranks that take plan ${planId}`, why);
}

function refused(status: number, code: string, message: string): ApiError {
  const type =
    status === 401 ? 'authentication_error' : status === 404 ? 'not_found_error' : 'invalid_request_error';
  return { status, code, message, type };
}

function broken(code: string, message: string, status: number): ApiError {
  return { status, code, message, type: 'server_error' };
}

class ServiceMetrics {
  readonly #answers: Counter<'decision' | 'reason'>;
  readonly #refused: Counter<'status'>;
  readonly #agreed: Counter<'agreed'>;
  readonly #gain: Gauge;
  readonly #moved: Gauge;
  readonly #seconds: Histogram;

  constructor(registry: Registry) {
    const registers = [registry];
    this.#answers = new Counter({
      name: 'gimbal_placement_answers_total',
      help: 'Placements answered to engines; in shadow mode, what would have been decided.',
      labelNames: ['decision', 'reason'],
      registers,
    });
    this.#refused = new Counter({
      name: 'gimbal_placement_refused_total',
      help: 'Questions that got no placement, by status.',
      labelNames: ['status'],
      registers,
    });
    this.#agreed = new Counter({
      name: 'gimbal_placement_agreements_total',
      help: 'What the ranks said of an answer.',
      labelNames: ['agreed'],
      registers,
    });
    this.#gain = new Gauge({
      name: 'gimbal_placement_gain_share',
      help: "Of the busiest ranks' time, that the latest plan would save.",
      registers,
    });
    this.#moved = new Gauge({
      name: 'gimbal_placement_moved_slots',
      help: 'Slots that the latest plan would change.',
      registers,
    });
    this.#seconds = new Histogram({
      name: 'gimbal_placement_answer_seconds',
      help: 'From a question to its answer.',
      buckets: SECONDS,
      registers,
    });
  }

  answered({ decision, reason, predicted, shadow }: PlacementAnswer, seconds: number): void {
    this.#answers.inc({ decision: shadow?.decision ?? decision, reason });
    this.#seconds.observe(seconds);
    this.#gain.set(predicted?.gainShare ?? 0);
    this.#moved.set(predicted?.movedSlots ?? 0);
  }

  refused(status: number): void {
    this.#refused.inc({ status: String(status) });
  }

  agreed(agreed: boolean): void {
    this.#agreed.inc({ agreed: String(agreed) });
  }
}
