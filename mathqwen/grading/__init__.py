"""Verdicts on answers, from the standard library and math-verify alone: this folder imports without JAX.

Rules of ours read the answer behind the thinking (`<think>` and its like; `<answer>` holds the answer), put signs of
other scripts and Chinese numerals into one form, and let count what tells two answers apart: units, magnitudes, order,
brackets. A comparison that reaches its limit of CPU time is asked again with three times as much, and is undecided, not
wrong, when that is not enough. GSM8K's own answer field may be the gold answer; one that is no number is refused by
numeric rules.

    rule.py             Rule and Verdict: what a grader is
    grade.py            RULES, the graders by name; `grade` and `judge` apply them
    published.py        rules of published systems, mistakes included
    thinking.py         the answer's part of a response
    cleaning.py         signs of other scripts, spaces and groups of digits in one form; chinese.py: numerals
    extract.py          finds the answer in a response
    context.py          whether a number stands alone or belongs to an expression
    values.py           numbers and their exact values; units.py: with their units
    latex.py            LaTeX in one form, so that equal answers become equal strings
    structure.py        tuples, lists, sets, intervals, ratios and matrices
    mathematics.py      whether two answers of MATH are equal
    symbolic.py         math-verify in a process with a limit of CPU time (symbolic_worker.py is that process,
                        symbolic_parsing.py reads LaTeX and symbolic_sampling.py compares values at fixed points there)

Others use these. They are modules, imported when first named:

    grade.RULES, grade.get, grade.grade, grade.judged, grade.judge, grade.relative_error
    rule.Rule, rule.Verdict
    values.value, latex.normalise, cleaning.clean, thinking.apart
"""

__all__ = ['cleaning', 'grade', 'latex', 'rule', 'thinking', 'values']
