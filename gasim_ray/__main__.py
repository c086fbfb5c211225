"""`python -m gasim_ray` is `gasim`."""

import sys

from gasim_ray.cli import main

sys.exit(main())
