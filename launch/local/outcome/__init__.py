"""How a start ended: which rank failed, and what to tell of it."""
