"""Rows with something to clean."""

TEST_QUESTION = (
  'A farmer walks around his square field of 40 meters twice each morning and then feeds 12 goats near the old mill.'
)
STORY = (
  'Nina collects red leaves and green leaves on the way to school and counts {0} of them before noon, then {1} more.'
)


def row(question, answer='It is 5.\n#### 5', **more):
  return {'question': question, 'answer': answer, **more}


ROWS = [
  row(STORY.format(3, 4), 'She has 3 + 4 = 7 of them in all.\n#### 7'),
  row(STORY.format(3, 4) + ' ', 'She has 3 + 4 = 7 of them in all\n#### 7'),  # but for punctuation
  row('Today ' + STORY.format(3, 4), 'She has 3 + 4 = 7 of them in all.\n#### 7'),  # near
  row(STORY.format(5, 4), 'She has 5 + 4 = 9 of them in all.\n#### 9'),  # other numbers
  row(TEST_QUESTION),
  row(TEST_QUESTION.replace('A farmer', 'One farmer')),  # 13-grams
  row('Read this and answer. ' + TEST_QUESTION.upper()),
  row('What is 2+3?', level=1),
  row('What is 2-3?'),
  {'question': 'no answer'},
  row('What can you do?', "I'm sorry, but I cannot help with that."),
  row('Explain why the sky looks blue.', 'Because light\nis scattered.'),
  row('小明有三个苹果，又买了五个苹果，一共有多少？', 'He has eight apples in all after buying the five. #### 8'),
  row('How many?', 'We add the two numbers and get, after some steps,'),
]
REASONS = {
  'malformed': 1,
  'duplicate': 1,
  'near_duplicate': 1,
  'contaminated': 3,
  'refusal': 1,
  'no_final_answer': 1,
  'mixed_scripts': 1,
  'truncated': 1,
}
