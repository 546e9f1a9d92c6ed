'use strict';
// The browser of problems. Text of records reaches the page as text nodes only.

const MATHML = 'http://www.w3.org/1998/Math/MathML';
const MAX_TEX = 4000, MAX_RENDERED = 30000, MAX_DEPTH = 50, PAGE = 25;

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function m(tag, ...children) {
  const element = document.createElementNS(MATHML, tag);
  element.append(...children);
  return element;
}

// --- LaTeX to MathML: what occurs in answers of MATH. Whatever is not known here is shown as its source. ---

const SYMBOLS = { __proto__: null,
  cdot: '⋅', times: '×', div: '÷', pm: '±', mp: '∓', ast: '∗', star: '⋆', circ: '∘', bullet: '∙', le: '≤', leq: '≤', ge: '≥',
  geq: '≥', leqslant: '≤', geqslant: '≥', ne: '≠', neq: '≠', approx: '≈', equiv: '≡', cong: '≅', sim: '∼', simeq: '≃', propto: '∝',
  ll: '≪', gg: '≫', in: '∈', notin: '∉', ni: '∋', subset: '⊂', subseteq: '⊆', supset: '⊃', supseteq: '⊇', cup: '∪', cap: '∩',
  setminus: '∖', emptyset: '∅', varnothing: '∅', land: '∧', wedge: '∧', lor: '∨', vee: '∨', neg: '¬', lnot: '¬', forall: '∀',
  exists: '∃', to: '→', rightarrow: '→', longrightarrow: '⟶', leftarrow: '←', leftrightarrow: '↔', Rightarrow: '⇒', implies: '⟹',
  Longrightarrow: '⟹', Leftarrow: '⇐', Leftrightarrow: '⇔', iff: '⟺', mapsto: '↦', therefore: '∴', because: '∵', angle: '∠',
  triangle: '△', perp: '⊥', parallel: '∥', mid: '∣', nmid: '∤', vert: '|', Vert: '‖', lvert: '|', rvert: '|', lVert: '‖', rVert: '‖',
  ldots: '…', dots: '…', cdots: '⋯', dotsb: '⋯', dotsc: '…', vdots: '⋮', ddots: '⋱', prime: '′', degree: '°', langle: '⟨', rangle: '⟩',
  lfloor: '⌊', rfloor: '⌋', lceil: '⌈', rceil: '⌉', lbrace: '{', rbrace: '}', lbrack: '[', rbrack: ']', backslash: '∖', oplus: '⊕',
  otimes: '⊗', square: '□', Box: '□', blacksquare: '■', checkmark: '✓', pounds: '£', dagger: '†', colon: ':', sum: '∑', prod: '∏',
  int: '∫', oint: '∮', clubsuit: '♣', spadesuit: '♠', heartsuit: '♡', diamondsuit: '♢', diamond: '⋄', Diamond: '◇', bigcirc: '◯',
  dotsm: '⋯', smile: '⌣', frown: '⌢', bigtriangleup: '△', bigcup: '⋃', bigcap: '⋂', partial: '∂', nabla: '∇',
};
const LETTERS = { __proto__: null,
  infty: '∞', ell: 'ℓ', Re: 'ℜ', Im: 'ℑ', hbar: 'ℏ', imath: 'ı', alpha: 'α', beta: 'β', gamma: 'γ', delta: 'δ', epsilon: 'ϵ',
  varepsilon: 'ε', zeta: 'ζ', eta: 'η', theta: 'θ', vartheta: 'ϑ', iota: 'ι', kappa: 'κ', lambda: 'λ', mu: 'μ', nu: 'ν', xi: 'ξ',
  pi: 'π', rho: 'ρ', sigma: 'σ', tau: 'τ', upsilon: 'υ', phi: 'ϕ', varphi: 'φ', chi: 'χ', psi: 'ψ', omega: 'ω', Gamma: 'Γ',
  Delta: 'Δ', Theta: 'Θ', Lambda: 'Λ', Xi: 'Ξ', Pi: 'Π', Sigma: 'Σ', Upsilon: 'Υ', Phi: 'Φ', Psi: 'Ψ', Omega: 'Ω',
};
const FUNCTIONS = new Set(
  'sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim max min sup inf gcd lcm det dim ker deg arg mod Pr'
    .split(' '));
