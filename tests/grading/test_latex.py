"""Answers in one form: ours, Minerva's, and that of the MATH release."""

import pytest

from mathqwen.grading import latex


@pytest.mark.parametrize(
  'text, form',
  [
    ('\\left( 3, \\frac{\\pi}{2} \\right)', '(3,\\frac{\\pi}{2})'),
    ('\\tfrac34', '\\frac{3}{4}'),
    ('3/4', '\\frac{3}{4}'),
    ('x = 14{,}400\\%', '14400'),
    ('5\\text{ cm}^2', '5'),
    ('90^{\\circ}', '90'),
    ('.5', '0.5'),
    ('7.00', '7'),
    ('10.05', '10.05'),
    ('\\text{Evelyn}', 'Evelyn'),
    ('(1,200)', '(1,200)'),
    ('1,2', '1,2'),
    ('5.', '5'),
    ('x \\geq 5', 'x\\ge5'),
    ('a.b', 'a.b'),
    ('−5', '-5'),
    ('-1,200', '-1200'),
  ],
)
def test_normalised_form(text, form):
  assert latex.normalise(text) == form


@pytest.mark.parametrize('text, form', [('x=5\\text{ cm}', '5'), ('$\\frac12$', '\\frac{1}{2}'), ('1,000', '1000')])
def test_minerva_form(text, form):
  assert latex.minerva(text) == form


@pytest.mark.parametrize(
  'text, form',
  [
    ('\\left(\\tfrac12,\\ \\sqrt3\\right)', '(\\frac{1}{2},\\\\sqrt{3})'),
    ('x = .5', '\\frac{1}{2}'),
    ('x + y = 5', 'x+y=5'),
    ('-3/4', '\\frac{-3}{4}'),
    ('03/4', '03/4'),
    ('\\frac12\\frac{', '\\frac{1}{2}\\frac{'),
    ('\\frac1{72}', '\\frac{1}{72}'),
    ('\\$3,\\!600\\text{ dollars}', '3,600'),
    ('90^\\circ', '90'),
    ('10\\%', '10'),
    ('', ''),
  ],
)
def test_form_of_the_math_release(text, form):
  assert latex.hendrycks(text) == form


@pytest.mark.parametrize('text', ['a/b', '1\\text{ m}\\text{ s}', '\\sqrt', '\\frac'])
def test_texts_without_a_form_of_the_math_release(text):
  with pytest.raises(ValueError):
    latex.hendrycks(text)
