/**
 * The script of the page: asks for the state, shows it in the panels, and says where there is none. A hidden page asks
 * nothing.
 */
import { followTheme } from '../../report/charts.browser.js';
import type { GatewaySnapshot } from '../types.js';
import { element, setText } from './elements.browser.js';
import { History } from './history.js';
import { PANELS, type Panel, type View } from './panels.browser.js';
import { Poller } from './poller.js';
import { readSnapshot, STATE_URL } from './snapshot.js';
import { changes, headLine, notices } from './words.js';

const history = new History();
let last: GatewaySnapshot | undefined;
let lastAnswerAt: Date | undefined;
/** Of the panels, which are built at the first answer. */
let updates: ((view: View) => void)[] | undefined;

function byId(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no element ${id}`);
  return found;
}

/** What is amiss, in the place for it; as long as it stands unchanged it is told once. */
function setNotices(place: 'outage' | 'notices', notices: readonly string[]): void {
  const shown = [...byId(place).children].map(({ textContent }) => textContent);
  if (shown.length === notices.length && shown.every((text, n) => text === notices[n])) return;
  byId(place).replaceChildren(...notices.map((text) => element('p', { class: 'notice' }, text)));
}

async function ask(signal: AbortSignal): Promise<void> {
  const response = await fetch(STATE_URL, { signal, cache: 'no-store' }).catch((error: unknown) => {
    signal.throwIfAborted();
    throw new Error('the gateway cannot be reached', { cause: error });
  });
  if (!response.ok) throw new Error(`the gateway answered with status ${response.status}`);
  const text = await response.text();
  show(readSnapshot(parse(text)));
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error('the answer is not JSON', { cause: error });
  }
}

function show(snapshot: GatewaySnapshot): void {
  if (last !== undefined) tell(changes(last, snapshot));
  last = snapshot;
  lastAnswerAt = new Date();
  history.add(snapshot);
  setText(byId('head-line'), headLine(snapshot));
  setNotices('outage', []);
  setNotices('notices', notices(snapshot));
  document.title = 'Gateway';
  byId('panels').hidden = false;
  updates ??= PANELS.map(mount);
  for (const update of updates) update({ snapshot, history });
}

function mount({ id, title, build, isShown }: Panel): (view: View) => void {
  const body = element('div');
  const heading = element('h2', { id: `${id}-title` }, title);
  const section = element('section', { id, 'aria-labelledby': heading.id }, heading, body);
  byId('panels').append(section);
  const update = build(body);
  if (isShown === undefined) return update;
  return (view) => {
    section.hidden = !isShown(view.snapshot);
    if (!section.hidden) update(view);
  };
}

/** For screen readers; what is seen is seen in the tables. */
function tell(sentences: readonly string[]): void {
  if (sentences.length === 0) return;
  byId('changes').replaceChildren(...sentences.map((sentence) => element('p', {}, `${sentence}.`)));
}

function showFailure(reason: string): void {
  const since =
    lastAnswerAt === undefined
      ? 'No answer yet'
      : `No answer since ${lastAnswerAt.toLocaleTimeString()}; the figures are of then`;
  setNotices('outage', [`${since}. What went wrong: ${reason}.`]);
  document.title = 'No answer – Gateway';
}

followTheme(byId('theme'));
const poller = new Poller({ ask, onFailure: showFailure });
const follow = () => (document.hidden ? poller.stop() : poller.start());
document.addEventListener('visibilitychange', follow);
addEventListener('online', () => poller.hurry());
follow();
