/** Elements and tables. All text goes in as text, never as markup: names of servers and reasons are anybody's. */
import type { Colour } from '../../report/charts.browser.js';
import { type Column, UNKNOWN, type Words } from './words.js';

export function element<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  attributes: Readonly<Record<string, string>> = {},
  ...children: readonly (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Only where it differs, so that selections and screen readers are left in peace. */
export function setText(target: HTMLElement, text: string): void {
  if (target.textContent !== text) target.textContent = text;
}

export function setWords(target: HTMLElement, { text, alert }: Words): void {
  if (text !== undefined) setText(target, text);
  else if (target.firstElementChild === null) {
    const said = element('span', { class: 'unseen' }, 'not known yet');
    target.replaceChildren(element('span', { 'aria-hidden': 'true' }, UNKNOWN), said);
  }
  target.classList.toggle('alert', alert === true);
}

/** A part of the page that scrolls by itself, with the keyboard too. */
export function scroller(label: string, ...children: readonly Node[]): HTMLElement {
  return element('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': label }, ...children);
}

/** A table whose rows come, change and go; its first column names the row. */
export function table<Row, Key>(
  caption: string,
  name: Column<Row>,
  columns: readonly Column<Row>[],
  keyOf: (row: Row) => Key,
): { root: HTMLElement; update(rows: readonly Row[]): void } {
  const heads = [name, ...columns].map(({ head, isText }) =>
    element('th', { scope: 'col', ...textClass(isText) }, head),
  );
  const body = element('tbody');
  const root = element(
    'table',
    { class: 'data' },
    element('caption', { class: 'unseen' }, caption),
    element('thead', {}, element('tr', {}, ...heads)),
    body,
  );
  const shown = new Map<Key, HTMLTableRowElement>();
  const makeRow = () => {
    const cells = columns.map(({ isText }) => element('td', textClass(isText)));
    return element('tr', {}, element('th', { scope: 'row' }, element('bdi')), ...cells);
  };
  const update = (rows: readonly Row[]) => {
    const keys = new Set(rows.map(keyOf));
    for (const [key, row] of shown) {
      if (keys.has(key)) continue;
      row.remove();
      shown.delete(key);
    }
    rows.forEach((row, index) => {
      const key = keyOf(row);
      const line = shown.get(key) ?? makeRow();
      shown.set(key, line);
      if (body.rows[index] !== line) body.insertBefore(line, body.rows[index] ?? null);
      setWords(line.cells[0]!.firstElementChild as HTMLElement, name.cell(row));
      columns.forEach((column, n) => {
        setWords(line.cells[n + 1]!, column.cell(row));
      });
    });
  };
  return { root, update };
}

function textClass(isText: boolean | undefined): Record<string, string> {
  return isText === true ? { class: 'text' } : {};
}

/** What a chart's colours mean. */
export function legend(
  entries: readonly { readonly name: string; readonly colour: Colour }[],
  shape: 'box' | 'line',
): HTMLElement {
  const items = entries.map(({ name, colour }) => {
    const mark = element('i', { class: shape, 'aria-hidden': 'true' });
    mark.style.background = `var(--${colour})`;
    return element('li', {}, mark, name);
  });
  return element('ul', { class: 'legend' }, ...items);
}
