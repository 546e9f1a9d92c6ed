"""A table as Markdown and as LaTeX. (As HTML: page.py.)"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ReportTable:
  """Cells as text; every row is as long as the header."""

  title: str
  header: list[str]
  rows: list[list[str]]


def to_markdown(tables: list[ReportTable]) -> str:
  """All tables, each below its title. Columns are padded, so that it reads well on a terminal too."""
  return '\n\n'.join(map(_markdown_block, tables)) + '\n'


def _markdown_block(table: ReportTable) -> str:
  escaped = [[cell.replace('|', '\\|').replace('\n', ' ') for cell in row] for row in [table.header, *table.rows]]
  widths = [max(3, *map(len, column)) for column in zip(*escaped, strict=True)]
  lines = []
  for row in escaped:
    padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
    lines.append(f'| {" | ".join(padded)} |')
  rule = f'| {" | ".join("-" * width for width in widths)} |'
  return '\n'.join([f'**{table.title}**', '', lines[0], rule, *lines[1:]])


_LATEX = str.maketrans(
  {character: f'\\{character}' for character in '&%$#_{}'}
  | {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '±': r'$\pm$'}
)


def to_latex(tables: list[ReportTable]) -> str:
  """All tables as `table` environments. They need the package booktabs."""
  return '\n\n'.join(map(_latex_block, tables)) + '\n'


def _latex_block(table: ReportTable) -> str:
  header, *rows = [' & '.join(cell.translate(_LATEX) for cell in row) + r' \\' for row in [table.header, *table.rows]]
  lines = [
    r'\begin{table}',
    f'\\caption{{{table.title.translate(_LATEX)}}}',
    f'\\begin{{tabular}}{{{"l" * len(table.header)}}}',
    r'\toprule',
    header,
    r'\midrule',
    *rows,
    r'\bottomrule',
    r'\end{tabular}',
    r'\end{table}',
  ]
  return '\n'.join(lines)
