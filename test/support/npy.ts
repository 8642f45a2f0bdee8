/** A file of NumPy's format, written to its definition and not by the package. */

export interface NpyOptions {
  descr?: string;
  fortran?: boolean;
  version?: number;
  /** In place of the header dict. */
  header?: string;
}

export function npy(data: Uint8Array, shape: readonly number[], options: NpyOptions = {}): Buffer {
  const { descr = '<u4', fortran = false, version = 1 } = options;
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(', ')})`;
  const dict =
    options.header ??
    `{'descr': '${descr}', 'fortran_order': ${fortran ? 'True' : 'False'}, 'shape': ${tuple}, }`;
  const head = Buffer.alloc(version === 1 ? 10 : 12);
  head.write('\x93NUMPY', 'latin1');
  head[6] = version;
  const unpadded = head.length + dict.length + 1;
  const header = Buffer.from(`${dict}${' '.repeat((64 - (unpadded % 64)) % 64)}\n`);
  head.writeUIntLE(header.length, 8, head.length - 8);
  return Buffer.concat([head, header, data]);
}
