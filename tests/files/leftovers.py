"""What a test left where nothing should be."""


def left_in(folder):
  """The files and folders below the folders in `folder`, as relative paths."""
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.parent != folder)
