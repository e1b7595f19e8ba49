"""What runs inside the nested host. It is copied into the host's root image as `nested_inside`."""
