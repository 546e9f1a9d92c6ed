"""What differs between versions of JAX and Flax, for versions that are not installed here too."""

import importlib.metadata

import flax
import pytest

from mathqwen import compat
from mathqwen.config import MeshConfig
from mathqwen.errors import UserError
from mathqwen.hardware import sharding


@pytest.fixture
def installed(monkeypatch):
  """installed(jax='0.7.2', libtpu='0.0.21.1', asked='0.0.23'): what the metadata of packages says."""

  def install(asked=None, **versions):
    def version(name):
      if name not in versions:
        raise importlib.metadata.PackageNotFoundError(name)
      return versions[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    tpu = ['jaxlib<=1; extra == "tpu"', f'libtpu=={asked}; extra == "tpu"'] if asked else []
    monkeypatch.setattr(importlib.metadata, 'requires', lambda name: ['numpy>=2', *tpu] if name == 'jax' else None)

  return install


@pytest.mark.parametrize(
  'version, numbers', [('0.7.2', (0, 7, 2)), ('0.12.0.1', (0, 12, 0, 1)), ('0.13.0.dev20261128', (0, 13, 0))]
)
def test_release(version, numbers):
  assert compat.release(version) == numbers


@pytest.mark.parametrize(
  'version, keyword',
  [('0.11.2', 'sharding_names'), ('0.12.3', 'sharding_names'), ('0.12.4', 'out_sharding'), ('0.12.12', 'out_sharding')],
)
def test_names_of_axes(version, keyword, monkeypatch):
  monkeypatch.setattr(flax, '__version__', version)
  assert compat.axis_names(('heads', 'embed')) == {keyword: ('heads', 'embed'), 'eager_sharding': False}


def test_a_flax_that_loses_the_names_is_refused_before_anything_is_allocated(tiny_config, monkeypatch):
  monkeypatch.setattr(compat, 'axis_names', lambda axes: {'something_new': axes})
  monkeypatch.setattr(flax, '__version__', '0.12.99')
  cfg = tiny_config(vocab_size=1031)  # no other test's, whose shapes are cached
  with pytest.raises(UserError, match=r'flax 0.12.99 gives the 2 axes of the weight embed the names \(\), so'):
    sharding.params_shardings(sharding.make_mesh(MeshConfig(fsdp=1)), cfg)


@pytest.mark.parametrize('version, flag', [('0.10.2', '--xla_cpu_use_fusion_emitters=false'), ('0.11.0', '')])
def test_a_flag_that_newer_versions_of_xla_refuse(version, flag, installed):
  installed(jax=version)
  assert compat.fusion_emitters_flag() == flag


@pytest.mark.parametrize(
  'jax, asked, libtpu, fits',
  [
    ('0.7.2', '0.0.23', '0.0.23', True),
    ('0.7.2', '0.0.23', '0.0.23.1', False),
    ('0.7.2', '0.0.23', '0.0.21.1', False),
    ('0.10.2', '0.0.42.*', '0.0.42.1', True),
    ('0.10.2', '0.0.42.*', '0.0.42', True),
    ('0.10.2', '0.0.4.*', '0.0.42.1', False),
    ('0.12.0.1', '0.0.50.*', '0.0.42.1', False),
    ('0.12.0.1', None, '0.0.42.1', True),  # a JAX that asks for none
  ],
)
def test_the_libtpu_of_this_jax(jax, asked, libtpu, fits, installed):
  installed(asked, jax=jax, libtpu=libtpu)
  line = f"libtpu {libtpu} is not the one of JAX {jax}, which asks for {asked}: pip install 'jax[tpu]=={jax}'"
  assert compat.other_libtpu() == (None if fits else line)
  installed(asked, jax=jax)
  assert compat.other_libtpu() is None  # there is none


def test_metadata_of_the_jax_that_is_installed():
  assert compat.wanted_libtpu().startswith('0.0.')
