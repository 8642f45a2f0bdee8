/**
 * A reader for the few pickle opcodes that `torch.save` writes for dicts, lists, numbers, strings and tensors. It builds
 * plain data and cannot execute anything: a global is an inert name that must be on the caller's list, REDUCE only hands
 * (name, arguments) to the caller, and every opcode that builds or changes objects is refused. See docs/FORMATS.md for why
 * no general pickle library is used.
 */
import { formatError, quote } from './limits.js';

/** A module-level name that the pickle refers to. Never looked up, never called. */
export class PickleGlobal {
  constructor(readonly name: string) {}
}

export type PickleValue = unknown;

export interface PickleHost {
  /** Full names, e.g. `collections.OrderedDict`, that may appear. */
  allows: (name: string) => boolean;
  /** What `name(*args)` stands for; undefined where the name is not callable. */
  reduce: (name: string, args: PickleValue[]) => PickleValue;
  /** What a persistent id stands for. */
  persistent: (id: PickleValue) => PickleValue;
}

// One unit is about 8 bytes of memory. The bound allows 2 million objects or 32 million numbers.
const MAX_UNITS = 1 << 25;
const UNITS_PER_OBJECT = 16;
const MAX_TEXT_LENGTH = 1 << 24;
const HIGHEST_PROTOCOL = 5;

const OP = {
  MARK: 0x28,
  EMPTY_TUPLE: 0x29,
  STOP: 0x2e,
  BINFLOAT: 0x47,
  BININT: 0x4a,
  BININT1: 0x4b,
  BININT2: 0x4d,
  NONE: 0x4e,
  BINPERSID: 0x51,
  REDUCE: 0x52,
  BINUNICODE: 0x58,
  EMPTY_LIST: 0x5d,
  APPEND: 0x61,
  GLOBAL: 0x63,
  APPENDS: 0x65,
  BINGET: 0x68,
  LONG_BINGET: 0x6a,
  BINPUT: 0x71,
  LONG_BINPUT: 0x72,
  SETITEM: 0x73,
  TUPLE: 0x74,
  SETITEMS: 0x75,
  EMPTY_DICT: 0x7d,
  PROTO: 0x80,
  TUPLE1: 0x85,
  TUPLE2: 0x86,
  TUPLE3: 0x87,
  NEWTRUE: 0x88,
  NEWFALSE: 0x89,
  LONG1: 0x8a,
  SHORT_BINUNICODE: 0x8c,
  STACK_GLOBAL: 0x93,
  MEMOIZE: 0x94,
  FRAME: 0x95,
} as const;

/** Dicts come back as Map, lists and tuples as arrays, whole numbers beyond ±2^53 rounded. */
export function unpickle(bytes: Uint8Array, file: string, where: string, host: PickleHost): PickleValue {
  return new Unpickler(bytes, file, where, host).run();
}

class Unpickler {
  private readonly view: DataView;
  private at = 0;
  private units = 0;
  private stack: PickleValue[] = [];
  private readonly marks: PickleValue[][] = [];
  private readonly memo = new Map<number, PickleValue>();

  constructor(
    private readonly bytes: Uint8Array,
    private readonly file: string,
    private readonly where: string,
    private readonly host: PickleHost,
  ) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  run(): PickleValue {
    for (;;) {
      const opcodeAt = this.at;
      const opcode = this.take(1);
      const code = this.view.getUint8(opcode);
      if (code === OP.STOP) return this.pop();
      if (!this.structure(code) && !this.scalar(code) && !this.object(code)) {
        const received = `opcode 0x${code.toString(16).padStart(2, '0')} at byte ${opcodeAt}`;
        throw this.fail('only the opcodes of plain data and tensors', received);
      }
    }
  }

  /** Protocol, framing, stack and memo. */
  private structure(code: number): boolean {
    switch (code) {
      case OP.PROTO: {
        const protocol = this.view.getUint8(this.take(1));
        if (protocol < 2 || protocol > HIGHEST_PROTOCOL) {
          throw this.fail(`pickle protocol 2 to ${HIGHEST_PROTOCOL}`, `protocol ${protocol}`);
        }
        return true;
      }
      case OP.FRAME:
        this.take(8);
        return true;
      case OP.MARK:
        this.marks.push(this.stack);
        this.stack = [];
        this.charge(UNITS_PER_OBJECT);
        return true;
      case OP.BINPUT:
        this.remember(this.view.getUint8(this.take(1)));
        return true;
      case OP.LONG_BINPUT:
        this.remember(this.view.getUint32(this.take(4), true));
        return true;
      case OP.MEMOIZE:
        this.remember(this.memo.size);
        return true;
      case OP.BINGET:
        this.recall(this.view.getUint8(this.take(1)));
        return true;
      case OP.LONG_BINGET:
        this.recall(this.view.getUint32(this.take(4), true));
        return true;
      default:
        return false;
    }
  }

  private scalar(code: number): boolean {
    switch (code) {
      case OP.NONE:
        return this.push(null);
      case OP.NEWTRUE:
        return this.push(true);
      case OP.NEWFALSE:
        return this.push(false);
      case OP.BININT:
        return this.push(this.view.getInt32(this.take(4), true));
      case OP.BININT1:
        return this.push(this.view.getUint8(this.take(1)));
      case OP.BININT2:
        return this.push(this.view.getUint16(this.take(2), true));
      case OP.LONG1:
        return this.push(this.long(this.view.getUint8(this.take(1))));
      case OP.BINFLOAT:
        return this.push(this.view.getFloat64(this.take(8), false));
      case OP.BINUNICODE:
        return this.push(this.text(this.view.getUint32(this.take(4), true)), UNITS_PER_OBJECT);
      case OP.SHORT_BINUNICODE:
        return this.push(this.text(this.view.getUint8(this.take(1))), UNITS_PER_OBJECT);
      default:
        return false;
    }
  }

