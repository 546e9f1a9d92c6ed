"""Where examples come from, and how they become batches of packed rows.

For other folders to use; nothing is imported here, because TFDS and Grain take seconds to import:

  catalog                      the data sets that have a name: files, downloads, row formats
  datasets.prepare             downloads a data set and stores it for random access
  sources.load, .stream        the examples of a data set, of files, or of a data set on the hub: all, or one by one
  examples                     `Example`, from the records of a data set's file or of a user's
  folders.data_files           the files of a folder or a pattern, by split
  formats                      records of a file: JSON Lines, JSON, CSV, Parquet, Arrow, compressed or not
  origins.of                   where a source comes from, and its licence
  line_ranges                  parts of a JSON Lines file, for several processes
  shapes, pair_shapes          the forms that records of users' files have; field_texts, the texts in them
  malformed.Malformed          a record that is no example; left_out.Report, which rows are not trained on, and why
  arithmetic                   generated arithmetic, with worked solutions
  expressions                  `evaluate`, exact values of expressions; `steps`, how one gets there
  training_data.TrainingData   a config's data: read, tokenised, split, batched
  encoding                     examples to tokenised examples
  shards                       tokenised examples on disk, written once; shard_card, what such a folder says of itself
  packing                      where targets are shifted and rows are made
  pairs                        the same for pairs of a chosen and a rejected answer
  shared_prompts               the same for several answers to one question, which a row then holds once
  audit, other_masks           the loss mask of each conversation, beside what other trainers would mask
  contamination                which texts overlap with test problems; compared_rows and compared_text, the forms for it
  inspect                      counts of a config's data, and a packed row as text
  verify                       whether the data gives the batches that a run's ledger names

Only for these:

  pipeline                     tokenised examples to batches, in an order that can be resumed
  holding_out                  which examples are held out for the evaluation loss
  shard_reader                 reads shards at random
  arrow_tables, json_rows      the rows of Parquet and Arrow, and of JSON that is a table: what `formats` reads with
  dataset_cards                what the README of a data set says: configurations and their files
  not_records                  what people take for a file of records, and how it is refused
  tfds_sets                    data sets that tensorflow-datasets prepared
  worked                       the worked solutions of arithmetic, with columns and known_values
"""

__all__ = [
  'arithmetic',
  'audit',
  'catalog',
  'compared_rows',
  'compared_text',
  'contamination',
  'datasets',
  'encoded',
  'encoding',
  'examples',
  'expressions',
  'field_texts',
  'folders',
  'formats',
  'inspect',
  'left_out',
  'line_ranges',
  'malformed',
  'origins',
  'packing',
  'pairs',
  'shapes',
  'shard_card',
  'shards',
  'shared_prompts',
  'sources',
  'training_data',
  'verify',
]
