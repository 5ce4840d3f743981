"""`python -m fastgrow` is the command line."""

import sys

from fastgrow.cli import main

sys.exit(main())
