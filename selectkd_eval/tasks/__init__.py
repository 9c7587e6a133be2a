"""The problems that pass@1 is measured on: what they ask, how they ask it, where they come from, what is right."""
