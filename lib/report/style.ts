/** The style sheet of the HTML report, and the base of the dashboard's. Colours are variables, which the charts read too; dark follows the system or the button. */

const LIGHT = `
  color-scheme: light; --page: #f6f7f8; --surface: #ffffff; --ink: #1b1e23; --muted: #5d646d; --grid: #e3e5e8;
  --band: rgba(27, 30, 35, 0.045); --before: #8b929b; --after: #2563c9; --bound: #0b7a53; --moves: #b8620b; --fourth: #7a3fc4;
  --better: #0b7a53; --worse: #b3261e; --heat-low: #dbe8fb; --heat-high: #0d3478;`;

const DARK = `
  color-scheme: dark; --page: #121418; --surface: #1b1e24; --ink: #e9ebee; --muted: #a0a7b0; --grid: #33383f;
  --band: rgba(233, 235, 238, 0.05); --before: #7d858f; --after: #74aaff; --bound: #4fc38d; --moves: #f0a660; --fourth: #c3a1ff;
  --better: #4fc38d; --worse: #ff8a80; --heat-low: #2c456b; --heat-high: #b4d4ff;`;

export const STYLE = `
:root { ${LIGHT} }
@media (prefers-color-scheme: dark) { :root { ${DARK} } }
:root[data-theme="light"] { ${LIGHT} }
:root[data-theme="dark"] { ${DARK} }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 24px 20px 48px; }
header { display: flex; gap: 16px; align-items: flex-start; justify-content: space-between; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 12px; }
h3 { font-size: 14px; margin: 0; }
p { margin: 0 0 8px; max-width: 75ch; }
.muted, figcaption { color: var(--muted); }
.small { font-size: 13px; }
button, select { font: inherit; color: var(--ink); background: var(--surface); border: 1px solid var(--grid); border-radius: 6px; padding: 4px 10px; }
button:focus-visible, select:focus-visible, input:focus-visible { outline: 2px solid var(--after); outline-offset: 2px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(158px, 1fr)); gap: 12px; margin: 20px 0; }
.tile, figure, .panel { background: var(--surface); border: 1px solid var(--grid); border-radius: 8px; padding: 14px 16px; margin: 0; min-width: 0; }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 26px; line-height: 1.3; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile .was { color: var(--muted); font-size: 13px; }
.better { color: var(--better); } .worse { color: var(--worse); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 12px; }
figcaption { font-size: 13px; margin: 2px 0 6px; }
.chart { height: 230px; width: 100%; }
.heat-scroll { overflow-x: auto; }
#heat { min-width: 720px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 12px; padding: 0; list-style: none; font-size: 13px; color: var(--muted); }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: 6px; vertical-align: middle; border-radius: 2px; }
.controls { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin: 8px 0 10px; font-size: 14px; }
.controls fieldset { border: 0; padding: 0; margin: 0; display: flex; gap: 12px; }
.controls legend { float: left; padding: 0; margin-right: 12px; }
.table-scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { font-weight: 600; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; margin: 0; font-size: 14px; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: 13px/1.5 ui-monospace, "SF Mono", Consolas, monospace; }
summary { cursor: pointer; }
ul.notes { margin: 0; padding-left: 20px; font-size: 14px; }
@media (max-width: 600px) { main { padding: 16px 12px 32px; } h1 { font-size: 20px; } dl { grid-template-columns: 1fr; } dt { margin-top: 6px; } }
@media print { button, .controls { display: none; } body { background: #fff; } figure, .tile { break-inside: avoid; } }
`;
