/**
 * Writes NumPy's .npy container, version 1.0, little-endian, C order, with the data aligned to 64 bytes as NumPy does.
 */
const HEADER_ALIGNMENT = 64;

export function encodeNpy(data: Int32Array | BigInt64Array, shape: readonly number[]): Uint8Array {
  const descr = data instanceof Int32Array ? '<i4' : '<i8';
  // A tuple of one needs its trailing comma.
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(', ')})`;
  const dict = `{'descr': '${descr}', 'fortran_order': False, 'shape': ${tuple}, }`;
  const fixed = 10 + dict.length + 1;
  const padding = (HEADER_ALIGNMENT - (fixed % HEADER_ALIGNMENT)) % HEADER_ALIGNMENT;
  const header = `${dict}${' '.repeat(padding)}\n`;
  const bytes = new Uint8Array(10 + header.length + data.byteLength);
  const view = new DataView(bytes.buffer);
  bytes.set([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0]);
  view.setUint16(8, header.length, true);
  bytes.set(Buffer.from(header, 'latin1'), 10);
  const start = 10 + header.length;
  data.forEach((value: number | bigint, i: number) => {
    if (typeof value === 'bigint') view.setBigInt64(start + i * 8, value, true);
    else view.setInt32(start + i * 4, value, true);
  });
  return bytes;
}
