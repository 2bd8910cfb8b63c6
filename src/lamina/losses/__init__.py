"""What training minimizes: one file per loss."""
