/** Who may use the gateway: those that bring one of its keys, or everybody where it has none. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';

export class ApiKeys {
  /** Digests, since all have one length and are compared in one time. */
  #digests: readonly Buffer[];

  constructor(keys: readonly string[]) {
    this.#digests = keys.map(digest);
  }

  renew(keys: readonly string[]): void {
    this.#digests = keys.map(digest);
  }

  get isOpen(): boolean {
    return this.#digests.length === 0;
  }

  /** Whose request it is, by a digest of the key; undefined where there are not several keys that could tell. */
  tenantOf(authorization: string | string[] | undefined): string | undefined {
    const isTold = this.#digests.length > 1 && typeof authorization === 'string';
    const key = isTold ? keyOf(authorization) : undefined;
    return key === undefined ? undefined : digest(key).toString('base64');
  }

  admits(headers: IncomingHttpHeaders): boolean {
    if (this.isOpen) return true;
    const key = keyOf(headers.authorization);
    if (key === undefined) return false;
    const given = digest(key);
    return this.#digests.filter((known) => timingSafeEqual(known, given)).length > 0;
  }
}

function digest(key: string): Buffer {
  return createHash('sha256').update(key).digest();
}

/** `Bearer KEY`; or as a browser asks for it, with any user name and the key as the password. */
function keyOf(authorization: string | undefined): string | undefined {
  const found = /^(bearer|basic) +(\S+)$/i.exec(authorization ?? '');
  if (found === null) return undefined;
  const [, scheme, value] = found;
  if (scheme!.toLowerCase() === 'bearer') return value;
  return Buffer.from(value!, 'base64')
    .toString('utf8')
    .replace(/^[^:]*:/, '');
}
