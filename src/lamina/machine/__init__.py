"""What lamina runs on: devices, dtypes, memory, random generators, and the log output of other libraries."""
