"""``python -m sam_algos.command``: the command where the script is not on the path."""

import sys

from sam_algos.command import main

sys.exit(main())
