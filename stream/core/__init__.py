"""Records, identity, camera geometry, flag bits and errors: what every room speaks. Imports nothing of ours."""
