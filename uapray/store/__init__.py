"""The results: tables with a schema, and perturbations, as objects below one URI."""