  private object(code: number): boolean {
    switch (code) {
      case OP.EMPTY_TUPLE:
      case OP.EMPTY_LIST:
        return this.push([], UNITS_PER_OBJECT);
      case OP.EMPTY_DICT:
        return this.push(new Map(), UNITS_PER_OBJECT);
      case OP.TUPLE:
        return this.push(this.popMark(), UNITS_PER_OBJECT);
      case OP.TUPLE1:
      case OP.TUPLE2:
      case OP.TUPLE3:
        return this.tuple(code - OP.TUPLE1 + 1);
      case OP.APPEND:
        return this.append([this.pop()]);
      case OP.APPENDS:
        return this.append(this.popMark());
      case OP.SETITEM: {
        const value = this.pop();
        return this.setItems([this.pop(), value]);
      }
      case OP.SETITEMS:
        return this.setItems(this.popMark());
      case OP.GLOBAL:
        return this.global(`${this.line()}.${this.line()}`);
      case OP.STACK_GLOBAL: {
        const name = this.pop();
        return this.global(`${String(this.pop())}.${String(name)}`);
      }
      case OP.BINPERSID:
        return this.push(this.host.persistent(this.pop()), UNITS_PER_OBJECT);
      case OP.REDUCE:
        return this.reduce();
      default:
        return false;
    }
  }

  private tuple(length: number): boolean {
    const items: PickleValue[] = [];
    for (let i = 0; i < length; i++) items.unshift(this.pop());
    return this.push(items, UNITS_PER_OBJECT);
  }

  private append(items: PickleValue[]): boolean {
    const list = this.top();
    if (!Array.isArray(list)) throw this.fail('a list to append to', 'something else');
    this.charge(items.length);
    for (const item of items) list.push(item);
    return true;
  }

  private setItems(items: PickleValue[]): boolean {
    const dict = this.top();
    if (!(dict instanceof Map)) throw this.fail('a dict to fill', 'something else');
    if (items.length % 2 !== 0) throw this.fail('keys and values in pairs', `${items.length} items`);
    this.charge(items.length * 4);
    for (let i = 0; i < items.length; i += 2) dict.set(items[i], items[i + 1]);
    return true;
  }

  private global(name: string): boolean {
    if (!this.host.allows(name)) {
      throw this.fail(
        'only tensors and plain data',
        `a reference to ${quote(name)}; nothing of the file was executed`,
      );
    }
    return this.push(new PickleGlobal(name), UNITS_PER_OBJECT);
  }

  private reduce(): boolean {
    const args = this.pop();
    const callee = this.pop();
    if (!(callee instanceof PickleGlobal) || !Array.isArray(args)) {
      throw this.fail(
        'a call of a known name with a tuple of arguments',
        'another call; nothing was executed',
      );
    }
    return this.push(this.host.reduce(callee.name, args), UNITS_PER_OBJECT);
  }

  /** Little-endian two's complement of up to 8 bytes. */
  private long(length: number): number {
    if (length > 8) throw this.fail('an integer of at most 64 bits', `one of ${length} bytes`);
    const start = this.take(length);
    let value = 0;
    for (let i = 0; i < length; i++) value += this.bytes[start + i]! * 256 ** i;
    const negative = length > 0 && this.bytes[start + length - 1]! >= 128;
    return negative ? value - 256 ** length : value;
  }

  private text(length: number): string {
    if (length > MAX_TEXT_LENGTH)
      throw this.fail(`text of at most ${MAX_TEXT_LENGTH} bytes`, `${length} bytes`);
    const start = this.take(length);
    this.charge(length >> 2);
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + start, length).toString('utf8');
  }

  private line(): string {
    const end = this.bytes.indexOf(0x0a, this.at);
    if (end < 0 || end - this.at > 1024) throw this.fail('a name that ends in a newline', 'none');
    const start = this.take(end - this.at + 1);
    return Buffer.from(this.bytes.buffer, this.bytes.byteOffset + start, end - start).toString('utf8');
  }

  private push(value: PickleValue, units = 1): true {
    this.charge(units);
    this.stack.push(value);
    return true;
  }

  private pop(): PickleValue {
    if (this.stack.length === 0) throw this.fail('a value on the stack', 'an empty stack');
    return this.stack.pop();
  }

  private top(): PickleValue {
    if (this.stack.length === 0) throw this.fail('a value on the stack', 'an empty stack');
    return this.stack[this.stack.length - 1];
  }

  private popMark(): PickleValue[] {
    const items = this.stack;
    const below = this.marks.pop();
    if (below === undefined) throw this.fail('a mark on the stack', 'none');
    this.stack = below;
    return items;
  }

  private remember(index: number): void {
    this.charge(4);
    this.memo.set(index, this.top());
  }

  private recall(index: number): void {
    if (!this.memo.has(index)) throw this.fail('a remembered value', `none under ${index}`);
    this.push(this.memo.get(index));
  }

  /** Moves past `length` bytes and says where they began. */
  private take(length: number): number {
    const start = this.at;
    if (start + length > this.bytes.length) {
      throw this.fail(
        `${length} more bytes at byte ${start}`,
        `${this.bytes.length - start}: the file is truncated`,
      );
    }
    this.at += length;
    return start;
  }

  private charge(units: number): void {
    this.units += units;
    if (this.units > MAX_UNITS) throw this.fail('a record that fits in memory', 'too many values');
  }

  private fail(expected: string, received: string) {
    return formatError(this.file, this.where, expected, received);
  }
}
