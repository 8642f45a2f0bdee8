/**
 * Routing counts from any supported file: finds out the format from the content, hands the bytes to its reader, and returns
 * one table [layers][sources][experts] with the model's layer numbers where the format knows them.
 */
import { readdir, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { mismatch } from '../errors.js';
import { ioError, readFileBounded } from '../files.js';
import { breathe } from './array.js';
import { formatError, MAX_FILE_BYTES, MAX_FILES } from './limits.js';
import { isNpy } from './npy.js';
import { readCsvCounts, readJsonCounts, readNpyCounts } from './plain.js';
import { type PhysicalMap, readSglang } from './sglang.js';
import { finishTokens, joinSources, type Table } from './table.js';
import { META_FILE, readTensorrtLlm } from './tensorrt-llm.js';
import { startsLikeJson } from './text.js';
import { isBarePickle, isTorchZip } from './torch.js';
import { isZip, Zip } from './zip.js';

export type CountsFormat = 'npy' | 'sglang' | 'tensorrt-llm' | 'json' | 'csv';

/** What each format is, for help texts. */
export const countsFormats: Record<CountsFormat, string> = {
  npy: 'NumPy array [layers, experts] or [layers, sources, experts]',
  sglang: 'SGLang expert-distribution recorder, .pt: one of mode stat, or the set of per-rank files',
  'tensorrt-llm': `TensorRT-LLM expert statistics: a folder with ${META_FILE} and rank*.safetensors`,
  json: '{"tokens": [layers][experts] or [layers][sources][experts], "layerIds": [...]}',
  csv: 'table with the header layer,source,expert,tokens',
};

export interface RoutingCounts {
  layers: number;
  sources: number;
  experts: number;
  /** `[layers][sources][experts]` */
  tokens: Uint32Array;
  /** `[layers]`, the model layer of each row, where the format knows it. */
  layerIds?: Int32Array;
  /** Layers of the whole model, those without routed experts included, where the format knows it. */
  modelLayers?: number;
  format: CountsFormat;
  /** What a careful reader should know: what was summed, rounded, left out or taken for a source. */
  notes: string[];
}

export interface ReadCountsOptions {
  /** Default: found out from the content. */
  format?: CountsFormat;
  /** The promise then rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Bytes of one file; larger ones are refused. Default 1 GiB; text is never read beyond 64 MiB. */
  maxBytes?: number;
  /** Translates the physical counts of SGLang's per-rank files in place of the placement inside them. */
  physicalToLogical?: PhysicalMap;
}

/**
 * Reads one file, one folder, or a set of per-rank files. Throws GimbalError: GIMBAL_IO where a file cannot be read,
 * GIMBAL_FORMAT where its content is at fault.
 */
export async function readCounts(
  paths: string | string[],
  options: ReadCountsOptions = {},
): Promise<RoutingCounts> {
  const list = typeof paths === 'string' ? [paths] : paths;
  if (list.length === 0 || list.length > MAX_FILES) {
    throw mismatch('GIMBAL_INVALID_INPUT', 'paths', `1 to ${MAX_FILES} files`, `${list.length}`);
  }
  return finish(await readTable(list, options));
}

function finish(table: Table): RoutingCounts {
  const counts: RoutingCounts = {
    layers: table.layers,
    sources: table.sources,
    experts: table.experts,
    tokens: finishTokens(table),
    format: table.format as CountsFormat,
    notes: table.notes,
  };
  if (table.layerIds !== undefined) counts.layerIds = Int32Array.from(table.layerIds);
  if (table.modelLayers !== undefined) counts.modelLayers = table.modelLayers;
  return counts;
}

async function readTable(paths: string[], options: ReadCountsOptions): Promise<Table> {
  const { signal } = options;
  const maxBytes = options.maxBytes ?? MAX_FILE_BYTES;
  const load = (path: string, limit = maxBytes) =>
    readFileBounded(path, { maxBytes: Math.min(limit, maxBytes), signal });
  const [first] = paths as [string];
  if (await isFolder(first)) {
    if (paths.length === 1) return readFolder(first, options, load, maxBytes);
    throw mismatch(
      'GIMBAL_FORMAT',
      first,
      'one folder, or files only',
      `${paths.length} paths, the first a folder`,
    );
  }
  const firstBytes = await load(first);
  const format = options.format ?? detect(firstBytes, first);
  if (format === 'tensorrt-llm') throw wantsFolder(first);
  const loadOnce = (path: string, limit?: number) =>
    path === first && limit === undefined ? Promise.resolve(firstBytes) : load(path, limit);
  if (format === 'sglang') return readSglang(paths, sglangOptions(options, loadOnce, maxBytes));
  const tables: Table[] = [];
  for (const path of paths) {
    await breathe(signal);
    tables.push(await readPlain(await loadOnce(path), path, format, signal));
  }
  return joinSources(tables);
}

function sglangOptions(
  options: ReadCountsOptions,
  load: (path: string) => Promise<Uint8Array>,
  maxBytes: number,
) {
  return { load, signal: options.signal, maxBytes, physicalToLogical: options.physicalToLogical };
}

function readPlain(
  bytes: Uint8Array,
  path: string,
  format: 'npy' | 'json' | 'csv',
  signal: AbortSignal | undefined,
): Promise<Table> | Table {
  switch (format) {
    case 'npy':
      return readNpyCounts(bytes, path, signal);
    case 'json':
      return readJsonCounts(bytes, path);
    case 'csv':
      return readCsvCounts(bytes, path);
  }
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch (error) {
    throw ioError(path, error);
  }
}

/** A statistics folder of TensorRT-LLM, or the folder that SGLang's recorder wrote its per-rank files to. */
async function readFolder(
  folder: string,
  options: ReadCountsOptions,
  load: (path: string, limit?: number) => Promise<Uint8Array>,
  maxBytes: number,
): Promise<Table> {
  const names = await readdir(folder).catch((error: unknown) => {
    throw ioError(folder, error);
  });
  const statistics = names.includes(META_FILE) || names.some((name) => name.endsWith('.safetensors'));
  const recordings = names.filter((name) => name.endsWith('.pt')).sort();
  const found = [
    statistics ? 'tensorrt-llm' : undefined,
    recordings.length > 0 ? 'sglang' : undefined,
  ].filter((format) => format !== undefined);
  const format = options.format ?? (found.length === 1 ? found[0] : undefined);
  if (format === 'tensorrt-llm') {
    if (!names.includes(META_FILE)) throw formatError(folder, '', `a file ${META_FILE}`, 'none');
    return readTensorrtLlm(folder, names, { load, signal: options.signal });
  }
  if (format === 'sglang' && recordings.length > 0 && recordings.length <= MAX_FILES) {
    const paths = recordings.map((name) => join(folder, name));
    return readSglang(paths, sglangOptions(options, load, maxBytes));
  }
  const expected = `a folder with ${META_FILE} and rank*.safetensors, or with .pt files of SGLang's recorder`;
  const received = found.length > 1 ? 'both: say which by naming the format' : `${names.length} other files`;
  throw formatError(folder, '', expected, received);
}

/** The format from the content, or the extension where the content does not tell. */
function detect(bytes: Uint8Array, path: string): CountsFormat {
  if (isNpy(bytes)) return 'npy';
  if (isZip(bytes)) return detectZip(bytes, path);
  if (isBarePickle(bytes)) {
    throw formatError(
      path,
      '',
      'a .pt file of PyTorch 1.6 or later',
      'a bare pickle, which is not read: it could hold code',
    );
  }
  if (isSafetensors(bytes)) throw wantsFolder(path);
  if (startsLikeJson(bytes)) return 'json';
  const firstLine = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 1024)).toString(
    'utf8',
  );
  if (/^\uFEFF?\s*"?(layer|source|expert|tokens)"?\s*,/i.test(firstLine)) return 'csv';
  return detectExtension(path, bytes);
}

