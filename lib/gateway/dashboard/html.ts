/**
 * The gateway's live page: one document without a figure in it. Its script, bundled at build time, asks `dashboard/state` for
 * them, relative to the page, and builds the panels. The content policy lets through that script, that style sheet and
 * questions to where the page came from; it belongs in a header, since a page cannot forbid by itself to be framed.
 */
import { bundledScript, inlineSource } from '../../report/bundle.js';
import { STATE_URL } from './snapshot.js';
import { DASHBOARD_STYLE } from './style.js';

interface Page {
  html: string;
  policy: string;
}

let made: Page | undefined;

/**
 * The whole document, the same for every gateway.
 *
 * @throws GimbalError GIMBAL_INTERNAL where the bundled script is missing
 */
export function dashboardHtml(): string {
  return page().html;
}

/** The document's `content-security-policy`. */
export function dashboardPolicy(): string {
  return page().policy;
}

function page(): Page {
  made ??= make(bundledScript('gateway/dashboard/dashboard.bundle.js'));
  return made;
}

function make(script: string): Page {
  const policy = [
    "default-src 'none'",
    `script-src ${inlineSource(script)}`,
    `style-src ${inlineSource(DASHBOARD_STYLE)}`,
    "connect-src 'self'",
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join('; ');
  const html = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Gateway</title>
<style>${DASHBOARD_STYLE}</style>
</head>
<body>
<main>
<header>
<div>
<h1>Gateway</h1>
<p class="muted" id="head-line">No answer yet.</p>
</div>
<button id="theme" type="button">Light / dark</button>
</header>
<noscript><p>This page needs JavaScript. <a href="${STATE_URL}">Its figures as JSON</a> do not.</p></noscript>
<div id="outage" role="status" aria-live="polite"></div>
<div id="notices" role="status" aria-live="polite"></div>
<div id="changes" class="unseen" role="log" aria-live="polite"></div>
<div id="panels" hidden></div>
</main>
<script>${script}</script>
</body>
</html>
`;
  return { html, policy };
}
