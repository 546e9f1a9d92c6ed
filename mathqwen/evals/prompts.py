r"""How problems are asked: one named prompt for each published system, in that system's form.

A chat prompt makes turns, which the model's template turns into ids as in training (`mathqwen.chat.chat_format`). Any
other prompt makes plain text, for base models and for systems with a format of their own.

    ids(get('abel'), examples, tokenizer)                       token ids of each, <s> before text for a LLaMA
    cut('It is 4.\n\nQuestion: next', get('qwen-base').stop)    ('It is 4.', True)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mathqwen.chat.chat_format import ChatFormat
from mathqwen.errors import look_up
from mathqwen.evals.worked_examples import MATHEMATICS, WORD_PROBLEMS

if TYPE_CHECKING:
  from mathqwen.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
  """Either `messages(example, the model's own system prompt)` or `text(example)`; the other one is None.

  How the system was graded on a benchmark, and how many tokens it could generate there, is in the benchmark's file
  (`Benchmark.by_prompt`).
  """

  about: str  # whose prompt it is, and its form
  messages: Callable[[object, str], list[dict]] | None = None  # {'role', 'content'} turns, the last one the user's
  text: Callable[[object], str] | None = None
  stop: tuple[str, ...] = ()  # texts that end an answer, besides the model's stop tokens


def _chatml(example, system_prompt: str) -> list[dict]:
  system = [{'role': 'system', 'content': system_prompt}] if system_prompt else []
  return [*system, {'role': 'user', 'content': example.question}]


def _qwen_chat(example, system_prompt: str) -> list[dict]:
  return _chatml(example, 'You are a helpful assistant.')


def _qwen_math(example, system_prompt: str) -> list[dict]:
  return _chatml(example, 'Please reason step by step, and put your final answer within \\boxed{}.')


def _step_by_step(number: int) -> str:
  """The first worked examples in the form of Qwen's few-shot prompts."""
  shots = [
    f"Question: {worked.question}\nLet's think step by step\n{worked.solution}\nThe answer is {worked.answer}"
    for worked in WORD_PROBLEMS[:number]
  ]
  return '\n\n'.join(shots)


def _qwen_chat_few_shot(example, system_prompt: str) -> list[dict]:
  text = f"{_step_by_step(4)}\n\nQuestion: {example.question}\nLet's think step by step"
  return [{'role': 'system', 'content': 'You are a helpful assistant.'}, {'role': 'user', 'content': text}]


def _qwen_base(example) -> str:
  return f"{_step_by_step(8)}\n\nQuestion: {example.question}\nLet's think step by step\n"


def _alpaca(example) -> str:
  return (
    'Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n'
    f'### Instruction:\n{example.question}\n\n### Response:'
  )


def _wizardmath(example) -> str:
  return f"{_alpaca(example)} Let's think step by step."


def _abel(example) -> str:
  return f"Question:\n{example.question}\nAnswer:\nLet's think step by step.\n"


def _minerva(example) -> str:
  shots = [
    f'Problem:\n{worked.question}\n\nSolution:\n{worked.solution}\n'
    f'Final Answer: The final answer is ${worked.answer}$. I hope it is correct.\n\n'
    for worked in MATHEMATICS
  ]
  return f'{"".join(shots)}Problem:\n{example.question}\n\nSolution:'


def _harness(example) -> str:
  shots = [
    f'Question: {worked.question}\nAnswer: {worked.solution}\n#### {worked.answer}\n\n' for worked in WORD_PROBLEMS[:5]
  ]
  return f'{"".join(shots)}Question: {example.question}\nAnswer:'


PROMPTS: dict[str, Prompt] = {
  'chatml': Prompt("the question as the user's turn in the model's template, after its system turn if any", _chatml),
  'qwen2.5-math': Prompt(
    'Qwen2.5-Math-Instruct, zero-shot CoT: its system turn asks for steps and a boxed answer',
    messages=_qwen_math,
  ),
  'qwen-chat': Prompt(
    "Qwen-Chat, zero-shot: the question as the user's turn after Qwen's system prompt", messages=_qwen_chat
  ),
  'qwen-chat-few-shot': Prompt(
    "Qwen-Chat, 4-shot: our worked examples and the question in one user's turn", messages=_qwen_chat_few_shot
  ),
  'qwen-base': Prompt(
    'Qwen base, 8-shot: our worked examples, `Question: ...`, then the question',
    text=_qwen_base,
    stop=('\n\n', 'Question:'),
  ),
  'alpaca': Prompt('RFT: the instruction form of Alpaca', text=_alpaca),
  'wizardmath': Prompt(
    "WizardMath: Alpaca's form, then `Let's think step by step.`",
    text=_wizardmath,
    stop=('Instruction', 'Response'),
  ),
  'abel': Prompt('GAIRMath-Abel: `Question: ... Answer:`, step by step', text=_abel),
  'minerva': Prompt(
    'Minerva on MATH, 4-shot: our worked examples, `Problem: ... Solution:`', text=_minerva, stop=('Problem:',)
  ),
  'lm-eval': Prompt(
    'lm-evaluation-harness on GSM8K, 5-shot: our worked examples, where it draws from the training set',
    text=_harness,
    stop=('Question:', '</s>', '<|im_end|>'),
  ),
}


def get(name: str) -> Prompt:
  """The prompt of that name. UserError: when there is none, with the nearest name."""
  return look_up('prompt', name, PROMPTS)


def ids(prompt: Prompt, examples: Sequence, tokenizer: 'Tokenizer', chat: ChatFormat | None = None) -> list[list[int]]:
  """Token ids of each example as `prompt` asks it. chat: of the turns; None renders ChatML.

  A text has no special tokens, apart from a LLaMA's <s> before it.
  """
  if prompt.messages:
    chat = chat or ChatFormat()
    return [chat.prompt(prompt.messages(example, chat.system_prompt), tokenizer) for example in examples]
  begin = [] if tokenizer.bos is None else [tokenizer.bos]
  texts = [prompt.text(example) for example in examples]
  return [begin + encoded for encoded in tokenizer.encode_batch(texts)]


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """(the text before the first stop text, whether there is one)"""
  found = [text.index(end) for end in stop if end in text]
  return (text[: min(found)], True) if found else (text, False)
