"""What is solved exactly: the uplink's closed forms, bounds, allocation, enumeration, search."""
