// The browser of problems. It follows report_math.js in one script.

const PAGE = 25;  // problems

// What each choice of the page shows; _VERDICTS in page.py has the same keys.
const VERDICTS = { __proto__: null,
  all: () => true,
  right: (row) => row.correct,
  wrong: (row) => !row.correct,
  unextractable: (row) => row.extracted === null,
  truncated: (row) => row.truncated === true,
};

// A name that may break after these characters, so that a long path need not break inside a word; as in bars.py.
const breakable = (text) => text.split(/(?<=[/_])(?=\w)|(?<=\.)(?=[A-Za-z])/).flatMap((part, i) => (i ? [make('wbr'), part] : [part]));

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text());
}

async function start() {
  const place = document.getElementById('browser'), status = document.getElementById('status');
  if (!place) return;
  const started = performance.now();
  if (typeof DecompressionStream === 'undefined') {
    status.textContent = 'This browser is too old to show the problems; use one from 2023 or later.';
    return;
  }
  const packed = document.getElementById('records');
  const sets = await unpack(packed.textContent);
  packed.remove();
  for (const set of sets) set.rows = set.rows.map((row) => Object.fromEntries(set.fields.map((field, i) => [field, row[i]])));

  const get = (id) => document.getElementById(id);
  const state = { set: 0, show: 'all', group: '', q: '', page: 0, id: '' };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (Object.hasOwn(state, name)) state[name] = name === 'set' || name === 'page' ? Number(value) || 0 : value;
  if (!(state.show in VERDICTS)) state.show = 'all';
  let found = [];

  sets.forEach((set, i) => get('set').append(make('option', { value: i }, `${set.run} · ${set.benchmark} (${set.rows.length})`)));

  function choose(number) {
    state.set = Math.min(Math.max(0, number), sets.length - 1);
    const { rows } = sets[state.set];
    get('set').value = state.set;
    const groups = [...new Set(rows.flatMap((row) => row.groups))].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
    get('group').replaceChildren(make('option', { value: '' }, 'all groups'), ...groups.map((name) => make('option', { value: name }, name)));
    get('group').parentElement.hidden = groups.length === 0;
    if (!groups.includes(state.group)) state.group = '';
    get('group').value = state.group;
  }

  function filter(keepPage) {
    const words = state.q.toLowerCase();
    const test = VERDICTS[state.show];
    const rows = sets[state.set].rows.filter((row) => (!state.group || row.groups.includes(state.group))
      && (!words || `${row.id}\n${row.question}\n${row.response}\n${row.extracted}\n${row.gold}`.toLowerCase().includes(words)));
    for (const [name, has] of Object.entries(VERDICTS)) get(`count-${name}`).textContent = rows.filter(has).length;
    found = rows.filter(test);
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    state.page = keepPage ? Math.min(Math.max(0, state.page), last) : 0;
    const opened = keepPage && state.id ? found.findIndex((row) => row.id === state.id) : -1;
    if (opened >= 0) state.page = Math.floor(opened / PAGE);
    show();
  }

  function show() {
    const first = state.page * PAGE, rows = found.slice(first, first + PAGE), pages = Math.max(1, Math.ceil(found.length / PAGE));
    get('items').replaceChildren(...rows.map(item));
    status.textContent = found.length
      ? `Problems ${first + 1} to ${first + rows.length} of ${found.length}` : 'No problem matches.';
    get('page').textContent = `page ${state.page + 1} of ${pages}`;
    get('back').disabled = state.page === 0;
    get('next').disabled = state.page >= pages - 1;
    remember();
  }

  function remember() {
    const kept = Object.entries(state).filter(([name, value]) => value && !(name === 'show' && value === 'all'));
    history.replaceState(null, '', kept.length ? `#${new URLSearchParams(kept)}` : '#problems');
  }

  function item(row, index) {
    const [kind, sign] = row.correct ? ['right', '✓ right'] : row.extracted === null ? ['none', '∅ no answer'] : ['wrong', '✗ wrong'];
    const verdict = make('span', { class: `verdict ${kind}` }, sign);
    if (row.truncated) verdict.append(' ', make('span', { class: 'cut' }, '· cut off'));
    const asked = row.question ?? row.response;
    const button = make('button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': `detail-${index}` },
      verdict, make('span', { class: 'id' }, ...breakable(row.id)), make('span', { class: 'question' }, ...rendered(asked.slice(0, 400).replace(/\s+/g, ' '), true)));
    const li = make('li', {}, button);
    button.addEventListener('click', () => toggle(li, button, row, index));
    if (state.id === row.id) toggle(li, button, row, index);
    return li;
  }

  function toggle(li, button, row, index) {
    const open = button.getAttribute('aria-expanded') === 'true';
    button.setAttribute('aria-expanded', String(!open));
    if (open) li.lastChild.remove();
    else li.append(detail(row, index));
    state.id = open ? '' : row.id;
    remember();
  }

  function detail(row, index) {
    const list = make('dl', { class: 'detail', id: `detail-${index}` });
    const add = (name, ...values) => list.append(make('dt', {}, name), make('dd', {}, ...values));
    if (row.question !== null) add('Question', make('div', { class: 'said' }, ...rendered(row.question)));
    const said = make('div', { class: 'said', 'data-kind': 'answer' }, ...rendered(row.response));
    const source = make('button', { type: 'button', class: 'small', 'aria-pressed': 'false' }, 'source');
    source.addEventListener('click', () => {
      const on = said.classList.toggle('source');
      source.setAttribute('aria-pressed', String(on));
      said.replaceChildren(...(on ? [row.response] : rendered(row.response)));
    });
    add('Answer', said, source);
    add('Extracted', ...(row.extracted === null ? ['nothing'] : short(row.extracted)));
    add('Gold', ...short(row.gold));
    add('Verdict', make('span', { class: row.correct ? 'right' : 'wrong' }, row.correct ? 'right' : 'wrong'), `: ${row.reason ?? 'no reason given'}`);
    const facts = [];
    if (row.tokens !== null) facts.push(`${row.tokens} tokens`);
    if (row.truncated) facts.push('cut off at the limit of new tokens');
    if (row.groups.length) facts.push(row.groups.join(', '));
    if (facts.length) add('Facts', facts.join(' · '));
    return list;
  }

  function turn(by, focus) {
    state.page += by;
    state.id = '';
    show();
    const buttons = get('items').querySelectorAll('li > button');
    if (focus && buttons.length) buttons[focus === 'last' ? buttons.length - 1 : 0].focus();
  }

  const changed = () => { state.id = ''; filter(false); };
  get('set').addEventListener('change', (event) => { choose(Number(event.target.value)); changed(); });
  get('group').addEventListener('change', (event) => { state.group = event.target.value; changed(); });
  for (const radio of document.querySelectorAll('input[name=show]')) {
    radio.checked = radio.value === state.show;
    radio.addEventListener('change', () => { state.show = radio.value; changed(); });
  }
  let timer;
  get('find').value = state.q;
  get('find').addEventListener('input', (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => { state.q = event.target.value.trim(); changed(); }, 150);
  });
  get('back').addEventListener('click', () => turn(-1));
  get('next').addEventListener('click', () => turn(1));
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === '/' && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
      event.preventDefault();
      get('find').focus();
    }
    if (!event.target.matches('#items li > button')) return;
    const buttons = [...get('items').querySelectorAll('li > button')], at = buttons.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to < 0 && !get('back').disabled) turn(-1, 'last');
    else if (to >= buttons.length && !get('next').disabled) turn(1, 'first');
    else if (buttons[to]) buttons[to].focus();
  });

  const linked = location.hash.includes('=');
  choose(state.set);
  place.hidden = false;
  filter(true);
  if (linked) document.getElementById('problems').scrollIntoView();
  document.documentElement.dataset.ready = Math.round(performance.now() - started);  // milliseconds, for measuring
}

start();
