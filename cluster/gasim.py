"""What `ray submit CLUSTER.yaml cluster/gasim.py -- distill ...` copies to the head node and runs there."""

import sys

from gasim_ray.cli import main

sys.exit(main())
