"""Entry point of the command line: `python -m fastgrow`."""

import sys

from fastgrow.cli import main

sys.exit(main())
