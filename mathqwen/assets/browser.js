// A list of rows to look through: choices, search, pages, keyboard, and an address that keeps what is shown. It stands
// between report_math.js and the script of a page, which calls `browse` with what is its own:
//
//   noun      ['problem', 'problems']
//   choices   {name: (row) => whether it is shown}; the page has radio buttons of these names
//   label     (set) => its entry in the list of sets
//   text      (row) => what a search looks at
//   heading   (row) => nodes of the button that opens a row
//   detail    (row, add) => add(name, ...nodes) for each line of an opened row
//
// A row has an `id`, of its set, and `groups`.

const PAGE = 25;  // rows

// A name that may break after these characters, so that a long path need not break inside a word; as in page.py.
const breakable = (text) => text.split(/(?<=[/_])(?=\w)|(?<=\.)(?=[A-Za-z])/).flatMap((part, i) => (i ? [make('wbr'), part] : [part]));

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text());
}

async function browse({ noun, choices, label, text, heading, detail }) {
  const place = document.getElementById('browser'), status = document.getElementById('status');
  if (!place) return;
  const started = performance.now();
  if (typeof DecompressionStream === 'undefined') {
    status.textContent = `This browser is too old to show the ${noun[1]}; use one from 2023 or later.`;
    return;
  }
  const packed = document.getElementById('records');
  const sets = await unpack(packed.textContent);
  packed.remove();
  for (const set of sets) set.rows = set.rows.map((row) => Object.fromEntries(set.fields.map((field, i) => [field, row[i]])));

  const get = (id) => document.getElementById(id);
  choices = Object.fromEntries(Object.entries(choices).filter(([name]) => get(`count-${name}`)));  // those of the page
  const state = { set: 0, show: Object.keys(choices)[0], group: '', q: '', page: 0, id: '' };
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (Object.hasOwn(state, name)) state[name] = name === 'set' || name === 'page' ? Number(value) || 0 : value;
  if (!Object.hasOwn(choices, state.show)) state.show = Object.keys(choices)[0];
  let found = [];
  const section = place.closest('section').id;

  sets.forEach((set, i) => get('set').append(make('option', { value: i }, `${label(set)} (${set.rows.length})`)));

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
    const test = choices[state.show];
    const rows = sets[state.set].rows.filter((row) => (!state.group || row.groups.includes(state.group))
      && (!words || text(row).toLowerCase().includes(words)));
    for (const [name, has] of Object.entries(choices)) get(`count-${name}`).textContent = rows.filter(has).length;
    found = rows.filter(test);
    const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
    state.page = keepPage ? Math.min(Math.max(0, state.page), last) : 0;
    const linked = keepPage && state.id ? found.findIndex((row) => row.id === state.id) : -1;
    if (linked >= 0) state.page = Math.floor(linked / PAGE);
    show();
  }

  function show() {
    const first = state.page * PAGE, rows = found.slice(first, first + PAGE), pages = Math.max(1, Math.ceil(found.length / PAGE));
    get('items').replaceChildren(...rows.map(item));
    status.textContent = found.length
      ? `${noun[1][0].toUpperCase()}${noun[1].slice(1)} ${first + 1} to ${first + rows.length} of ${found.length}` : `No ${noun[0]} matches.`;
    get('page').textContent = `page ${state.page + 1} of ${pages}`;
    get('back').disabled = state.page === 0;
    get('next').disabled = state.page >= pages - 1;
    remember();
  }

  function remember() {
    const kept = Object.entries(state).filter(([name, value]) => value && !(name === 'show' && value === Object.keys(choices)[0]));
    history.replaceState(null, '', kept.length ? `#${new URLSearchParams(kept)}` : `#${section}`);
  }

  function item(row, index) {
    const button = make('button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': `detail-${index}` }, ...heading(row));
    const li = make('li', {}, button);
    button.addEventListener('click', () => toggle(li, button, row, index));
    if (state.id === row.id) toggle(li, button, row, index);
    return li;
  }

  function toggle(li, button, row, index) {
    const open = button.getAttribute('aria-expanded') === 'true';
    button.setAttribute('aria-expanded', String(!open));
    if (open) li.lastChild.remove();
    else li.append(opened(row, index));
    state.id = open ? '' : row.id;
    remember();
  }

  function opened(row, index) {
    const list = make('dl', { class: 'detail', id: `detail-${index}` });
    detail(row, (name, ...values) => list.append(make('dt', {}, name), make('dd', {}, ...values)));
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
  if (linked) get(section).scrollIntoView();
  document.documentElement.dataset.ready = Math.round(performance.now() - started);  // milliseconds, for measuring
}
