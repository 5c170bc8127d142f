"""Second stage: a cross-encoder reads the few candidates and scores them."""
