"""Who computes together: process groups and what they exchange."""
