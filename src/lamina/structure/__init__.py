"""What a model in memory is made of: decoder layers, head, positions, and the modules that a text reaches."""
