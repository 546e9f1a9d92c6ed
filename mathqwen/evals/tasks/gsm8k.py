r"""GSM8K: grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168).

{"question": "Natalia sold ...", "answer": "... <<48/2=24>>24 clips ...\n#### 72"}

The gold answer is the integer after '#### '. <<...>> are calculator annotations, which the authors advise to remove.
"""

import dataclasses
import re

from mathqwen.data.catalog import DataSet, Download, Split
from mathqwen.data.field_texts import text_field
from mathqwen.data.malformed import Malformed
from mathqwen.evals.tasks import Benchmark, PromptSettings
from mathqwen.settings import setting

ORDER = 1
_FILES = (
  'https://raw.githubusercontent.com/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/'
  'grade_school_math/data'
)


@dataclasses.dataclass(frozen=True)
class Options:
  """How the solutions are written."""

  marks: str = setting(
    'drop', help="the calculator annotations: 'is <<48/2=24>>24 clips' or 'is 24 clips'", choices=('drop', 'keep')
  )


def parse(record: dict, options: Options) -> dict:
  """The fields of an Example. Malformed: when the answer does not end with '#### ANSWER'."""
  question = text_field(record, 'question')
  text = text_field(record, 'answer')
  gold = re.search(r'####\s*(\S[^\n]*)$', text)
  if not gold:
    raise Malformed('field "answer" does not end with "#### ANSWER"')
  return {
    'question': question,
    'solution': text if options.marks == 'keep' else re.sub(r'<<[^<>]*>>', '', text),
    'answer': gold.group(1).strip().replace(',', ''),  # '#### 2,125'
    'extra': {},
  }


DATA = DataSet(
  name='gsm8k',
  about='Grade-school word problems with worked solutions (Cobbe et al. 2021, arXiv 2110.14168).',
  homepage='https://github.com/openai/grade-school-math',
  licence='MIT',
  splits={'train': Split(('gsm8k/train.jsonl',)), 'test': Split(('gsm8k/test.jsonl',))},
  parse=parse,
  options=Options,
  fields=('question', 'answer'),
  downloads={
    'gsm8k/train.jsonl': Download(
      f'{_FILES}/train.jsonl', '17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465'
    ),
    'gsm8k/test.jsonl': Download(
      f'{_FILES}/test.jsonl', '3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14'
    ),
  },
)

BENCHMARK = Benchmark(
  'gsm8k',
  title='GSM8K',
  source='gsm8k',
  rule='number',
  max_new_tokens=512,
  size=1319,
  by_prompt={
    'qwen-chat': PromptSettings('qwen-chat'),
    'qwen-chat-few-shot': PromptSettings('qwen-chat'),
    'qwen2.5-math': PromptSettings('number', max_new_tokens=2048),
    'qwen-base': PromptSettings('qwen-base'),
    'alpaca': PromptSettings('rft', max_new_tokens=256),
    'wizardmath': PromptSettings('wizardmath-gsm8k', max_new_tokens=1024),
    'abel': PromptSettings('abel', max_new_tokens=2048),
    'lm-eval': PromptSettings('lm-eval-strict', max_new_tokens=256),
  },
  table12={
    ('GPT-4', '-'): 92.0,
    ('GPT-3.5', '-'): 80.8,
    ('Minerva', '8B'): 16.2,
    ('Minerva', '62B'): 52.4,
    ('Minerva', '540B'): 58.8,
    ('LLaMA-1 RFT', '7B'): 46.5,
    ('LLaMA-1 RFT', '13B'): 52.1,
    ('WizardMath', '7B'): 54.9,
    ('WizardMath', '13B'): 63.9,
    ('WizardMath', '70B'): 81.6,
    ('GAIRMath-Abel', '7B'): 59.7,
    ('GAIRMath-Abel', '13B'): 66.4,
    ('GAIRMath-Abel', '70B'): 83.6,
    ('Qwen-Chat', '7B'): 50.3,
    ('Qwen-Chat', '14B'): 60.1,
    ('Math-Qwen-Chat', '7B'): 62.5,
    ('Math-Qwen-Chat', '14B'): 69.8,
  },
)
