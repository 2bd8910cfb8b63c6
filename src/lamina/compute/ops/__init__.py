"""Operations with their own backward: adapter layers, packed attention, cross entropy, dropout."""
