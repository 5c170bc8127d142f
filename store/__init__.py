"""Files on disk: runs, artifacts, locks and named assets. Knows no stage."""
