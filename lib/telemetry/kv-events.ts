/**
 * The batches of events that vLLM and SGLang publish of their KV caches. Their structs travel as lists of fields in older
 * versions and as maps in newer ones, batches and events each for itself; hashes are integers or bytes by the engine's setting.
 * Kinds of events that are not known are counted and left out, so that an engine may learn new ones.
 */
import { describe, formatError } from '../import/limits.js';
import type { KvBlockHash, KvBlocksRemoved, KvBlocksStored, KvEvent, KvEventBatch } from './kv-types.js';
import { decodeMsgpack } from './msgpack.js';

/** Where each field is in a list. The first of an event is the name of its kind. */
const BATCH_FIELDS = ['ts', 'events', 'data_parallel_rank'];
const STORED_FIELDS = [
  'type',
  'block_hashes',
  'parent_block_hash',
  'token_ids',
  'block_size',
  'lora_id',
  'medium',
  'lora_name',
  'extra_keys',
  'group_idx',
  'kv_cache_spec_kind',
];
const REMOVED_FIELDS = ['type', 'block_hashes', 'medium', 'group_idx'];
/** More tokens than any engine puts into a block. */
const MOST_BLOCK_SIZE = 65_536;
const MOST_HASH_BYTES = 64;
const MOST_TOKEN_ID = 2 ** 32 - 1;

/**
 * The payload of one message, its third frame. `source` is what messages of errors call it.
 *
 * @throws GimbalError GIMBAL_FORMAT (names the event and the field)
 */
export function decodeKvEvents(payload: Uint8Array, source = 'KV events'): KvEventBatch {
  const batch = new Fields(source, 'batch', decodeMsgpack(payload, source), BATCH_FIELDS);
  const events: KvEvent[] = [];
  let unknownEvents = 0;
  for (const [n, value] of batch.list('events').entries()) {
    const event = toEvent(source, `event ${n}`, value);
    if (event === undefined) unknownEvents += 1;
    else events.push(event);
  }
  return { events, unknownEvents };
}

function toEvent(source: string, where: string, value: unknown): KvEvent | undefined {
  const kind = new Fields(source, where, value, ['type']).text('type');
  switch (kind) {
    case 'BlockStored':
      return toStored(new Fields(source, where, value, STORED_FIELDS));
    case 'BlockRemoved':
      return toRemoved(new Fields(source, where, value, REMOVED_FIELDS));
    case 'AllBlocksCleared':
      return { kind: 'cleared' };
    case undefined:
      throw formatError(source, `${where}, type`, 'the name of a kind of events', 'nothing');
    default:
      return undefined;
  }
}

function toStored(fields: Fields): KvBlocksStored {
  const hashes = fields.list('block_hashes').map((hash) => fields.hash('block_hashes', hash));
  const parent = fields.get('parent_block_hash');
  const tokenIds = fields.list('token_ids');
  const adapter = fields.text('lora_name');
  const number = fields.integer('lora_id', Number.MAX_SAFE_INTEGER);
  const lora = adapter ?? (number === undefined ? undefined : `#${number}`);
  const extras = fields.has('extra_keys') ? fields.list('extra_keys') : undefined;
  const blockSize = fields.integer('block_size', MOST_BLOCK_SIZE);
  if (blockSize === undefined || blockSize === 0) throw fields.wrong('block_size', 'at least 1', blockSize);
  return {
    kind: 'stored',
    hashes,
    ...(parent === undefined ? {} : { parent: fields.hash('parent_block_hash', parent) }),
    ...(tokenIds.every(isTokenId) ? { tokenIds: tokenIds as number[] } : {}),
    blockSize,
    ...(lora === undefined ? {} : { lora }),
    ...mediumOf(fields),
    ...groupOf(fields),
    ...(fields.has('kv_cache_spec_kind') ? { groupKind: fields.text('kv_cache_spec_kind')! } : {}),
    ...(extras === undefined ? {} : { extras: extras.map((keys) => toExtras(keys, adapter)) }),
  };
}

function toRemoved(fields: Fields): KvBlocksRemoved {
  const hashes = fields.list('block_hashes').map((hash) => fields.hash('block_hashes', hash));
  return { kind: 'removed', hashes, ...mediumOf(fields), ...groupOf(fields) };
}

function mediumOf(fields: Fields): { medium?: string } {
  const medium = fields.text('medium');
  return medium === undefined ? {} : { medium };
}

function groupOf(fields: Fields): { group?: number } {
  const group = fields.integer('group_idx', Number.MAX_SAFE_INTEGER);
  return group === undefined ? {} : { group };
}

/** All that a block hangs on beside its tokens and its adapter, which is told by itself as well. */
function toExtras(keys: unknown, adapter: string | undefined): string | undefined {
  const all = keys === null ? [] : Array.isArray(keys) ? keys.filter((key) => key !== adapter) : [keys];
  if (all.length === 0) return undefined;
  return JSON.stringify(all, (_, value) =>
    typeof value === 'bigint'
      ? `${value}n`
      : value instanceof Uint8Array
        ? Buffer.from(value).toString('hex')
        : value,
  );
}

function isTokenId(value: unknown): value is number {
  return typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= MOST_TOKEN_ID;
}

/** A struct of either form, with checks that name what is wrong in it. A field that is nil counts as missing. */
class Fields {
  readonly #source: string;
  readonly #where: string;
  readonly #names: readonly string[];
  readonly #list: readonly unknown[] | undefined;
  readonly #map: Readonly<Record<string, unknown>> | undefined;

  constructor(source: string, where: string, value: unknown, names: readonly string[]) {
    this.#source = source;
    this.#where = where;
    this.#names = names;
    if (Array.isArray(value)) this.#list = value;
    else if (Object.getPrototypeOf(value ?? 0) === Object.prototype)
      this.#map = value as Record<string, unknown>;
    else throw formatError(source, where, 'a list or a map of fields', describe(value));
  }

  get(name: string): unknown {
    const value =
      this.#list === undefined
        ? Object.hasOwn(this.#map!, name)
          ? this.#map![name]
          : undefined
        : this.#list[this.#names.indexOf(name)];
    return value ?? undefined;
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  list(name: string): readonly unknown[] {
    const value = this.get(name);
    if (!Array.isArray(value)) throw this.wrong(name, 'a list', value);
    return value;
  }

  text(name: string): string | undefined {
    const value = this.get(name);
    if (value === undefined || typeof value === 'string') return value;
    throw this.wrong(name, 'a text', value);
  }

  integer(name: string, most: number): number | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    const number = typeof value === 'bigint' ? Number(value) : value;
    if (typeof number === 'number' && Number.isInteger(number) && number >= 0 && number <= most)
      return number;
    throw this.wrong(name, `an integer of 0 to ${most}`, value);
  }

  /** Small integers come as numbers, others as bigints; a name must not hang on that. */
  hash(name: string, value: unknown): KvBlockHash {
    if (typeof value === 'bigint') return value;
    if (typeof value === 'number' && Number.isSafeInteger(value)) return BigInt(value);
    if (value instanceof Uint8Array && value.length > 0 && value.length <= MOST_HASH_BYTES) {
      return Buffer.from(value.buffer, value.byteOffset, value.byteLength).toString('latin1');
    }
    throw this.wrong(name, `hashes: integers, or 1 to ${MOST_HASH_BYTES} bytes`, value);
  }

  wrong(name: string, expected: string, value: unknown) {
    return formatError(this.#source, `${this.#where}, ${name}`, expected, describe(value));
  }
}
