"""From files to validated rows: schema, loading, ids, splits and item text."""
