"""Table 12 beside measured rows, and the page of every problem.

    table.py            the tables: `table` for the command, `after_evaluation` for the end of an evaluation
    table12.py          the published rows
    measured.py         scores.json files, checked
    formats.py          Markdown and LaTeX
    page.py             the HTML page; bars.py and curves.py draw for it
    intervals.py        95% intervals of accuracies

Others use these; the modules are imported when first named:

    table.table, table.after_evaluation
    table12.published_columns, table12.published_rows
    intervals.wilson, intervals.interval, intervals.Z
"""

__all__ = ['intervals', 'table', 'table12']
