r"""Worked examples of the few-shot prompts, written for this project and under its licence.

The papers' own examples are not copied: Minerva's report gives no licence for its text, and Qwen's examples came from
other people's data. So few-shot prompts here have each system's form and number of examples with other problems in
them, and scores may differ from the published ones for that reason.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Worked:
  """One worked example."""

  question: str
  solution: str  # a test checks each equation in it
  answer: str


WORD_PROBLEMS = (
  Worked(
    'A baker fills 6 trays with 24 rolls each. She sells 94 rolls in the morning and half of the others in the '
    'afternoon. How many rolls are left in the evening?',
    'The baker makes 6 * 24 = 144 rolls.\n'
    'After the morning 144 - 94 = 50 rolls are left.\n'
    'In the afternoon she sells 50 / 2 = 25 rolls.\n'
    'In the evening 50 - 25 = 25 rolls are left.',
    '25',
  ),
  Worked(
    'A tram leaves the depot with 38 passengers. At the first stop 15 get off and 9 get on. At the second stop nobody '
    'gets off, and twice as many get on as at the first stop. How many passengers are on the tram then?',
    'After 15 got off, there are 38 - 15 = 23 passengers.\n'
    'After 9 got on, there are 23 + 9 = 32 passengers.\n'
    'At the second stop 2 * 9 = 18 passengers get on.\n'
    'Now there are 32 + 18 = 50 passengers.',
    '50',
  ),
  Worked(
    'Priya earns $14 an hour on weekdays and $20 an hour on Saturdays. Last week she worked 4 hours on each of the 5 '
    'weekdays and 6 hours on Saturday. How many dollars did she earn?',
    'On weekdays she worked 4 * 5 = 20 hours.\n'
    'For these she earned 20 * 14 = 280 dollars.\n'
    'On Saturday she earned 6 * 20 = 120 dollars.\n'
    'In all she earned 280 + 120 = 400 dollars.',
    '400',
  ),
  Worked(
    'A pump puts 25 litres of water a minute into an empty tank, and through a leak 7 litres a minute are lost. The '
    'tank holds 900 litres. After how many minutes is it full?',
    'Every minute the tank gains 25 - 7 = 18 litres.\nIt is full after 900 / 18 = 50 minutes.',
    '50',
  ),
  Worked(
    'A rectangular garden is 18 meters long and 12 meters wide. A fence around it has a post every 3 meters, and each '
    'post costs $8. How much do the posts cost in dollars?',
    'Around the garden it is 2 * (18 + 12) = 60 meters.\n'
    'So the fence has 60 / 3 = 20 posts.\n'
    'They cost 20 * 8 = 160 dollars.',
    '160',
  ),
  Worked(
    'Omar is three times as old as Lena. In 6 years their ages will add up to 52. How old is Omar now?',
    'In 6 years the two will be 2 * 6 = 12 years older together.\n'
    'So now their ages add up to 52 - 12 = 40.\n'
    "That is 3 + 1 = 4 times Lena's age, so Lena is 40 / 4 = 10 years old.\n"
    'Omar is 3 * 10 = 30 years old.',
    '30',
  ),
  Worked(
    'A jacket costs $80. In a sale it is 25% cheaper, and with a coupon one pays $5 less than that. How many dollars '
    'does one pay with the coupon?',
    'In the sale the jacket is 80 * 25 / 100 = 20 dollars cheaper.\n'
    'So it costs 80 - 20 = 60 dollars.\n'
    'With the coupon one pays 60 - 5 = 55 dollars.',
    '55',
  ),
  Worked(
    'A school has 7 classes of 26 pupils. All pupils and 18 teachers go on a trip in buses that hold 50 people each. '
    'How many buses are needed?',
    'There are 7 * 26 = 182 pupils.\n'
    'With the teachers, 182 + 18 = 200 people go on the trip.\n'
    'They need 200 / 50 = 4 buses.',
    '4',
  ),
)

MATHEMATICS = (
  Worked(
    'What is the larger root of the equation $x^2 - 7x + 10 = 0$?',
    'The left side factors as $(x - 2)(x - 5)$, because $2 + 5 = 7$ and $2 \\cdot 5 = 10$. So the roots are $2$ and '
    '$5$, and the larger one is $\\boxed{5}$.',
    '5',
  ),
  Worked(
    'Mira throws a red die and a blue die and multiplies the two numbers. How likely is it that she gets $12$? Give '
    'the probability as a fraction in lowest terms.',
    'Of the $6 \\cdot 6 = 36$ equally likely outcomes, the product is $12$ for $(2,6)$, $(3,4)$, $(4,3)$ and $(6,2)$, '
    'which are $4$. The probability is $\\frac{4}{36} = \\boxed{\\frac{1}{9}}$.',
    '\\frac{1}{9}',
  ),
  Worked(
    'Find all real numbers $x$ with $|2x - 3| \\le 5$. Express your answer in interval notation.',
    'The inequality says $-5 \\le 2x - 3 \\le 5$. Adding $3$ gives $-2 \\le 2x \\le 8$, and dividing by $2$ gives '
    '$-1 \\le x \\le 4$. So the solutions are $\\boxed{[-1,4]}$.',
    '[-1,4]',
  ),
  Worked(
    'Expand $(x + 2)(x^2 - 3x + 1)$.',
    'We multiply by each term of the first factor:\n'
    '$$x(x^2 - 3x + 1) + 2(x^2 - 3x + 1) = x^3 - 3x^2 + x + 2x^2 - 6x + 2.$$\n'
    'Collecting like powers gives $\\boxed{x^3 - x^2 - 5x + 2}$.',
    'x^3 - x^2 - 5x + 2',
  ),
)
