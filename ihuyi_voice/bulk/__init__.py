"""Many submits in one run."""