const TEXT = new Set(['text', 'textbf', 'textit', 'textrm', 'textsf', 'texttt', 'textnormal', 'mbox', 'hbox', 'operatorname', 'emph']);
const STYLES = { __proto__: null, mathrm: '', mathbf: 'bold', bold: 'bold', boldsymbol: 'bold', mathit: '', mathcal: '', mathsf: '', mathtt: '', mathbb: 'double', mathfrak: '' };
const DOUBLE = { __proto__: null, R: 'ℝ', Z: 'ℤ', N: 'ℕ', Q: 'ℚ', C: 'ℂ', P: 'ℙ', F: '𝔽', H: 'ℍ' };
const ACCENTS = { __proto__: null, overline: '‾', bar: '‾', vec: '→', overrightarrow: '→', hat: '^', widehat: '^', tilde: '~', dot: '˙', ddot: '¨', overarc: '⌒' };
const SPACES = { __proto__: null, ',': '.17em', ':': '.22em', ';': '.28em', ' ': '.25em', '!': '0', '>': '.22em', quad: '1em', qquad: '2em', thinspace: '.17em' };
const SKIPPED = new Set(
  ['displaystyle', 'textstyle', 'scriptstyle', 'limits', 'nolimits', 'big', 'Big', 'bigg', 'Bigg', 'bigl', 'bigr', 'Bigl', 'Bigr',
    'biggl', 'biggr', 'nonumber', 'notag', 'hline', 'boldmath', 'allowbreak', 'noindent', 'middle', '/', 'centering']);
const FENCES = { __proto__: null, matrix: ['', ''], pmatrix: ['(', ')'], bmatrix: ['[', ']'], vmatrix: ['|', '|'], Bmatrix: ['{', '}'], smallmatrix: ['', ''],
  cases: ['{', ''], array: ['', ''], aligned: ['', ''], align: ['', ''], gather: ['', ''], gathered: ['', ''], equation: ['', ''], split: ['', ''],
  tabular: ['', ''] };

class Tex {
  constructor(source) {
    this.tokens = source.match(/\\[a-zA-Z]+|\\[^]|[^]/gu) || [];
    this.at = 0;
    this.depth = 0;
  }

  peek() { return this.tokens[this.at]; }

  blanks() { while (/^\s$/.test(this.peek() || '')) this.at++; }

  all() {
    const found = this.row();
    if (this.peek() !== undefined) throw new Error(`left over: ${this.peek()}`);
    return found;
  }

