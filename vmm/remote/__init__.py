"""``vmm-remote``: a running VM from the shell, with the subcommands of ch-remote."""
