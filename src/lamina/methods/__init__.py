"""PEFT methods, one file each: how a method attaches to a frozen model, its mathematics, its names on disk."""
