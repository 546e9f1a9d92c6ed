"""MATH-QWEN-CHAT 14B: the recipe of `math_qwen_7b` on the larger model.

mathqwen data prepare gsm8k math23k
mathqwen data prepare math --data-dir DIR
mathqwen train math_qwen_14b --init Qwen/Qwen-14B --workdir gs://BUCKET/math-qwen-14b --distributed
"""

import dataclasses
import pathlib

from mathqwen.config import load
from mathqwen.model.config import PRESETS

config = dataclasses.replace(
  load(str(pathlib.Path(__file__).with_name('math_qwen_7b.py'))), model=PRESETS['Qwen-14B'], init='Qwen/Qwen-14B'
)
