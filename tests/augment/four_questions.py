"""The questions of the source that the tests augment, and their answers."""

QUESTIONS = {'What is 40 + 2?': '42', 'What is 10 * 5?': '50', 'What is 9 - 4?': '5', 'What is 8 / 2?': '4'}
