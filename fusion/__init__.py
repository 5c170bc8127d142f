"""Named score columns of Candidates combined into one score."""
