"""One thread that executes what all tasks ask of a store, in batches."""
