// The problems of an evaluation, in the browser of browser.js.

const isUndecided = (row) => !row.correct && (row.reason ?? '').startsWith('undecided');

browse({
  noun: ['problem', 'problems'],
  // _VERDICTS in evals/report/page.py has the same keys.
  choices: { __proto__: null,
    all: () => true,
    right: (row) => row.correct,
    wrong: (row) => !row.correct,
    unextractable: (row) => row.extracted === null,
    undecided: isUndecided,  // not on a page without undecided answers
    truncated: (row) => row.truncated === true,
  },
  label: (set) => `${set.run} · ${set.benchmark}`,
  text: (row) => `${row.id}\n${row.question}\n${row.response}\n${row.extracted}\n${row.gold}`,

  heading(row) {
    const [kind, sign] = row.correct ? ['right', '✓ right'] : row.extracted === null ? ['none', '∅ no answer']
      : isUndecided(row) ? ['none', '? undecided'] : ['wrong', '✗ wrong'];
    const verdict = make('span', { class: `verdict ${kind}` }, sign);
    if (row.truncated) verdict.append(' ', make('span', { class: 'cut' }, '· cut off'));
    const asked = row.question ?? row.response;
    return [verdict, make('span', { class: 'id' }, ...breakable(row.id)), make('span', { class: 'question' }, ...rendered(asked.slice(0, 400).replace(/\s+/g, ' '), true))];
  },

  detail(row, add) {
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
    add('Verdict', make('span', { class: row.correct ? 'right' : 'wrong' }, row.correct ? 'right' : isUndecided(row) ? 'undecided, counts as wrong' : 'wrong'), `: ${row.reason ?? 'no reason given'}`);
    const facts = [];
    if (row.tokens !== null) facts.push(`${row.tokens} tokens`);
    if (row.truncated) facts.push('cut off at the limit of new tokens');
    if (row.groups.length) facts.push(row.groups.join(', '));
    if (facts.length) add('Facts', facts.join(' · '));
  },
});
