/** What the dashboard's style sheet has beyond the report's. */
import { STYLE } from '../../report/style.js';

export const DASHBOARD_STYLE = `${STYLE}
main { max-width: 1440px; }
[hidden] { display: none !important; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
#outage { position: sticky; top: 0; z-index: 5; }
.notice { margin: 8px 0; padding: 10px 14px; max-width: none; background: var(--surface); border: 1px solid var(--grid); border-left: 4px solid var(--worse); border-radius: 6px; overflow-wrap: anywhere; }
.alert { color: var(--worse); }
h2 { margin-top: 28px; }
.tiles { margin: 16px 0 0; }
.panel + .panel { margin-top: 12px; }
.scroll { position: relative; overflow: auto; max-height: min(520px, 80vh); }
.scroll:focus-visible { outline: 2px solid var(--after); outline-offset: 2px; }
.panel > .scroll { margin: -14px -16px; border-radius: 8px; }
.charts.thirds { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.legend { margin: 2px 0 6px; }
.legend i { height: 10px; width: 10px; }
.legend i.line { height: 3px; width: 18px; }
/* Borders that cells share would stay behind where a cell sticks. */
.data { width: 100%; border-collapse: separate; border-spacing: 0; }
.data thead th { padding-top: 8px; padding-bottom: 6px; position: sticky; top: 0; z-index: 1; background: var(--surface); }
.data tbody th { position: sticky; left: 0; background: var(--surface); color: var(--ink); font-weight: 400; }
.data thead th:first-child { left: 0; z-index: 2; }
.data th:first-child, .data .text { text-align: left; }
.data th:first-child { padding-left: 16px; min-width: 22ch; max-width: 48ch; white-space: normal; overflow-wrap: anywhere; }
.data .text:last-child { min-width: 30ch; white-space: normal; overflow-wrap: anywhere; }
.data tr > :last-child { padding-right: 16px; }
.data tbody tr:last-child > * { border-bottom: 0; }
.heat { display: block; width: 100%; image-rendering: pixelated; }
.heat:focus-visible { outline: 2px solid var(--after); outline-offset: -2px; }
.heat-scale { display: inline-block; width: 120px; height: 10px; border-radius: 2px; vertical-align: middle; }
#placement figure { margin-top: 12px; } #preview { margin: 12px 0; max-width: none; } #plans .panel + .panel { margin-top: 0; } #plans .scroll { margin: 6px -16px -14px; }
#placement .tile .value { font-size: 20px; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  header { gap: 8px; } header button { white-space: nowrap; } #panels h2 { margin-top: 20px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px; } .tile { padding: 10px 12px; } .tile .value { font-size: 21px; }
  .data th:first-child { min-width: 18ch; max-width: 18ch; padding-left: 12px; }
}
`;
