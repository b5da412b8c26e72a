"""Side-by-side runs that print the tables of the README."""
