"""`lamina import`: translates configurations of Axolotl, LLaMA-Factory and TRL, and command lines of the latter two."""
