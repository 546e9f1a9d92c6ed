"""HTML pages that need nothing else: one file with its style, its script and its rows, which works without a network.

The rows travel gzipped, in base64, so that nothing in them can end the element that holds them. The script puts them
into the page as text nodes only, and a Content-Security-Policy allows no other script and no request.

assets/report.css   the style of all pages
assets/browser.js   the list of rows with choices, search, pages and keyboard; a page's own script calls it
"""

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence


def document(title: str, sections: Mapping[str, tuple[str, str]], sets: Sequence[dict], script: str) -> str:
  """The whole file. sections: {id: (heading, HTML)}; one without HTML is left out. sets: of rows, for the browser.

  script: the asset that calls `browse`.
  """
  sections = {key: section for key, section in sections.items() if section[1]}
  links = ''.join(f'<li><a href="#{key}">{name}</a></li>' for key, (name, _) in sections.items())
  body = '\n'.join(
    f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{name}</h2>\n{text}</section>'
    for key, (name, text) in sections.items()
  )
  style = _asset('report.css')
  code = ''.join(map(_asset, ('report_math.js', 'browser.js', script)))
  # Our script alone may run, by its hash; nothing may be fetched.
  sha = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
  policy = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{sha}'; base-uri 'none'; form-action 'none'"
  )
  packed = f'<script type="text/plain" id="records">{pack(sets)}</script>\n<script>{code}</script>' if sets else ''
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{body}
</main>
{packed}
</body>
</html>
"""


def _asset(name: str) -> str:
  return (importlib.resources.files('mathqwen') / 'assets' / name).read_text(encoding='utf-8')


def pack(sets: Sequence[dict]) -> str:
  """Sets of rows as gzipped JSON in base64; the same rows give the same text."""
  # json.dumps escapes all but ASCII, so half of a surrogate pair stays an escape.
  text = json.dumps(sets, separators=(',', ':'))
  return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], ours: Sequence[bool] = ()) -> str:
  """A table as HTML. ours: which rows stand out."""
  head = ''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
  lines = []
  for number, (first, *rest) in enumerate(rows):
    kind = ' class="ours"' if any(ours[number : number + 1]) else ''
    cells = ''.join(f'<td>{html.escape(cell)}</td>' for cell in rest)
    lines.append(f'<tr{kind}><th scope="row">{breakable(first)}</th>{cells}</tr>\n')
  caption = f'<caption><span>{html.escape(title)}</span></caption>'
  # tabindex: a box that scrolls must be reached with the keyboard, too.
  region = f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(title)}">'
  return f'{region}<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>{"".join(lines)}</tbody></table></div>'


def notes(lines: Sequence[str]) -> str:
  """A paragraph for each line."""
  return '\n'.join(f'<p class="soft note">{html.escape(line)}</p>' for line in lines)


def panel(title: str, bars: Sequence[str]) -> str:
  """A figure of bars."""
  return f'<figure class="panel"><h3>{html.escape(title)}</h3><ul class="bars">{"".join(bars)}</ul></figure>'


def bar(label: str, share: float, value: str, kind: str, whisker: str = '') -> str:
  """One bar. share: of the longest possible. value: the text at its end. kind: its class. whisker: HTML over it."""
  track = f'<span class="track" aria-hidden="true"><i style="width:{100 * share:.2f}%"></i>{whisker}</span>'
  name = f'<span class="label">{breakable(label)}</span>'
  return f'<li class="{kind}">{name}{track}<span class="value">{value}</span></li>'


def breakable(text: str) -> str:
  """HTML of a name that may break after `/`, `_` and `.`, so that a long path need not break inside a word.

  Browsers break after `-` on their own. There is no break after the point of a number: `Qwen2.5`.
  """
  return re.sub(r'(?<=[/_])(?=\w)|(?<=\.)(?=[A-Za-z])', '<wbr>', html.escape(text))


def browser(sets: Sequence[dict], choices: Mapping[str, str], nouns: str, labels: Mapping[str, str]) -> str:
  """The controls and the empty list, which the script fills.

  choices: {name in the script: text}. nouns: 'problems'. labels: of 'set', 'group', 'find', and 'show' (the choices).
  """
  radios = ''.join(
    f'<label><input type="radio" name="show" value="{key}">{name} <span id="count-{key}"></span></label>'
    for key, name in choices.items()
  )
  total = sum(len(problem_set['rows']) for problem_set in sets)
  return f"""<noscript><p>The {total:,} {nouns} need JavaScript.</p></noscript>
<div id="browser" hidden>
<div class="controls">
<label>{labels['set']} <select id="set"></select></label>
<label>{labels['group']} <select id="group"></select></label>
<label class="find">{labels['find']} <input id="find" type="search" autocomplete="off"></label>
</div>
<fieldset><legend>{labels['show']}</legend>{radios}</fieldset>
<p class="soft keys"><kbd>/</kbd> finds, <kbd>Tab</kbd> goes to the list, <kbd>↓</kbd> <kbd>↑</kbd> to the next and the
previous one, <kbd>Enter</kbd> opens and closes it. The address keeps what is shown.</p>
<ol id="items" class="items" aria-label="{nouns.capitalize()}"></ol>
<div class="pager"><button id="back" type="button">← previous</button><span id="page"></span>
<button id="next" type="button">next →</button></div>
</div>
<p id="status" class="soft" role="status"></p>
"""
