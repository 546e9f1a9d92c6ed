"""Benchmarks: asking a model, grading its answers, keeping records, comparing runs, Table 12. README.md explains it.

tasks/                    one file for each benchmark; its docstring says how to add one
benchmarks.py             the benchmarks by name: BENCHMARKS, get; choose takes files of problems too
against.py                which problems training data hold: compare(questions, data)
prompts.py                how problems are asked: PROMPTS, get
ask.py                    Ask and Decoding: what a model is asked, and how it answers
asked.py                  how a model was asked, in words, in scores and in records
run.py                    evaluate(model, names, Ask(...)), grade_records(path, benchmark)
endpoint.py               evaluate('openai:URL#MODEL', ...); dialect.py knows which parameters a server takes
records.py folder.py      what a run leaves on disk
samples.py progress.py    votes of several answers; the line on standard error
compare.py                compare(a, b): which verdicts flipped between two runs
report/                   the table and the page

The other modules serve these. `run.evaluate` needs a model; everything else runs without JAX.
"""

__all__ = [
  'ask',
  'asked',
  'benchmarks',
  'compare',
  'dialect',
  'endpoint',
  'folder',
  'progress',
  'prompts',
  'records',
  'report',
  'run',
  'samples',
  'tasks',
]
