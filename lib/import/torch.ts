/**
 * `.pt` files of PyTorch 1.6 and later: a zip of `data.pkl`, which describes the object, and `data/<key>`, the raw storages.
 * Tensors come back as views into the file. Every tensor is checked against its storage before it can be read.
 */
import {
  ELEMENT_BYTES,
  type ElementKind,
  elementCount,
  elementReader,
  type NumericArray,
  shapeText,
} from './array.js';
import { formatError, quote } from './limits.js';
import { PickleGlobal, type PickleHost, type PickleValue, unpickle } from './pickle.js';
import type { Zip } from './zip.js';

const MAX_PICKLE_BYTES = 256 * 1024 * 1024;
const MAX_DIMENSIONS = 8;
/** Elements that may be read beyond one per stored byte. */
const SHARED_ELEMENTS = 1 << 24;

const STORAGE_KINDS: Record<string, ElementKind | undefined> = {
  'torch.ByteStorage': 'u1',
  'torch.CharStorage': 'i1',
  'torch.ShortStorage': 'i2',
  'torch.IntStorage': 'i4',
  'torch.LongStorage': 'i8',
  'torch.FloatStorage': 'f4',
  'torch.DoubleStorage': 'f8',
};
// The dtypes without a storage class of their own are rebuilt from an untyped storage and a dtype.
const DTYPE_KINDS: Record<string, ElementKind | undefined> = {
  'torch.uint8': 'u1',
  'torch.int8': 'i1',
  'torch.uint16': 'u2',
  'torch.int16': 'i2',
  'torch.uint32': 'u4',
  'torch.int32': 'i4',
  'torch.uint64': 'u8',
  'torch.int64': 'i8',
  'torch.float32': 'f4',
  'torch.float64': 'f8',
};
// Named so that a dict may hold such a tensor beside the ones wanted; reading one is an error.
const OTHER_STORAGES = ['torch.HalfStorage', 'torch.BFloat16Storage', 'torch.BoolStorage'];
const UNTYPED_STORAGES = ['torch.storage.UntypedStorage', 'torch.UntypedStorage'];
const REBUILD = 'torch._utils._rebuild_tensor_v2';
const REBUILD_WITH_DTYPE = 'torch._utils._rebuild_tensor_v3';
const ORDERED_DICT = 'collections.OrderedDict';

const ALLOWED = new Set([
  ...Object.keys(STORAGE_KINDS),
  ...Object.keys(DTYPE_KINDS),
  ...OTHER_STORAGES,
  ...UNTYPED_STORAGES,
  REBUILD,
  REBUILD_WITH_DTYPE,
  ORDERED_DICT,
]);

class Storage {
  constructor(
    readonly type: string,
    readonly key: string,
  ) {}
}

/** A tensor of the file, not yet read. */
export class Tensor {
  constructor(
    readonly storage: Storage,
    readonly kind: ElementKind | undefined,
    readonly offset: number,
    readonly shape: number[],
    readonly strides: number[],
  ) {}
}

export interface TorchFile {
  /** The saved object: Map, array, number, string, null or Tensor, nested. */
  value: PickleValue;
  /** The numbers of a tensor of this file; `where` names it in messages. */
  open: (tensor: Tensor, where: string) => NumericArray;
}

/** The folder inside the zip that holds `data.pkl`, or undefined where this is no PyTorch file. */
function rootFolder(zip: Zip): string | undefined {
  const pickles = zip.names().filter((name) => /^([^/]+\/)?data\.pkl$/.test(name));
  return pickles.length === 1 ? pickles[0]?.slice(0, -'data.pkl'.length) : undefined;
}

export function isTorchZip(zip: Zip): boolean {
  return rootFolder(zip) !== undefined;
}

