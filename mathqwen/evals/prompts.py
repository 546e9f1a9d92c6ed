r"""How problems are asked, by name, each in the form of the system it belongs to. One entry each.

A chat prompt makes turns, which `mathqwen.text.chatml` turns into ids as in training; any other makes plain text, for
base models and for systems with a form of their own.

    ids(get('abel'), examples, model)                           token ids of each, <s> before text for a LLaMA
    cut('It is 4.\n\nQuestion: next', get('qwen-base').stop)    ('It is 4.', True)
"""

import dataclasses
from collections.abc import Callable, Sequence

from mathqwen.errors import look_up
from mathqwen.evals.worked_examples import MATHEMATICS, WORD_PROBLEMS
from mathqwen.text import chatml


@dataclasses.dataclass(frozen=True)
class Prompt:
  """`messages(example, the model's own system prompt)` or `text(example)`; exactly one of them is given.

  By which rule the system was graded, and how many tokens it could generate, is in the file of each benchmark
  (`Benchmark.by_prompt`).
  """

  about: str  # whose prompt it is
  messages: Callable[[object, str], list[dict]] | None = None  # {'role', 'content'} turns, the last one the user's
  text: Callable[[object], str] | None = None
  stop: tuple[str, ...] = ()  # texts at which an answer ends, besides the model's stop tokens


def _chatml(example, system_prompt: str) -> list[dict]:
  system = [{'role': 'system', 'content': system_prompt}] if system_prompt else []
  return [*system, {'role': 'user', 'content': example.question}]


def _qwen_chat(example, system_prompt: str) -> list[dict]:
  return _chatml(example, 'You are a helpful assistant.')


def _step_by_step(number: int) -> str:
  shots = WORD_PROBLEMS[:number]
  texts = (f"Question: {w.question}\nLet's think step by step\n{w.solution}\nThe answer is {w.answer}" for w in shots)
  return '\n\n'.join(texts)


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
  shots = (
    f'Problem:\n{w.question}\n\nSolution:\n{w.solution}\n'
    f'Final Answer: The final answer is ${w.answer}$. I hope it is correct.\n\n'
    for w in MATHEMATICS
  )
  return f'{"".join(shots)}Problem:\n{example.question}\n\nSolution:'


def _harness(example) -> str:
  shots = (f'Question: {w.question}\nAnswer: {w.solution}\n#### {w.answer}\n\n' for w in WORD_PROBLEMS[:5])
  return f'{"".join(shots)}Question: {example.question}\nAnswer:'


PROMPTS: dict[str, Prompt] = {
  'chatml': Prompt("the question as the user's turn, after the model's own system prompt if it has one", _chatml),
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
    "WizardMath: Alpaca's form, answered from `Let's think step by step.` on",
    text=_wizardmath,
    stop=('Instruction', 'Response'),
  ),
  'abel': Prompt('GAIRMath-Abel: `Question: ... Answer:`, step by step', text=_abel),
  'minerva': Prompt(
    'Minerva on MATH, 4-shot: our worked examples, `Problem: ... Solution:`', text=_minerva, stop=('Problem:',)
  ),
  'lm-eval': Prompt(
    'lm-evaluation-harness on GSM8K, 5-shot: our worked examples (there: drawn from the training set)',
    text=_harness,
    stop=('Question:', '</s>', '<|im_end|>'),
  ),
}


def get(name: str) -> Prompt:
  return look_up('prompt', name, PROMPTS)


def ids(prompt: Prompt, examples: Sequence, tokenizer, system_prompt: str = '') -> list[list[int]]:
  """Token ids of each example as `prompt` asks it. Text has no special token but the one a text begins with, if any."""
  if prompt.messages:
    return [chatml.prompt(prompt.messages(example, system_prompt), tokenizer) for example in examples]
  begin = [] if tokenizer.bos is None else [tokenizer.bos]
  return [begin + encoded for encoded in tokenizer.encode_batch([prompt.text(example) for example in examples])]


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
  """What stands before the first of the stop texts, and whether there is one."""
  found = [at for at in map(text.find, stop) if at >= 0]
  return (text[: min(found)], True) if found else (text, False)
