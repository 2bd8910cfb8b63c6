"""The executors, one file each, found by discovery: where the tasks of a fleet run."""
