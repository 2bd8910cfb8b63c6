"""How good an adapter is, beside its bare base."""
