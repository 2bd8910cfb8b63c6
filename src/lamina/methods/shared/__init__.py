"""What methods share: the `Method` contract, the choice of modules, parts that several are made of."""
