"""What training minimizes, one file a loss."""
