"""First stage: towers and transitions find candidates in the whole catalog."""
