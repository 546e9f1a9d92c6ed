"""More training data from a model: answers to the questions of a source, and new questions. README.md explains it.

augment.augment(AugmentRequest(...), model)   all of it: asks, selects, writes DIR
questions.py      new questions by a teacher: their prompts, and how its replies are read
asking.py         asks a model of ours or a served one, and keeps each answer in DIR as it arrives
stored.py         the answers in DIR, on disk and not in memory
equations.py      the calculations of a solution, and whether they hold
selection.py      which samples are kept, and why the others are not: the rule of RFT (arXiv 2308.01825)
results.py        train.jsonl, samples.jsonl and the data card
"""

__all__ = ['asking', 'augment', 'questions']
