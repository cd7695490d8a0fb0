"""Label-efficient exploration for reinforcement learning with language models, through a sampling oracle."""
