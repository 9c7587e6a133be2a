"""`python -m selectkd_eval ...` and `accelerate launch -m selectkd_eval ...`."""

import sys

from selectkd_eval.cli import main

sys.exit(main())
