"""Examples to batches: readers, ChatML, packing, and the pipeline that joins them."""
