"""What this process reports about itself, and how it asks the other workers."""
