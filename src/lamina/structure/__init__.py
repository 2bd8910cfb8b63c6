"""What a model in memory is made of: its layers, head and positions, and what a text reaches of it."""
