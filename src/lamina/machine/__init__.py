"""What lamina runs on: devices, dtypes, memory, random generators, and other libraries kept quiet."""
