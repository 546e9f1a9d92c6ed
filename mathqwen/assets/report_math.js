'use strict';
// Formulas and texts of records as nodes. What a record says reaches the page as text nodes only.

const MATHML = 'http://www.w3.org/1998/Math/MathML';
const MAX_TEX = 4000, MAX_RENDERED = 30000, MAX_DEPTH = 50;  // characters, characters, nested atoms

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

// --- LaTeX to MathML: what occurs in answers of MATH. A formula with anything else is shown as its source. ---

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

  group() {  // the text between braces, with any braces inside it
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
    if (++this.depth > MAX_DEPTH) throw new Error('too deep');  // deep nesting can crash a browser's layout
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
      // Not known here, so the source is shown.
    }
  }
  return make('code', { class: 'tex' }, tex);
}

// What is rendered inside a text: formulas and **bold**. $...$ follows pandoc's rule, so that prices stay prices:
// no blank inside its ends, no digit after it.
const PIECES = new RegExp([
  /\$\$([^$]+)\$\$/, /\\\[((?:[^\\]|\\(?!\]))+)\\\]/, /\\\(((?:[^\\]|\\(?!\)))+)\\\)/, /\$((?! )(?:\\.|[^$\\\n])*[^ $\\\n])\$(?!\d)/,
  /\$(\\(?:left|begin|dfrac|frac|sqrt)\b[^$]+)\$/, /(\\begin\{(?:align|equation|gather)\*?\}(?:[^\\]|\\(?!end))+\\end\{\w+\*?\})/,
  /(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})/, /\*\*([^*\n]+)\*\*/,
].map((piece) => piece.source).join('|'), 'g');

function rendered(text, inText) {
  const nodes = [];
  if (text.length > MAX_RENDERED) return [text];
  let from = 0, afterBlock = false;
  const before = (words, block) => {  // a displayed formula has its own line, so the line breaks around it go
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
