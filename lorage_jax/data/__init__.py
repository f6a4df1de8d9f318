"""From records to batches: files, tasks and text; chat turns; packing; what is held out."""
