"""Moving a running VM to another VMM."""
