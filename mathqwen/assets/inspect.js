// The rows of a config's data, in the browser of browser.js.

// A text in runs; those with loss stand on colour. Or the same token by token.
function masked({ runs, pieces, loss }) {
  const said = make('div', { class: 'said' });
  const show = (byToken) => said.replaceChildren(...(byToken
    ? pieces.map((piece, i) => make('span', { class: loss[i] === '1' ? 'token loss' : 'token' }, piece.replaceAll('\n', '↵\n')))
    : runs.map(([text, marked]) => (marked ? make('mark', { class: 'loss' }, text) : text))));
  const button = make('button', { type: 'button', class: 'small', 'aria-pressed': 'false' }, 'tokens');
  button.addEventListener('click', () => {
    const byToken = button.getAttribute('aria-pressed') === 'false';
    button.setAttribute('aria-pressed', String(byToken));
    show(byToken);
  });
  show(false);
  return [said, button];
}

const all = (row) => [row.more.question, row.more.of_question, ...(row.more.shown ?? []).map((hit) => hit.question)].filter(Boolean).join('\n');
const text = (value) => make('div', { class: 'said' }, value);

// How each kind of row is shown when it is opened; _KINDS in data/inspect_page.py has the same keys, and 'all'.
const KINDS = {
  example(row, add) {
    add('Example', ...masked(row.more));
    add('Facts', row.more.facts);
  },
  packed(row, add) {
    const { segments, positions } = row.more;
    const bar = make('div', { class: 'packed', role: 'img', 'aria-label': row.heading });
    for (const segment of segments) bar.append(make('i', { style: `width:${(100 * segment.positions) / positions}%`, title: segment.name }));
    add('Packing', bar);
    for (const segment of segments) add(`${segment.name}, ${segment.positions} positions`, ...masked(segment));
  },
  left_out(row, add) {
    add('Where', row.more.where);
    add('Why', row.heading);
  },
  duplicate(row, add) {
    KINDS.left_out(row, add);
    if (row.more.question) add('Left out', text(row.more.question));
    if (row.more.of_question) add(`Kept: ${row.more.of}`, text(row.more.of_question));
  },
  test(row, add) {
    add('Test problem', text(row.more.question));
    add('Overlap', `${row.more.kind}, ${row.more.rows} rows`);
    for (const hit of row.more.shown) add(`${hit.where}, ${Math.round(100 * hit.share)}%`, text(hit.question));
  },
};

browse({
  noun: ['row', 'rows'],
  choices: { __proto__: null, all: () => true, ...Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, (row) => row.kind === kind])) },
  label: (set) => set.name,
  text: (row) => `${row.id}\n${row.heading}\n${all(row)}`,
  heading: (row) => [
    make('span', { class: 'verdict' }, row.kind.replace('_', ' ')), make('span', { class: 'id' }, ...breakable(row.id)),
    make('span', { class: 'question' }, row.heading.slice(0, 400).replace(/\s+/g, ' ')),
  ],
  detail: (row, add) => KINDS[row.kind](row, add),
});
