"""Methods that learn from class names and images without labels: one file a method."""
