/** What operators ask the controller: `GET /controller/status`. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { AdminPages } from '../gateway/admin.js';
import { sendJson, wrongMethod } from '../gateway/answers.js';
import type { Controller } from './controller.js';

const STATUS_PATH = '/controller/status';

export class ControllerPages implements AdminPages {
  readonly paths = [STATUS_PATH];
  readonly #controller: Pick<Controller, 'status'>;

  constructor(controller: Pick<Controller, 'status'>) {
    this.#controller = controller;
  }

  async serve({ method }: IncomingMessage, response: ServerResponse, path: string): Promise<void> {
    if (method === 'GET' || method === 'HEAD') sendJson(response, 200, this.#controller.status());
    else wrongMethod(response, path, 'GET, HEAD');
  }
}
