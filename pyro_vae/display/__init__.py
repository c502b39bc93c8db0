"""Short texts, tables and plots of results, for prompts and notebooks."""
