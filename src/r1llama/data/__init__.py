"""What is read: rows and tokenizers."""
