/** Plain text tables: the first column to the left, figures to the right, two spaces between. */

export function table(
  rows: readonly (readonly string[])[],
  options: { indent?: string; left?: number[] } = {},
): string {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries()) widths[column] = Math.max(widths[column] ?? 0, width(cell));
  }
  const left = new Set(options.left ?? [0]);
  return rows
    .map((row) => {
      const cells = row.map((cell, column) => {
        const padding = ' '.repeat(widths[column]! - width(cell));
        return left.has(column) ? cell + padding : padding + cell;
      });
      return `${options.indent ?? ''}${cells.join('  ')}`.trimEnd();
    })
    .map((line) => `${line}\n`)
    .join('');
}

/** Columns a terminal gives the text: all that we print is of width one, but letters outside the BMP are two code units. */
function width(text: string): number {
  return [...text].length;
}
