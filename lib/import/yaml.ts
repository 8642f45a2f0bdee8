/**
 * YAML for one small configuration file. The parser is a library; because its time and stack grow with nesting, the text is
 * first held to the few constructs that such a file has, and anything deep or exotic is refused before it is parsed.
 */
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  type Node,
  parseDocument,
  visit,
  type YAMLMap,
} from 'yaml';
import { formatError, MAX_YAML_BYTES, quote } from './limits.js';
import { decodeText } from './text.js';

const MAX_FLOW_DEPTH = 4;
const MAX_INDICATORS_PER_LINE = 4;

/** Keys as text, values as nodes, of a YAML mapping file. */
export class YamlFile {
  private readonly document: Document;
  private readonly anchors = new Map<string, Node>();

  constructor(
    bytes: Uint8Array,
    private readonly file: string,
  ) {
    const text = decodeText(bytes, file, MAX_YAML_BYTES);
    requireTame(text, file);
    // prettyErrors and uniqueKeys each cost time in the square of a hostile file's length.
    this.document = parseDocument(text, { prettyErrors: false, uniqueKeys: false, schema: 'core' });
    const [error] = this.document.errors;
    if (error !== undefined)
      throw formatError(file, `YAML, byte ${error.pos[0]}`, 'valid YAML', quote(error.message, 120));
    visit(this.document, {
      Node: (_, node) => {
        if ('anchor' in node && typeof node.anchor === 'string') this.anchors.set(node.anchor, node as Node);
      },
    });
  }

  root(): Map<string, Node> {
    return this.entries(this.document.contents, 'YAML');
  }

  /** A mapping's entries; a key given twice is an error. */
  entries(node: unknown, where: string): Map<string, Node> {
    const map = this.resolve(node);
    if (!isMap(map)) throw formatError(this.file, where, 'a mapping', kindOf(map));
    const entries = new Map<string, Node>();
    for (const { key, value } of (map as YAMLMap).items) {
      const resolved = this.resolve(key);
      if (!isScalar(resolved)) throw formatError(this.file, where, 'plain keys', kindOf(resolved));
      const name = String(resolved.value);
      if (entries.has(name)) throw formatError(this.file, where, 'each key once', `${quote(name)} twice`);
      entries.set(name, value as Node);
    }
    return entries;
  }

  /** The items of a sequence, as plain values. */
  items(node: unknown, where: string): unknown[] {
    const list = this.resolve(node);
    if (!isSeq(list)) throw formatError(this.file, where, 'a list', kindOf(list));
    return list.items.map((item) => this.scalar(item));
  }

  /** The value of a scalar; undefined for anything else. */
  scalar(node: unknown): unknown {
    const resolved = this.resolve(node);
    return isScalar(resolved) ? resolved.value : undefined;
  }

  /** Follows an alias once: PyYAML writes one where a list occurs twice. */
  private resolve(node: unknown): unknown {
    return isAlias(node) ? this.anchors.get(node.source) : node;
  }
}

function kindOf(node: unknown): string {
  if (isMap(node)) return 'a mapping';
  if (isSeq(node)) return 'a list';
  if (isScalar(node)) return quote(String(node.value));
  return 'nothing';
}

/** What no line of such a file has. Each of these makes the parser collect an error per character, or recurse. */
const EXOTIC: [RegExp, string][] = [
  [/[!|>%@`?\\\0]/, 'a tag, directive, block scalar or escape'],
  [/(^|[,[{])\s*,/, 'an empty item'],
  [/[\]}]\s*[^\s,\]}:]/, 'something after a closing bracket'],
  [/[&*](?!\w)/, 'an anchor or alias without a name'],
  [/['"\w]\s+[*&[{'"\w]/, 'two values without a separator'],
  [/^\s*:|:\s*:|:\s+[^\s,[\]{}]+\s*:(\s|$)/, 'a key inside a value'],
  [/[[{,]\s*-\s/, 'a block item inside brackets'],
  [/^\s{33}/, 'more than 32 spaces of indentation'],
];

/** Throws for constructs and nesting beyond what any such file has. */
function requireTame(text: string, file: string): void {
  let depth = 0;
  text.split(/\r\n|\r|\n/).forEach((full, number) => {
    const line = full.replace(/(^|\s)#.*$/, '');
    const refuse = (received: string) =>
      formatError(file, `line ${number + 1}`, 'a plain mapping of numbers', received);
    // An anchor stands before its value; without it the rules below need no exception.
    const bare = line.replace(/&\w+(\s+|$)/g, '');
    const exotic = EXOTIC.find(([pattern]) => pattern.test(bare));
    if (exotic !== undefined) throw refuse(exotic[1]);
    let indicators = 0;
    for (let at = 0; at < line.length; at++) {
      const character = line[at]!;
      if (character === '[' || character === '{') depth++;
      else if (character === ']' || character === '}') depth--;
      else if (depth === 0 && (character === ':' || character === '-') && !/\S/.test(line[at + 1] ?? ' '))
        indicators++;
      if (depth > MAX_FLOW_DEPTH || depth < 0) throw refuse('brackets that nest too deeply or do not match');
    }
    if (indicators > MAX_INDICATORS_PER_LINE) throw refuse('too many levels on one line');
  });
  if (depth !== 0)
    throw formatError(file, 'YAML', 'brackets that close', `${depth} left open: the file is truncated`);
}
