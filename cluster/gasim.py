"""What `ray submit CLUSTER.yaml cluster/gasim.py -- distill ...` copies to the head node and runs there."""

import os
import sys
from pathlib import Path

from gasim_ray.cli import main

# Ray runs this in the head's home; in the copy of the repository a relative path is what it is at home.
os.chdir(Path.home() / "gasim_ray")
sys.exit(main())
