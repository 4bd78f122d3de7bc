"""What this process reports about itself, and how the other workers are asked."""
