"""What of a VM can be kept in files."""
