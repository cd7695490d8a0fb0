"""Is a model a good enough foundation? What its draws tell of that before labels are bought (THEORY 1-3; ours)."""
