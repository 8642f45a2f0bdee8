/**
 * What operators ask the controller, `GET /controller/status`, and tell it, `PUT /controller/dead-gpus`: whoever watches the hardware
 * says there which GPUs are gone.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { checkKeys } from '../checks.js';
import { mismatch } from '../errors.js';
import type { AdminPages } from '../gateway/admin.js';
import { comesBy, READING, sendError, sendJson } from '../gateway/answers.js';
import { readBody, refusalOf } from '../gateway/body.js';
import type { Controller } from './controller.js';

const STATUS_PATH = '/controller/status';
const DEAD_GPUS_PATH = '/controller/dead-gpus';
/** Numbers of every GPU that a placement may have. */
const MOST_BYTES = 64 * 1024;

export class ControllerPages implements AdminPages {
  readonly paths = [STATUS_PATH, DEAD_GPUS_PATH];
  readonly #controller: Pick<Controller, 'status' | 'setDeadGpus'>;

  constructor(controller: Pick<Controller, 'status' | 'setDeadGpus'>) {
    this.#controller = controller;
  }

  async serve(request: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    if (path === DEAD_GPUS_PATH) {
      if (comesBy(['PUT'], request, response, path)) await this.#setDeadGpus(request, response);
    } else if (comesBy(READING, request, response, path)) sendJson(response, 200, this.#controller.status());
  }

  /** All that are dead, each time: what is said twice changes nothing. */
  async #setDeadGpus(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      this.#controller.setDeadGpus(deadGpusOf(await readBody(request, MOST_BYTES)));
      const { deadGpus } = this.#controller.status();
      sendJson(response, 200, { deadGpus });
    } catch (error) {
      if (response.destroyed) return;
      const refusal = refusalOf(error, 'invalid_dead_gpus');
      if (refusal === undefined) throw error;
      sendError(response, refusal);
    }
  }
}

/** @throws GimbalError GIMBAL_FORMAT (no JSON), GIMBAL_INVALID_INPUT; what the GPUs may be is the controller's to say */
function deadGpusOf(body: Buffer): number[] {
  let content: unknown;
  try {
    content = JSON.parse(body.toString('utf8'));
  } catch {
    throw mismatch('GIMBAL_FORMAT', 'body', 'JSON such as {"deadGpus": [3]}', 'no JSON');
  }
  checkKeys('body', content, ['deadGpus']);
  return (content as { deadGpus: number[] }).deadGpus;
}
