"""What methods share: what a method is, where it goes in a model, and the parts that several are made of."""
