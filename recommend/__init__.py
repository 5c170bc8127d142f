"""The one object that command line, batch and server share: candidates, rerank, fuse."""
