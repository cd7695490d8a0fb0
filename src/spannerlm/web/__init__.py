"""The labelling page: people rate what a run asks (RELIABILITY, the labelling page)."""
