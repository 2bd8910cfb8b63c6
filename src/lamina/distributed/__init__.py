"""The processes of a run: who each is, which share of the work is its own, and how their results become one."""
