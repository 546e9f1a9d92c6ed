"""One tensor of a Hugging Face directory, replaced."""

import safetensors.numpy

UP = 'model.layers.1.mlp.up_proj.weight'


def change(name, make):
  def damage(directory):
    tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
    tensors[name] = make(tensors[name])
    safetensors.numpy.save_file(tensors, directory / 'model.safetensors')

  return damage