function detectExtension(path: string, bytes: Uint8Array): CountsFormat {
  const byExtension: Record<string, CountsFormat> = {
    '.npy': 'npy',
    '.pt': 'sglang',
    '.json': 'json',
    '.csv': 'csv',
  };
  const format = byExtension[extname(path).toLowerCase()];
  if (format !== undefined) return format;
  const expected = `a .npy, .pt, JSON or CSV file of counts, or a folder of statistics (name the format to force one of: ${Object.keys(countsFormats).join(', ')})`;
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, 16)).toString('hex');
  throw formatError(
    path,
    '',
    expected,
    bytes.length === 0 ? 'an empty file' : `content that starts with 0x${head}`,
  );
}

function detectZip(bytes: Uint8Array, path: string): CountsFormat {
  const zip = new Zip(bytes, path, 0);
  if (isTorchZip(zip)) return 'sglang';
  const npz = zip.names().some((name) => name.endsWith('.npy'));
  const received = npz ? 'a .npz archive: save the one array as .npy' : 'a zip archive of something else';
  throw formatError(path, '', 'a .pt file as torch.save writes it', received);
}

function isSafetensors(bytes: Uint8Array): boolean {
  if (bytes.length < 9 || bytes[8] !== 0x7b) return false;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return view.getUint32(4, true) === 0 && view.getUint32(0, true) <= bytes.length - 8;
}

function wantsFolder(path: string) {
  const expected = `the statistics folder, with ${META_FILE} and rank*.safetensors`;
  return formatError(path, '', expected, 'a file');
}
