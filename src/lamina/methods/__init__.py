"""PEFT methods, one file each: how a method is attached to a frozen model, its mathematics, its names on disk."""
