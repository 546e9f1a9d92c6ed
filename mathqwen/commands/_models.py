"""How `evaluate` and `generate` open a MODEL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from mathqwen.inference.model import Model


def open_on_this_host(
  path: str,
  dtype: str | None = None,
  template: str | None = None,
  system: str | None = None,
  weights: str | None = None,
) -> tuple[Model, Callable[[], dict]]:
  """(model without weights, function that reads them): callers check their other arguments between the two.

  The weights are split over the devices of this host; each of several hosts holds a copy of the model.
  dtype: None takes bfloat16, on a CPU float32. template, system: as --template and --system. weights: as --weights.
  """
  import jax

  from mathqwen.hardware import sharding
  from mathqwen.inference import model as models
  from mathqwen.storage.source import open_source

  source = open_source(path)
  mesh = None
  if jax.local_device_count() > 1:
    mesh = sharding.make_mesh(sharding.fitting(source.config, jax.local_device_count()), jax.local_devices())
  if dtype is None:
    dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  return models.model_of(source, mesh, dtype, template, system, weights=weights)