  row(...ends) {
    const row = m('mrow');
    for (;;) {
      this.blanks();
      const token = this.peek();
      if (token === undefined || ends.includes(token) || token === '}' || token === '&' || token === '\\\\' || token === '\\end' || token === '\\right') return row;
      if (token === '\\over' || token === '\\choose') {
        this.at++;
        const stack = m('mfrac', row, this.row(...ends));
        return token === '\\over' ? stack : this.chosen(stack);
      }
      const last = row.lastChild, base = this.atom();
      if (!base) continue;
      if (/^[+−±]$/.test(base.textContent) && (!last || (last.localName === 'mo' && !/^[)\]|!′°%]$/.test(last.textContent)))) {
        base.setAttribute('form', 'prefix');  // a sign, with no blank after it
      }
      row.append(this.scripts(base));
    }
  }

  scripts(base) {
    let up = null, down = null, primes = null;
    for (;;) {
      this.blanks();
      const token = this.peek();
      if (token === '\\limits' || token === '\\nolimits') this.at++;
      else if (token === '^' && !up) { this.at++; up = this.argument(); }
      else if (token === '_' && !down) { this.at++; down = this.argument(); }
      else if (token === "'") {
        this.at++;
        if (!primes) up = m('mrow', ...(up ? [up] : []), primes = m('mrow'));
        primes.append(m('mo', '′'));
      }
      else break;
    }
    const over = /^[∑∏⋃⋂]$|^(lim|max|min|sup|inf)$/.test(base.textContent);
    if (up && down) return m(over ? 'munderover' : 'msubsup', base, down, up);
    if (up) return m(over ? 'mover' : 'msup', base, up);
    return down ? m(over ? 'munder' : 'msub', base, down) : base;
  }

  argument() {
    this.blanks();
    if (/^\d$/.test(this.peek() || '')) return m('mn', this.tokens[this.at++]);  // \frac12
    return this.atom() || m('mrow');
  }

  group() {  // the text between braces, braces inside it included
    this.blanks();
    if (this.peek() !== '{') throw new Error('no {');
    let depth = 0, text = '';
    do {
      const token = this.tokens[this.at++];
      if (token === undefined) throw new Error('no }');
      if (token === '{' && depth++ === 0) continue;
      if (token === '}' && --depth === 0) break;
      text += token;
    } while (depth);
    return text;
  }

  chosen(stack) {
    stack.setAttribute('linethickness', '0');
    return m('mrow', m('mo', '('), stack, m('mo', ')'));
  }

  fence() {
    this.blanks();
    const token = this.tokens[this.at++];
    if (token === undefined) throw new Error('no fence');
    if (token === '.') return '';
    return token.length === 1 ? token : token === '\\{' ? '{' : token === '\\}' ? '}' : token === '\\|' ? '‖' : SYMBOLS[token.slice(1)] ?? '';
  }

  atom() {
    if (++this.depth > MAX_DEPTH) throw new Error('too deep');  // the layout of a browser may crash far below
    const found = this.one();
    this.depth--;
    return found;
  }

  one() {
    const token = this.tokens[this.at++];
    if (token === undefined) throw new Error('ends too early');
    if (token === '{') {
      const row = this.row();
      if (this.tokens[this.at++] !== '}') throw new Error('no }');
      return row;
    }
    if (/^\d$/.test(token)) {
      let number = token;
      for (;;) {
        const next = this.tokens.slice(this.at, this.at + 3).join('');
        if (/^\d/.test(next)) number += this.tokens[this.at++];
        else if (/^[.]\d/.test(next)) number += this.tokens[this.at++];
        else if (next === '{,}') { number += ','; this.at += 3; }
        else return m('mn', number);
      }
    }
    if (/^\p{L}$/u.test(token)) return /^[a-z]$/i.test(token) ? m('mi', token) : m('mtext', token);
    if (token === '~') return this.space('.3em');
    if (token === '-') return m('mo', '−');
    if (token[0] !== '\\') {
      if (/[&}^_\\$#%]/.test(token)) throw new Error(`unexpected ${token}`);
      const sign = m('mo', token);
      if (/[()[\]|]/.test(token)) sign.setAttribute('stretchy', 'false');  // only \left and \right grow
      return sign;
    }
    return this.command(token.slice(1));
  }

  space(width) {
    const space = m('mspace');
    space.setAttribute('width', width);
    return space;
  }

  command(name) {
    if (name in SPACES) return this.space(SPACES[name]);
    if (name in SYMBOLS) return m('mo', SYMBOLS[name]);
    if (name in LETTERS) return m('mi', LETTERS[name]);
    if (FUNCTIONS.has(name)) return m('mi', name);
    if (TEXT.has(name)) {
      const text = this.group().replace(/\\([%$#&_{} ])/g, '$1').replace(/\$/g, '').replace(/^\s|\s$/g, '\u00a0');
      if (text.includes('\\')) throw new Error('commands in text');
      return m('mtext', text);
    }
    if (name in STYLES) {
      const inner = this.argument();
      if (STYLES[name] === 'bold') inner.setAttribute('style', 'font-weight: bold');
      if (STYLES[name] === 'double' && DOUBLE[inner.textContent]) return m('mi', DOUBLE[inner.textContent]);
      return inner;
    }
    if (SKIPPED.has(name)) return null;
    switch (name) {
      case 'frac': case 'dfrac': case 'tfrac': case 'cfrac': return m('mfrac', this.argument(), this.argument());
      case 'binom': case 'dbinom': case 'tbinom':
        return this.chosen(m('mfrac', this.argument(), this.argument()));
      case 'sqrt': {
        this.blanks();
        if (this.peek() !== '[') return m('msqrt', this.argument());
        this.at++;
        const index = this.row(']');
        if (this.tokens[this.at++] !== ']') throw new Error('no ]');
        return m('mroot', this.argument(), index);
      }
      case 'boxed': case 'fbox': {
        const row = m('mrow', this.argument());
        row.setAttribute('class', 'boxed');
        return row;
      }
      case 'underline': return m('munder', this.argument(), m('mo', '_'));
      case 'stackrel': case 'overset': { const over = this.argument(); return m('mover', this.argument(), over); }
      case 'underset': { const under = this.argument(); return m('munder', this.argument(), under); }
      case 'phantom': return m('mphantom', this.argument());
      case 'tag': return m('mtext', `\u2003(${this.group()})`);
      case 'pmod': return m('mrow', m('mo', '('), m('mi', 'mod'), this.space('.3em'), this.argument(), m('mo', ')'));
      case 'bmod': return m('mo', 'mod');
      case 'not': { this.blanks(); return m('mo', `${this.argument().textContent}\u0338`); }
      case 'left': {
        const open = this.fence(), inner = this.row();
        if (this.tokens[this.at++] !== '\\right') throw new Error('no \\right');
        const close = this.fence();
        return m('mrow', ...(open ? [m('mo', open)] : []), inner, ...(close ? [m('mo', close)] : []));
      }
      case 'begin': return this.environment();
      case '{': case '}': case '%': case '$': case '#': case '&': case '_': return m('mo', name);
      case '|': return m('mo', '‖');
    }
    if (name in ACCENTS) {
      const over = m('mover', this.argument(), m('mo', ACCENTS[name]));
      over.setAttribute('accent', 'true');
      return over;
    }
    throw new Error(`unknown: \\${name}`);
  }

  environment() {
    const name = this.group(), fences = FENCES[name.replace('*', '')];
    if (!fences) throw new Error(`unknown: ${name}`);
    if (/^(array|tabular)$/.test(name)) this.group();
    const table = m('mtable');
    let row = m('mtr');
    for (;;) {
      row.append(m('mtd', this.row()));
      const token = this.tokens[this.at++];
      if (token === '&') continue;
      table.append(row);
      if (token === '\\\\') { row = m('mtr'); continue; }
      if (token !== '\\end' || this.group() !== name) throw new Error(`no \\end{${name}}`);
      if (/^(align|aligned|split)/.test(name)) table.setAttribute('class', 'aligned');
      return m('mrow', ...(fences[0] ? [m('mo', fences[0])] : []), table, ...(fences[1] ? [m('mo', fences[1])] : []));
    }
  }
}

function formula(tex, block) {
  if (tex.length <= MAX_TEX) {
    try {
      const math = m('math', new Tex(tex).all());
      if (block) math.setAttribute('display', 'block');
      math.setAttribute('aria-label', tex);
      return math;
    } catch (error) {
      // Not known here: the source is what can be shown.
    }
  }
  return make('code', { class: 'tex' }, tex);
}

// $...$ as pandoc reads it, so that prices stay prices: no blank inside its ends, no digit after it.
const PIECES = new RegExp([
  /\$\$([^$]+)\$\$/, /\\\[((?:[^\\]|\\(?!\]))+)\\\]/, /\\\(((?:[^\\]|\\(?!\)))+)\\\)/, /\$((?! )(?:\\.|[^$\\\n])*[^ $\\\n])\$(?!\d)/,
  /\$(\\(?:left|begin|dfrac|frac|sqrt)\b[^$]+)\$/, /(\\begin\{(?:align|equation|gather)\*?\}(?:[^\\]|\\(?!end))+\\end\{\w+\*?\})/,
  /(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/, /\*\*([^*\n]+)\*\*/,
].map((piece) => piece.source).join('|'), 'g');

function rendered(text, inText) {
  const nodes = [];
  if (text.length > MAX_RENDERED) return [text];
  let from = 0, afterBlock = false;
  const before = (words, block) => {  // a block has lines of its own
    if (afterBlock) words = words.replace(/^ *\n/, '');
    nodes.push(block ? words.replace(/\n *$/, '') : words);
  };
  for (const match of text.matchAll(PIECES)) {
    const [whole, dollars, square, round, inline, lines, environment, box, bold] = match;
    const block = !inText && (dollars ?? square ?? environment) !== undefined;
    before(text.slice(from, match.index), block);
    from = match.index + whole.length;
    if (bold !== undefined) nodes.push(make('strong', {}, bold));
    else nodes.push(formula(dollars ?? square ?? round ?? inline ?? lines ?? environment ?? box, block));
    afterBlock = block;
  }
  before(text.slice(from), false);
  return nodes;
}

const short = (text) => (/[\\^_]/.test(text) && !text.includes('$') ? [formula(text, false)] : rendered(text));

// --- The list ---

const VERDICTS = { __proto__: null,
  all: ['all', () => true],
  right: ['right', (row) => row.correct],
  wrong: ['wrong', (row) => !row.correct],
  unextractable: ['no answer found', (row) => row.extracted === null],
  truncated: ['cut off', (row) => row.truncated === true],
};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (c) => c.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text());
}

