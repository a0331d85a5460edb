"""Your definitions in a checkout: `dg scaffold defs` writes here, and `assets/project.py` adds them to ours."""
