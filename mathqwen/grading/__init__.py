"""Verdicts on answers, from the standard library and math-verify alone: this folder imports without JAX.

    rule.py             Rule and Verdict: what a grader is
    grade.py            RULES, the graders by name; `grade` and `judge` apply them
    published.py        rules of published systems, mistakes included
    extract.py          finds the answer in a response
    values.py           numbers and their exact values
    latex.py            LaTeX in one form, so that equal answers become equal strings
    symbolic.py         math-verify in a process with a time limit (symbolic_worker.py is that process)

Others use these. They are modules, imported when first named:

    grade.RULES, grade.get, grade.grade, grade.judged, grade.judge, grade.relative_error
    rule.Rule, rule.Verdict
    extract.*, values.value, latex.normalise
"""

__all__ = ['extract', 'grade', 'latex', 'rule', 'values']