async function start() {
  const place = document.getElementById('browser'), status = document.getElementById('status');
  if (!place) return;
  const begun = performance.now();
  if (typeof DecompressionStream === 'undefined') {
    status.textContent = 'This browser is too old to show the problems; take one of 2023 or later.';
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
    const [, test] = VERDICTS[state.show];
    const rows = sets[state.set].rows.filter((row) => (!state.group || row.groups.includes(state.group))
      && (!words || `${row.id}\n${row.question}\n${row.response}\n${row.extracted}\n${row.gold}`.toLowerCase().includes(words)));
    for (const [name, [, has]] of Object.entries(VERDICTS)) get(`count-${name}`).textContent = rows.filter(has).length;
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
      ? `Problems ${first + 1} to ${first + rows.length} of ${found.length}` : 'No problem is like that.';
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
    if (row.truncated) verdict.append(make('span', { class: 'cut' }, ' · cut off'));
    const asked = row.question ?? row.response;
    const button = make('button', { type: 'button', 'aria-expanded': 'false', 'aria-controls': `detail-${index}` },
      verdict, make('span', { class: 'id' }, row.id), make('span', { class: 'question' }, ...rendered(asked.slice(0, 400).replace(/\s+/g, ' '), true)));
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
  document.documentElement.dataset.ready = Math.round(performance.now() - begun);  // milliseconds, for measuring
}

start();
