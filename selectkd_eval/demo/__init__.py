"""The embedded pair, its two text families, and the whole job on them in minutes on a CPU."""