export function readTorch(zip: Zip, file: string): TorchFile {
  const root = rootFolder(zip);
  if (root === undefined) throw formatError(file, 'archive', 'one data.pkl, as torch.save writes it', 'none');
  const order = zip.has(`${root}byteorder`)
    ? Buffer.from(zip.read(`${root}byteorder`, 16)).toString('latin1')
    : 'little';
  if (order !== 'little' && order !== 'big')
    throw formatError(file, 'byteorder', '"little" or "big"', quote(order));
  const value = unpickle(zip.read(`${root}data.pkl`, MAX_PICKLE_BYTES), file, 'data.pkl', hostFor(file));
  const contents = new Map<string, Uint8Array>();
  let storedBytes = 0;
  let openedElements = 0;
  return {
    value,
    open: (tensor, where) => {
      const name = `${root}data/${tensor.storage.key}`;
      let bytes = contents.get(name);
      if (bytes === undefined) {
        bytes = zip.read(name, Number.MAX_SAFE_INTEGER);
        contents.set(name, bytes);
        storedBytes += bytes.length;
      }
      const array = openTensor(tensor, bytes, order === 'little', file, where);
      openedElements += elementCount(array.shape);
      // A pickle can name one tensor in any number of places, and each would be read again.
      if (openedElements > storedBytes + SHARED_ELEMENTS) {
        throw formatError(
          file,
          where,
          'tensors with storages of their own',
          'one storage named again and again',
        );
      }
      return array;
    },
  };
}

function hostFor(file: string): PickleHost {
  const fail = (expected: string, received: string) => formatError(file, 'data.pkl', expected, received);
  return {
    allows: (name) => ALLOWED.has(name),
    persistent: (id) => {
      const [tag, type, key] = Array.isArray(id) ? id : [];
      if (
        tag !== 'storage' ||
        !(type instanceof PickleGlobal) ||
        typeof key !== 'string' ||
        !/^\w+$/.test(key)
      ) {
        throw fail('a storage reference', 'another persistent id');
      }
      return new Storage(type.name, key);
    },
    reduce: (name, args) => {
      if (name === ORDERED_DICT && args.length === 0) return new Map();
      if (name === REBUILD || name === REBUILD_WITH_DTYPE) return rebuild(name, args, fail);
      throw fail('a call that rebuilds a tensor', `a call of ${quote(name)}; nothing was executed`);
    },
  };
}

function rebuild(
  name: string,
  args: PickleValue[],
  fail: (expected: string, received: string) => Error,
): Tensor {
  const [storage, offset, shape, strides] = args;
  const dtype = args[6];
  if (!(storage instanceof Storage)) throw fail('a storage to rebuild a tensor from', 'something else');
  if (!isCount(offset) || !isCounts(shape) || !isCounts(strides) || shape.length !== strides.length) {
    throw fail('a tensor with an offset, a shape and strides', 'other arguments');
  }
  if (name === REBUILD) return new Tensor(storage, STORAGE_KINDS[storage.type], offset, shape, strides);
  const kind = dtype instanceof PickleGlobal ? DTYPE_KINDS[dtype.name] : undefined;
  return new Tensor(storage, kind, offset, shape, strides);
}

function isCount(value: PickleValue): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

function isCounts(value: PickleValue): value is number[] {
  return Array.isArray(value) && value.length <= MAX_DIMENSIONS && value.every(isCount);
}

function openTensor(
  tensor: Tensor,
  bytes: Uint8Array,
  littleEndian: boolean,
  file: string,
  where: string,
): NumericArray {
  const { kind, shape, strides, offset } = tensor;
  if (kind === undefined) {
    throw formatError(file, where, 'an integer tensor, float32 or float64', tensor.storage.type);
  }
  const capacity = Math.floor(bytes.length / ELEMENT_BYTES[kind]);
  const count = elementCount(shape);
  // A stride of 0 could make one element stand for any number of them.
  if (count > capacity) {
    throw formatError(
      file,
      where,
      `at most ${capacity} elements, as many as are stored`,
      `shape ${shapeText(shape)}`,
    );
  }
  const last = shape.reduce((sum, length, d) => sum + Math.max(length - 1, 0) * (strides[d] ?? 0), offset);
  if (count > 0 && last >= capacity) {
    throw formatError(
      file,
      where,
      `elements inside a storage of ${capacity}`,
      `shape ${shapeText(shape)} up to ${last}`,
    );
  }
  return { file, where, kind, shape, strides, offset, read: elementReader(bytes, kind, littleEndian) };
}

/** True for what starts a pickle outside a zip: the file format of PyTorch before 1.6, or a bare pickle. */
export function isBarePickle(bytes: Uint8Array): boolean {
  return bytes[0] === 0x80 && (bytes[1] ?? 0) >= 2 && (bytes[1] ?? 0) <= 5;
}

/** A dict entry of a loaded object, undefined where the object is no dict. */
export function entry(value: PickleValue, key: string): PickleValue {
  return value instanceof Map ? value.get(key) : undefined;
}
