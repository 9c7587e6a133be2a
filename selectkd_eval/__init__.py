"""Train a student with selective token-weighted distillation, then prove what it is worth.

The measuring half of the project: it writes records and never draws. Importing it loads nothing heavy.
"""

__version__ = "0.1.0"
