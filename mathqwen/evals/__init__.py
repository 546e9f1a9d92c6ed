"""Benchmarks: asking a model, grading its answers, keeping records, comparing runs, Table 12. README.md explains it.

tasks/                    one file for each benchmark; its docstring says how to add one
benchmarks.py             the benchmarks by name: BENCHMARKS, get
prompts.py                how problems are asked: PROMPTS, get
run.py                    evaluate(model, names, Ask(...)), grade_records(path, benchmark)
endpoint.py               evaluate('openai:URL#MODEL', ...)
records.py folder.py      what a run leaves on disk
compare.py                compare(a, b): which verdicts flipped between two runs
report/                   the table and the page

`run.evaluate` needs a model; everything else runs without JAX.
"""
