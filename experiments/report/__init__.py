"""What writes the tables and numbers of RESULTS.md."""
