"""One page of HTML about what is in a store: rates, pictures, curves, flows."""
