/**
 * The frame of a page that opens offline: one style sheet, one script, the script's data as JSON, and a content policy that forbids
 * every request and every script but that one.
 */
import { inlineSource } from './bundle.js';
import { escapeHtml, escapeJson } from './escape.js';

export interface Page {
  title: string;
  version: string;
  style: string;
  script: string;
  /** What the script finds as JSON in `#report-data`. */
  data: unknown;
  /** Of HTML, with everything from outside escaped. */
  main: string;
}

export function htmlPage({ title, version, style, script, data, main }: Page): string {
  const policy = `default-src 'none'; script-src ${inlineSource(script)}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="gimbal-moe ${escapeHtml(version)}">
<link rel="icon" href="data:,">
<title>${escapeHtml(title)}</title>
<style>${style}</style>
</head>
<body>
<main>
${main}
</main>
<script type="application/json" id="report-data">${escapeJson(data)}</script>
<script>${script}</script>
</body>
</html>
`;
}
