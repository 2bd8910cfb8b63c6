"""What clients send, each field checked; an unknown field is an error."""
